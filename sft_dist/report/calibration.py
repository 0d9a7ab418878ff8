"""Is a model as sure as it is right? Confidence against accuracy, and the expected calibration error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15  # of equal width, as in Guo et al. 2017, "On Calibration of Modern Neural Networks", and in torchmetrics


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence is from `low` up to `high`, which only the last bin takes in: their means."""

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """The bins that hold a sample.

    error: the expected calibration error, the mean over all samples of |accuracy - confidence| of their bin. by_chance: about what a
    perfectly calibrated model of this confidence would show on so few samples, because the accuracy of a bin is a draw.
    """

    bins: Sequence[Bin]
    error: float
    by_chance: float
    confidence: float
    accuracy: float


def calibrate(confidence: Sequence[float], right: Sequence[bool]) -> Calibration | None:
    """confidence: the probability of the predicted class; right: whether it is the true one. None without samples."""
    if not len(confidence):
        return None
    sure, hits = np.asarray(confidence, float), np.asarray(right, float)
    edges = np.linspace(0, 1, BINS + 1)
    place = np.digitize(sure, edges[1:-1])
    bins, gaps, chances = [], [], []
    for number in range(BINS):
        if (its := place == number).any():
            bins.append(Bin(edges[number], edges[number + 1], int(its.sum()), float(sure[its].mean()), float(hits[its].mean())))
            gaps.append(abs((hits[its] - sure[its]).sum()))
            chances.append(math.sqrt(2 / math.pi * max(0.0, float((sure[its] * (1 - sure[its])).sum()))))  # mean of |a normal draw|
    return Calibration(bins, float(sum(gaps)) / len(sure), sum(chances) / len(sure), float(sure.mean()), float(hits.mean()))
