"""Objects in boxes: Faster R-CNN's four losses, and COCO's average precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from sft_dist import detector, overlaps
from sft_dist.config import Data
from sft_dist.datasets.boxes import Boxes
from sft_dist.detector import Size, Truths
from sft_dist.errors import ConfigError
from sft_dist.overlaps import Found, Objects
from sft_dist.tally import Evidence
from sft_dist.tasks.contract import Batch, Losses, Prepare, Sample, Scores, Task


class Scene(NamedTuple):
    """The truth of an image, as it is learned and as it is scored.

    boxes, labels: float of n x 4, in pixels of the image as the model sees it, and int64 of n: what is learned. size: height and width of
    what the model sees of the picture, the rest is padding. whole: those of the picture itself, in whose pixels `there` is.
    """

    boxes: Tensor
    labels: Tensor
    size: Size
    whole: Size
    there: Objects


@dataclass(frozen=True)
class Pictured(Batch):
    """images: uint8 of n x 3 x size x size. boxes, labels, sizes, wholes, there: of `Scene`, one an image. draws: of `Sample`."""

    images: Tensor
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    draws: tuple[int, ...]
    sizes: tuple[Size, ...]
    wholes: tuple[Size, ...]
    there: tuple[Objects, ...]


def prepare(data: Data, training: bool) -> Prepare:
    """Every image is resized until its longer side is `data.size`, and padded to a square at the right and at the bottom, in the mean colour.

    In training it is flipped, and before that, with `resized_crop`, cropped as for SSD: of an area within `data.crop_scale`, most often with
    a good part of some object in it (torchvision's RandomIoUCrop). Boxes are clipped; those of less than a pixel are not learned.
    """
    steps: list[nn.Module] = [v2.ClampBoundingBoxes()]
    low = 1.0
    if training and data.augment == "resized_crop":
        low, high = (share**0.5 for share in data.crop_scale)  # it draws the shares of width and height, not of the area
        steps += [v2.RandomIoUCrop(low, high), v2.ClampBoundingBoxes()]
    if training:
        steps.append(v2.RandomHorizontalFlip(data.flip))
    steps += [v2.Resize(None, max_size=data.size, antialias=True), v2.SanitizeBoundingBoxes(min_size=1)]
    transform, fill = v2.Compose(steps), [round(255 * mean) for mean in data.mean]

    def prepared(image: Tensor, truth: Boxes) -> tuple[Tensor, Scene]:
        whole = image.shape[-2], image.shape[-1]
        _check(truth, whole, data.size, low)
        learned = [i for i, wanted in enumerate(truth.learned) if wanted]
        known = torch.tensor([truth.boxes[i] for i in learned], dtype=torch.float32).reshape(-1, 4)
        boxes = tv_tensors.BoundingBoxes(known, format="XYXY", canvas_size=whole)
        labels = torch.tensor([truth.labels[i] for i in learned], dtype=torch.int64)
        seen = transform({"image": tv_tensors.Image(image), "boxes": boxes, "labels": labels})
        height, width = seen["image"].shape[-2:]
        padded = functional.pad(seen["image"].as_subclass(Tensor), [0, 0, data.size - width, data.size - height], fill=fill)
        scene = Scene(seen["boxes"].as_subclass(Tensor), seen["labels"], (height, width), whole, _objects(truth, whole))
        return padded, scene

    return prepared


def _check(truth: Boxes, whole: Size, size: int, smallest: float) -> None:
    """smallest: the share of its sides that a crop may keep, which must be a pixel: RandomIoUCrop divides by it."""
    height, width = whole
    if truth.size is not None and truth.size != (width, height):
        raise ValueError(
            f"its annotation is of an image of {truth.size[0]} x {truth.size[1]} pixels, but upright it has {width} x {height}: "
            "the boxes would be in wrong places; correct the annotation's size, or remove it"
        )
    if size * min(whole) < max(whole):
        raise ValueError(
            f"with {width} x {height} pixels it is too narrow for data.size = {size}: nothing would be left of its shorter side"
        )
    if smallest * min(whole) < 1:
        raise ValueError(
            f"with {width} x {height} pixels it is too narrow for crops of {smallest:.0%} of its sides; remove it, raise data.crop_scale, "
            "or use data.augment: none"
        )


def _objects(truth: Boxes, whole: Size) -> Objects:
    """What is scored: clipped to the picture, and without what lies outside."""
    height, width = whole
    boxes = np.array(truth.boxes, dtype=float).reshape(-1, 4).clip(0, [width, height, width, height])
    inside = (boxes[:, :2] < boxes[:, 2:]).all(1)
    return Objects(boxes[inside], np.array(truth.labels, dtype=np.int64)[inside], np.array(truth.crowd, dtype=bool)[inside])


def collate(samples: Sequence[Sample]) -> Pictured:
    """What cannot be read stops the run; until then it is an empty scene."""
    side = samples[0].image.shape[-1]
    nothing = Boxes((), (), (), (), None)
    empty = Scene(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (side, side), (side, side), _objects(nothing, (side, side)))
    boxes, labels, sizes, wholes, there = zip(*(sample.target or empty for sample in samples), strict=True)
    return Pictured(
        ids=torch.tensor([sample.id for sample in samples]),
        problems=tuple(sample.problem for sample in samples if sample.problem),
        images=torch.stack([sample.image for sample in samples]),
        boxes=boxes,
        labels=labels,
        draws=tuple(sample.draw for sample in samples),
        sizes=sizes,
        wholes=wholes,
        there=there,
    )


def loss(model: nn.Module, batch: Pictured) -> Losses:
    """Of each image the sum of torchvision's losses of objectness, proposals, class and box, each a mean over what is sampled in it."""
    targets = [{"boxes": boxes, "labels": labels + 1} for boxes, labels in zip(batch.boxes, batch.labels, strict=True)]
    losses = model(batch.images, sizes=batch.sizes, truths=Truths(targets, batch.draws))
    return Losses(torch.stack(list(losses.values())).sum(), {name: each.detach() for name, each in losses.items()})


def measure(model: nn.Module, batch: Pictured) -> Evidence:
    """Rows: what is found and what is there, in pixels of the whole image.

    Edges to a hundredth of a pixel and scores to a millionth, here and not later: what is written into predictions is what is scored.
    """
    columns: dict[str, Any] = {"id": batch.ids.cpu().numpy()}
    for name in ("boxes", "labels", "scores", "truth_boxes", "truth_labels", "crowd"):
        columns[name] = []
    for found, seen, whole, there in zip(model(batch.images, sizes=batch.sizes), batch.sizes, batch.wholes, batch.there, strict=True):
        zoom = np.array([whole[1] / seen[1], whole[0] / seen[0]] * 2)
        columns["boxes"].append((found["boxes"].double().cpu().numpy() * zoom).round(2))
        columns["labels"].append(found["labels"].cpu().numpy() - 1)
        columns["scores"].append(found["scores"].double().cpu().numpy().round(6))
        columns["truth_boxes"].append(there.boxes.round(2))
        columns["truth_labels"].append(there.labels)
        columns["crowd"].append(there.crowd)
    return Evidence({"samples": torch.tensor(len(batch), device=batch.images.device)}, (columns,))


def score(evidence: Evidence, classes: Sequence[str]) -> Scores:
    """COCO's average precision over all sizes, at most 100 detections of a class in an image; means over the classes that have objects.

    recall: the share of the objects that are found, whatever the score, and as the precision a mean over overlaps from 0.50 to 0.95.
    Of a class without objects all are 0. Raises ConfigError where there is no object at all.
    """
    rows = sorted((row for table in evidence.rows for row in _rows(table)), key=lambda row: row["id"])
    objects = [Objects(row["truth_boxes"], row["truth_labels"], row["crowd"]) for row in rows]
    found = [Found(row["boxes"], row["labels"], row["scores"]) for row in rows]
    numbers = np.arange(len(classes))
    support = overlaps.support(objects, numbers).sum(0)
    precision, recall = overlaps.precision_and_recall(overlaps.judge(objects, found, numbers), support)
    there = support > 0
    if not there.any():
        raise ConfigError(
            f"not one object that need be found lies in the {len(rows)} images, so that there is nothing to score; look at their annotations; "
            "eval.test: false leaves a test split without any out"
        )
    values = {"val/map": precision[there].mean(), "val/map_50": precision[there, 0].mean(), "val/map_75": precision[there, 5].mean()}
    per_class = {
        name: {"ap": float(at.mean()), "ap_50": float(at[0]), "recall": float(share.mean()), "support": int(count)}
        for name, at, share, count in zip(classes, precision, recall, support, strict=True)
    }
    return Scores({name: float(value) for name, value in values.items()}, {"samples": len(rows), "per_class": per_class})


def _rows(table: Any) -> list[dict[str, Any]]:
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


TASK = Task(
    name="detect",
    headline="val/map",
    higher_is_better=True,
    build=detector.build,
    prepare=prepare,
    collate=collate,
    count=None,
    loss=loss,
    measure=measure,
    score=score,
)
