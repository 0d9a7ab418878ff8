"""The same samples on both sides: predictions lined up by id and by the names of the classes, and what got better and worse."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.history.records import Predictions


@dataclass(frozen=True)
class Answers:
    """What one run answered in one evaluation, and what its numbers of classes mean."""

    run: str
    classes: Sequence[str]
    predictions: Predictions


@dataclass(frozen=True)
class Paired:
    """Samples that all runs of both sides were asked about. truths: a number of `classes` a sample; the rest runs x samples."""

    ids: Sequence[str]
    classes: Sequence[str]
    truths: NDArray[np.int64]
    one: NDArray[np.int64]
    other: NDArray[np.int64]
    certainty_one: NDArray[np.float64]
    certainty_other: NDArray[np.float64]
    notes: Sequence[str] = ()

    @property
    def right_one(self) -> NDArray[np.bool_]:
        return np.asarray(self.one == self.truths)

    @property
    def right_other(self) -> NDArray[np.bool_]:
        return np.asarray(self.other == self.truths)


@dataclass(frozen=True)
class ClassChange:
    """How one class fares on both sides, over the mean of the runs: the share found (recall), and the samples that others lose to it."""

    name: str
    support: int
    recall_one: float
    recall_other: float
    false_one: float
    false_other: float


@dataclass(frozen=True)
class Moved:
    """A sample that one side gets right more often: the share of its runs that do, and the mean probability of the true class."""

    id: str
    truth: str
    right_one: float
    right_other: float
    certainty_one: float
    certainty_other: float
    guesses_one: Sequence[str]
    guesses_other: Sequence[str]


def align(one: Sequence[Answers], other: Sequence[Answers]) -> Paired | str:
    """The samples in common, in the order of the first run; or, in words, why there are none."""
    everyone = [*one, *other]
    if silent := [answers.run for answers in everyone if not answers.predictions.ids]:
        return f"no predictions of {', '.join(silent)}"
    places = [{sample: i for i, sample in enumerate(answers.predictions.ids)} for answers in everyone]
    common = [sample for sample in everyone[0].predictions.ids if all(sample in those for those in places[1:])]
    names = list(dict.fromkeys(_name(answers, i) for answers in everyone for i in range(_width(answers))))
    numbers = {name: number for number, name in enumerate(names)}
    chosen = [[those[sample] for sample in common] for those in places]
    translated = [np.array([numbers[_name(answers, i)] for i in range(_width(answers))]) for answers in everyone]

    def column(what: str, translate: bool) -> Any:
        columns = [np.asarray(getattr(answers.predictions, what))[rows] for answers, rows in zip(everyone, chosen, strict=True)]
        return np.array([names[those] for names, those in zip(translated, columns, strict=True)] if translate else columns)

    if not common:
        return "not one validation sample in common"
    truths, guesses, certainty = column("truths", True), column("guesses", True), column("certainty", False)
    agreed = (truths == truths[0]).all(0)
    if agreed.sum() < 2:
        return f"{agreed.sum()} samples with the same true class on both sides: these are other data"
    first, second = slice(None, len(one)), slice(len(one), None)
    return Paired(
        ids=[sample for sample, same in zip(common, agreed, strict=True) if same],
        classes=names,
        truths=truths[0, agreed],
        one=guesses[first][:, agreed],
        other=guesses[second][:, agreed],
        certainty_one=certainty[first][:, agreed],
        certainty_other=certainty[second][:, agreed],
        notes=_notes(everyone, len(common), int(agreed.sum())),
    )


def class_changes(paired: Paired) -> list[ClassChange]:
    """Every class that occurs, those that changed most first."""
    found = []
    for number, name in enumerate(paired.classes):
        its = paired.truths == number
        if its.any():
            recalls = [float((side[:, its] == number).mean()) for side in (paired.one, paired.other)]
            false = [float((side[:, ~its] == number).sum(1).mean()) for side in (paired.one, paired.other)]
            found.append(ClassChange(name, int(its.sum()), recalls[0], recalls[1], false[0], false[1]))
    return sorted(found, key=lambda change: -abs(change.recall_other - change.recall_one) * change.support)


def moved(paired: Paired, better: bool) -> list[Moved]:
    """The samples that `other` gets right more often than `one` (or less often, with `better` false), the clearest first."""
    share_one, share_other = paired.right_one.mean(0), paired.right_other.mean(0)
    certainty_one, certainty_other = paired.certainty_one.mean(0), paired.certainty_other.mean(0)
    sign = 1 if better else -1
    gain, surer = sign * (share_other - share_one), sign * (certainty_other - certainty_one)
    order = sorted(np.flatnonzero(gain > 0).tolist(), key=lambda i: (-gain[i], -surer[i], i))

    def guesses(side: NDArray[np.int64], i: int) -> list[str]:
        return list(dict.fromkeys(paired.classes[number] for number in side[:, i]))

    return [
        Moved(
            paired.ids[i],
            paired.classes[paired.truths[i]],
            float(share_one[i]),
            float(share_other[i]),
            float(certainty_one[i]),
            float(certainty_other[i]),
            guesses(paired.one, i),
            guesses(paired.other, i),
        )
        for i in order
    ]


def _width(answers: Answers) -> int:
    """How many classes a run can name in its predictions."""
    return max(len(answers.classes), 1 + max(map(max, (answers.predictions.truths, answers.predictions.guesses))))


def _name(answers: Answers, number: int) -> str:
    return answers.classes[number] if number < len(answers.classes) else str(number)


def _notes(everyone: Sequence[Answers], common: int, agreed: int) -> list[str]:
    sizes = sorted({len(answers.predictions.ids) for answers in everyone})
    notes = [problem for answers in everyone for problem in (f"{answers.run}: {told}" for told in answers.predictions.problems)]
    if sizes != [common]:
        notes.append(f"paired over the {common} samples in common, of {' and '.join(map(str, sizes))}")
    if agreed < common:
        notes.append(f"{common - agreed} samples have another true class on the other side and are left out")
    return notes
