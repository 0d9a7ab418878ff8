"""One label an image: cross-entropy, accuracy, and precision, recall and F1 from an exact confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sft_dist import models
from sft_dist.tally import Evidence
from sft_dist.tasks.contract import Losses, Sample, Scores, Task, with_tensors


@dataclass(frozen=True)
class Batch:
    """ids, labels: int64 of n. images: uint8 of n x 3 x height x width."""

    ids: Tensor
    images: Tensor
    labels: Tensor
    problems: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> "Batch":
        return with_tensors(self, Tensor.pin_memory)


def collate(samples: Sequence[Sample]) -> Batch:
    return Batch(
        ids=torch.tensor([sample.id for sample in samples]),
        images=torch.stack([sample.image for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples]),
        problems=tuple(sample.problem for sample in samples if sample.problem),
    )


def loss(model: nn.Module, batch: Batch) -> Losses:
    logits = model(batch.images)
    total = functional.cross_entropy(logits, batch.labels, reduction="sum")
    return Losses(total, {"top1": (logits.detach().argmax(1) == batch.labels).sum()})


def measure(model: nn.Module, batch: Batch) -> Evidence:
    """Sums: samples, loss, top1, top5 and the confusion matrix (classes x classes: row the truth, column the prediction)."""
    logits = model(batch.images)
    classes = logits.shape[1]
    losses = functional.cross_entropy(logits, batch.labels, reduction="none")
    ranked = logits.topk(min(5, classes), dim=1).indices
    hits = ranked == batch.labels[:, None]
    cells = torch.bincount(batch.labels * classes + ranked[:, 0], minlength=classes * classes)
    sums = {
        "samples": torch.tensor(len(batch), device=logits.device),
        "loss": losses.double().sum(),
        "top1": hits[:, 0].sum(),
        "top5": hits.sum(),
        "confusion": cells.view(classes, classes),
    }
    columns = {"id": batch.ids, "label": batch.labels, "loss": losses, "probs": logits.softmax(1)}
    return Evidence(sums, ({name: column.cpu().numpy() for name, column in columns.items()},))


def score(evidence: Evidence, classes: Sequence[str]) -> Scores:
    """Loss and accuracies; per class and unweighted (macro) precision, recall and F1, where 0/0 is 0 as in scikit-learn."""
    sums = {name: value.double() for name, value in evidence.sums.items()}
    samples, confusion = sums["samples"], sums["confusion"]
    right, predicted, support = confusion.diag(), confusion.sum(0), confusion.sum(1)
    precision = right / predicted.clamp(min=1)
    recall = right / support.clamp(min=1)
    f1 = 2 * right / (predicted + support).clamp(min=1)
    present = (predicted + support) > 0  # scikit-learn's macro mean leaves out classes that occur on neither side
    values = {
        "val/loss": sums["loss"] / samples,
        "val/top1": sums["top1"] / samples,
        "val/top5": sums["top5"] / samples,
        "val/precision_macro": precision[present].mean(),
        "val/recall_macro": recall[present].mean(),
        "val/f1_macro": f1[present].mean(),
    }
    per_class = {
        name: {"precision": p, "recall": r, "f1": f, "support": int(n)}
        for name, p, r, f, n in zip(classes, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    }
    details = {"samples": int(samples), "per_class": per_class, "confusion": confusion.long().tolist()}
    return Scores({name: float(value) for name, value in values.items()}, details)


TASK = Task(
    name="classify",
    headline="val/top1",
    higher_is_better=True,
    build=models.build,
    collate=collate,
    count=None,
    loss=loss,
    measure=measure,
    score=score,
)
