"""What one attempt at a run leaves in `attempts/<k>/`: who took part, what each rank was doing last, and what it died of."""

import fnmatch
import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sft_dist.pulse import Beat
from sft_dist.rundir import RunDir, read_json, write_json

LINES = 12  # of a traceback that are kept, source lines included
TAIL = "tail.json"  # the seconds by phase, as rows have them, after the last training row


@dataclass(frozen=True)
class Failure:
    """How one rank ended that did not end well: told by itself, by its agent where it could not, or by the watchdog.

    time_ns: since 1970, on the rank's host. code: the rank's exit code; with `signal` what it was killed by. node: from 0.
    """

    time_ns: int
    rank: int
    host: str
    step: int
    phase: str
    code: int
    type: str
    message: str
    node: int = 0
    traceback: Sequence[str] = ()
    signal: str | None = None
    told_by: str = "rank"
    """rank | agent | watchdog"""


@dataclass(frozen=True)
class Node:
    """One node's part of an attempt: `about` it (host, versions), the last beats of its ranks, and how its agent ended (None: it did not)."""

    index: int
    about: Mapping[str, Any]
    beats: Mapping[int, Beat]
    beaten_ns: int
    """When the agent last wrote them."""
    ended: Mapping[str, Any] | None
    """code, time_ns, `asked`: the signal that asked the run to stop, or None; `cut_off`: why it could not reach the head at its end, or None."""


@dataclass(frozen=True)
class Attempt:
    """Everything that is known of one attempt."""

    number: int
    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    """nodes, procs, launcher, started_ns, from_step; empty where the run was started without an agent."""
    nodes: Sequence[Node] = ()
    failures: Sequence[Failure] = ()


def folder(run: RunDir, number: int) -> Path:
    return run.path / "attempts" / str(number)


def node_folder(attempt: Path, node: int) -> Path:
    return attempt / f"node-{node}"


def begin(run: RunDir, launched: Path | None = None) -> int:
    """The number of a new attempt, from 1; its folder is made, and files go that a crash left half written (`write_atomically`).

    launched: the folder of an agent in that of the attempt, where a launcher has begun it; other agents write there already.
    """
    for place, _, names in os.walk(run.path):  # unlike rglob it bears folders that go meanwhile: a mirror of W&B may still be at its end
        for leftover in (Path(place) / name for name in fnmatch.filter(names, ".*.[0-9]*")):
            if launched is None or launched.parent not in leftover.parents:
                leftover.unlink(missing_ok=True)
    if launched is not None:
        return int(launched.parent.name)
    number = max(numbers(run), default=0) + 1
    folder(run, number).mkdir()
    return number


def failure_of(error: BaseException, code: int, rank: int, beat: Beat, node: int = 0) -> Failure:
    """The record of an exception, SystemExit included."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    message = str(error) or type(error).__name__
    host = socket.gethostname()
    return Failure(time.time_ns(), rank, host, beat.step, beat.phase, code, type(error).__name__, message, node, tuple(lines[-LINES:]))


def write_failure(place: Path, failure: Failure, replace: bool = True) -> None:
    """replace: also what the rank has said itself, which came first and is the cause."""
    if replace or not (place / f"rank-{failure.rank}.json").exists():
        write_json(place / f"rank-{failure.rank}.json", asdict(failure))


def write_beats(node: Path, beats: Mapping[int, Beat]) -> None:
    """One file for all ranks of a node, replaced at most once a second by the agent."""
    write_json(node / "heartbeats.json", {"time_ns": time.time_ns(), "ranks": {str(rank): asdict(beat) for rank, beat in beats.items()}})


def numbers(run: RunDir) -> list[int]:
    """The attempts there are, oldest first."""
    there = run.path / "attempts"
    return sorted(int(path.name) for path in there.iterdir() if path.name.isdecimal()) if there.is_dir() else []


def read(run: RunDir, number: int) -> Attempt:
    """What is readable of an attempt; what a crash cut short is left out."""
    path = folder(run, number)
    records = [*path.glob("rank-*.json"), *path.glob("node-*/rank-*.json")]
    failures = [failure for file in records if (failure := _failure(read_json(file)))]
    failures += [
        failure for file in path.glob("error-rank*.json") if (failure := _older(file)) and failure.rank not in {f.rank for f in failures}
    ]
    nodes = [_node(place) for place in path.glob("node-*") if place.name.removeprefix("node-").isdecimal()]
    return Attempt(
        number,
        path,
        read_json(path / "attempt.json"),
        tuple(sorted(nodes, key=lambda node: node.index)),
        tuple(sorted(failures, key=lambda failure: failure.time_ns)),
    )


def _failure(content: Mapping[str, Any]) -> Failure | None:
    known = {f.name for f in fields(Failure)}
    try:
        made = Failure(**{name: value for name, value in content.items() if name in known})
    except TypeError:
        return None
    numbers = (made.time_ns, made.rank, made.step, made.code, made.node)
    words = (made.host, made.phase, made.type, made.message, made.told_by)
    whole = all(isinstance(number, int) for number in numbers) and all(isinstance(word, str) for word in words)
    lines = made.traceback if isinstance(made.traceback, list) else []
    return replace(made, traceback=tuple(str(line) for line in lines)) if whole else None


def _older(file: Path) -> Failure | None:
    """The record that a rank left before there were beats: neither step nor phase, and the time is the file's."""
    told = read_json(file)
    kind = str(told.get("type", ""))
    code = {"ConfigError": 2, "MachineError": 78, "InfrastructureError": 75}.get(kind, 1)
    place = {"time_ns": file.stat().st_mtime_ns, "rank": told.get("rank"), "host": told.get("host"), "step": 0, "phase": ""}
    return _failure({**place, "code": code, "type": kind, "message": told.get("message")})


def _node(place: Path) -> Node:
    told = read_json(place / "heartbeats.json")
    ranks = told.get("ranks")
    beats: dict[int, Beat] = {}
    for rank, beat in ranks.items() if isinstance(ranks, dict) else ():
        with suppress(TypeError, ValueError):  # of another version
            made = Beat(**beat)
            numbers = (made.pid, made.step, made.since_ns, made.count)
            beats |= {int(rank): made} if all(isinstance(number, int) for number in numbers) and isinstance(made.phase, str) else {}
    ended = read_json(place / "exit.json") or None
    beaten = told.get("time_ns", 0)
    return Node(
        int(place.name.removeprefix("node-")), read_json(place / "agent.json"), beats, beaten if isinstance(beaten, int) else 0, ended
    )


def describe(failure: Failure) -> str:
    """One line: who, where, when in the run, and what."""
    first = next(iter(failure.message.splitlines()), "")
    where = f", in {failure.phase} of step {failure.step}" if failure.phase else ""
    return f"rank {failure.rank} on {failure.host}{where}: {failure.type}: {first}"
