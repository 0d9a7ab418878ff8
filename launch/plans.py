"""The one launch plan: what would be started, where, and with which environment. Whatever is printed of it is what runs."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.nodes import without_leaks
from launch.software import REPOSITORY
from sft_dist.config import Config
from sft_dist.errors import ConfigError
from sft_dist.redact import SECRET_NAME


@dataclass(frozen=True)
class Launch:
    """A run, and the processes that shall make it.

    config: the file; overrides: key=value. nodes x procs ranks. head, port: where node 0 listens (port 0: it takes a free one,
    on one node only). attempt: attempts/<k> of the run's folder.
    """

    config: Path
    overrides: tuple[str, ...]
    nodes: int
    procs: int
    attempt: Path
    head: str = "127.0.0.1"
    port: int = 0
    python: str = sys.executable

    @property
    def world(self) -> int:
        return self.nodes * self.procs


def plain(parts: Sequence[str]) -> None:
    """Raises ConfigError for an argument with a control character in it: a newline would begin a command of its own in a script."""
    odd = [part for part in parts if any(ord(letter) < 32 or ord(letter) == 127 for letter in part)]
    if odd:
        raise ConfigError([f"{part!r} holds a control character; names, paths and values must not" for part in odd])


def agent(launch: Launch, node: int | None = None) -> list[str]:
    """The command that runs one node; without a number it is Slurm that says which."""
    where = ["--nodes", str(launch.nodes), "--procs", str(launch.procs), "--head", launch.head, "--port", str(launch.port)]
    which = [] if node is None else ["--node", str(node)]
    # -P: the folder that it is started in must not hide a library, nor bring other code than the repository's
    return [
        launch.python,
        "-P",
        "-m",
        "launch.node_agent",
        *where,
        *which,
        "--attempt",
        str(launch.attempt),
        str(launch.config),
        *launch.overrides,
    ]


def environment(launch: Launch, env: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of an agent: this one, less what another launcher has left, and the code's own folder first."""
    paths = [str(REPOSITORY), *filter(None, env.get("PYTHONPATH", "").split(":"))]
    ours = {"SFT_EXPECT_WORLD": str(launch.world), "PYTHONPATH": ":".join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1"}
    return {**without_leaks(env), **ours}


def by_hand(launch: Launch) -> list[str]:
    """Plain command lines of other launchers that start the same ranks, for one node or for the first of several."""
    script = [str(REPOSITORY / "sft_dist" / "train.py"), str(launch.config), *launch.overrides]
    port = str(launch.port or 29400)
    torchrun = ["torchrun", "--nnodes", str(launch.nodes), "--node-rank", "0", "--nproc-per-node", str(launch.procs)]
    torchrun += ["--master-addr", launch.head, "--master-port", port]
    accelerate = ["accelerate", "launch", "--num_processes", str(launch.world), "--num_machines", str(launch.nodes), "--machine_rank", "0"]
    accelerate += ["--multi_gpu"] if launch.world > 1 else []
    accelerate += ["--main_process_ip", launch.head, "--main_process_port", port]
    before = f"SFT_EXPECT_WORLD={launch.world} "
    return [before + shlex.join([*torchrun, *script]), before + shlex.join([*accelerate, *script])]


def describe(launch: Launch, env: Mapping[str, str]) -> list[str]:
    """Everything that a start would do, in lines that can be pasted into a shell; secrets are redacted."""
    wanted = environment(launch, env)
    fresh = {name: value for name, value in wanted.items() if env.get(name) != value}
    gone = sorted(set(env) - set(wanted))
    nodes: list[int | None] = [*range(launch.nodes)]
    return [
        f"# {launch.world} rank(s) on {launch.nodes} node(s), attempt folder {launch.attempt}",
        *(f"unset {name}" for name in gone),
        *(f"export {name}={shlex.quote('...' if SECRET_NAME.search(name) else value)}" for name, value in sorted(fresh.items())),
        *(shlex.join(agent(launch, node)) + (" &" if launch.nodes > 1 else "") for node in nodes),
        "# the same ranks, without the agent's watchdog, failure screen and exit codes:",
        *(f"# {line}" for line in by_hand(launch)),
    ]


def sbatch(env: Mapping[str, str]) -> list[str]:
    """sbatch with the flags of the job that this runs in, as far as Slurm tells them: without its GPUs the same command would train on processors."""
    told = {
        "--nodes": "SLURM_JOB_NUM_NODES",
        "--partition": "SLURM_JOB_PARTITION",
        "--account": "SLURM_JOB_ACCOUNT",
        "--qos": "SLURM_JOB_QOS",
        "--gpus-per-node": "SLURM_GPUS_PER_NODE",
        "--cpus-per-task": "SLURM_CPUS_PER_TASK",
    }
    before = [f"SFT_PROCS_PER_NODE={env['SFT_PROCS_PER_NODE']}"] if env.get("SFT_PROCS_PER_NODE") else []
    return [*(["env", *before] if before else []), "sbatch", *(f"{flag}={env[name]}" for flag, name in told.items() if env.get(name))]


def job_number(env: Mapping[str, str]) -> str | None:
    """What Slurm calls the job that this runs in: 77, or 77_3 for a task of an array; SLURM_JOB_ID alone may mean the whole array."""
    if env.get("SLURM_ARRAY_JOB_ID") and env.get("SLURM_ARRAY_TASK_ID"):
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def job_here(arguments: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """What tells the job that this runs in from another one which is given its number later; arguments: of the batch script."""
    told = {"cluster": env.get("SLURM_CLUSTER_NAME"), "name": env.get("SLURM_JOB_NAME"), "arguments": " ".join(arguments)}
    return {name: value for name, value in told.items() if value} if "SLURM_JOB_ID" in env else {}


def processes_here(config: Config, env: Mapping[str, str]) -> int:
    """One process a GPU of this machine, one where there is none; what CUDA_VISIBLE_DEVICES leaves visible."""
    if config.device == "cpu":
        return 1
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    return max(1, len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]))
