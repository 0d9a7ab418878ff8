"""How a recipe stands: its scores over the seeds, and what its runs cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sft_dist.compare import noise
from sft_dist.compare.noise import Spread
from sft_dist.history import curves
from sft_dist.history.curves import Cost
from sft_dist.history.groups import Group
from sft_dist.history.records import Curves

TOTALS = ("train_s", "wall_s", "device_hours")


@dataclass(frozen=True)
class Entry:
    """A group in the table. spreads: `last` and `best` -> the headline score. scores: means of all scores of the evaluation compared.

    cost: summed over the runs; its speed is the mean. curves: run -> its rows.
    """

    group: Group
    spreads: Mapping[str, Spread]
    scores: Mapping[str, float]
    steps: Sequence[int]
    cost: Cost
    curves: Mapping[str, Curves]


def entry(group: Group, metric: str, at: str) -> Entry:
    read = {run.name: run.curves() for run in group.runs}
    costs = [curves.cost(run, read[run.name]) for run in group.runs]
    totals = {name: _sum(getattr(cost, name) for cost in costs) for name in TOTALS}
    speeds = [cost.samples_per_s for cost in costs if cost.samples_per_s is not None]
    scores = [run.numbers(at) for run in group.runs]
    spreads: dict[str, Spread] = {}
    for which in ("last", "best"):
        values = [run.numbers(which).get(metric) for run in group.runs]
        known = [value for value in values if value is not None]
        spreads |= {which: noise.spread(known)} if len(known) == len(values) else {}
    return Entry(
        group,
        spreads,
        {name: fmean(score[name] for score in scores) for name in scores[0] if all(name in score for score in scores)},
        [run.step(at) or 0 for run in group.runs],
        Cost(**totals, samples_per_s=fmean(speeds) if speeds else None),
        read,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one is: half a cost would mislead."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
