"""Segmentations held against each other: which images and classes got better and worse, and the differences in mIoU and scores like it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.compare import overlaps, pairing, resampling
from sft_dist.compare.pairing import Answers, ClassChange, Held, Kind
from sft_dist.compare.resampling import Counts

SCORES: Mapping[str, Callable[[Counts], NDArray[np.float64]]] = MappingProxyType(
    {"val/miou": resampling.iou, "val/pixel_accuracy": resampling.accuracy, "val/recall_macro": resampling.recall}
)
LEAST = 0.01  # of IoU, for an image to have changed: of a few pixels nearly every image has


@dataclass(frozen=True)
class Redrawn:
    """An image that changed: its mean IoU over the classes that are in it, as the mean of the runs on each side."""

    id: str
    iou_one: float
    iou_other: float


def hold(one: Sequence[Answers], other: Sequence[Answers]) -> Held | str:
    """What there is to say of two sides; or, in words, why there is nothing."""
    everyone = [*one, *other]
    lined = pairing.line_up(everyone, [_width(answers) for answers in everyone])
    if isinstance(lined, str):
        return lined
    tables = np.zeros((len(everyone), len(lined.ids), 3, len(lined.names)))
    for table, answers, places, numbers in zip(tables, everyone, lined.places, lined.numbers, strict=True):
        table[..., numbers[: _named(answers)]] = counts(answers.predictions)[places]
    agreed = (tables[:, :, 2] == tables[0, :, 2]).all((0, 2))
    if agreed.sum() < 2:
        return f"{agreed.sum()} images with as many true pixels of each class on both sides: these are other data, or masks of other sizes"
    sides = tables[: len(one), agreed], tables[len(one) :, agreed]
    ids, shares = lined.kept(agreed).ids, [by_image(side).mean(0) for side in sides]
    return Held(
        len(ids),
        lambda metric: overlaps.pixels(*sides, SCORES[metric]),
        _class_changes(lined.names, *sides),
        _moved(ids, shares[0], shares[1], 1),
        _moved(ids, shares[0], shares[1], -1),
        pairing.notes(everyone, len(lined.ids), int(agreed.sum()), "other numbers of true pixels"),
    )


def counts(predictions: object) -> NDArray[np.int64]:
    """images x 3 x classes: pixels that are said rightly, are said, are there."""
    columns = [np.asarray(getattr(predictions, name), dtype=np.int64) for name in ("right", "said", "there")]
    return np.stack(columns, axis=1)


def by_class(tables: NDArray[Any]) -> NDArray[np.float64]:
    """... x 3 x classes -> ... x classes: IoU, 0 where there is nothing."""
    right, said, there = np.moveaxis(tables, -2, 0)
    return np.asarray(right / np.maximum(said + there - right, 1))


def by_image(tables: NDArray[Any]) -> NDArray[np.float64]:
    """... x images x 3 x classes -> ... x images: the mean IoU over the classes that are in the image; 0 where none is."""
    there = tables[..., 2, :] > 0
    return np.asarray((by_class(tables) * there).sum(-1) / np.maximum(there.sum(-1), 1))


def brief(one: Redrawn) -> str:
    return f"IoU {one.iou_one:.2f} -> {one.iou_other:.2f}"


def lines(one: Redrawn) -> list[str]:
    return [f"IoU {one.iou_one:.3f} to {one.iou_other:.3f}"]


def _class_changes(names: Sequence[str], one: Counts, other: Counts) -> list[ClassChange]:
    """Every class that occurs, those that changed most first."""
    wholes = [by_class(side.sum(1)).mean(0) for side in (one, other)]
    support = one[0, :, 2].sum(0)
    found = [ClassChange(name, int(support[i]), {"iou": (float(wholes[0][i]), float(wholes[1][i]))}) for i, name in enumerate(names)]
    return sorted((change for change in found if change.support), key=lambda change: -abs(change.change))


def _moved(ids: Sequence[str], one: NDArray[np.float64], other: NDArray[np.float64], sign: int) -> list[Redrawn]:
    gain = sign * (other - one)
    order = sorted(np.flatnonzero(gain >= LEAST).tolist(), key=lambda i: (-gain[i], i))
    return [Redrawn(ids[i], float(one[i]), float(other[i])) for i in order]


def _named(answers: Answers) -> int:
    """How many classes the predictions count."""
    return len(answers.predictions.there[0]) if answers.predictions.ids else 0


def _width(answers: Answers) -> int:
    return max(len(answers.classes), _named(answers))


KIND = Kind(
    tested=tuple(SCORES),
    beside=("val/miou", "val/pixel_accuracy"),
    hold=hold,
    columns=("IoU",),
    caption="IoU on both sides, of all images together",
    support="pixels",
    brief=brief,
    lines=lines,
)
