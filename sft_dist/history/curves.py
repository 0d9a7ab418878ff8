"""What the rows of a run say beyond their own step: curves against steps, samples and time, and what the run cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sft_dist.history.records import Curves, Record, is_number


@dataclass(frozen=True)
class Point:
    """One value of a curve. seconds: of training since the start, evaluation and saving left out; None where it was not measured."""

    step: int
    samples: float
    seconds: float | None
    value: float


@dataclass(frozen=True)
class Cost:
    """What a run took. None where nothing tells.

    train_s: seconds in training steps, those that were lost and made again included. wall_s: of all attempts, from start to end.
    device_hours: processes x hours, of `wall_s` where that is known, else of `train_s`. samples_per_s: the median of the rows.
    """

    train_s: float | None
    wall_s: float | None
    device_hours: float | None
    samples_per_s: float | None


def series(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Point]:
    """The points of a metric, in the order of the rows."""
    seconds = _elapsed(rows)
    return [
        Point(row["step"], row["samples"] if is_number(row.get("samples")) else row["step"], elapsed, float(row[metric]))
        for row, elapsed in zip(rows, seconds, strict=True)
        if is_number(row.get(metric))
    ]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` of the points, evenly, the last among them: what a picture can show."""
    every = -(-len(points) // most) or 1
    return [point for i, point in enumerate(points) if (len(points) - 1 - i) % every == 0]


def cost(record: Record, curves: Curves) -> Cost:
    """What a run took, from the speed of its rows and from the times of its attempts."""
    spent = [_elapsed(rows)[-1] for rows in (curves.rows, *curves.rewound) if rows]
    known = [seconds for seconds in spent if seconds is not None]
    train_s = sum(known) if known and len(known) == len(spent) else None
    turns = [(turn.processes, turn.seconds) for turn in record.turns]
    whole = [(processes, seconds) for processes, seconds in turns if processes is not None and seconds is not None]
    world = record.plan.get("world")
    if turns and len(whole) == len(turns):
        wall_s: float | None = sum(seconds for _, seconds in whole)
        hours: float | None = sum(processes * seconds for processes, seconds in whole) / 3600
    else:
        wall_s, hours = None, world * train_s / 3600 if is_number(world) and train_s is not None else None
    speeds = [row["speed/samples_per_s"] for row in curves.rows if is_number(row.get("speed/samples_per_s"))]
    return Cost(train_s, wall_s, hours, float(median(speeds)) if speeds else None)


def _elapsed(rows: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Seconds of training up to each row, from the samples and the speed of the training rows; None from the first one without on.

    A first row that does not begin at step 1, as where rows were lost, counts the samples of one step only.
    """
    total: float | None = 0.0
    before: float | None = None
    elapsed: list[float | None] = []
    for row in rows:
        if row.get("kind") == "train":
            samples, speed = row.get("samples"), row.get("speed/samples_per_s")
            if total is not None and is_number(samples) and is_number(speed) and speed:
                seen = samples / row["step"] if before is None and row["step"] else samples - (before or 0)
                total, before = total + max(0.0, seen) / speed, samples
            else:
                total = None
        elapsed.append(total)
    return elapsed
