"""One node's part of a job: starts the node's ranks by torchrun's elastic agent, in this process, and turns how they end into the exit contract."""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from launch import nodes, why
from launch.gang import Gang
from launch.logs import Logs
from launch.nodes import Place
from launch.software import REPOSITORY, software
from launch.watch import Limits, Watch
from sft_dist import attempts, parse
from sft_dist.errors import InfrastructureError, MachineError, SftError
from sft_dist.pulse import Beat
from sft_dist.rundir import RunDir, write_json, writing

OTHERS_S = 20.0
"""How long a node that has ended waits for the others to end too: the first to leave may end all of them (srun --kill-on-bad-exit)."""
ASKED_S = 12.0
"""The same where it is asked to leave, as srun does when a task has died: a node counts as lost after ten seconds of silence."""


def main(arguments: Sequence[str]) -> int:
    """Run this node's part of a job; the exit code is that of the whole job where this node can know it."""
    told = _arguments().parse_args(arguments)
    try:
        nodes.refuse_inside_a_rank(os.environ)
        index = nodes.index_of(os.environ, told.nodes, told.node)
        place = Place(index, told.nodes, told.procs, told.head, told.port, told.attempt)
        overrides = parse.named(told.config, told.overrides, os.environ)
        config = parse.load(told.config, overrides)
        if not place.attempt.is_dir():
            _refuse_with_all(place, told.patience)
        with writing(place.folder):
            place.folder.mkdir(exist_ok=True)
        limits, run = Limits.of(config), RunDir.of(config)
        return _run(place, limits, run, [str(told.config), *overrides], told.patience)
    except SftError as error:
        _say("\n".join(["sft-launch: cannot start this node", *(f"  - {problem}" for problem in error.problems)]))
        return error.exit_code


def _refuse_with_all(place: Place, patience_s: float) -> None:
    """This node can write nothing where the others look: they must hear of it from the node itself, or would take it for lost."""
    where = f"{place.attempt} is not there on {socket.gethostname()}: run.dir must be on a file system that all nodes share"
    if place.nodes > 1:
        Gang(
            place, {"host": socket.gethostname(), **software(), "run folder": "not there"}, patience_s, _say, lambda: None
        ).next_rendezvous()
    raise MachineError(where)


def _run(place: Place, limits: Limits, run: RunDir, arguments: list[str], patience_s: float) -> int:
    about = {"host": socket.gethostname(), **software(), "run folder": "there"}
    write_json(place.folder / "agent.json", {**about, "pid": os.getpid(), "time_ns": time.time_ns(), "ranks": list(place.ranks)})
    watch: Watch | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="sft-", dir=nodes.pulse_folder()) as pulses:
            kernel_kills = _kernel_kills()
            watch = Watch(place, Path(pulses), limits)
            try:
                gang = Gang(place, about, patience_s, _say, lambda: watch and watch.asked)
                failed = _supervise(place, gang, nodes.rank_environment(place, os.environ, Path(pulses)), arguments)
            finally:
                watch.close()
            _sweep(place.folder)
            code = _codes(failed, place, watch, _kernel_kills() - kernel_kills)
            cut_off = nodes.cut_off(place) if code and place.index > 0 and watch.asked is None else None
    except Exception as raised:  # whatever it is, the others and the batch script must find a last word
        error = _as_ours(raised)
        with suppress(MachineError):
            attempts.write_failure(place.folder, _refusal(error, place), replace=False)
        with suppress(MachineError):
            _write_exit(place, run, getattr(error, "exit_code", 1), watch, None)
        raise error from raised
    _write_exit(place, run, code, watch, cut_off)
    return _last_word(place, run, code, watch)


def _write_exit(place: Place, run: RunDir, code: int, watch: Watch | None, cut_off: str | None) -> None:
    asked = watch.asked.name if watch and watch.asked else None
    told = {"code": code, "time_ns": time.time_ns(), "asked": asked, "step": run.saved_step, "cut_off": cut_off}
    write_json(place.folder / "exit.json", told)


def _supervise(place: Place, gang: Gang, environment: Mapping[str, str], arguments: list[str]) -> dict[int, Any]:
    """Start the ranks and wait for their end; torchrun's record of those that failed, by rank."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the failure screen says it, once and in order
    cleared = nodes.without_leaks(os.environ)
    os.environ.clear()
    os.environ.update({**cleared, **environment})
    script = str(REPOSITORY / "sft_dist" / "train.py")
    spec = WorkerSpec(
        role="rank",
        local_world_size=place.procs,
        entrypoint=sys.executable,
        args=tuple(part.replace("$", "$$") for part in (script, *arguments)),  # torchrun fills in ${local_rank}, and would make one $ of $$
        rdzv_handler=gang,
        max_restarts=0,
        monitor_interval=0.1,
    )
    logs, prefix = Logs(place.folder), f"{socket.gethostname()}:${{rank}}| "  # ${hostname} is unknown to torch 2.11
    agent = LocalElasticAgent(spec, logs, exit_barrier_timeout=OTHERS_S, log_line_prefix_template=prefix)  # torch waits five minutes
    return dict(agent.run().failures)


def _codes(failed: Mapping[int, Any], place: Place, watch: Watch, kernel_kills: int) -> int:
    """This node's exit code; ranks that could tell nothing of their end get their record here."""
    codes = []
    for rank, process in failed.items():
        told = place.folder / f"rank-{rank}.json"
        if not told.exists() and not watch.fell_silent:
            attempts.write_failure(place.folder, _untold(rank, process.exitcode, place, watch, kernel_kills))
        codes.append(json.loads(told.read_text())["code"] if told.exists() else 75)
    return codes[0] if codes else 0


def _sweep(folder: Path) -> None:
    """Files that nobody wrote into would only be in the way of those that tell something."""
    for path in [*folder.glob("rank-*.stack"), *folder.glob("rank-*.err")]:
        if path.stat().st_size == 0:
            path.unlink()
    for path in folder.glob("rank-*.torchrun"):  # rank-<r>.json says it
        path.unlink()


def _as_ours(error: Exception) -> Exception:
    """What the agent itself met, as one of the errors that have an exit code; a bug stays what it is."""
    if isinstance(error, DistError):
        return InfrastructureError(f"the agents lost each other: {error}")
    return MachineError(str(error)) if isinstance(error, OSError) else error


def _refusal(error: Exception, place: Place) -> attempts.Failure:
    """The record of a node whose ranks were never started, under the name of its first one."""
    told = attempts.failure_of(error, getattr(error, "exit_code", 1), place.ranks[0], Beat(0, 0, "start-up", 0, 0), place.index)
    return replace(told, traceback=() if isinstance(error, SftError) else told.traceback, told_by="agent")


def _untold(rank: int, exitcode: int, place: Place, watch: Watch, kernel_kills: int) -> attempts.Failure:
    beat = watch.beats.get(rank)
    step, phase = (beat.step, beat.phase) if beat else (0, "start-up")
    name = signal.Signals(-exitcode).name if exitcode < 0 else None
    if name == "SIGKILL" and kernel_kills > 0:
        told = f"killed by the kernel, out of memory (oom_kill {kernel_kills} times in this node's control group)"
    else:
        told = f"killed by {name}" if name else f"ended with exit code {exitcode} and without a word"
    code = {"SIGKILL": 75, "SIGTERM": 75, "SIGBUS": 78}.get(name, 1) if name else 1
    host = socket.gethostname()
    return attempts.Failure(
        time.time_ns(), rank, host, step, phase, code, "Killed" if name else "Ended", told, place.index, signal=name, told_by="agent"
    )


def _last_word(place: Place, run: RunDir, code: int, watch: Watch) -> int:
    """Wait until the others have said how they ended, then judge all of it; node 0 prints the screen."""
    if code == 0:
        return 0
    begun = time.monotonic()
    others = [attempts.node_folder(place.attempt, node) / "exit.json" for node in range(place.nodes)]
    while not all(path.exists() for path in others) and time.monotonic() < begun + (OTHERS_S if watch.asked is None else ASKED_S):
        time.sleep(0.2)
    judged = why.look(run, int(place.attempt.name))
    if place.index == 0:
        _say("\n".join(why.screen(run, judged)))
    return code if judged.kind == "running" else judged.code


def _kernel_kills() -> int:
    """How often the kernel has killed for memory in this process's control group; 0 where it does not say."""
    try:
        group = Path("/proc/self/cgroup").read_text().splitlines()[-1].partition("::")[2].lstrip("/")
        events = (Path("/sys/fs/cgroup") / group / "memory.events").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.node_agent", description="Runs one node's ranks of a job.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--node", type=int, help="this node's number, 0 is the head; by default Slurm's")
    parser.add_argument("--procs", type=int, default=1, help="ranks on each node")
    parser.add_argument("--head", default="127.0.0.1", help="address of node 0, as the others reach it")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--patience", type=float, default=600.0, metavar="SECONDS", help="how long the other nodes may take to come")
    parser.add_argument("--attempt", type=Path, required=True, help="attempts/<k> of the run's folder")
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs=argparse.REMAINDER)
    return parser
