"""How the doctor comes to the nodes: the command lines, on this machine or by srun inside an allocation."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launch import examine, plans
from launch.nodes import without_leaks
from launch.software import REPOSITORY
from sft_dist.errors import ConfigError, MachineError


@dataclass(frozen=True)
class Visit:
    """What to examine: nodes, and what a run on them would use; procs: 0 until `prepare` knows better; workers: None for auto."""

    nodes: int
    folder: Path
    procs: int = 0
    workers: int | None = None
    gpu: bool = False
    as_json: bool = False
    head: str = "127.0.0.1"
    port: int = 0


def prepare(visit: Visit, config: Path | None, overrides: tuple[str, ...], env: Mapping[str, str]) -> Visit:
    """The visit with what a config says: its run.dir, data.workers, device, and the processes of a node."""
    from sft_dist import parse

    if config is None:
        return replace(visit, procs=visit.procs or max(1, examine.gpus(env)))
    plans.plain([str(config), *overrides])
    settings = parse.load(config, overrides)
    workers = None if settings.data.workers == "auto" else int(settings.data.workers)
    procs = visit.procs or plans.processes_here(settings, env)
    return replace(visit, folder=Path(settings.run.dir), workers=workers, procs=procs, gpu=settings.device == "cuda")


def commands(visit: Visit, simulate: bool, env: Mapping[str, str]) -> list[list[str]]:
    """One command a node, or srun's one for all of them. Raises ConfigError where several nodes cannot be reached from here."""
    if simulate or "SLURM_JOB_ID" not in env:
        if visit.nodes > 1 and not simulate:
            line = shlex.join(node_command(replace(visit, head="ADDRESS", port=visit.port or 23456))).replace(
                "ADDRESS", "ADDRESS_OF_NODE_0"
            )
            raise ConfigError(
                [
                    f"--nodes {visit.nodes} needs --simulate, or an allocation of Slurm (salloc --nodes={visit.nodes}); by hand, on each node k:"
                ]
                + [f"{line} --node k"]
            )
        return [[*node_command(visit), "--node", str(node)] for node in range(visit.nodes)]
    number = str(visit.nodes)
    share = env.get("SLURM_CPUS_PER_TASK", "1")
    # --wait: a node that hangs must not keep the others, which have told what they saw
    srun = ["srun", "--overlap", "--wait=60", f"--nodes={number}", f"--ntasks={number}", "--ntasks-per-node=1", f"--cpus-per-task={share}"]
    return [[*srun, "--gpu-bind=none", *node_command(_of_the_job(visit, env))]]


def node_command(visit: Visit) -> list[str]:
    """What runs on every node; without --node it is Slurm that says which one it is."""
    where = ["--nodes", str(visit.nodes), "--head", visit.head, "--port", str(visit.port), "--folder", str(visit.folder.absolute())]
    workers = [] if visit.workers is None else ["--workers", str(visit.workers)]
    flags = [*(["--gpu"] if visit.gpu else []), *(["--json"] if visit.as_json else [])]
    return [sys.executable, "-P", "-m", "launch.doctor_node", *where, "--procs", str(visit.procs), *workers, *flags]


def start(lines: list[list[str]], env: Mapping[str, str]) -> int:
    """Run them side by side; the first one's exit code, or another's that is not 0."""
    paths = [str(REPOSITORY), *filter(None, env.get("PYTHONPATH", "").split(":"))]
    whole = {**without_leaks(env), "PYTHONPATH": ":".join(dict.fromkeys(paths))}
    started = [subprocess.Popen(line, env=whole) for line in lines]
    try:
        codes = [each.wait() for each in started]
    finally:
        for each in started:
            if each.poll() is None:
                each.kill()
    return next((abs(code) for code in codes if code), 0)


def _of_the_job(visit: Visit, env: Mapping[str, str]) -> Visit:
    """Head and port as slurm/finetune.sh will have them."""
    names = examine.hosts({"SLURM_JOB_NODELIST": env.get("SLURM_JOB_NODELIST", "")})
    if not names:
        raise MachineError("SLURM_JOB_ID is set, but `scontrol show hostnames` names no nodes: is scontrol here?")
    shown = subprocess.run(["scontrol", "show", "node", names[0]], capture_output=True, text=True, timeout=30).stdout
    address = next((word.partition("=")[2] for word in shown.split() if word.startswith("NodeAddr=")), names[0])
    return replace(visit, head=address, port=20000 + int(env["SLURM_JOB_ID"]) % 12000)
