"""From a config and a user's wishes to the exact sbatch command, its environment, and what a dry run prints; nothing is run here."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import flags, plans, software
from launch.nodes import without_leaks
from launch.snapshot import ARRAY, CONFIG, CONFIGS, SCRIPT
from launch.words import plain
from sft_dist.config import Config
from sft_dist.errors import ConfigError
from sft_dist.redact import SECRET_NAME

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
    """One job that makes one run. run: its folder; code: the snapshot in it, made of what lies in `source`; all absolute.

    array: what sbatch's --array takes, where each task makes a run of its own; `run` is then the folder of all of them.
    """

    name: str
    run: Path
    code: Path
    procs: int
    wishes: Wishes
    python: str = sys.executable
    source: Path = software.REPOSITORY
    array: str | None = None

    @property
    def script(self) -> str:
        return ARRAY if self.array else SCRIPT

    @property
    def world(self) -> int:
        return self.wishes.nodes * self.procs


def check(wishes: Wishes, run: Path, env: Mapping[str, str]) -> None:
    """Raises ConfigError for what must not reach sbatch, all of it at once; env: that it is submitted from."""
    told = [value for value in (wishes.time, wishes.partition, wishes.account, wishes.gpus_per_node, *wishes.others) if value is not None]
    plans.plain([*told, str(run)])
    wrong = [problem for flag in wishes.others for problem in flags.refused(flag)]
    wrong += flags.refused_variables(env, gpus_told=wishes.gpus_per_node is not None)
    if "\\" in str(run):
        wrong.append(f"{run} holds a backslash, which Slurm takes out of a log's path; use another run.dir")
    if wishes.gpus_per_node is not None and _gpus(wishes.gpus_per_node) is None:
        wrong.append(f"--gpus-per-node {wishes.gpus_per_node!r}; use a number, or type:number like a100:4")
    if wrong:
        raise ConfigError(wrong)


def processes(config: Config, wishes: Wishes) -> int:
    """Processes on each node: as asked, or one a GPU, or one. Raises ConfigError where GPUs and processes do not fit."""
    gpus = _gpus(wishes.gpus_per_node) if wishes.gpus_per_node else None
    counted = ("--gres", "--gpus", "--gpus-per-task", "--gpus-per-socket")
    unseen = [flag for flag in wishes.others if any(flags.means(flag, name) for name in counted)]
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
    log = str(job.run / "slurm-").replace("%", "%%") + ("%A_%a.log" if job.array else "%j.log")
    wishes = job.wishes
    asked = {"time": wishes.time, "partition": wishes.partition, "account": wishes.account, "gpus-per-node": wishes.gpus_per_node}
    return [
        "sbatch",
        "--test-only" if test_only else "--parsable",
        f"--job-name={job.name}",
        *([f"--array={job.array}"] if job.array else []),
        f"--nodes={wishes.nodes}",
        *(f"--{name}={value}" for name, value in asked.items() if value is not None),
        f"--output={log}",
        "--export=ALL",
        *wishes.others,
        str((job.source if test_only else job.code) / job.script),
        str(job.code / (CONFIGS if job.array else CONFIG)),
    ]


def environment(job: Submission, env: Mapping[str, str]) -> dict[str, str]:
    """sbatch's whole environment, and so the job's: --export=NAME=value would split values at their commas.

    Less what another launcher, or a job that this is submitted from, has left in it, and what would keep srun from handing it on.
    """
    inside = "SLURM_JOB_ID" in env
    gone = {name for name in env if inside and name.startswith("SLURM_") and name not in OF_SLURM} | {"SLURM_EXPORT_ENV"}
    kept = {name: value for name, value in without_leaks(env).items() if name not in gone}
    ours = {"SFT_CODE": str(job.code), "SFT_EXPECT_WORLD": str(job.world), "SFT_PROCS_PER_NODE": str(job.procs), "SFT_PYTHON": job.python}
    return {**kept, **ours}


def typed(config: Path, overrides: Sequence[str], wishes: Wishes, verb: Sequence[str] = ("submit",)) -> list[str]:
    """The command line that submits the same again; what is added to its end changes the config."""
    asked = {"nodes": wishes.nodes, "procs": wishes.procs, "time": wishes.time, "partition": wishes.partition}
    asked |= {"account": wishes.account, "gpus-per-node": wishes.gpus_per_node}
    given = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    return ["sft-launch", "slurm", *verb, *given, *(f"--sbatch={flag}" for flag in wishes.others), str(config), *overrides]


def describe(job: Submission, env: Mapping[str, str], files: Mapping[str, bytes]) -> list[str]:
    """Everything that a submission would do, in lines that can be pasted into a shell once the files are there; secrets are redacted."""
    wanted = environment(job, env)
    fresh = {name: value for name, value in wanted.items() if env.get(name) != value}
    defaults = [line for line in files[job.script].decode().splitlines() if line.startswith("#SBATCH")]
    packages = [CONFIGS] * bool(job.array) + ["launch", "sft_dist"]
    return [
        f"# {job.world} rank(s) on {job.wishes.nodes} node(s), run folder {plain(str(job.run))}",
        f"# {len(files)} files would be put aside in {plain(str(job.code))}:",
        *(f"#   {name}" for name in sorted(files) if "/" not in name or name in (SCRIPT, job.script)),
        *(f"#   {package}/ ({sum(name.startswith(f'{package}/') for name in files)} files)" for package in packages),
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


def submitted_array(number: str, job: Submission) -> list[str]:
    """The same for an array."""
    run, first = shlex.quote(str(job.run)), re.split(r"\D", job.array or "0")[0]
    return [
        f"job {number}, tasks {job.array}: {job.world} rank(s) on {job.wishes.nodes} node(s) each",
        f"  sweep   {plain(str(job.run))}",
        f"  code    {plain(str(job.code))}",
        "follow it:",
        f"  squeue -j {number}",
        f"  sft-launch slurm status {run}",
        "one of its runs, as any other:",
        f"  sft-launch why {shlex.quote(f'{job.run}/{job.name}-{first}')}",
        f"  sft-launch slurm cancel --save {number}_{first}",
        f"when the last one has ended, the table lies in {plain(str(job.run / 'table.txt'))}",
    ]


def _gpus(told: str) -> int | None:
    """How many GPUs `4`, `a100:4` or `a100:2,v100:2` are; None for anything else."""
    found = [re.fullmatch(r"(?:[\w.-]+:)?([1-9][0-9]*)", part) for part in told.split(",")]
    return sum(int(match[1]) for match in found if match) if all(found) else None
