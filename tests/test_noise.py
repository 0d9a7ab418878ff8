"""The statistics agree with scipy and scikit-learn, and their intervals and tests keep their promise on data made at random."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sft_dist.compare import noise


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (3, 3), (2, 9), (11, 0), (40, 61), (500, 400)])
def test_mcnemar_is_the_binomial_test_of_scipy(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert noise.mcnemar(lost, won) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scores", [([0.9, 0.91, 0.95], [0.8, 0.9]), ([0.5, 0.6], [0.55, 0.56, 0.7, 0.9])])
def test_welch_is_scipys(scores: tuple[list[float], list[float]]) -> None:
    one, other = scores
    found, expected = noise.welch(one, other), stats.ttest_ind(other, one, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high), rel=1e-9)


def test_the_spread_of_seeds_is_students() -> None:
    scores = [0.7, 0.72, 0.77]
    found = noise.spread(scores)
    low, high = stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores))
    assert (found.mean, found.deviation, found.low, found.high) == pytest.approx((0.73, np.std(scores, ddof=1), low, high))
    assert noise.spread([0.5]) == noise.Spread(0.5, 1)
    assert noise.spread([0.99, 0.9]).high == 1.0


@pytest.mark.parametrize(
    ("p_values", "among", "adjusted"),
    [
        ([0.01, 0.04, 0.03], 3, [0.03, 0.06, 0.06]),
        ([0.01, 0.04, 0.03], 6, [0.06, 0.16, 0.15]),
        ([0.5, 0.9], 2, [1.0, 1.0]),
        ([0.02], 1, [0.02]),
        ([], 0, []),
    ],
)
def test_holm(p_values: Sequence[float], among: int, adjusted: Sequence[float]) -> None:
    assert noise.holm(p_values, among) == pytest.approx(adjusted)


def models(*right: Sequence[int]) -> NDArray[np.bool_]:
    return np.array(right, dtype=bool)


def test_two_models_are_compared_by_the_samples_that_only_one_gets_right() -> None:
    one = models([1] * 80 + [0] * 12 + [1] * 3 + [0] * 5)
    other = models([1] * 80 + [1] * 12 + [0] * 3 + [0] * 5)
    found = noise.top1(one, other)
    assert (found.value, found.test) == (pytest.approx(0.09), "McNemar")
    assert found.p == pytest.approx(stats.binomtest(3, 15).pvalue)
    # Bonett and Price (2012): (12 - 3) / 102, plus and minus 1.96 sqrt((13 + 4) / 102 - (9 / 102)^2) / sqrt(102)
    assert (found.low, found.high) == pytest.approx((0.0108810, 0.1655896), abs=1e-6)


def test_where_no_sample_differs_the_interval_is_not_empty() -> None:
    one = models([1] * 90 + [0] * 10)
    found = noise.top1(one, one)
    assert (found.value, found.p) == (0.0, 1.0)
    assert -0.03 < found.low < -0.02 < 0.02 < found.high < 0.03


def test_which_side_is_called_one_changes_only_the_sign() -> None:
    random = np.random.default_rng(3)
    one, other = random.random((3, 50)) < 0.8, random.random((2, 50)) < 0.7
    there, back = noise.top1(one, other), noise.top1(other, one)
    assert (back.value, back.low, back.high, back.p) == pytest.approx((-there.value, -there.high, -there.low, there.p))


def test_seeds_that_agree_on_every_sample_leave_only_the_variance_of_the_samples() -> None:
    one, other = models([1] * 70 + [0] * 30), models([0] * 5 + [1] * 80 + [0] * 15)
    found = noise.top1(np.repeat(one, 3, axis=0), np.repeat(other, 3, axis=0))
    expected = stats.ttest_rel(other[0].astype(float), one[0].astype(float))
    assert (found.value, found.p) == pytest.approx((0.1, expected.pvalue), rel=1e-9)


def test_a_single_run_is_given_the_spread_of_the_others_and_their_degrees_of_freedom() -> None:
    one, several = models([1] * 900 + [0] * 100), models([1] * 930 + [0] * 70, [1] * 950 + [0] * 50, [1] * 970 + [0] * 30)
    found = noise.top1(one, several)
    seeds = np.var([0.93, 0.95, 0.97], ddof=1) * (1 + 1 / 3)
    assert found.value == pytest.approx(0.05)
    assert (found.high - found.low) / 2 >= stats.t.ppf(0.975, 2) * np.sqrt(seeds) * 0.999


def test_sides_that_are_equal_everywhere_are_no_different_and_need_no_division() -> None:
    found = noise.top1(models(*[[1] * 9] * 2), models(*[[1] * 9] * 2))
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def answers(random: np.random.Generator, runs: int, hardness: NDArray[np.float64], seeds: float) -> NDArray[np.bool_]:
    """Runs of one recipe on the same samples: every seed is a little better or worse at all of them."""
    logits = hardness + seeds * random.standard_normal((runs, 1))
    return random.random((runs, len(hardness))) < 1 / (1 + np.exp(-logits))


def null(repeats: int, runs: tuple[int, int], seeds: float, samples: int) -> tuple[float, float]:
    """How often two recipes that are equally good on average are told apart, and how often the interval holds zero."""
    random = np.random.default_rng(0)
    told = held = 0
    for _ in range(repeats):
        hardness = 2.5 + 2.5 * random.standard_normal(samples)
        own = random.standard_normal((2, samples))  # what each recipe is good at
        found = noise.top1(*(answers(random, runs[side], hardness + own[side], seeds) for side in (0, 1)))
        told += found.p < 0.05
        held += found.low <= 0 <= found.high
    return told / repeats, held / repeats


@pytest.mark.parametrize(("runs", "seeds"), [*product([(3, 3), (5, 3), (2, 2), (1, 3)], [0.0, 0.4]), ((1, 1), 0.0)])
def test_equal_recipes_are_rarely_told_apart(runs: tuple[int, int], seeds: float) -> None:
    told, held = null(400, runs, seeds, samples=200)
    assert told <= 0.08  # 0.05, and 2.8 standard errors of 400 repeats
    assert held >= 0.92


def test_one_seed_each_tells_models_apart_that_are_of_equal_recipes() -> None:
    """What McNemar's test does not answer: the spread of seeds is not in it."""
    told, _ = null(200, (1, 1), 0.8, samples=400)
    assert told > 0.3


def test_a_real_difference_is_found() -> None:
    random, found = np.random.default_rng(0), 0
    for _ in range(50):
        hardness = 2.5 + 2.5 * random.standard_normal(500)
        found += noise.top1(answers(random, 3, hardness, 0.1), answers(random, 3, hardness + 1, 0.1)).p < 0.05
    assert found >= 45
