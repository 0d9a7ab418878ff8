"""What of a page depends on the kind of work: a new one is a line in the table, and a function that reads its predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.pages import words
from sft_dist.report import answers
from sft_dist.report.answers import Answered


@dataclass(frozen=True)
class Panel:
    """One picture of curves: their metrics, over each other."""

    title: str
    metrics: Sequence[str]


@dataclass(frozen=True)
class Kind:
    """A kind of work on the page.

    columns: of the table of classes, score -> its title. lead: the score that says which class is weakest. support: what a class has.
    panels: the curves of its scores. answered: predictions and names of classes -> what they say. missing: what there is not without them.
    counted: how often a class is taken for another. rows: what the numbers of the confusion matrix are; percent: whether of their row.
    """

    columns: Mapping[str, str]
    lead: str
    support: str
    panels: Sequence[Panel]
    answered: Callable[[Any, Sequence[str]], Answered]
    missing: str
    counted: Callable[[int], str]
    percent: bool = False

    @property
    def titles(self) -> str:
        *first, last = self.columns.values()
        told = f"{', '.join(first)} and {last}"
        return told[0].upper() + told[1:]


def _pixels(count: int) -> str:
    return f"{count:,} pixels"


KINDS = {
    "classify": Kind(
        columns={"precision": "precision", "recall": "recall", "f1": "F1"},
        lead="f1",
        support="samples",
        panels=(
            Panel("Accuracy", ("train/mean_top1", "val/top1", "val/top5")),
            Panel("Precision, recall and F1", ("val/precision_macro", "val/recall_macro", "val/f1_macro")),
        ),
        answered=answers.of_labels,
        missing="no calibration and no samples",
        counted=words.times,
    ),
    "segment": Kind(
        columns={"iou": "IoU", "precision": "precision", "recall": "recall"},
        lead="iou",
        support="pixels",
        panels=(
            Panel("IoU, mean over classes", ("val/miou",)),
            Panel("Pixels said rightly", ("train/mean_pixel_accuracy", "val/pixel_accuracy", "val/recall_macro")),
        ),
        answered=answers.of_masks,
        missing="no interval and no images",
        counted=_pixels,
        percent=True,
    ),
    "detect": Kind(
        columns={"ap": "AP", "ap_50": "AP50", "recall": "recall"},
        lead="ap",
        support="objects",
        panels=(
            Panel("Average precision, mean over classes", ("val/map", "val/map_50", "val/map_75")),
            Panel(
                "Parts of the loss",
                ("train/mean_loss_classifier", "train/mean_loss_box_reg", "train/mean_loss_objectness", "train/mean_loss_rpn_box_reg"),
            ),
        ),
        answered=answers.of_boxes,
        missing="no images",
        counted=words.times,
    ),
}
