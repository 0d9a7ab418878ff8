"""What the predictions of an evaluation say, by kind of work: answers to single samples, or images by how well they are done."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sft_dist import overlaps
from sft_dist.compare import boxes, masks, resampling
from sft_dist.history.records import Boxes, Found, Masks, Predictions

LEAST = 10  # images for an interval: of fewer, the draws are too much alike
FEW = 4  # images of a class, below which many draws have none of it


@dataclass(frozen=True)
class Answer:
    """What the model said of one sample. certainty: its probability of the truth; confidence: of what it said."""

    id: str
    truth: str
    said: str
    certainty: float
    confidence: float

    @property
    def right(self) -> bool:
        return self.truth == self.said


@dataclass(frozen=True)
class Rated:
    """One image, and how well it is done, from 0 to 1 and in words. found: its boxes, where these are what was asked for."""

    id: str
    share: float
    told: str
    found: Found | None = None


@dataclass(frozen=True)
class Answered:
    """One evaluation. answers: where a sample has one; images: else, the worst first.

    within: an interval of 95 % for the headline. rare: classes that are in so few images that it cannot be relied on.
    cutoff: the score from which detections are shown and counted.
    """

    answers: Sequence[Answer] = ()
    images: Sequence[Rated] = ()
    within: tuple[float, float] | None = None
    rare: Sequence[str] = ()
    cutoff: float | None = None


def of_labels(found: Predictions, names: Sequence[str]) -> Answered:
    columns = zip(found.ids, found.truths, found.guesses, found.certainty, found.confidence, strict=True)
    return Answered(
        [Answer(sample, name(names, truth), name(names, said), certainty, sure) for sample, truth, said, certainty, sure in columns]
    )


def of_masks(found: Masks, names: Sequence[str]) -> Answered:
    """By mean IoU over the classes that are in the image; the interval is the bootstrap's over images, if they are `LEAST`.

    Images that are all void are left out.
    """
    if not any(map(any, found.there)):
        return Answered()
    counts = masks.counts(found)
    known = counts[:, 2].sum(1) > 0
    ids, counts = [sample for sample, seen in zip(found.ids, known, strict=True) if seen], counts[known]
    images = [Rated(sample, float(share), f"IoU {share:.3f}") for sample, share in zip(ids, masks.by_image(counts), strict=True)]
    images.sort(key=lambda one: one.share)
    if len(images) < LEAST:
        return Answered(images=images)
    within = resampling.interval(counts.reshape(len(counts), -1), resampling.by_class(resampling.iou, counts.shape[2]))
    rare = [name(names, i) for i, count in enumerate((counts[:, 2] > 0).sum(0)) if 0 < count < FEW]
    return Answered(images=images, within=within, rare=rare)


def of_boxes(found: Boxes, names: Sequence[str]) -> Answered:
    """By F1 at an overlap of 0.5, of the detections with which that of the whole evaluation is highest; of the same F1 by how many mistakes."""
    if not found.ids:
        return Answered()
    scene = [boxes.image(one) for one in found.images]
    most = max(max([-1, *one.labels, *one.truth_labels]) for one in found.images)
    classes = np.arange(max(len(names), 1 + most))
    support = overlaps.support([there for there, _ in scene], classes)
    tally = boxes.tally(overlaps.judge([there for there, _ in scene], [those for _, those in scene], classes), support)
    images = []
    for sample, one, right, false, there in zip(
        found.ids, found.images, tally.found.tolist(), tally.false.tolist(), support.sum(1).tolist(), strict=True
    ):
        share = 2 * right / (right + false + there) if right + false + there else 1.0
        images.append((share, right - there - false, Rated(sample, share, f"{right} of {there} found, {false} false", one)))
    return Answered(images=[one for *_, one in sorted(images, key=lambda found: found[:2])], cutoff=tally.cutoff)


def name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)
