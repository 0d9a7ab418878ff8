"""Macro scores are scikit-learn's, their interval is scipy's bootstrap, their test is scipy's permutation test and keeps its promise."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score, precision_score, recall_score

from sft_dist.compare import resampling
from sft_dist.compare.resampling import difference

ORACLES = {"val/f1_macro": f1_score, "val/precision_macro": precision_score, "val/recall_macro": recall_score}
Guesses = NDArray[np.int64]


def macro(metric: str, truths: Guesses, guesses: Guesses) -> float:
    return float(ORACLES[metric](truths, guesses, average="macro", zero_division=0))


def drawn(random: np.random.Generator, samples: int, classes: int, right: float = 0.8, runs: int = 2) -> list[Guesses]:
    """True classes of unequal frequency, and what each run says of them."""
    shares = 1 / np.arange(1, classes + 1)
    truths = random.choice(classes, samples, p=shares / shares.sum())
    return [truths, *(np.where(random.random(samples) < right, truths, random.integers(0, classes, samples))[None] for _ in range(runs))]


@pytest.mark.parametrize("metric", ORACLES)
@pytest.mark.parametrize("samples", [5, 40, 300])
def test_a_difference_is_scikit_learns(metric: str, samples: int) -> None:
    truths, one, other = drawn(np.random.default_rng(samples), samples, 6)
    assert difference(metric, truths, one, other).value == pytest.approx(
        macro(metric, truths, other[0]) - macro(metric, truths, one[0]), abs=1e-12
    )


def test_the_bootstrap_is_scipys_within_its_own_noise() -> None:
    truths, one, other = drawn(np.random.default_rng(5), 150, 3)

    def f1(places: Guesses, side: Guesses) -> float:
        table = np.bincount(3 * truths[places] + side[0][places], minlength=9).reshape(3, 3)
        return float((2 * table.diagonal() / (table.sum(0) + table.sum(1))).mean())

    theirs = stats.bootstrap(
        (np.arange(150),),
        lambda places: f1(places, other) - f1(places, one),
        n_resamples=2000,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = difference("val/f1_macro", truths, one, other)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * (theirs.high - theirs.low))


@pytest.mark.parametrize("metric", ORACLES)
def test_the_permutation_test_is_scipys_over_all_swaps(metric: str) -> None:
    """Seven samples differ, so that scipy can make all 128 swaps; the p of our random ones is within four standard errors of that."""
    truths = np.arange(60) % 3
    one, other = truths.copy(), truths.copy()
    one[[0, 1, 3, 4, 6]] = 2
    other[[30, 33]] = 1
    differ = np.flatnonzero(one != other)
    assert len(differ) == 7

    def statistic(those: Guesses, these: Guesses) -> float:
        sides = [truths.copy(), truths.copy()]
        sides[0][differ], sides[1][differ] = those, these
        return abs(macro(metric, truths, sides[1]) - macro(metric, truths, sides[0]))

    theirs = stats.permutation_test(
        (one[differ], other[differ]), statistic, permutation_type="samples", vectorized=False, alternative="greater", n_resamples=np.inf
    ).pvalue
    found = difference(metric, truths, one[None], other[None])
    assert found.test == "permutation"
    assert found.p == pytest.approx(theirs, abs=4 * np.sqrt(theirs * (1 - theirs) / resampling.SWAPS))


def test_the_permutation_test_is_scipys_on_predictions_of_real_models() -> None:
    """scikit-learn's digits, and two models that were really fitted."""
    from sklearn.datasets import load_digits
    from sklearn.naive_bayes import GaussianNB
    from sklearn.tree import DecisionTreeClassifier

    digits = load_digits()
    known, asked = slice(0, 1000), slice(1000, None)
    truths = digits.target[asked].astype(np.int64)
    models = (GaussianNB(), DecisionTreeClassifier(max_depth=12, random_state=0))
    said = [model.fit(digits.data[known], digits.target[known]).predict(digits.data[asked]) for model in models]
    one, other = (np.asarray(those, dtype=np.int64) for those in said)

    def statistic(those: NDArray[np.int64], these: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        counts = [10 * truths + side for side in (np.atleast_2d(those), np.atleast_2d(these))]
        tables = [np.array([np.bincount(row, minlength=100).reshape(10, 10) for row in side]) for side in counts]
        scores = [(2 * np.einsum("nii->ni", table) / (table.sum(1) + table.sum(2))).mean(1) for table in tables]
        return np.abs(scores[1] - scores[0])

    pick = np.flatnonzero(np.random.default_rng(2).random(len(truths)) < 0.3)  # few enough that p is neither 0 nor 1
    truths, one, other = truths[pick], one[pick], other[pick]
    theirs = stats.permutation_test(
        (one, other),
        statistic,
        permutation_type="samples",
        alternative="greater",
        n_resamples=4000,
        batch=500,
        rng=np.random.default_rng(0),
    ).pvalue
    found = difference("val/f1_macro", truths, one[None], other[None])
    assert found.value == pytest.approx(f1_score(truths, other, average="macro") - f1_score(truths, one, average="macro"))
    assert 0.001 < theirs < 0.9
    assert found.p == pytest.approx(theirs, abs=4 * np.sqrt(theirs * (1 - theirs) * (1 / 4000 + 1 / resampling.SWAPS)))


def test_models_that_say_the_same_are_no_different_and_one_that_is_always_wrong_is() -> None:
    truths, one, _ = drawn(np.random.default_rng(0), 200, 4)
    same = difference("val/f1_macro", truths, one, one)
    assert (same.value, same.p, same.low, same.high) == (0.0, 1.0, 0.0, 0.0)
    worst = difference("val/f1_macro", truths, truths[None], (truths[None] + 1) % 4)
    assert (worst.value, worst.p) == (-1.0, 1 / (1 + resampling.SWAPS))


def test_draws_are_the_same_each_time_and_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    truths, one, other = drawn(np.random.default_rng(5), 60, 3)
    whole = difference("val/f1_macro", truths, one, other)
    assert difference("val/f1_macro", truths, one, other) == whole
    monkeypatch.setattr(resampling, "CELLS", 1000)
    pieces = difference("val/f1_macro", truths, one, other)
    assert (pieces.low, pieces.high, pieces.p) == (whole.low, whole.high, whole.p)


def test_seeds_that_say_the_same_leave_only_the_variance_of_the_samples() -> None:
    truths, one, other = drawn(np.random.default_rng(1), 300, 4, right=0.7)
    single, several = (difference("val/f1_macro", truths, np.repeat(one, n, 0), np.repeat(other, n, 0)) for n in (1, 3))
    assert several.test == "bootstrap t"
    assert several.value == pytest.approx(single.value)
    assert several.high - several.low == pytest.approx(single.high - single.low, rel=0.05)


@pytest.mark.parametrize(("runs", "seeds"), [((1, 1), 0.0), ((3, 3), 0.2)])
def test_equal_recipes_are_rarely_told_apart(monkeypatch: pytest.MonkeyPatch, runs: tuple[int, int], seeds: float) -> None:
    monkeypatch.setattr(resampling, "SWAPS", 199)
    monkeypatch.setattr(resampling, "BOOTSTRAPS", 200)
    random, told = np.random.default_rng(0), 0
    for _ in range(200):
        truths, hardness = random.choice(3, 150, p=[0.6, 0.3, 0.1]), 2.5 + 2.5 * random.standard_normal(150)
        sides = []
        for count in runs:
            logits = hardness + random.standard_normal(150) + seeds * random.standard_normal((count, 1))
            sides.append(np.where(random.random(logits.shape) < 1 / (1 + np.exp(-logits)), truths, random.integers(0, 3, logits.shape)))
        told += difference("val/f1_macro", truths, sides[0], sides[1]).p < 0.05
    assert told <= 19  # of 200 with 5 %: 10, and 2.9 standard errors


def test_a_real_difference_is_found() -> None:
    truths, better, _ = drawn(np.random.default_rng(0), 400, 3, right=0.9)
    worse = np.where(np.random.default_rng(1).random(400) < 0.15, 0, better)
    assert difference("val/f1_macro", truths, worse, better).p < 0.01
