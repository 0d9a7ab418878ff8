"""Is a difference noise? Tests and intervals for scores of the same samples, over one run or several seeds on each side.

What each assumes, and what it cannot say, stands in docs/concepts/noise.md. Proportions and scores are shares, not points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95

Right = NDArray[np.bool_]
"""runs x samples: whether a run classifies a sample rightly."""


@dataclass(frozen=True)
class Spread:
    """The scores of runs that differ in seed only. deviation: of a sample (n - 1). low, high: Student's interval for the mean. None: one run."""

    mean: float
    n: int
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """Other minus one, with an interval of 95 %. p: two-sided, before any correction."""

    value: float
    low: float
    high: float
    p: float
    test: str


def spread(scores: Sequence[float]) -> Spread:
    """Of scores that are shares, so that their interval ends at 0 and at 1."""
    mean, n = math.fsum(scores) / len(scores), len(scores)
    if n == 1:
        return Spread(mean, n)
    deviation = float(np.std(scores, ddof=1))
    half = _quantile(n - 1) * deviation / math.sqrt(n)
    return Spread(mean, n, deviation, max(0.0, mean - half), min(1.0, mean + half))


def mcnemar(only_one: int, only_other: int) -> float:
    """Two-sided exact p of McNemar's test: are the samples that only one side gets right split evenly? (Dietterich 1998, section 3.1)"""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_one, only_other), only_one + only_other, 0.5)))


def welch(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Welch's t-test of the means of two or more scores on each side; the samples are taken as given."""
    parts = seed_parts(np.asarray(one), np.asarray(other))
    variance = sum(part for part, _ in parts)
    return student(spread(other).mean - spread(one).mean, variance, freedom(variance, parts, 0.0, 2), "Welch t")


def top1(one: Right, other: Right) -> Difference:
    """The difference in accuracy, for new samples: of these two models, or, where a side has several seeds, of the two recipes."""
    return _two_models(one[0], other[0]) if len(one) == len(other) == 1 else _two_recipes(one, other)


def _two_models(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Difference:
    """McNemar's exact test, and the adjusted Wald interval of Bonett and Price (2012), which also holds where few samples differ."""
    lost, won, n = int((one & ~other).sum()), int((other & ~one).sum()), len(one)
    a, b = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = _normal() * math.sqrt((a + b - (b - a) ** 2) / (n + 2))
    low, high = max(-1.0, b - a - half), min(1.0, b - a + half)
    return Difference((won - lost) / n, low, high, mcnemar(lost, won), "McNemar")


def _two_recipes(one: Right, other: Right) -> Difference:
    """Seeds and samples both drawn at random, every seed on every sample: a t-test on the sum of the variances that they cause.

    Two-way analysis of variance: the variance of a grand mean is that of the seeds' means plus that of the samples' means, less what
    both count, the interaction. Degrees of freedom by Satterthwaite. A side of one run is given the other side's spread of seeds; then the
    degrees of freedom are those of that spread alone, because too many would make a spread that is small by chance look certain.
    """
    n = one.shape[1]
    seeds = seed_parts(one.mean(1), other.mean(1))
    per_sample = other.mean(0) - one.mean(0)
    samples = float(np.var(per_sample, ddof=1)) / n
    both = sum(_interactions(one, other))
    from_seeds = sum(part for part, _ in seeds)
    variance = max(from_seeds + samples - both, from_seeds, samples)
    return student(float(per_sample.mean()), variance, freedom(variance, seeds, samples, n), "crossed t")


def holm(p_values: Sequence[float], among: int) -> list[float]:
    """p values after Holm's correction for `among` comparisons, of which those not given count as larger than all that are."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (among - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def seed_parts(one: NDArray[Any], other: NDArray[Any]) -> list[tuple[float, int]]:
    """(variance of the difference, degrees of freedom) that the seeds of each side cause; a side of one run borrows the other's spread."""
    if min(len(one), len(other)) == 1:
        several = one if len(one) > 1 else other
        return [(float(np.var(several, ddof=1)) * (1 / len(one) + 1 / len(other)), len(several) - 1)]
    return [(float(np.var(side, ddof=1)) / len(side), len(side) - 1) for side in (one, other)]


def freedom(variance: float, seeds: Sequence[tuple[float, int]], samples: float, n: int) -> float:
    """Satterthwaite's degrees of freedom of a variance that seeds and samples cause; of a borrowed spread, those of the seeds alone."""
    if len(seeds) == 1:
        return seeds[0][1]
    parts = sum(part**2 / of for part, of in (*seeds, (samples, n - 1)))
    return variance**2 / parts if parts else n - 1


def _interactions(one: Right, other: Right) -> list[float]:
    """The part of the variance of each side's mean that is neither a seed's nor a sample's own: residual mean square / (runs x samples)."""
    several = [side for side in (one, other) if len(side) > 1]
    squares = {id(side): _residual_square(side) for side in several}
    borrowed = squares[id(several[0])]
    return [squares.get(id(side), borrowed) / side.size for side in (one, other)]


def _residual_square(side: Right) -> float:
    residual = side - side.mean(1, keepdims=True) - side.mean(0, keepdims=True) + side.mean()
    return float((residual**2).sum() / ((len(side) - 1) * (side.shape[1] - 1)))


def student(value: float, variance: float, degrees: float, test: str) -> Difference:
    """Student's interval, and the test of no difference."""
    from scipy.special import stdtr

    if variance == 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0, test)
    error = math.sqrt(variance)
    half = _quantile(degrees) * error
    return Difference(value, value - half, value + half, 2 * float(stdtr(degrees, -abs(value) / error)), test)


def _quantile(degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + LEVEL) / 2))


def _normal() -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + LEVEL) / 2))
