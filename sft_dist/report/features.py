"""What the last layer of a classifier gets: features, their two principal components, and whose neighbours they are."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sft_dist.families import family
from sft_dist.report.exhibits import Map

Features = NDArray[np.float64]


def of(model: nn.Module, name: str, batches: Iterable[Tensor]) -> Features:
    """Features of images, a row each. The model is in evaluation mode."""
    rows: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor]) -> None:  # noqa: ARG001
        rows.append(args[0].detach().double().cpu())

    handle = model.get_submodule(family(name).head).register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            for images in batches:
                model(images)
    finally:
        handle.remove()
    return np.asarray(torch.cat(rows).numpy())


def described(features: Features, labels: NDArray[np.int64]) -> Map:
    """The features in two dimensions, and how many have a sample of their own class for their nearest neighbour."""
    points, explained = principal(features)
    shares = (float(explained[0]), float(explained[1]))
    return Map(points=tuple((float(x), float(y)) for x, y in points.round(6)), explained=shares, neighbours=neighbours(features, labels))


def principal(features: Features) -> tuple[Features, NDArray[np.float64]]:
    """The first two principal components of each row, and the share of the variance that each explains. Signs are chosen so that the
    largest part of a direction is positive: the same features are the same picture. Raises ValueError for features that are not finite."""
    if not np.isfinite(features).all():
        raise ValueError("what the model computes is not finite")
    centred = features - features.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    directions = np.vstack([directions[:2], np.zeros((max(0, 2 - len(directions)), directions.shape[1]))])
    signs = np.sign(directions[np.arange(2), np.abs(directions).argmax(1)])
    variance = np.pad(sizes**2, (0, 2))
    total = variance.sum()
    return centred @ (directions * np.where(signs == 0, 1, signs)[:, None]).T, np.clip(
        variance[:2] / total if total > 0 else variance[:2], 0, 1
    )


def neighbours(features: Features, labels: NDArray[np.int64]) -> float:
    """The share of rows whose nearest other row, by angle, has the same label."""
    if len(features) < 2:
        return 0.0
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.where(lengths > 0, lengths, 1)
    near = directions @ directions.T
    np.fill_diagonal(near, -np.inf)
    return float((labels[near.argmax(1)] == labels).mean())
