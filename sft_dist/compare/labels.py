"""Classifications held against each other: which samples and classes got better and worse, and the differences in accuracy and macro scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.compare import noise, pairing, resampling
from sft_dist.compare.noise import Difference
from sft_dist.compare.pairing import Answers, ClassChange, Held, Kind

TOP1, F1 = "val/top1", "val/f1_macro"


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


def hold(one: Sequence[Answers], other: Sequence[Answers]) -> Held | str:
    """What there is to say of two sides; or, in words, why there is nothing."""
    aligned = align(one, other)
    if isinstance(aligned, str):
        return aligned
    return Held(
        len(aligned.ids),
        partial(_difference, aligned),
        class_changes(aligned),
        moved(aligned, better=True),
        moved(aligned, better=False),
        aligned.notes,
    )


def align(one: Sequence[Answers], other: Sequence[Answers]) -> Paired | str:
    """The samples in common whose true class is the same for all; or, in words, why there are none."""
    everyone = [*one, *other]
    lined = pairing.line_up(everyone, [_width(answers) for answers in everyone])
    if isinstance(lined, str):
        return lined

    def column(what: str) -> list[Any]:
        return [np.asarray(getattr(answers.predictions, what))[rows] for answers, rows in zip(everyone, lined.places, strict=True)]

    truths, guesses = (
        np.array([numbers[those] for numbers, those in zip(lined.numbers, column(what), strict=True)]) for what in ("truths", "guesses")
    )
    certainty = np.array(column("certainty"))
    agreed = (truths == truths[0]).all(0)
    if agreed.sum() < 2:
        return f"{agreed.sum()} samples with the same true class on both sides: these are other data"
    first, second = slice(None, len(one)), slice(len(one), None)
    return Paired(
        ids=lined.kept(agreed).ids,
        classes=lined.names,
        truths=truths[0, agreed],
        one=guesses[first][:, agreed],
        other=guesses[second][:, agreed],
        certainty_one=certainty[first][:, agreed],
        certainty_other=certainty[second][:, agreed],
        notes=pairing.notes(everyone, len(lined.ids), int(agreed.sum()), "another true class"),
    )


def class_changes(paired: Paired) -> list[ClassChange]:
    """Every class that occurs, those that changed most first: the share found (recall), and the samples that others lose to it (false)."""
    found = []
    for number, name in enumerate(paired.classes):
        its = paired.truths == number
        if its.any():
            recalls = [float((side[:, its] == number).mean()) for side in (paired.one, paired.other)]
            false = [float((side[:, ~its] == number).sum(1).mean()) for side in (paired.one, paired.other)]
            found.append(ClassChange(name, int(its.sum()), {"recall": (recalls[0], recalls[1]), "false": (false[0], false[1])}))
    return sorted(found, key=lambda change: -abs(change.change) * change.support)


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


def brief(one: Moved) -> str:
    """What was said of a sample on both sides."""
    return f"{'/'.join(one.guesses_one)} -> {'/'.join(one.guesses_other)}"


def lines(one: Moved) -> list[str]:
    sure = f"p of the truth: {one.certainty_one:.2f} to {one.certainty_other:.2f}"
    return [f"truth: {one.truth}", f"said: {brief(one)}", sure]


def _difference(aligned: Paired, metric: str) -> Difference:
    if metric == TOP1:
        return noise.top1(aligned.right_one, aligned.right_other)
    return resampling.difference(metric, aligned.truths, aligned.one, aligned.other)


def _width(answers: Answers) -> int:
    """How many classes a run can name in its predictions."""
    most: int = max([-1, *answers.predictions.truths, *answers.predictions.guesses])
    return max(len(answers.classes), 1 + most)


KIND = Kind(
    tested=(TOP1, *resampling.MACRO),
    beside=(TOP1, F1),
    hold=hold,
    columns=("recall", "false"),
    caption="Recall, and samples of other classes taken for this one, on both sides",
    support="samples",
    brief=brief,
    lines=lines,
)
