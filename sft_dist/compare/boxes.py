"""Detections held against each other: which images and classes got better and worse, and the differences in COCO's mAP and scores like it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sft_dist import overlaps
from sft_dist.compare import overlaps as resampled
from sft_dist.compare import pairing, resampling
from sft_dist.compare.noise import Difference
from sft_dist.compare.pairing import Answers, ClassChange, Held, Kind
from sft_dist.history import records
from sft_dist.overlaps import RIGHT, WRONG, Found, Judged, Labels, Numbers, Objects

AT: Mapping[str, slice] = MappingProxyType({"val/map": slice(None), "val/map_50": slice(0, 1), "val/map_75": slice(5, 6)})
"""Score -> which of the thresholds of overlap it is the mean of."""
HALF = 0  # the place of an overlap of 0.5 among them


@dataclass(frozen=True)
class Recounted:
    """An image that changed: of its objects those found and, beside them, the false detections, as means over the runs of each side."""

    id: str
    objects: int
    found_one: float
    found_other: float
    false_one: float
    false_other: float


@dataclass(frozen=True)
class Tally:
    """What one run finds at an overlap of 0.5 with the detections from a score on that make its F1 over all classes the highest.

    found, false: objects and false detections in each image.
    """

    cutoff: float
    found: Labels
    false: Labels


@dataclass(frozen=True)
class _Sides:
    """Two sides over the same images. judged: the detections of each run. support: images x classes, the objects there."""

    names: Sequence[str]
    judged: Sequence[Judged]
    support: Labels
    ones: int

    def difference(self, metric: str) -> Difference:
        runs, score = resampled.evidence(self.judged, self.support, AT[metric])
        return resampling.between(runs[: self.ones], runs[self.ones :], score)

    def means(self, each: Sequence[NDArray[np.generic]]) -> tuple[Numbers, Numbers]:
        """Of something of each run, the mean of each side."""
        both = np.array(each, dtype=float)
        return both[: self.ones].mean(0), both[self.ones :].mean(0)


def hold(one: Sequence[Answers], other: Sequence[Answers]) -> Held | str:
    """What there is to say of two sides; or, in words, why there is nothing."""
    everyone = [*one, *other]
    lined = pairing.line_up(everyone, [_width(answers) for answers in everyone])
    if isinstance(lined, str):
        return lined
    images = [
        [image(answers.predictions.images[place], numbers) for place in places]
        for answers, places, numbers in zip(everyone, lined.places, lined.numbers, strict=True)
    ]
    truths = [[objects for objects, _ in those] for those in images]
    agreed = np.array([all(_same(first, run[i]) for run in truths) for i, first in enumerate(truths[0])])
    if agreed.sum() < 2:
        return f"{agreed.sum()} images with the same objects on both sides: these are other data"
    kept, classes = lined.kept(agreed), np.arange(len(lined.names))
    scene = [truths[0][i] for i in np.flatnonzero(agreed)]
    if not (support := overlaps.support(scene, classes)).any():
        return "there is no object in the images in common"
    judged = [overlaps.judge(scene, [those[i][1] for i in np.flatnonzero(agreed)], classes) for those in images]
    sides = _Sides(lined.names, judged, support, len(one))
    return Held(
        len(scene),
        sides.difference,
        _class_changes(sides),
        *_moved(sides, kept.ids),
        pairing.notes(everyone, len(lined.ids), len(scene), "other objects"),
    )


def image(found: records.Found, numbers: NDArray[np.intp] | None = None) -> tuple[Objects, Found]:
    """What is in an image, and what a run finds there. numbers: what its class numbers become; None: themselves."""

    def labels(named: Sequence[int]) -> Labels:
        known = np.array(named, dtype=np.int64)
        return known if numbers is None else numbers[known].astype(np.int64)

    there = Objects(_array(found.truth_boxes), labels(found.truth_labels), np.array(found.crowd, dtype=bool))
    return there, Found(_array(found.boxes), labels(found.labels), np.array(found.scores, dtype=float))


def tally(judged: Judged, support: Labels) -> Tally:
    """judged: by falling score; of detections with the same score all count or none."""
    verdicts = judged.verdicts[:, HALF]
    right, wrong = verdicts == RIGHT, verdicts == WRONG
    f1 = 2 * right.cumsum() / np.maximum(right.cumsum() + wrong.cumsum() + support.sum(), 1)
    ends = np.flatnonzero(np.diff(judged.scores, append=-np.inf))
    cutoff = float(judged.scores[ends[f1[ends].argmax()]]) if len(ends) else 1.0
    shown = judged.scores >= cutoff
    found, false = (np.bincount(judged.images[those & shown], minlength=len(support)) for those in (right, wrong))
    return Tally(cutoff, found, false)


def brief(one: Recounted) -> str:
    return f"found {one.found_one:g} -> {one.found_other:g} of {one.objects}, false {one.false_one:g} -> {one.false_other:g}"


def lines(one: Recounted) -> list[str]:
    return [
        f"found {one.found_one:.3g} to {one.found_other:.3g} of {one.objects}",
        f"false {one.false_one:.3g} to {one.false_other:.3g}",
    ]


def _class_changes(sides: _Sides) -> list[ClassChange]:
    """Every class that has an object, those that changed most first."""
    count = sides.support.sum(0)
    one, other = sides.means([overlaps.precision_and_recall(judged, count)[0].mean(1) for judged in sides.judged])
    found = [ClassChange(name, int(count[i]), {"ap": (float(one[i]), float(other[i]))}) for i, name in enumerate(sides.names) if count[i]]
    return sorted(found, key=lambda change: -abs(change.change))


def _moved(sides: _Sides, ids: Sequence[str]) -> tuple[list[Recounted], list[Recounted]]:
    """The images with more, and with fewer, objects found less false detections; those that changed most first."""
    tallies = [tally(judged, sides.support) for judged in sides.judged]
    found, false = sides.means([each.found for each in tallies]), sides.means([each.false for each in tallies])
    gain, objects = found[1] - false[1] - found[0] + false[0], sides.support.sum(1)

    def those(sign: int) -> list[Recounted]:
        order = sorted(np.flatnonzero(sign * gain > 1e-9).tolist(), key=lambda i: (-sign * gain[i], i))
        return [Recounted(ids[i], int(objects[i]), *(float(side[i]) for side in (*found, *false))) for i in order]

    return those(1), those(-1)


def _same(one: Objects, other: Objects) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "labels", "crowd"))


def _array(boxes: Sequence[records.Box]) -> Numbers:
    return np.array(boxes, dtype=float).reshape(-1, 4)


def _width(answers: Answers) -> int:
    """How many classes a run can name in its predictions; where it has none, they need not be boxes."""
    images = answers.predictions.images if answers.predictions.ids else ()
    most = max((max([-1, *each.labels, *each.truth_labels]) for each in images), default=-1)
    return max(len(answers.classes), 1 + most)


KIND = Kind(
    tested=tuple(AT),
    beside=("val/map", "val/map_50"),
    hold=hold,
    columns=("AP",),
    caption="AP (COCO, overlaps from 0.50 to 0.95) on both sides, of all images together",
    support="objects",
    brief=brief,
    lines=lines,
)
