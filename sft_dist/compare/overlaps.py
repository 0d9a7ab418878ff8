"""mIoU of masks and mAP of boxes as scores of counts that add over images, so that resampling can say whether a difference in them is noise."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sft_dist import overlaps
from sft_dist.compare import resampling
from sft_dist.compare.noise import Difference
from sft_dist.compare.resampling import Evidence, Score
from sft_dist.overlaps import Found, Judged, Numbers, Objects


def miou(one: NDArray[np.int64], other: NDArray[np.int64], seed: int = 0) -> Difference:
    """The difference in mIoU; each side is runs x images x classes x classes, of `confusion`. Classes on neither side are left out of the mean."""
    from scipy.sparse import csr_array

    tables = np.concatenate([one, other]).astype(float)
    counts = np.stack([np.einsum("rikk->rik", tables), tables.sum(2), tables.sum(3)], axis=2)  # right, said, there
    runs = [csr_array(run.reshape(len(run), -1)) for run in counts]
    return resampling.between(runs[: len(one)], runs[len(one) :], resampling.by_class(resampling.iou, tables.shape[-1]), seed)


def mean_ap(objects: Sequence[Objects], one: Sequence[Sequence[Found]], other: Sequence[Sequence[Found]], seed: int = 0) -> Difference:
    """The difference in COCO's mAP (all sizes); each side is runs x images."""
    runs, score = ranked(objects, [*one, *other])
    return resampling.between(runs[: len(one)], runs[len(one) :], score, seed)


def ranked(objects: Sequence[Objects], runs: Sequence[Sequence[Found]]) -> tuple[list[Evidence], Score]:
    """Evidence of each run, images x (detections of all runs by falling score, classes), and the mAP of sums of it."""
    from scipy.sparse import csr_array, hstack

    classes = np.unique(np.concatenate([each.labels[each.single] for each in objects]))
    assert len(classes), "there is no object to find"
    there = csr_array(overlaps.support(objects, classes).astype(float))
    judged = [overlaps.judge(objects, run, classes) for run in runs]
    fields = [np.concatenate([getattr(each, name) for each in judged]) for name in ("images", "labels", "scores", "verdicts")]
    owners = np.repeat(np.arange(len(runs)), [len(each.images) for each in judged])
    order = np.lexsort((fields[0], -fields[2]))
    known, owners = Judged(*fields).take(order), owners[order]
    evidence = []
    for run in range(len(runs)):
        mine = np.flatnonzero(owners == run)
        columns = csr_array((np.ones(len(mine)), (known.images[mine], mine)), shape=(len(objects), len(owners)))
        evidence.append(hstack([columns, there], format="csr"))
    return evidence, partial(_mean_ap, [np.flatnonzero(known.labels == label) for label in range(len(classes))], known.verdicts)


def _mean_ap(columns: Sequence[NDArray[np.intp]], verdicts: NDArray[np.int8], sums: Numbers) -> Numbers:
    """The mean over the classes that have objects in a draw. columns: the detections of each class, by falling score."""
    there = sums[:, len(verdicts) :]
    scores = np.array(
        [overlaps.average_precision(sums[:, mine], verdicts[mine], there[:, label]).mean(1) for label, mine in enumerate(columns)]
    )
    return np.asarray((scores.T * (there > 0)).sum(1) / np.maximum((there > 0).sum(1), 1))
