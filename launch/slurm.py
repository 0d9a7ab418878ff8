"""From a config and a user's wishes to the exact sbatch command, its environment, and what a dry run prints; nothing is run here."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import plans, software
from launch.nodes import without_leaks
from launch.snapshot import CONFIG, SCRIPT
from launch.words import plain
from sft_dist.config import Config
from sft_dist.errors import ConfigError
from sft_dist.redact import SECRET_NAME

OURS = {  # a flag of sbatch -> what decides it instead
    "--nodes": "sft-launch's own --nodes, before the --",
    "-N": "sft-launch's own --nodes, before the --",
    "--time": "sft-launch's own --time, before the --",
    "-t": "sft-launch's own --time, before the --",
    "--gpus-per-node": "sft-launch's own --gpus-per-node, before the --",
    "--job-name": "run.name",
    "-J": "run.name",
    "--output": "the run's folder, where the log lies",
    "-o": "the run's folder, where the log lies",
    "--export": "the job gets this environment, whole",
    "--export-file": "the job gets this environment, whole",
    "--chdir": "the folder that you submit from",
    "-D": "the folder that you submit from",
    "--wrap": "slurm/finetune.sh is what runs",
    "--array": "slurm/finetune.sh makes one run",
    "-a": "slurm/finetune.sh makes one run",
    "--ntasks": "one agent a node, which starts --procs processes",
    "-n": "one agent a node, which starts --procs processes",
    "--ntasks-per-node": "one agent a node, which starts --procs processes",
    "--gpus-per-task": "it hides the GPUs of a node from each other: use --gpus-per-node",
    "--open-mode": "slurm/finetune.sh: a second start appends to the log of the first",
    "--parsable": "sft-launch",
    "--test-only": "sft-launch: --dry-run",
}
OF_SLURM = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_EXIT_ERROR", "SLURM_UMASK", "SLURM_TIME_FORMAT")


@dataclass(frozen=True)
class Wishes:
    """What a user asks of the cluster. others: further flags of sbatch, as they are."""

    nodes: int = 1
    procs: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    gpus_per_node: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submission:
    """One job that makes one run. run: its folder; code: the snapshot in it, made of what lies in `source`; all absolute."""

    name: str
    run: Path
    code: Path
    procs: int
    wishes: Wishes
    python: str = sys.executable
    source: Path = software.REPOSITORY

    @property
    def world(self) -> int:
        return self.wishes.nodes * self.procs


def check(wishes: Wishes, run: Path) -> None:
    """Raises ConfigError for what must not reach sbatch, all of it at once."""
    told = [value for value in (wishes.time, wishes.partition, wishes.account, wishes.gpus_per_node, *wishes.others) if value is not None]
    plans.plain([*told, str(run)])
    wrong = [f"{flag} is not for you to set here: {why}" for flag in wishes.others for name, why in OURS.items() if is_flag(flag, name)]
    wrong += [
        f"{word!r} after -- is no flag of sbatch, which is one word here, like --mem=64G or -xn2; key=value stands before the --"
        for word in wishes.others
        if not word.startswith("-")
    ]
    if "\\" in str(run):
        wrong.append(f"{run} holds a backslash, which Slurm takes out of a log's path; use another run.dir")
    if wishes.gpus_per_node is not None and _gpus(wishes.gpus_per_node) is None:
        wrong.append(f"--gpus-per-node {wishes.gpus_per_node!r}; use a number, or type:number like a100:4")
    if wrong:
        raise ConfigError(wrong)


def processes(config: Config, wishes: Wishes) -> int:
    """Processes on each node: as asked, or one a GPU, or one. Raises ConfigError where GPUs and processes do not fit."""
    gpus = _gpus(wishes.gpus_per_node) if wishes.gpus_per_node else None
    unseen = [
        flag
        for flag in wishes.others
        if any(is_flag(flag, name) for name in ("--gres", "--gpus", "-G", "--gpus-per-task", "--gpus-per-socket"))
    ]
    if unseen and not wishes.procs:
        raise ConfigError(
            f"{unseen[0]}: how many processes a node needs cannot be seen from that; use --gpus-per-node, or say --procs as well"
        )
    if config.device == "cpu":
        return wishes.procs or 1
    if gpus and wishes.procs and wishes.procs > gpus:
        raise ConfigError(
            f"--procs {wishes.procs} on {gpus} GPU(s) a node: two processes cannot share one; use --procs {gpus}, or leave it out"
        )
    if config.device == "cuda" and gpus is None and wishes.procs is None:
        raise ConfigError(
            "device = cuda, but how many GPUs a node has nobody has said; use --gpus-per-node, or --procs where a partition gives GPUs by itself"
        )
    return wishes.procs or gpus or 1


def argv(job: Submission, test_only: bool = False) -> list[str]:
    """The command that submits the job, or asks before there is a snapshot whether Slurm would take it. No shell ever reads it."""
    log = str(job.run / "slurm-").replace("%", "%%") + "%j.log"
    wishes = job.wishes
    asked = {"time": wishes.time, "partition": wishes.partition, "account": wishes.account, "gpus-per-node": wishes.gpus_per_node}
    return [
        "sbatch",
        "--test-only" if test_only else "--parsable",
        f"--job-name={job.name}",
        f"--nodes={wishes.nodes}",
        *(f"--{name}={value}" for name, value in asked.items() if value is not None),
        f"--output={log}",
        "--export=ALL",
        *wishes.others,
        str((job.source if test_only else job.code) / SCRIPT),
        str(job.code / CONFIG),
    ]


def environment(job: Submission, env: Mapping[str, str]) -> dict[str, str]:
    """sbatch's whole environment, and so the job's: --export=NAME=value would split values at their commas.

    Less what another launcher, or a job that this is submitted from, has left in it.
    """
    inside = "SLURM_JOB_ID" in env
    kept = {
        name: value for name, value in without_leaks(env).items() if not (inside and name.startswith("SLURM_") and name not in OF_SLURM)
    }
    ours = {"SFT_CODE": str(job.code), "SFT_EXPECT_WORLD": str(job.world), "SFT_PROCS_PER_NODE": str(job.procs), "SFT_PYTHON": job.python}
    return {**kept, **ours}


def typed(config: Path, overrides: Sequence[str], wishes: Wishes) -> list[str]:
    """The command line that submits the same again; what is added to its end changes the config."""
    asked = {"nodes": wishes.nodes, "procs": wishes.procs, "time": wishes.time, "partition": wishes.partition}
    asked |= {"account": wishes.account, "gpus-per-node": wishes.gpus_per_node}
    flags = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    return ["sft-launch", "slurm", "submit", *flags, *(f"--sbatch={flag}" for flag in wishes.others), str(config), *overrides]


def describe(job: Submission, env: Mapping[str, str], files: Mapping[str, bytes]) -> list[str]:
    """Everything that a submission would do, in lines that can be pasted into a shell once the files are there; secrets are redacted."""
    wanted = environment(job, env)
    fresh = {name: value for name, value in wanted.items() if env.get(name) != value}
    defaults = [line for line in files[SCRIPT].decode().splitlines() if line.startswith("#SBATCH")]
    return [
        f"# {job.world} rank(s) on {job.wishes.nodes} node(s), run folder {plain(str(job.run))}",
        f"# {len(files)} files would be put aside in {plain(str(job.code))}:",
        *(f"#   {name}" for name in sorted(files) if "/" not in name or name == SCRIPT),
        *(f"#   {package}/ ({sum(name.startswith(f'{package}/') for name in files)} files)" for package in ("launch", "sft_dist")),
        "# what the script asks for where the command below says nothing:",
        *(f"#   {line.removeprefix('#SBATCH ')}" for line in defaults),
        *(f"unset {name}" for name in sorted(set(env) - set(wanted))),
        *(f"export {name}={shlex.quote('...' if SECRET_NAME.search(name) else value)}" for name, value in sorted(fresh.items())),
        "# first, whether Slurm would take it:",
        shlex.join(argv(job, test_only=True)),
        "# then:",
        shlex.join(argv(job)),
    ]


def submitted(number: str, job: Submission) -> list[str]:
    """What a user reads after a submission: the job, its folder, how to follow it."""
    run = shlex.quote(str(job.run))
    return [
        f"job {number}: {job.world} rank(s) on {job.wishes.nodes} node(s)",
        f"  run     {plain(str(job.run))}",
        f"  code    {plain(str(job.code))}",
        "follow it:",
        f"  squeue -j {number}",
        f"  tail -F {shlex.quote(str(job.run / f'slurm-{number}.log'))}",
        f"  sft-launch slurm status {run}",
        f"  sft-launch why {run}",
        f"  sft-launch slurm cancel --save {number}",
    ]


def is_flag(flag: str, name: str) -> bool:
    return flag == name or (flag.startswith(f"{name}=") if name.startswith("--") else flag.startswith(name) and not flag.startswith("--"))


def _gpus(told: str) -> int | None:
    """How many GPUs `4`, `a100:4` or `a100:2,v100:2` are; None for anything else."""
    found = [re.fullmatch(r"(?:[\w.-]+:)?([1-9][0-9]*)", part) for part in told.split(",")]
    return sum(int(match[1]) for match in found if match) if all(found) else None
