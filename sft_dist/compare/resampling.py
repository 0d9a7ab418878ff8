"""Scores that are no mean over samples, like macro F1 and mAP: the difference, its interval by a bootstrap, its p value by a permutation test.

All of them are functions of counts that add over samples, which is what resampling needs: each draw is a sum, and the score of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.compare import noise
from sft_dist.compare.noise import LEVEL, Difference

BOOTSTRAPS = 2000  # the ends of an interval then move by a few hundredths of its length between seeds
SWAPS = 9999  # so that the smallest p is 0.0001, and one of 0.05 is within 0.0043 of that of all swaps (two standard errors)
CELLS = 4_000_000  # numbers that one piece of the draws holds at once

Counts = NDArray[np.float64]
"""draws x 3 x classes: how many samples of each class are said rightly, are said to be of it, are of it."""
Evidence = Any
"""samples x counts of one run, a sparse array of scipy: what its score is made of."""
Score = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Sums of evidence, draws x counts, -> a score for each draw."""


def f1(counts: Counts) -> NDArray[np.float64]:
    right, said, there = np.moveaxis(counts, 1, 0)
    return _macro(2 * right / np.maximum(said + there, 1), counts)


def precision(counts: Counts) -> NDArray[np.float64]:
    right, said, _ = np.moveaxis(counts, 1, 0)
    return _macro(right / np.maximum(said, 1), counts)


def recall(counts: Counts) -> NDArray[np.float64]:
    right, _, there = np.moveaxis(counts, 1, 0)
    return _macro(right / np.maximum(there, 1), counts)


def accuracy(counts: Counts) -> NDArray[np.float64]:
    """The share of all that is said rightly."""
    right, _, there = np.moveaxis(counts, 1, 0)
    return np.asarray(right.sum(1) / np.maximum(there.sum(1), 1))


def iou(counts: Counts) -> NDArray[np.float64]:
    right, said, there = np.moveaxis(counts, 1, 0)
    return _macro(right / np.maximum(said + there - right, 1), counts)


MACRO: Mapping[str, Callable[[Counts], NDArray[np.float64]]] = MappingProxyType(
    {"val/f1_macro": f1, "val/precision_macro": precision, "val/recall_macro": recall}
)
"""The scores that are compared this way, by their names in a run."""


def difference(metric: str, truths: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64], seed: int = 0) -> Difference:
    """The difference in one of MACRO; guesses are runs x samples. Samples with the same truth and the same guesses are of one kind."""
    answers = np.concatenate([truths[None], one, other])
    classes = 1 + int(answers.max())
    runs = [_evidence(truths, guesses, classes) for guesses in (*one, *other)]
    kinds = np.unique(answers, axis=1, return_inverse=True)[1].reshape(-1)
    return between(runs[: len(one)], runs[len(one) :], by_class(MACRO[metric], classes), seed, kinds)


def between(
    one: Sequence[Evidence], other: Sequence[Evidence], score: Score, seed: int = 0, kinds: NDArray[Any] | None = None
) -> Difference:
    """The difference in any score of evidence that adds: the runs of each side, with the same samples and counts in all of them.

    One run on each side: the percentile interval of the bootstrap (Efron and Tibshirani 1993, chapter 13) and the permutation test. Several
    seeds: the variance over the bootstrap's draws is added to that of the seeds, in Student's interval and test.
    kinds: a number for each sample; those with the same number count the same in every run. None: no two samples do.
    """
    runs, samples = [*one, *other], one[0].shape[0]
    scores = np.array([score(np.asarray(run.sum(0))[None])[0] for run in runs])
    value = float(scores[len(one) :].mean() - scores[: len(one)].mean())
    draws = _bootstrapped(runs, score, np.arange(samples) if kinds is None else kinds, seed)
    differences = draws[len(one) :].mean(0) - draws[: len(one)].mean(0)
    if len(one) == len(other) == 1:
        low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Difference(value, float(low), float(high), swap_test(one[0], other[0], score, seed), "permutation")
    seeds = noise.seed_parts(scores[: len(one)], scores[len(one) :])
    from_samples = float(np.var(differences, ddof=1))
    variance = sum(part for part, _ in seeds) + from_samples
    return noise.student(value, variance, noise.freedom(variance, seeds, from_samples, samples), "bootstrap t")


def interval(evidence: Evidence, score: Score, seed: int = 0) -> tuple[float, float]:
    """Of the score of one run alone: the percentiles of the bootstrap over its samples, which take the run for granted."""
    drawn = _bootstrapped([evidence], score, np.arange(evidence.shape[0]), seed)[0]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def swap_test(one: Evidence, other: Evidence, score: Score, seed: int = 0) -> float:
    """Two-sided p of a paired permutation test: a coin for each sample says whether the two sides swap what they counted there.

    The p value of `SWAPS` random swaps is (b + 1) / (n + 1), with b of them at least as far apart as what was seen (Phipson and Smyth 2010):
    never zero, and no more often small than it says.
    """
    moving = other - one
    moving.eliminate_zeros()
    moving = moving[np.diff(moving.indptr) > 0]  # a sample on which both agree swaps nothing
    sums = np.asarray(one.sum(0))[None], np.asarray(other.sum(0))[None]
    seen = abs(score(sums[1]) - score(sums[0]))[0]
    random, far = np.random.default_rng(seed), 0
    for size in _pieces(SWAPS, max(moving.shape)):
        swapped = random.integers(0, 2, size=(size, moving.shape[0])).astype(float) @ moving
        far += int((abs(score(sums[1] - swapped) - score(sums[0] + swapped)) >= seen - 1e-12).sum())
    return (far + 1) / (SWAPS + 1)


def by_class(macro: Callable[[Counts], NDArray[np.float64]], classes: int) -> Score:
    """The score of sums that hold `Counts` one after the other."""
    return lambda sums: macro(sums.reshape(len(sums), 3, classes))


def _macro(scores: NDArray[np.float64], counts: Counts) -> NDArray[np.float64]:
    """The mean over the classes; those on neither side are left out, as in scikit-learn and in the scores of a run."""
    there = counts[:, 1:].sum(1) > 0
    return np.asarray((scores * there).sum(1) / np.maximum(there.sum(1), 1))


def _evidence(truths: NDArray[np.int64], guesses: NDArray[np.int64], classes: int) -> Evidence:
    """samples x (3 classes), sparse: of each class whether the sample is said rightly, is said to be of it, is of it."""
    from scipy.sparse import csr_array

    everyone = np.arange(len(truths))
    right = truths == guesses
    rows = np.concatenate([everyone[right], everyone, everyone])
    columns = np.concatenate([truths[right], classes + guesses, 2 * classes + truths])
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(truths), 3 * classes))


def _bootstrapped(runs: Sequence[Evidence], score: Score, kinds: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """runs x BOOTSTRAPS: the score on each draw of as many samples with replacement, the same samples for all runs.

    A draw says how often each kind of sample is in it: a multinomial over the kinds, of which there may be far fewer than samples.
    """
    _, first, counts = np.unique(kinds, return_index=True, return_counts=True)
    sides = [run[first] for run in runs]
    random, pieces = np.random.default_rng(seed), []
    for size in _pieces(BOOTSTRAPS, max(sides[0].shape)):
        drawn = random.multinomial(len(kinds), counts / len(kinds), size=size).astype(float)
        pieces.append(np.array([score(drawn @ side) for side in sides]))
    return np.concatenate(pieces, axis=1)


def _pieces(draws: int, width: int) -> Iterator[int]:
    """Sizes that sum up to `draws`, so that each piece of so many rows of this width fits into CELLS."""
    size = max(1, CELLS // max(1, width))
    yield from (min(size, draws - begun) for begun in range(0, draws, size))
