"""Masks and boxes against the truth, counted image by image: what mIoU and COCO's mAP are made of.

mAP ranks the detections of all images at once, and adds nevertheless: which object a detection finds is decided inside its image, so that one count a
detection, whether it is there, and one a class, how many objects there are, say everything that the ranking asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's overlaps from which a detection is right,
RECALLS = np.linspace(0, 1, 101)  # its recalls at which precision is read,
MOST = 100  # and how many detections count, of each class in each image: so pycocotools has it, though it is told as "of each image"
RIGHT, WRONG, IGNORED = 1, 0, -1

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Objects:
    """What is in an image. boxes: n x 4, left, top, right, bottom. crowd: which boxes are around many objects; None: none is.

    As in COCO, a crowd need not be found, and what is found in it counts neither for nor against a run. A box without area is never found.
    """

    boxes: Numbers
    labels: Labels
    crowd: NDArray[np.bool_] | None = None

    @property
    def single(self) -> NDArray[np.bool_]:
        """Which of them are one object each."""
        return np.ones(len(self.labels), dtype=bool) if self.crowd is None else ~self.crowd


@dataclass(frozen=True)
class Found:
    """What a run finds in an image. boxes: n x 4, left, top, right, bottom."""

    boxes: Numbers
    labels: Labels
    scores: Numbers


@dataclass(frozen=True)
class Judged:
    """Detections of many images. images, labels, scores: of each, its image, its class by place among those asked for, and its score.

    verdicts: detections x THRESHOLDS: RIGHT, WRONG or IGNORED.
    """

    images: Labels
    labels: Labels
    scores: Numbers
    verdicts: NDArray[np.int8]

    def take(self, places: NDArray[np.intp]) -> "Judged":
        return Judged(self.images[places], self.labels[places], self.scores[places], self.verdicts[places])


def confusion(truth: NDArray[np.integer[Any]], said: NDArray[np.integer[Any]], classes: int) -> NDArray[np.int64]:
    """classes x classes: how many pixels of an image are of one class (row) and said to be of another; those of no class (void) are left out."""
    known = (truth >= 0) & (truth < classes)
    there, guessed = truth[known].astype(np.int64), said[known].astype(np.int64)
    assert ((guessed >= 0) & (guessed < classes)).all(), "a pixel is said to be of no class"
    return np.bincount(classes * there + guessed, minlength=classes**2).reshape(classes, classes)


def support(objects: Sequence[Objects], classes: Labels) -> Labels:
    """images x classes: how many objects there are to find."""
    return np.array([(each.labels[each.single][:, None] == classes).sum(0) for each in objects], dtype=np.int64)


def judge(objects: Sequence[Objects], found: Sequence[Found], classes: Labels) -> Judged:
    """The detections of these classes by falling score; those of the same score in the order of the images, as in pycocotools."""
    assert len(found) == len(objects), "a run has other images"
    images, labels, scores, verdicts = [np.empty(0, int)], [np.empty(0, int)], [np.empty(0)], [np.empty((0, len(THRESHOLDS)), np.int8)]
    for image, (there, those) in enumerate(zip(objects, found, strict=True)):
        assert all((boxes[:, :2] <= boxes[:, 2:]).all() for boxes in (there.boxes, those.boxes)), "a box ends before it begins"
        for label in np.flatnonzero(np.isin(classes, those.labels)):
            best = np.flatnonzero(those.labels == classes[label])
            best = best[np.argsort(-those.scores[best], kind="stable")][:MOST]
            same = there.labels == classes[label]
            verdicts.append(_judged(those.boxes[best], there.boxes[same & there.single], there.boxes[same & ~there.single]))
            scores.append(those.scores[best])
            images.append(np.full(len(best), image))
            labels.append(np.full(len(best), label))
    together = Judged(*(np.concatenate(parts) for parts in (images, labels, scores, verdicts)))
    return together.take(np.argsort(-together.scores, kind="stable"))


def precision_and_recall(judged: Judged, there: Labels) -> tuple[Numbers, Numbers]:
    """Of each class at each of THRESHOLDS: its average precision, and the share of its objects that are found. there: objects of each class."""
    precision, recall = np.zeros((len(there), len(THRESHOLDS))), np.zeros((len(there), len(THRESHOLDS)))
    for label, count in enumerate(there):
        verdicts = judged.verdicts[judged.labels == label]
        precision[label] = average_precision(np.ones((1, len(verdicts))), verdicts, np.array([count]))[0]
        recall[label] = (verdicts == RIGHT).sum(0) / max(count, 1)
    return precision, recall


def average_precision(counts: Numbers, verdicts: NDArray[np.int8], there: Numbers) -> Numbers:
    """Of each draw, at each of THRESHOLDS: precision is made to fall with the recall, and read at RECALLS.

    counts: draws x detections of one class by falling score, how often each is in the draw. there: objects in each draw; 0 / 0 is 0.
    Where precision is read there is always a detection that is right, so that only these are looked at.
    """
    present = counts.any(0)
    counts, verdicts = counts[:, present], verdicts[present]
    before, columns = counts.cumsum(1), []
    for verdict in verdicts.T:
        right, ignored = verdict == RIGHT, verdict == IGNORED
        known = before[:, right] - (counts * ignored).cumsum(1)[:, right] if ignored.any() else before[:, right]
        found = counts[:, right].cumsum(1)
        precision = np.maximum.accumulate((found / np.maximum(known, 1))[:, ::-1], axis=1)[:, ::-1]
        read = np.searchsorted(RECALLS, found / np.maximum(there, 1)[:, None], side="right")
        columns.append((precision * np.diff(read, axis=1, prepend=0)).sum(1) / len(RECALLS))
    return np.stack(columns, axis=1)


def _judged(boxes: Numbers, objects: Numbers, crowds: Numbers) -> NDArray[np.int8]:
    """boxes x THRESHOLDS, of boxes of one class in one image, best first. Overlap with a crowd is the share of the box that is in it."""
    if not len(objects) and not len(crowds):
        return np.full((len(boxes), len(THRESHOLDS)), WRONG, dtype=np.int8)
    inside = _shared(boxes, crowds) / _positive(_areas(boxes)[:, None])
    ignored = inside.max(1, initial=0)[:, None] >= THRESHOLDS
    return np.where(_taking(boxes, objects), RIGHT, np.where(ignored, IGNORED, WRONG)).astype(np.int8)


def _taking(boxes: Numbers, objects: Numbers) -> NDArray[np.bool_]:
    """boxes x THRESHOLDS: whether a box gets an object. Each takes the one that it overlaps most among those that better boxes left (COCO)."""
    taking = np.zeros((len(boxes), len(THRESHOLDS)), dtype=bool)
    if not len(objects):
        return taking
    shared = _shared(boxes, objects)
    overlaps = shared / _positive(_areas(boxes)[:, None] + _areas(objects) - shared)
    left = np.ones((len(THRESHOLDS), len(objects)), dtype=bool)
    for box, overlap in enumerate(overlaps):
        offered = np.where(left & (overlap >= THRESHOLDS[:, None]), overlap, 0)
        chosen = len(objects) - 1 - offered[:, ::-1].argmax(1)  # of equal overlaps the last, as in pycocotools
        taking[box] = offered.max(1) > 0
        left[taking[box], chosen[taking[box]]] = False
    return taking


def _shared(boxes: Numbers, others: Numbers) -> Numbers:
    """boxes x others: the area that they have in common."""
    low, high = np.maximum(boxes[:, None, :2], others[None, :, :2]), np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.maximum(high - low, 0).prod(2))


def _areas(boxes: Numbers) -> Numbers:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(1))


def _positive(areas: Numbers) -> Numbers:
    """For a division: what has no area shares none, and 0 / 1 says so."""
    return np.where(areas > 0, areas, 1)
