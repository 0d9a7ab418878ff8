"""One node's part of the examination: it looks at itself, meets the others through a store, and reduces with them; node 0 judges."""

import argparse
import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from launch import doctor, examine, gang, nodes
from launch.nodes import Place
from launch.symptoms import Report, of_json
from sft_dist.errors import ConfigError, InfrastructureError, MachineError, SftError

STEP = timedelta(seconds=60)
"""How long one node may take for a step that the others wait for."""
CACHED_S = 10.0
ROUNDS, REPEATS = 5, 5
FLOATS = 4 * 2**20  # 16 MiB


@dataclass(frozen=True)
class Ward:
    """The nodes that came, and the store through which they talk."""

    store: Store
    node: int
    present: tuple[int, ...]

    def exchange(self, name: str, told: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What each present node says under a name. Raises InfrastructureError where one no longer answers."""
        self.store.set(f"{name}/{self.node}", json.dumps(dict(told)))
        return [json.loads(self.read(f"{name}/{node}")) for node in self.present]

    def read(self, key: str) -> bytes:
        try:
            found: bytes = self.store.get(key)
        except dist.DistError as error:
            raise InfrastructureError(
                f"node {self.node} waited {STEP.seconds} s for {key}: the node of that number no longer answers"
            ) from error
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where nothing is wrong on any node, else 78; the same on all nodes."""
    told = _arguments().parse_args(arguments)
    try:
        nodes.refuse_inside_a_rank(os.environ)
        index = nodes.index_of(os.environ, told.nodes, told.node)
        return _visit(Place(index, told.nodes, told.procs, told.head, told.port, told.folder), told)
    except SftError as error:
        _say("\n".join(["sft-launch doctor: this node cannot be examined", *(f"  - {problem}" for problem in error.problems)]))
        return 2 if isinstance(error, ConfigError) else MachineError.exit_code


def _visit(place: Place, told: argparse.Namespace) -> int:
    ward = _come(place, told.patience)
    report = examine.look(place.index, told.folder, place.procs, told.workers, told.gpu, os.environ)
    sees_gpu = report.gpus > 0 and torch.cuda.is_available()
    met = ward.exchange("about", {"name": socket.gethostname(), "torch": torch.__version__, "gpu": sees_gpu})
    report = replace(report, unresolved=examine.unresolved(other["name"] for other in met), loopback=place.nodes > 1 and examine.loopback())
    offset_s, within_s = _clock(ward)
    unseen, problems = _notes(ward, told.folder)
    report = replace(report, offset_s=offset_s, within_s=within_s, unseen=unseen)
    if report.gpus and not sees_gpu:
        problems.append(f"cuda: torch {torch.__version__} can use none of the {report.gpus} GPUs")
    if len({other["torch"] for other in met}) == 1:  # else the nodes might not even speak the same protocol
        wires(place.head)
        backends = [("gloo", torch.device("cpu")), *([("nccl", torch.device("cuda:0"))] if all(other["gpu"] for other in met) else [])]
        for name, device in backends:
            speed, problem = _reduce(ward, name, device)
            report = replace(report, rates={**report.rates, **speed})
            problems += problem
    ward.store.set_timeout(3 * STEP)  # where one failed at once, the others are still waiting for it inside the collective
    reports = ward.exchange("report", asdict(replace(report, problems=problems)))
    return _judge(ward, place, reports, told.json)


def _come(place: Place, patience_s: float) -> Ward:
    """Meet at the head; who has not come when its patience ends is left behind, and reported."""
    deadline = time.monotonic() + patience_s
    store = gang.serve(place)[0] if place.index == 0 else gang.reach(place, deadline, _say)
    store.set_timeout(STEP + timedelta(seconds=patience_s))
    store.set(f"came/{place.index}", "1")
    if place.index == 0:
        while len(present := [node for node in range(place.nodes) if store.check([f"came/{node}"])]) < place.nodes:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        store.set("present", json.dumps([present, secrets.token_hex(8)]))
    present, _ = json.loads(Ward(store, place.index, ()).read("present"))
    store.set_timeout(STEP)
    if place.index not in present:
        raise InfrastructureError(f"node {place.index} came too late: the head had waited {patience_s:.0f} s")
    return Ward(store, place.index, tuple(present))


def _clock(ward: Ward) -> tuple[float, float]:
    """How far this node's clock is before the head's, and how well that is known: half of the quickest round trip."""
    if ward.node == 0:
        for node in ward.present[1:]:
            for turn in range(ROUNDS):
                ward.read(f"ping/{node}/{turn}")
                ward.store.set(f"pong/{node}/{turn}", str(time.time_ns()))
        return 0.0, 0.0
    best = (float("inf"), 0.0)
    for turn in range(ROUNDS):
        before, begin = time.time_ns(), time.monotonic_ns()
        ward.store.set(f"ping/{ward.node}/{turn}", "1")
        head = int(ward.read(f"pong/{ward.node}/{turn}"))
        trip = time.monotonic_ns() - begin
        if turn:  # the first waits for the nodes before this one
            best = min(best, (trip / 2e9, (before + trip // 2 - head) / 1e9))
    return best[1], best[0]


def _notes(ward: Ward, folder: Path) -> tuple[list[int], list[str]]:
    """Nodes whose file in the folder cannot be seen here, and what went wrong with this node's own."""
    token, note, problems = json.loads(ward.read("present"))[1], None, []
    try:
        note = examine.leave_note(folder, token, ward.node)
    except OSError as error:
        problems.append(f"writing: cannot write in {examine.nearest(folder)}: {error.strerror}")
    written = ward.exchange("note", {"left": note is not None})
    expected = [node for node, told in zip(ward.present, written, strict=True) if told["left"]]
    try:
        unseen = examine.notes_missing(folder, token, expected, CACHED_S)
        ward.exchange("seen", {})
    finally:
        if note is not None:
            note.unlink(missing_ok=True)
    return unseen, problems


def wires(head: str) -> None:
    """As the agent does: the network interface towards the head, where the user has chosen none."""
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else NCCL's watchdog ends the process, and with it the report
    if wire := nodes.interface_towards(head):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", wire)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", wire)


def _reduce(ward: Ward, backend: str, device: torch.device) -> tuple[dict[str, float], list[str]]:
    """All nodes reduce together, then each with its neighbours: the better of the two is its own speed, in bytes/s."""
    place, size = ward.present.index(ward.node), len(ward.present)
    try:
        with _group(ward, backend, place, size):
            everyone = torch.ones(FLOATS, device=device)
            dist.all_reduce(everyone)
            if float(everyone[-1]) != size:
                return {}, [f"{backend}: an all-reduce of ones over {size} nodes gave {float(everyone[-1])}"]
            speeds = []
            for pair in sorted({tuple(sorted((one, (one + 1) % size))) for one in range(size) if size > 1}):
                group = dist.new_group(list(pair), timeout=STEP)  # all take part in making it
                if place in pair:
                    speeds.append(_speed(group, everyone))
            dist.barrier()
    except (RuntimeError, ValueError) as error:
        return {}, [f"{backend}: {(str(error).splitlines() or ['failed'])[0]}"]
    return ({backend: max(speeds)} if speeds else {}), []


@contextlib.contextmanager
def _group(ward: Ward, backend: str, rank: int, size: int) -> Iterator[None]:
    store = PrefixStore(backend, ward.store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=STEP)
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


def _judge(ward: Ward, place: Place, told: Sequence[Mapping[str, Any]], as_json: bool) -> int:
    """The head prints what it makes of all reports; the others end with the same code."""
    if ward.node == 0:
        names = examine.hosts(os.environ)
        known = {each["node"]: of_json(each) for each in told}
        unknown = [Report(node, names[node] if node < len(names) else "?", came=False) for node in range(place.nodes)]
        reports = [known.get(node, unknown[node]) for node in range(place.nodes)]
        found = doctor.findings(reports)
        lines = [json.dumps(doctor.to_json(reports, found), indent=1)] if as_json else doctor.screen(reports, found)
        print("\n".join(lines), flush=True)
        ward.store.set("code", str(doctor.exit_code(found)))
    code = int(ward.read("code"))
    if ward.node == 0:
        with contextlib.suppress(InfrastructureError):
            ward.exchange("left", {})  # the others still read from this process's store
    else:
        ward.store.set(f"left/{ward.node}", "{}")
    return code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
    parser.add_argument("--patience", type=float, default=120.0, help="seconds in which the nodes must come")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
