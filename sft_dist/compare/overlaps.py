"""mIoU of masks and mAP of boxes as scores of counts that add over images, so that resampling can say whether a difference in them is noise."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sft_dist import overlaps
from sft_dist.compare import resampling
from sft_dist.compare.noise import Difference
from sft_dist.compare.resampling import Counts, Evidence, Score
from sft_dist.overlaps import Found, Judged, Labels, Numbers, Objects


def pixels(one: Counts, other: Counts, score: Callable[[Counts], Numbers] = resampling.iou, seed: int = 0) -> Difference:
    """The difference in mIoU, or in another score of the same counts; each side is runs x images x 3 x classes: how many pixels of each
    class are said rightly, are said to be of it, are of it. A class that is on neither side is left out of the mean."""
    from scipy.sparse import csr_array

    runs = [csr_array(run.reshape(len(run), -1).astype(float)) for run in (*one, *other)]
    return resampling.between(runs[: len(one)], runs[len(one) :], resampling.by_class(score, one.shape[-1]), seed)


def mean_ap(objects: Sequence[Objects], one: Sequence[Sequence[Found]], other: Sequence[Sequence[Found]], seed: int = 0) -> Difference:
    """The difference in COCO's mAP (all sizes); each side is runs x images."""
    runs, score = ranked(objects, [*one, *other])
    return resampling.between(runs[: len(one)], runs[len(one) :], score, seed)


def ranked(objects: Sequence[Objects], runs: Sequence[Sequence[Found]]) -> tuple[list[Evidence], Score]:
    """Evidence of each run, images x (detections of all runs by falling score, classes), and the mAP of sums of it."""
    classes = np.unique(np.concatenate([each.labels[each.single] for each in objects]))
    assert len(classes), "there is no object to find"
    return evidence([overlaps.judge(objects, run, classes) for run in runs], overlaps.support(objects, classes))


def evidence(judged: Sequence[Judged], support: Labels, at: slice = slice(None)) -> tuple[list[Evidence], Score]:
    """The same of detections that are judged already. support: images x classes, the objects there. at: which of THRESHOLDS count."""
    from scipy.sparse import csr_array, hstack

    there = csr_array(support.astype(float))
    fields = [np.concatenate([getattr(each, name) for each in judged]) for name in ("images", "labels", "scores", "verdicts")]
    owners = np.repeat(np.arange(len(judged)), [len(each.images) for each in judged])
    order = np.lexsort((fields[0], -fields[2]))
    known, owners = Judged(*fields).take(order), owners[order]
    found = []
    for run in range(len(judged)):
        mine = np.flatnonzero(owners == run)
        columns = csr_array((np.ones(len(mine)), (known.images[mine], mine)), shape=(len(support), len(owners)))
        found.append(hstack([columns, there], format="csr"))
    places = [np.flatnonzero(known.labels == label) for label in range(support.shape[1])]
    return found, partial(_mean_ap, places, known.verdicts[:, at])


def _mean_ap(columns: Sequence[NDArray[np.intp]], verdicts: NDArray[np.int8], sums: Numbers) -> Numbers:
    """The mean over the classes that have objects in a draw. columns: the detections of each class, by falling score."""
    there = sums[:, len(verdicts) :]
    scores = np.array(
        [overlaps.average_precision(sums[:, mine], verdicts[mine], there[:, label]).mean(1) for label, mine in enumerate(columns)]
    )
    return np.asarray((scores.T * (there > 0)).sum(1) / np.maximum((there > 0).sum(1), 1))
