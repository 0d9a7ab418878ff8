"""One node's part of the examination: it looks at itself, meets the others through a store, and reduces with them; node 0 judges."""

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from launch import doctor, examine, nodes
from launch.nodes import Place
from launch.patience import COME_S, STEP_S, LateError, within
from launch.symptoms import Report
from launch.ward import HeadLostError, Ward, meet
from launch.words import counted
from sft_dist.errors import ConfigError, MachineError, SftError

CACHED_S = 10.0
REPEATS = 5
FLOATS = 4 * 2**20  # 16 MiB
Result = TypeVar("Result")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where nothing is wrong on any node, else 78; the same on all nodes that answer to the end."""
    told = _arguments().parse_args(arguments)
    number = int(os.environ.get("SLURM_NODEID", "0")) if told.node is None else told.node  # also where this is refused below
    try:
        nodes.refuse_inside_a_rank(os.environ)
        index = nodes.index_of(os.environ, told.nodes, told.node)
        return _visit(Place(index, told.nodes, told.procs, told.head, told.port, told.folder), told)
    except SftError as error:
        lines = ["sft-launch doctor: this node cannot be examined", *(f"  - {problem}" for problem in error.problems)]
        print("\n".join(lines), file=sys.stderr, flush=True)
        if told.json and number == 0:
            print(json.dumps(doctor.to_json([], doctor.refused(error.problems)), indent=1), flush=True)
        return 2 if isinstance(error, ConfigError) else MachineError.exit_code
    except KeyboardInterrupt:
        return 130


def _visit(place: Place, told: argparse.Namespace) -> int:
    """Every step ends with an exchange of what the nodes know by now, so that whoever falls silent takes nothing with it."""
    ward = meet(place, examine.host(os.environ), told.token, told.patience, told.limit)
    try:
        report = _looked(ward, place, told)
        report = _named(ward, report)
        report = _noted(ward, report, told)
        if len({other.software.get("torch") for other in ward.known.values()}) == 1:  # else they might not speak the same protocol
            wires(place.head)
            _reduced(ward, report)
    except HeadLostError as error:
        ward.silent[0] = str(error)
        ward.present = tuple(node for node in ward.present if node)
    code = _judge(ward, place, told.json)
    if 0 not in ward.silent:
        ward.part()
    return code


def _looked(ward: Ward, place: Place, told: argparse.Namespace) -> Report:
    """What this node sees of itself."""
    step = "looking at its devices and disks"
    problems: list[str] = []
    report = Report(ward.node, examine.host(os.environ), folder=str(told.folder))

    def look() -> Report:
        seen = examine.look(place.index, told.folder, place.procs, told.workers, told.gpu, os.environ)
        usable = seen.gpus > 0 and torch.cuda.is_available()
        return replace(seen, name=socket.gethostname(), usable_gpu=usable, loopback=place.nodes > 1 and examine.loopback())

    report = _bounded(ward.limit_s, step, look, problems) or report
    if report.gpus and not report.usable_gpu:
        problems.append(f"cuda: torch {torch.__version__} can use none of the {report.gpus} GPUs")
    report = replace(report, problems=problems)
    ward.exchange(step, report)
    return report


def _named(ward: Ward, report: Report) -> Report:
    """Whom of the others it can find by name, and how far its clock is from the head's."""
    step, problems = "resolving names and comparing clocks", [*report.problems]
    names = [other.name for other in ward.known.values() if other.name]
    unresolved = _bounded(ward.limit_s, "resolving names", lambda: examine.unresolved(names), problems) or []
    offset_s, within_s = ward.clock(step)
    report = replace(report, unresolved=unresolved, offset_s=offset_s, within_s=within_s, problems=problems)
    ward.exchange(step, report)
    return report


def _noted(ward: Ward, report: Report, told: argparse.Namespace) -> Report:
    """Whose file in the run's folder it sees: all nodes must see one folder, and so must whoever started this."""
    step, problems = "writing into the run's folder", [*report.problems]
    note = _bounded(ward.limit_s, step, lambda: _left(told.folder, ward, problems), problems) if report.software else None
    report = replace(report, wrote=note is not None, problems=problems)
    writers = [other.node for other in ward.exchange(step, report) if other.wrote]
    step = "reading in the run's folder"
    if report.wrote:
        names = [*map(str, writers), *([examine.STARTER] if told.token else [])]
        unseen = _bounded(ward.limit_s + CACHED_S, step, lambda: examine.notes_missing(told.folder, ward.token, names, CACHED_S), problems)
        away = examine.STARTER in (unseen or [])
        report = replace(report, unseen=[node for node in writers if str(node) in (unseen or [])], starter_unseen=away, problems=problems)
    ward.exchange(step, report, CACHED_S)
    if note is not None:
        mine = [ward.node, *(ward.silent if ward.node == 0 else [])]
        _bounded(ward.limit_s, step, lambda: examine.remove_notes(told.folder, ward.token, map(str, mine)), problems)
    return report


def _left(folder: Path, ward: Ward, problems: list[str]) -> Path | None:
    try:
        return examine.leave_note(folder, ward.token, str(ward.node))
    except OSError as error:
        problems.append(f"writing: cannot write in {examine.nearest(folder)}: {error.strerror}")
        return None


def _bounded(limit_s: float, step: str, action: Callable[[], Result], problems: list[str]) -> Result | None:
    """What the action returns; None, and a problem more, where it hangs or the system refuses it: this node can still say so."""
    try:
        return within(limit_s, action)
    except LateError as error:
        problems.append(f"hangs: {error} while {step}; try the same there by hand (ls, df, nvidia-smi)")
    except OSError as error:  # a file system that has gone away (ESTALE, EIO)
        problems.append(f"fails: {error} while {step}; try the same there by hand (ls, df)")
    return None


def _reduced(ward: Ward, report: Report) -> None:
    """An all-reduce by gloo, and by NCCL where all have GPUs. If somebody falls silent in it, the others do it once more."""
    for backend, device in (("gloo", torch.device("cpu")), ("nccl", torch.device("cuda:0"))):
        if backend == "nccl" and not all(ward.known[node].usable_gpu for node in ward.present):
            break
        size = 0
        while size != len(ward.present):
            size = len(ward.present)
            problems: list[str] = []
            step = f"reducing by {backend} over {counted(size)}"
            more_s = ward.limit_s + 2 * size  # each wait in it is bounded by one limit; who fails at once waits for those that wait
            rates = _bounded(ward.limit_s + more_s, step, lambda: _reduce(ward, backend, device, problems), problems) or {}  # noqa: B023
            told = replace(report, rates={**report.rates, **rates}, problems=[*report.problems, *problems])
            reports = ward.exchange(step, told, more_s)
            if any(problem.startswith("hangs") for other in reports for problem in other.problems):
                return  # a process that is inside one cannot begin another
        report = told


def wires(head: str) -> None:
    """As the agent does: the network interface towards the head, where the user has chosen none."""
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else NCCL's watchdog ends the process, and with it the report
    if wire := nodes.interface_towards(head):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", wire)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", wire)


def _reduce(ward: Ward, backend: str, device: torch.device, problems: list[str]) -> dict[str, float]:
    """All nodes reduce together, then each with its neighbours: the better of the two is its own speed, in bytes/s."""
    place, size = ward.present.index(ward.node), len(ward.present)
    try:
        with _group(ward, backend, place, size):
            everyone = torch.ones(FLOATS, device=device)
            dist.all_reduce(everyone)
            if float(everyone[-1]) != size:
                problems.append(f"{backend}: an all-reduce of ones over {counted(size)} gave {float(everyone[-1])}")
                return {}
            speeds = []
            for pair in sorted({tuple(sorted((one, (one + 1) % size))) for one in range(size) if size > 1}):
                group = dist.new_group(list(pair), timeout=timedelta(seconds=ward.limit_s))  # all take part in making it
                if place in pair:
                    speeds.append(_speed(group, everyone))
            dist.barrier(device_ids=[0] if backend == "nccl" else None)  # or torch warns that it must guess the GPU
    except (RuntimeError, ValueError) as error:
        problems.append(f"{backend}: {(str(error).splitlines() or ['failed'])[0]}")
        return {}
    return {backend: max(speeds)} if speeds else {}


@contextlib.contextmanager
def _group(ward: Ward, backend: str, rank: int, size: int) -> Iterator[None]:
    """A store of its own: what hangs in the group must not keep the ward from talking."""
    store = PrefixStore(f"{backend}-{size}", ward.store.clone())
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=ward.limit_s))
    try:
        yield
    finally:
        dist.destroy_process_group()


def _speed(group: Any, tensor: torch.Tensor) -> float:
    """Of the quickest of several, in bytes/s: the first one also connects, and others may use the network too."""
    seconds = []
    for _ in range(REPEATS):
        tensor.fill_(1.0)
        begin = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        float(tensor[0])  # waits for the GPU
        seconds.append(time.perf_counter() - begin)
    return tensor.nbytes / min(seconds)


def _judge(ward: Ward, place: Place, as_json: bool) -> int:
    """What all make of the reports; it is said by the first node that is left."""
    names = examine.hosts(os.environ)
    reports = []
    for node in range(place.nodes):
        name = ward.hosts.get(node) or (names[node] if node < len(names) else "?")
        last = ward.known.get(node, Report(node, name, came=node in ward.hosts))
        reports.append(replace(last, silent=ward.silent.get(node, "")))
    found = doctor.findings(reports)
    if ward.node == min(ward.present, default=ward.node):
        lines = [json.dumps(doctor.to_json(reports, found), indent=1)] if as_json else doctor.screen(reports, found)
        print("\n".join(lines), flush=True)
    return doctor.exit_code(found)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.doctor_node", description="Examines one node of a job to come.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--node", type=int, help="this node's number, 0 is the head; by default Slurm's")
    parser.add_argument("--head", default="127.0.0.1", help="address of node 0, as the others reach it")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs are written")
    parser.add_argument("--procs", type=int, default=1, help="processes that a run would start on each node")
    parser.add_argument("--workers", type=int, help="data.workers of each of them; auto if not given")
    parser.add_argument("--gpu", action="store_true", help="a node without a GPU is wrong")
    parser.add_argument("--patience", type=float, default=COME_S, help="seconds in which the nodes must come")
    parser.add_argument("--limit", type=float, default=STEP_S, help="seconds that a node may take for one step of the examination")
    parser.add_argument("--token", default="", help="what a file is called by that whoever starts this has left in the folder")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # a thread that hangs in the kernel or in a driver must not keep the process
