"""What happened to a run: its attempts, and how each ended."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sft_dist import attempts
from sft_dist.attempts import Attempt
from sft_dist.history.reading import rows_of
from sft_dist.history.records import Record, is_number
from sft_dist.rundir import RunDir


@dataclass(frozen=True)
class Chapter:
    """One attempt. None: not recorded, as without an agent. lost: steps of the one before that were made again. saves: seconds of each."""

    number: int
    began: str | None
    processes: int | None
    nodes: int | None
    from_step: int | None
    seconds: float | None
    lost: int
    saves: Sequence[float]
    end: str
    failed: bool


def chapters(record: Record) -> list[Chapter]:
    """The attempts in order, as far as their folders can be read."""
    run, found = RunDir(Path(record.place)), []
    with suppress(OSError, RecursionError):
        numbers = attempts.numbers(run)
        for number, turn in zip(numbers, record.turns, strict=False):
            attempt = attempts.read(run, number)
            about = attempt.about
            from_step = _whole(about.get("from_step"))
            saves = [row.get("seconds") for row in rows_of(attempt.path / "saves.jsonl")]
            found.append(
                Chapter(
                    number,
                    _moment(about.get("started_ns")),
                    turn.processes,
                    _whole(about.get("nodes")),
                    from_step,
                    turn.seconds,
                    _lost(attempt, from_step),
                    [seconds for seconds in saves if is_number(seconds)],
                    _end(attempt, record.outcome, latest=number == numbers[-1]),
                    bool(attempt.failures),
                )
            )
    return found


def _lost(attempt: Attempt, from_step: int | None) -> int:
    """Steps that an attempt made again, as far as the rows that it took back tell: there need not be one for each step."""
    rows = rows_of(attempt.path / "rewound.jsonl")
    steps = [int(step) for row in rows if row.get("kind") == "train" and is_number(step := row.get("step"))]
    kept = min([*steps, *([] if from_step is None else [from_step + 1])], default=0) - 1
    return max(steps) - kept if steps else 0


def _end(attempt: Attempt, outcome: Mapping[str, Any], latest: bool) -> str:
    """How an attempt ended, in a line; the run's outcome is that of the latest one."""
    if attempt.failures:
        more = len(attempt.failures) - 1
        return f"failed: {attempts.describe(attempt.failures[0])}" + (f" (and {more} more)" if more else "")
    if outcome.get("attempt") == attempt.number:
        error = outcome.get("error")
        told = error.get("message") if isinstance(error, dict) else outcome.get("reason")
        return f"{outcome.get('outcome')}: {next(iter(str(told).splitlines()), '')}"
    asked = [node.ended["asked"] for node in attempt.nodes if node.ended and node.ended.get("asked")]
    if asked:
        return f"saved and stopped: asked by {asked[0]}"
    codes = [node.ended.get("code") for node in attempt.nodes if node.ended]
    if codes:
        return f"exit code {next(filter(None, codes), codes[0])}"
    return f"left no record of its end: it was killed{', or still runs' if latest else ''}"


def _moment(started_ns: object) -> str | None:
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(started_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC") if is_number(started_ns) else None
    return None


def _whole(value: object) -> int | None:
    return int(value) if is_number(value) else None
