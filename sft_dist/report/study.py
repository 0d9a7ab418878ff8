"""One run looked at closely: its scores by class, what it takes for what, how sure it is, and the samples that are worth a look."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.history import curves
from sft_dist.history.curves import Cost
from sft_dist.history.records import Curves, Record, is_number, numbers
from sft_dist.report.answers import Answer, Answered, Rated
from sft_dist.report.calibration import Calibration, calibrate
from sft_dist.report.kinds import KINDS, Kind

Z = 1.959964  # of a normal distribution, for 95 %


@dataclass(frozen=True)
class ClassScore:
    """One class as the evaluation scored it. scores: those of its kind of work, that which ranks classes among them as `lead`."""

    name: str
    scores: Mapping[str, float]
    lead: float
    support: int


@dataclass(frozen=True)
class Mistake:
    """How often a class is taken for another, and which share of its samples that is."""

    truth: str
    said: str
    count: int
    share: float


@dataclass(frozen=True)
class Study:
    """Everything that a run's own files say of it. What they do not say is empty or None.

    at, step: the evaluation that is shown. scores: its numbers; test: those of the test split. confusion: rows are truths.
    worst: the wrong answers, those first that gave the truth the least probability. doubtful: all answers, the least sure first.
    images: where a sample has no one answer, the worst first. within, rare, cutoff: of `Answered`.
    """

    record: Record
    at: str
    step: int | None
    scores: Mapping[str, float]
    test: Mapping[str, float]
    classes: Sequence[ClassScore]
    confusion: Sequence[Sequence[int]]
    mistakes: Sequence[Mistake]
    calibration: Calibration | None
    worst: Sequence[Answer]
    doubtful: Sequence[Answer]
    images: Sequence[Rated]
    within: tuple[float, float] | None
    rare: Sequence[str]
    cutoff: float | None
    curves: Curves
    cost: Cost
    notes: Sequence[str]

    @property
    def kind(self) -> Kind:
        return KINDS[self.record.task]

    @property
    def headline(self) -> float | None:
        return self.scores.get(self.record.headline)

    @property
    def tested(self) -> dict[str, float]:
        """The scores of the test split that stand at the top."""
        ends = (self.record.headline.rpartition("/")[2], "loss")
        return {name: value for name, value in self.test.items() if name.endswith(ends)}

    @property
    def support(self) -> int:
        """Of all classes: samples, pixels or objects."""
        return sum(score.support for score in self.classes)

    @property
    def commonest(self) -> float | None:
        """What always saying the commonest class would score."""
        return max(score.support for score in self.classes) / self.support if self.support else None


def study(record: Record, at: str) -> Study:
    """Look at the `best` or the `last` evaluation; at the other one where that is not there."""
    at = at if isinstance(record.scores.get(at), dict) else next((name for name in ("best", "last") if name in record.scores), at)
    entry = record.scores.get(at)
    details: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    step, read = record.step(at), record.curves()
    kind = KINDS[record.task]
    classes = _classes(details.get("per_class"), kind)
    confusion = _confusion(details.get("confusion"), len(classes))
    answered, problems = _answered(record, step, [score.name for score in classes])
    answers = answered.answers
    return Study(
        record,
        at,
        step,
        numbers(details),
        numbers(record.scores.get("test")),
        classes,
        confusion,
        _mistakes(confusion, [score.name for score in classes]),
        calibrate([one.confidence for one in answers], [one.right for one in answers]),
        sorted((one for one in answers if not one.right), key=lambda one: (one.certainty, -one.confidence)),
        sorted(answers, key=lambda one: one.confidence),
        answered.images,
        answered.within,
        answered.rare,
        answered.cutoff,
        read,
        curves.cost(record, read),
        [*record.problems, *read.problems, *problems],
    )


def wilson(share: float, n: int) -> tuple[float, float]:
    """An interval of 95 % for a share of n samples, each drawn by itself (Wilson 1927)."""
    centre, spread = share + Z * Z / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z * Z / n / n / 4)
    return max(0.0, (centre - spread) / (1 + Z * Z / n)), min(1.0, (centre + spread) / (1 + Z * Z / n))


def _classes(table: object, kind: Kind) -> list[ClassScore]:
    """In the order of their numbers; none at all where one cannot be read, because the numbers would move."""
    found = []
    for name, row in table.items() if isinstance(table, dict) else ():
        values = [row.get(key) for key in (*kind.columns, "support")] if isinstance(row, dict) else [None]
        known = [value for value in values if is_number(value)]
        if len(known) < len(values) or known[-1] < 0:
            return []
        scores = {key: float(value) for key, value in zip(kind.columns, known, strict=False)}
        found.append(ClassScore(str(name), scores, scores[kind.lead], int(known[-1])))
    return found


def _confusion(table: object, size: int) -> list[list[int]]:
    rows = [row for row in table if isinstance(row, list) and len(row) == size] if isinstance(table, list) else []
    whole = len(rows) == size and all(is_number(cell) and cell >= 0 for row in rows for cell in row)
    return [[int(cell) for cell in row] for row in rows] if whole else []


def _mistakes(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[Mistake]:
    """Every kind that was made, the most frequent first."""
    found = [
        Mistake(names[truth], names[said], count, count / sum(row))
        for truth, row in enumerate(confusion)
        for said, count in enumerate(row)
        if count and said != truth
    ]
    return sorted(found, key=lambda mistake: (-mistake.count, -mistake.share))


def _answered(record: Record, step: int | None, names: Sequence[str]) -> tuple[Answered, list[str]]:
    if step is None:
        return Answered(), []
    found, kind = record.predictions(step), KINDS[record.task]
    missing = [] if found.ids else [f"no predictions of step {step}: {kind.missing}"]
    return kind.answered(found, names), [*found.problems, *missing]
