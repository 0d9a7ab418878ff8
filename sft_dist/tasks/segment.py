"""A class for each pixel: cross-entropy over the pixels that have one, and IoU from an exact confusion matrix of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import tv_tensors

from sft_dist import models, transforms
from sft_dist.config import Config, Data
from sft_dist.datasets.masks import VOID
from sft_dist.errors import ConfigError
from sft_dist.schedule import draw_seed
from sft_dist.tally import Evidence
from sft_dist.tasks.contract import Batch, Losses, Prepare, Sample, Scores, Task

ROWS = 256  # of an image at its own size that are scored at once
AUX = 0.5  # weight of the auxiliary head's loss, as in torchvision's references/segmentation


@dataclass(frozen=True)
class Masked(Batch):
    """images: uint8 of n x 3 x height x width. masks: int16 of n x height x width, VOID where a pixel has no class.

    In evaluation a batch is one image, and its mask has the size that it has in its file.
    """

    images: Tensor
    masks: Tensor


def build(config: Config, classes: Sequence[str], weights: bool = True) -> tuple[nn.Module, list[str]]:
    """The network of a config for `classes`, as `models.build` makes a classifier; it answers {"out": logits, "aux": those of the auxiliary head}."""
    torch.manual_seed(draw_seed("model", config.train.seed))
    model, told = models.furnish(models.network(config, len(classes)), config, classes, weights)
    model.register_forward_pre_hook(models.normalise(config.data.mean, config.data.std))
    return model, told


def prepare(data: Data, training: bool) -> Prepare:
    """In training, image and mask go through the same crop and flip; in evaluation the image is resized, and the mask stays as it is."""
    crop, resize = transforms.joint_training(data, VOID), transforms.whole(data)

    def both(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if image.shape[-2:] != mask.shape:
            (height, width), (rows, columns) = image.shape[-2:], mask.shape
            raise ValueError(
                f"its mask is {columns} x {rows} pixels, the image (turned upright by its EXIF tag) {width} x {height}; draw the mask on the upright image"
            )
        if not training:
            return resize(image), mask
        image, mask = crop(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)

    return both


def collate(samples: Sequence[Sample]) -> Masked:
    return Masked(
        ids=torch.tensor([sample.id for sample in samples]),
        images=torch.stack([sample.image for sample in samples]),
        masks=torch.stack(
            [
                sample.image.new_full(sample.image.shape[1:], VOID, dtype=torch.int16) if sample.target is None else sample.target
                for sample in samples
            ]
        ),
        problems=tuple(sample.problem for sample in samples if sample.problem),
    )


def count(batch: Masked) -> int:
    """Pixels that have a class."""
    return int((batch.masks != VOID).sum())


def loss(model: nn.Module, batch: Masked) -> Losses:
    """The loss of the answer, and AUX times that of the auxiliary head where there is one; the accuracy is the answer's."""
    outputs = model(batch.images)
    total = _losses(outputs["out"], batch.masks).sum()
    if "aux" in outputs:
        total = total + AUX * _losses(outputs["aux"], batch.masks).sum()
    return Losses(total, {"pixel_accuracy": (outputs["out"].detach().argmax(1) == batch.masks).sum()})


def measure(model: nn.Module, batch: Masked) -> Evidence:
    """Sums: images, loss over their pixels, and the confusion matrix of pixels (row the truth). Rows: the mean loss of an image, and its counts by class.

    The answer is resized to the mask's own size, one image after the other: all pixels of the file are scored, and the rest of the memory is free.
    """
    tables, losses = [], []
    for logits, mask in zip(model(batch.images)["out"], batch.masks, strict=True):
        full = functional.interpolate(logits[None], size=mask.shape, mode="bilinear", align_corners=False)
        bands = zip(
            torch.split(full, ROWS, 2), torch.split(mask[None], ROWS, 1), strict=True
        )  # all at once would take three times the memory
        losses.append(torch.stack([_losses(*band).double().sum() for band in bands]).sum())
        tables.append(_confusion(full[0].argmax(0), mask, len(logits)))
    confusion, loss = torch.stack(tables), torch.stack(losses)
    right, said, there = confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2)
    sums = {"samples": torch.tensor(len(batch), device=loss.device), "loss": loss.sum(), "confusion": confusion.sum(0)}
    columns = {"id": batch.ids, "loss": loss / there.sum(1).clamp(min=1), "right": right, "said": said, "there": there}
    return Evidence(sums, ({name: column.cpu().numpy() for name, column in columns.items()},))


def score(evidence: Evidence, classes: Sequence[str]) -> Scores:
    """Loss and accuracy by pixel; IoU, precision and recall by class. Classes on neither side are left out of the means, as in scikit-learn."""
    confusion = evidence.sums["confusion"].double()
    right, said, there = confusion.diag(), confusion.sum(0), confusion.sum(1)
    if not there.sum():
        raise ConfigError("no pixel of the masks has a class, so that there is nothing to score; look at the masks and at data.void")
    iou = right / (said + there - right).clamp(min=1)
    precision, recall = right / said.clamp(min=1), right / there.clamp(min=1)
    present = (said + there) > 0
    if present.sum() < 2:
        raise ConfigError(
            f"every labelled pixel of the masks is {classes[int(present.double().argmax())]}, and nothing else is said of one, so that there is "
            "nothing to tell apart; masks of 0 and 255 need 1 for 255, since 255 is void (data.void)"
        )
    values = {
        "val/loss": evidence.sums["loss"] / there.sum(),
        "val/miou": iou[present].mean(),
        "val/pixel_accuracy": right.sum() / there.sum(),
        "val/recall_macro": recall[present].mean(),
    }
    per_class = {
        name: {"iou": i, "precision": p, "recall": r, "support": int(n)}
        for name, i, p, r, n in zip(classes, iou.tolist(), precision.tolist(), recall.tolist(), there.tolist(), strict=True)
    }
    details = {"samples": int(evidence.sums["samples"]), "per_class": per_class, "confusion": confusion.long().tolist()}
    return Scores({name: float(value) for name, value in values.items()}, details)


def _losses(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of each pixel, 0 where it has no class. As a list of pixels: of images, torch's on CUDA is not deterministic."""
    flat = logits.movedim(1, -1).flatten(0, -2)
    return functional.cross_entropy(flat, masks.flatten().long(), ignore_index=VOID, reduction="none")


def _confusion(said: Tensor, mask: Tensor, classes: int) -> Tensor:
    labelled = mask != VOID
    cells = mask[labelled].long() * classes + said[labelled]
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


TASK = Task(
    name="segment",
    headline="val/miou",
    higher_is_better=True,
    build=build,
    prepare=prepare,
    collate=collate,
    count=count,
    loss=loss,
    measure=measure,
    score=score,
    alone=True,
)
