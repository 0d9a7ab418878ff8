"""Jobs as Slurm sees them, by its own commands: submit, look, signal, cancel."""

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import queue, slurm
from launch.slurm import Submission
from sft_dist.errors import ConfigError, MachineError
from sft_dist.rundir import RunDir, read_json

NUMBER = re.compile(r"[1-9][0-9]*(?:_[0-9]+)?")
LIMIT_S = 120.0
"""For one of Slurm's commands: a busy controller answers within a minute, or not at all."""
MAY_SAVE = ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING")
FORGOTTEN = "Slurm no longer knows it: scontrol forgets a job some minutes after its end (MinJobAge)"


@dataclass(frozen=True)
class Job:
    """What Slurm knows of a job. start: when it began, or is expected to. log: where the batch script writes.

    run: the folder of the run, if sft-launch submitted it; of the sweep, where the number is that of a whole array. command: the script
    and its arguments; empty where only the accounting knows it.
    """

    number: str
    state: str
    reason: str = "None"
    exit_code: str = ""
    restarts: str = "0"
    start: str = "Unknown"
    nodes: str = ""
    log: Path | None = None
    run: Path | None = None
    name: str = ""
    command: str = ""

    @property
    def live(self) -> bool:
        return self.state in queue.LIVE


@dataclass(frozen=True)
class Answer:
    """How one of Slurm's commands ended."""

    code: int
    out: str
    err: str


def ask(command: Sequence[str], env: Mapping[str, str]) -> Answer:
    """Run one of Slurm's commands, without a shell. Raises MachineError where it is not there, or does not answer."""
    if shutil.which(command[0], path=env.get("PATH")) is None:
        raise MachineError(f"there is no {command[0]} on this machine: use a login node of a Slurm cluster; without Slurm, sft-launch run")
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise MachineError(f"{command[0]} has not answered for {LIMIT_S:.0f} s: the cluster's controller is down or very busy") from None
    return Answer(done.returncode, done.stdout, done.stderr)


def test(job: Submission, env: Mapping[str, str]) -> str | None:
    """Ask whether Slurm would take the job; nothing is written. Returns what only makes it wait, raises where it would never run."""
    answer = ask(slurm.argv(job, test_only=True), slurm.environment(job, env))
    if answer.code == 0:
        return None
    if queue.only_waits(answer.err, ask(["sinfo", "--noheader", "--format=%T"], env).out.split()):
        return answer.err.strip()
    raise _refused(answer)


def submit(job: Submission, env: Mapping[str, str]) -> str:
    """Submit from the present folder; the job's number."""
    answer = ask(slurm.argv(job), slurm.environment(job, env))
    number = answer.out.strip().partition(";")[0]
    if answer.code or not NUMBER.fullmatch(number):
        raise _refused(answer)
    return number


def look(number: str, env: Mapping[str, str]) -> Job | None:
    """What scontrol knows of a job, else what sacct does; None if neither knows it."""
    answer = ask(["scontrol", "show", "job", number], env)
    if answer.code == 0 and (found := read(number, answer.out)):
        return found
    if answer.code and "nvalid job id" not in answer.err:
        raise _refused(answer, "scontrol does not answer")
    return _accounted(number, env)


def read(number: str, shown: str) -> Job | None:
    """A job from what `scontrol show job` prints; of an array, its first task there."""

    def value(pattern: str, otherwise: str = "") -> str:
        match = re.search(rf"^ +(?:\S.* )?{pattern}", shown, re.MULTILINE)
        return match[1] if match else otherwise

    state = re.search(r"^ +JobState=(\S+) Reason=(\S+)", shown, re.MULTILINE)
    if not state:
        return None
    log = value(r"StdOut=(.*)$")
    # Not from the log's folder: scontrol 22.05 shows %% in it wrongly.
    run = value(r"Command=(.*?)/code/[0-9a-f]{16}/slurm/(?:finetune|array)\.sh")
    array = re.search(r"^JobId=\d+ ArrayJobId=(\d+) ArrayTaskId=(\S+)", shown)
    task = number.partition("_")[2] or (array[2] if array and array[1] != number else "")
    if run and task:
        run = f"{run}/{Path(run).name}-{task}"
    return Job(
        number,
        state[1],
        state[2],
        value(r"ExitCode=(\S+)"),
        value(r"Restarts=(\d+)", "0"),
        value(r"StartTime=(\S+)", "Unknown"),
        value(r"NumNodes=(\S+)"),
        Path(log) if log else None,
        Path(run) if run else None,
        name[1] if (name := re.search(r"^JobId=.*?JobName=(.*)$", shown, re.MULTILINE)) else "",
        value(r"Command=(.*)$"),
    )


def cluster(env: Mapping[str, str]) -> str:
    """The name of the cluster that Slurm's commands speak to."""
    answer = ask(["scontrol", "show", "config"], env)
    name = re.search(r"^ClusterName\s*=\s*(\S+)", answer.out, re.MULTILINE)
    if answer.code or name is None:
        raise _refused(answer, "scontrol does not answer")
    return name[1]


def live_tasks(number: str, env: Mapping[str, str]) -> dict[int, Job]:
    """The tasks of an array that wait or run, by their index."""
    answer = ask(["squeue", "--noheader", "--array", f"--jobs={number}", "--format=%K %T %r"], env)
    if answer.code and "nvalid job id" not in answer.err:
        raise _refused(answer, "squeue does not answer")
    rows = [line.split(None, 2) for line in answer.out.splitlines()]
    return {int(task): Job(f"{number}_{task}", state, reason.replace(" ", "_")) for task, state, reason in rows if task.isdecimal()}


def cancel(number: str, env: Mapping[str, str]) -> None:
    """Without a word to the run beforehand; Slurm leaves it the cluster's KillWait to save."""
    answer = ask(ending(number), env)
    if answer.code:
        raise _refused(answer, f"job {number} was not cancelled")


def ending(number: str) -> list[str]:
    return ["scancel", number]


def asking(number: str) -> list[str]:
    """To the batch script alone, which asks all ranks."""
    return ["scancel", "--batch", "--signal=TERM", number]


def would_cancel(number: str, save: bool, limit_s: float) -> list[str]:
    """What `cancel`, or `save_and_cancel`, would run for a job that is running."""
    if not save:
        return [shlex.join(ending(number))]
    return [
        shlex.join(asking(number)),
        f"# wait for its end, {limit_s:.0f} s at most, and only if it has not come:",
        shlex.join(ending(number)),
    ]


def save_and_cancel(number: str, run: RunDir | None, limit_s: float, env: Mapping[str, str]) -> Iterator[str]:
    """Ask a job to save and end, wait until it has, and cancel it where it has not after `limit_s`; tells what happens as it does."""
    job = look(number, env)
    if job is None or not job.live:
        yield f"job {number} has ended already" + (f": it {queue.state_in_words(job.state)}" if job else "")
        return
    if job.state not in MAY_SAVE:
        cancel(number, env)
        yield f"job {number} {queue.state_in_words(job.state)}: nothing to save; cancelled"
        return
    asked_s, before = time.monotonic(), read_json(run.outcome) if run else {}
    answer = ask(asking(number), env)
    if answer.code:
        raise _refused(answer, f"job {number} was not signalled")
    yield f"job {number} is asked to save and end; it is waited for up to {limit_s:.0f} s, then cancelled (ctrl-C leaves it to itself)"
    while (job := look(number, env)) and job.live:
        if time.monotonic() - asked_s > limit_s:
            cancel(number, env)
            yield f"job {number} has not ended within {limit_s:.0f} s: cancelled; {_checkpoint(run)}"
            return
        time.sleep(2)
    yield f"job {number} {queue.state_in_words(job.state) if job else 'has ended'}"
    if run is not None:
        yield _saved(run, before)


def _saved(run: RunDir, before: Mapping[str, Any]) -> str:
    told = read_json(run.outcome)
    if told != before and told.get("outcome") in ("saved", "done"):
        return f"{run.path}: {told.get('outcome')} at step {told.get('step')}"
    return f"{run.path}: it has not said that it saved; {_checkpoint(run)}"


def _checkpoint(run: RunDir | None) -> str:
    if run is None:
        return "its folder is not known"
    return f"the last checkpoint is that of step {run.saved_step}" if run.saved_step else "there is no checkpoint"


def _accounted(number: str, env: Mapping[str, str]) -> Job | None:
    """What the accounting knows, where there is one."""
    if shutil.which("sacct", path=env.get("PATH")) is None:
        return None
    told = ask(["sacct", "-j", number, "-X", "-n", "-P", "--format=State,ExitCode,Start,NNodes,JobName"], env)
    fields = told.out.strip().splitlines()[-1].split("|", 4) if told.code == 0 and told.out.strip() else []
    if len(fields) != 5:
        return None
    return Job(number, fields[0].split()[0], exit_code=fields[1], start=fields[2], nodes=fields[3], name=fields[4])


def _refused(answer: Answer, doing: str | None = None) -> ConfigError | MachineError:
    why = queue.refusal(answer.err or answer.out)
    sentence = f"{doing}: {why.sentence.removeprefix(queue.REFUSED)}" if doing else why.sentence
    return ConfigError(sentence) if why.mended_by_user else MachineError(sentence)
