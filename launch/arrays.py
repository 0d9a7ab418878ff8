"""A sweep as an array of Slurm, a task for each run: checked, frozen, submitted; then looked at, and cancelled."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import jobs, plans, results, slurm, snapshot, software, sweep, whose
from launch.jobs import Job
from launch.slurm import Submission, Wishes
from launch.sweep import Sweep
from launch.words import numbered, plain
from sft_dist import parse, preflight, rundir
from sft_dist.config import Config
from sft_dist.errors import ConfigError
from sft_dist.plan import World
from sft_dist.rundir import RunDir, read_json, write_json


@dataclass(frozen=True)
class Found:
    """A sweep that was submitted. folder: absolute. job: the number of its last array, None before there is one."""

    folder: Path
    job: str | None

    def run(self, task: int) -> RunDir:
        return RunDir(self.folder / f"{self.folder.name}-{task}")


def checked(path: Path, overrides: Sequence[str], wishes: Wishes, env: Mapping[str, str]) -> Sweep:
    """The sweep of a file, after every refusal of every run that needs neither torch nor Slurm."""
    plans.plain([str(path), *overrides])
    told = {name: value for name, value in env.items() if name != "SFT_EXPECT_WORLD"}

    def check(config: Config) -> None:
        procs = slurm.processes(config, wishes)
        preflight.check(config, World(size=wishes.nodes * procs, local_size=procs), told)

    made = sweep.load(path, overrides, check)
    slurm.check(wishes, made.folder, env)
    if any((made.folder / name).exists() for name in ("config.yaml", "job.json")):
        raise ConfigError(f"{made.folder} is the folder of a single run; give the sweep another `name:`")
    sizes = sorted({slurm.processes(task.settings, wishes) for task in made.tasks})
    if len(sizes) > 1:
        raise ConfigError(
            f"{' and '.join(map(str, sizes))} processes a node, by the runs' device: an array has one size; say it with --procs"
        )
    return made


def prepare(made: Sweep, path: Path, limit: int | None, wishes: Wishes, env: Mapping[str, str]) -> tuple[Submission, dict[str, bytes]]:
    """The job that makes what is not finished of a sweep, at most `limit` runs at a time; and the files of its snapshot."""
    configs = [parse.to_yaml(task.settings) for task in made.tasks]
    files = snapshot.of_sweep(software.REPOSITORY, path, made.config, configs)
    procs = slurm.processes(made.tasks[0].settings, wishes)
    python = env.get("SFT_PYTHON") or sys.executable
    tasks = sweep.indices(made.unfinished, limit)
    return Submission(made.name, made.folder, snapshot.place(made.folder, files), procs, wishes, python, array=tasks), files


def runs(made: Sweep) -> list[str]:
    """A line for each run of a sweep: its task, its name, and what varies."""
    left = made.unfinished
    lines = []
    for task in made.tasks:
        varied = "  ".join(f"{key}={sweep.text(value)}" for key, value in task.varied.items())
        lines.append(plain(f"# task {task.number}  {task.settings.run.name}  {varied}{'' if task in left else '  (finished)'}"))
    return lines


def submit(
    made: Sweep, job: Submission, files: Mapping[str, bytes], command: Sequence[str], env: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Ask Slurm, freeze the sweep in its folder, submit: the array's number, and what the user should know. command: what a person types."""
    notes = _no_second(made, job, env)
    if waits := jobs.test(job, env):
        notes.append(f"Slurm cannot start this now ({waits}); it will wait")
    shared = any(task.settings.run.shared for task in made.tasks)
    with rundir.writing(made.folder):
        made.folder.mkdir(mode=0o777 if shared else 0o700, parents=True, exist_ok=True)
    for task in made.unfinished:
        rundir.create(task.settings)
    code = snapshot.make(RunDir(made.folder), files)
    configs = code / snapshot.CONFIGS
    about: dict[str, Any] = {"cluster": jobs.cluster(env), "name": job.name, "submitted_ns": time.time_ns(), "submit_dir": str(Path.cwd())}
    about |= {"command": [*command], "argv": slurm.argv(job), "code": str(code), "world": job.world}
    whole = {**about, "configs": str(configs.relative_to(made.folder))}

    def record(number: str | None) -> None:
        write_json(made.folder / results.RECORD, {"job": number, **whole})
        for task in made.unfinished:
            name = f"{number}_{task.number}"
            known = {"job": name, "log": str(made.folder / f"slurm-{name}.log")} if number else {"job": None}
            typed = slurm.typed(configs / f"{task.number}.yaml", (), job.wishes)
            write_json(task.run.path / "job.json", {**about, **known, "task": task.number, "command": typed})

    record(None)  # before sbatch: a task may begin, or this end, at once
    number = jobs.submit(job, env)
    record(number)
    return number, notes


def find(told: str, env: Mapping[str, str]) -> Found | None:
    """The sweep that a folder, or the number of a whole array, names; None if it names something else."""
    if Path(told).is_dir():
        folder = Path(told).resolve()
        if not results.is_sweep(folder):
            return None
        kept = read_json(folder / results.RECORD)
        number = kept.get("job") or (whose.unnumbered(folder, kept, env) if "submitted_ns" in kept else None)
        return Found(folder, str(number) if number else None)
    if not told.isdecimal():
        return None
    job = jobs.look(told, env)
    return Found(job.run, told) if job and job.run and results.is_sweep(job.run) else None


def status(found: Found, env: Mapping[str, str]) -> list[str]:
    """The table of a sweep as it stands, with what Slurm says of each task."""
    other = _elsewhere(found, env)
    live = _live(found, env) if found.job and not other else None
    told = [other] if other else results.waiting(live or {})
    return [*results.text(results.read(found.folder, live=live)), *(["", *told] if told else [])]


def cancel(found: Found, save: bool, limit_s: float, env: Mapping[str, str]) -> Iterator[str]:
    """Cancel what is left of a sweep's array; with `save` one task after the other, the last first, so that none starts meanwhile."""
    if other := _elsewhere(found, env):
        raise ConfigError(other)
    live = _live(found, env)
    if found.job is None or not live:
        yield f"{found.folder}: no task of it waits or runs"
    elif save:
        for task in sorted(live, reverse=True):
            yield from jobs.save_and_cancel(f"{found.job}_{task}", found.run(task), limit_s, env)
    else:
        jobs.cancel(found.job, env)
        yield f"job {found.job} is cancelled, with {len(live)} task(s); each saves if that is faster than the cluster's KillWait (--save waits for it)"


def would_cancel(found: Found, save: bool, limit_s: float, env: Mapping[str, str]) -> list[str]:
    """What `cancel` would run."""
    if other := _elsewhere(found, env):
        raise ConfigError(other)
    live = _live(found, env)
    if found.job is None or not live:
        return [f"# {found.folder}: no task of it waits or runs"]
    each = [f"{found.job}_{task}" for task in sorted(live, reverse=True)] if save else [found.job]
    return [line for number in each for line in jobs.would_cancel(number, save, limit_s)]


def _no_second(made: Sweep, job: Submission, env: Mapping[str, str]) -> list[str]:
    """Raises ConfigError where a job makes any of the runs already; returns what could not be found out."""
    unknown: dict[int, str] = {}
    wrong: dict[int, str] = {}
    for task in made.unfinished:
        try:
            if note := whose.refuse_a_second(task.run, job.wishes, env, other="`name:` in the sweep"):
                unknown[task.number] = note
        except ConfigError as error:
            wrong[task.number] = str(error)
    if wrong:
        raise ConfigError(_once(wrong))
    return _once(unknown)


def _once(told: Mapping[int, str]) -> list[str]:
    """What is told of many tasks in almost the same words: of the first, and how many more there are."""
    first, others = list(told.values())[:1], list(told)[1:]
    return [*first, *([f"the same of {numbered('task', others)}: {len(others)} more"] if others else [])]


def _elsewhere(found: Found, env: Mapping[str, str]) -> str | None:
    """Why this machine's Slurm cannot be asked about a sweep; None if it can."""
    there = read_json(found.folder / results.RECORD).get("cluster")
    if not found.job or not there or (here := jobs.cluster(env)) == there:
        return None
    return f"job {found.job} was submitted on cluster {there}, and this machine's is {here}: ask there"


def _live(found: Found, env: Mapping[str, str]) -> dict[int, Job]:
    """The tasks that wait or run; none where the number was given anew to a job that does not run this sweep's snapshot."""
    job = jobs.look(found.job, env) if found.job else None
    ours = job is not None and job.run is not None and job.run.resolve() == found.folder.resolve()
    return jobs.live_tasks(job.number, env) if job and ours else {}
