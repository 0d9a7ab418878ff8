"""mIoU of masks and mAP of boxes as scores of counts that add over images, so that resampling can say whether a difference in them is noise.

mAP ranks the detections of all images at once, and adds nevertheless: which object a detection finds is decided inside its image, so that one count a
detection, whether it is there, and one a class, how many objects there are, say everything that the ranking asks for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.compare import resampling
from sft_dist.compare.noise import Difference
from sft_dist.compare.resampling import Evidence, Score

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


@dataclass(frozen=True)
class Found:
    """What a run finds in an image. boxes: n x 4, left, top, right, bottom."""

    boxes: Numbers
    labels: Labels
    scores: Numbers


def miou(one: NDArray[np.int64], other: NDArray[np.int64], seed: int = 0) -> Difference:
    """The difference in mIoU; each side is runs x images x classes x classes, of `confusion`. Classes on neither side are left out of the mean."""
    from scipy.sparse import csr_array

    tables = np.concatenate([one, other]).astype(float)
    counts = np.stack([np.einsum("rikk->rik", tables), tables.sum(2), tables.sum(3)], axis=2)  # right, said, there
    runs = [csr_array(run.reshape(len(run), -1)) for run in counts]
    return resampling.between(runs[: len(one)], runs[len(one) :], resampling.by_class(resampling.iou, tables.shape[-1]), seed)


def confusion(truth: NDArray[np.integer[Any]], said: NDArray[np.integer[Any]], classes: int) -> NDArray[np.int64]:
    """classes x classes: how many pixels of an image are of one class (row) and said to be of another; those of no class (void) are left out."""
    known = (truth >= 0) & (truth < classes)
    there, guessed = truth[known].astype(np.int64), said[known].astype(np.int64)
    assert ((guessed >= 0) & (guessed < classes)).all(), "a pixel is said to be of no class"
    return np.bincount(classes * there + guessed, minlength=classes**2).reshape(classes, classes)


def mean_ap(objects: Sequence[Objects], one: Sequence[Sequence[Found]], other: Sequence[Sequence[Found]], seed: int = 0) -> Difference:
    """The difference in COCO's mAP (all sizes); each side is runs x images."""
    runs, score = ranked(objects, [*one, *other])
    return resampling.between(runs[: len(one)], runs[len(one) :], score, seed)


def ranked(objects: Sequence[Objects], runs: Sequence[Sequence[Found]]) -> tuple[list[Evidence], Score]:
    """Evidence of each run, images x (detections of all runs by falling score, classes), and the mAP of sums of it.

    Detections of the same score stand in the order of the images, as in pycocotools.
    """
    from scipy.sparse import csr_array, hstack

    boxes = [each.boxes for each in objects] + [each.boxes for run in runs for each in run]
    assert all((each[:, :2] <= each[:, 2:]).all() for each in boxes), "a box ends before it begins"
    assert all(len(run) == len(objects) for run in runs), "a run has other images"
    plain = [each.labels[~_crowd(each)] for each in objects]
    classes = np.unique(np.concatenate(plain))
    assert len(classes), "there is no object to find"
    there = csr_array(np.array([(labels[:, None] == classes).sum(0) for labels in plain], dtype=float))
    known = sorted(_detections(objects, runs, classes), key=lambda detection: -detection.score)
    images, owners, labels = (np.array([getattr(each, name) for each in known], dtype=int) for name in ("image", "run", "label"))
    verdicts = np.array([each.verdicts for each in known], dtype=np.int8).reshape(-1, len(THRESHOLDS))
    evidence = []
    for run in range(len(runs)):
        mine = np.flatnonzero(owners == run)
        columns = csr_array((np.ones(len(mine)), (images[mine], mine)), shape=(len(objects), len(known)))
        evidence.append(hstack([columns, there], format="csr"))
    return evidence, partial(_mean_ap, [np.flatnonzero(labels == label) for label in range(len(classes))], verdicts)


@dataclass(frozen=True)
class _Detection:
    """label: its place among the classes. verdicts: RIGHT, WRONG or IGNORED at each of THRESHOLDS."""

    image: int
    run: int
    label: int
    score: float
    verdicts: NDArray[np.int8]


def _detections(objects: Sequence[Objects], runs: Sequence[Sequence[Found]], classes: Labels) -> Iterator[_Detection]:
    """By image and run, and in each of them by class and falling score."""
    for image, there in enumerate(objects):
        for run, found in enumerate(run[image] for run in runs):
            for label in np.flatnonzero(np.isin(classes, found.labels)).tolist():
                best = np.flatnonzero(found.labels == classes[label])
                best = best[np.argsort(-found.scores[best], kind="stable")][:MOST]
                same, crowd = there.labels == classes[label], _crowd(there)
                verdicts = _judged(found.boxes[best], there.boxes[same & ~crowd], there.boxes[same & crowd])
                for place, verdict in zip(best, verdicts, strict=True):
                    yield _Detection(image, run, label, float(found.scores[place]), verdict)


def _crowd(objects: Objects) -> NDArray[np.bool_]:
    return np.zeros(len(objects.labels), dtype=bool) if objects.crowd is None else objects.crowd


def _judged(boxes: Numbers, objects: Numbers, crowds: Numbers) -> NDArray[np.int8]:
    """boxes x THRESHOLDS, of boxes of one class in one image, best first. Overlap with a crowd is the share of the box that is in it."""
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


def _mean_ap(columns: Sequence[NDArray[np.intp]], verdicts: NDArray[np.int8], sums: Numbers) -> Numbers:
    """The mean over the classes that have objects in a draw. columns: the detections of each class, by falling score."""
    there = sums[:, len(verdicts) :]
    scores = np.array([_average_precision(sums[:, mine], verdicts[mine], there[:, label]) for label, mine in enumerate(columns)])
    return np.asarray((scores.T * (there > 0)).sum(1) / np.maximum((there > 0).sum(1), 1))


def _average_precision(counts: Numbers, verdicts: NDArray[np.int8], there: Numbers) -> Numbers:
    """Of each draw, over THRESHOLDS: precision is made to fall with the recall, and read at RECALLS. counts: draws x detections.

    Where precision is read there is always a detection that is right, so that only these are looked at.
    """
    present = counts.any(0)
    counts, verdicts = counts[:, present], verdicts[present]
    before, total = counts.cumsum(1), np.zeros(len(counts))
    for verdict in verdicts.T:
        right, ignored = verdict == RIGHT, verdict == IGNORED
        known = before[:, right] - (counts * ignored).cumsum(1)[:, right] if ignored.any() else before[:, right]
        found = counts[:, right].cumsum(1)
        precision = np.maximum.accumulate((found / np.maximum(known, 1))[:, ::-1], axis=1)[:, ::-1]
        read = np.searchsorted(RECALLS, found / np.maximum(there, 1)[:, None], side="right")
        total += (precision * np.diff(read, axis=1, prepend=0)).sum(1)
    return total / (len(THRESHOLDS) * len(RECALLS))
