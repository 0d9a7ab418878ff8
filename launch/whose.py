"""Which job makes a run, and whether the one that has its number now still is that job."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import flags, jobs, queue, slurm
from launch.jobs import NUMBER, Job
from launch.words import plain
from sft_dist import attempts
from sft_dist.errors import ConfigError, MachineError
from sft_dist.rundir import RunDir, read_json


@dataclass(frozen=True)
class Found:
    """What a user means by RUN|JOBID: a run, a job, or a run and its last job.

    number: the job's. job: what Slurm knows of it. stranger: why the job that has this number is not the run's; then there is no `job`.
    """

    run: RunDir | None
    number: str | None = None
    job: Job | None = None
    stranger: str | None = None


def find(told: str, env: Mapping[str, str]) -> Found:
    """The run and the job that RUN|JOBID names. Raises ConfigError where it is neither."""
    if Path(told).is_dir():
        found = of_run(RunDir(Path(told)), env)
        if found.number is None and not attempts.numbers(RunDir(Path(told))) and not (Path(told) / "config.yaml").exists():
            raise ConfigError(f"{told} is neither the folder of a run, nor has a job been submitted for it")
        return found
    if not NUMBER.fullmatch(told):
        raise ConfigError(f"{told!r} is neither a folder nor the number of a job")
    job = jobs.look(told, env)
    if job is None:
        raise ConfigError(f"job {told}: {jobs.FORGOTTEN}, or never did; name the run's folder instead")
    return Found(RunDir(job.run) if job.run and job.run.is_dir() else None, told, job)


def of_run(run: RunDir, env: Mapping[str, str]) -> Found:
    """A run and its last job, if that is still the one which has the number."""
    number = last_job(run)
    kept = read_json(run.path / "job.json")
    if number is None and "submitted_ns" in kept:
        number = unnumbered(run.path, kept, env)
    if number is None:
        return Found(run)
    told = _recorded(run, number)
    if told.get("cluster") and (here := jobs.cluster(env)) != told["cluster"]:
        return Found(
            run, number, stranger=f"job {number} was submitted on cluster {told['cluster']}, and this machine's is {here}: ask there"
        )
    job = jobs.look(number, env)
    other = stranger(job, run) if job else None
    return Found(run, number, None if other else job, other)


def unnumbered(folder: Path, kept: Mapping[str, Any], env: Mapping[str, str]) -> str | None:
    """The job of a submission that was cut off before its number was written down: the one in the queue that makes the run, or the
    sweep, of a folder. kept: what was written down; with a `task`, the run is that one of an array."""
    answer = jobs.ask(["squeue", "--me", "--noheader", "--format=%F", f"--name={kept.get('name')}"], env)
    if answer.code:
        raise MachineError(f"squeue does not answer: {answer.err.strip()}")
    task = f"_{kept['task']}" if "task" in kept else ""
    numbers = sorted({int(number) for number in answer.out.split() if number.isdecimal()}, reverse=True)
    waiting = [job for number in numbers if (job := jobs.look(f"{number}{task}", env))]
    return next((job.number for job in waiting if job.run and os.path.realpath(job.run) == os.path.realpath(folder)), None)


def stranger(job: Job, run: RunDir) -> str | None:
    """Why a job is not the one of this number that the run's folder knows; None if it is."""
    if _same(job, run, _recorded(run, job.number)):
        return None
    now = f"makes {job.run}" if job.run else f"is {job.name!r}" + (f", which runs {plain(job.command)}" if job.command else "")
    return f"job {job.number} is no longer that of {run.path}: the number was given anew, and {now}"


def last_job(run: RunDir) -> str | None:
    """The job that was submitted last for a run, or that began an attempt last (one that was submitted by hand), as its folder knows it."""
    told = _by_hand(run) or str(read_json(run.path / "job.json").get("job"))
    return told if NUMBER.fullmatch(told) else None


def log_of(run: RunDir, number: str | None = None) -> Path | None:
    """Where the batch script of a run's last job writes, or of the job of that number; None where its folder does not know."""
    kept = read_json(run.path / "job.json")
    told = kept.get("log")
    return Path(told) if isinstance(told, str) and kept.get("job") == (number or last_job(run)) else None


def refuse_a_second(run: RunDir, wishes: slurm.Wishes, env: Mapping[str, str], other: str = "run.name") -> str | None:
    """Raises ConfigError where a job for the run is in the queue already, unless the new one says that it depends on another.

    Returns what could not be found out, for the user to know. other: the key that makes another run of it.
    """
    if any(flags.means(flag, "--dependency") for flag in wishes.others):
        return None
    found = of_run(run, env)
    if found.job and found.job.live:
        raise ConfigError(
            f"{run.path} has a job already: {found.number} {queue.state_in_words(found.job.state)}; cancel that (sft-launch slurm cancel "
            f"{found.number}), use another {other}, or let the new one follow it (-- --dependency=afterany:{found.number})"
        )
    return found.stranger


def command_of(run: RunDir, number: str | None, code: Path) -> list[str] | None:
    """What a person typed to submit the job that begins now, from `code`; None if it was not `sft-launch slurm submit`.

    A job may begin before sbatch has told its number to who submits it: its snapshot says as well whose it is.
    """
    kept = read_json(run.path / "job.json")
    ours = kept["job"] == number if kept.get("job") else "code" in kept and os.path.realpath(str(kept["code"])) == os.path.realpath(code)
    told = kept.get("command")
    return told if ours and isinstance(told, list) and all(isinstance(word, str) for word in told) else None


def _begun(run: RunDir) -> dict[str, Any]:
    made = attempts.numbers(run)
    return read_json(attempts.folder(run, made[-1]) / "attempt.json") if made else {}


def _by_hand(run: RunDir) -> str | None:
    """The job that began the last attempt, where none has been submitted since."""
    begun, submitted = _begun(run), read_json(run.path / "job.json")
    found = re.match(rf"Slurm job ({NUMBER.pattern})", str(begun.get("launcher", "")))
    return found[1] if found and _number(begun.get("started_ns")) > _number(submitted.get("submitted_ns")) else None


def _number(told: object) -> int:
    return told if isinstance(told, int) else 0


def _recorded(run: RunDir, number: str) -> dict[str, Any]:
    """What was written down of a job besides its number: `cluster`, `name`, and `arguments` of slurm/finetune.sh or `code`."""
    kept = read_json(run.path / "job.json")
    if str(kept.get("job")) == number:
        return kept
    told = _begun(run).get("slurm")
    return told if isinstance(told, dict) else {}


def _same(job: Job, run: RunDir, told: Mapping[str, Any]) -> bool:
    """Whether a job is this run's: by the snapshot that it runs; else, as far as they are known, by name and arguments."""
    if job.run:
        return os.path.realpath(job.run) == os.path.realpath(run.path)
    if "code" in told and job.command:
        return False
    arguments = job.command.partition("/finetune.sh ")[2]
    named = told.get("name") in (None, job.name)
    return named and (not arguments or told.get("arguments") in (None, arguments))
