"""Do the tests and intervals of `sft-dist compare` keep their promise of 5 % and 95 %? Simulated, with known truth; a few minutes.

    python benchmarks/noise.py

Every sample has a hardness, every recipe has samples that suit it (so that two recipes of equal skill differ on single samples), and every
seed is a little better or worse at all of them. Both recipes have the same skill on average: whatever is told apart is a false alarm.
"""

import platform
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from sft_dist.compare import noise, resampling

REPEATS = 2000
FEWER = 500
RUNS = ((1, 1), (1, 3), (2, 2), (3, 3), (5, 5), (2, 5))
SPREADS = ((0.0, 0.0), (0.2, 0.2), (0.5, 0.5), (0.2, 0.8), (0.8, 0.2))


def table(share: Callable[[tuple[int, int], tuple[float, float]], float]) -> None:
    """A row for each number of runs, a column for each pair of spreads: the share of false alarms, in percent."""
    heads = [f"{points(one):.1f} and {points(other):.1f}" for one, other in SPREADS]
    print("| runs | " + " | ".join(heads) + " |\n|---|" + "---|" * len(SPREADS))
    for runs in RUNS:
        found = [share(runs, spreads) for spreads in SPREADS]
        print(f"| {runs[0]} and {runs[1]} | " + " | ".join(f"{100 * one:.1f}" for one in found) + " |", flush=True)


def main() -> None:
    print(f"Python {platform.python_version()}, numpy {version('numpy')}, scipy {version('scipy')}; {REPEATS} repeats\n")
    print("False alarms, in percent, over 500 samples; the spread of seeds as the standard deviation of top1, in points.\n")
    table(alarms)
    print(f"\nFalse alarms of macro F1, in percent of {FEWER}, over 500 samples of five unequal classes; the columns as above.\n")
    table(macro_alarms)
    print(
        "\nHow often intervals for top1 of two models hold the true difference, in percent, where `a` and `b` of 100 samples are right on one side only.\n"
    )
    print("| samples | a | b | Bonett and Price | percentile bootstrap |\n|---|---|---|---|---|")
    for samples in (50, 100, 359, 2000):
        for one, other in ((0.01, 0.01), (0.03, 0.05), (0.02, 0.1), (0.1, 0.1)):
            closed, bootstrap = coverage(samples, one, other)
            print(f"| {samples} | {100 * one:.0f} | {100 * other:.0f} | {100 * closed:.1f} | {100 * bootstrap:.1f} |", flush=True)


def answers(random: np.random.Generator, runs: int, hardness: NDArray[np.float64], spread: float) -> NDArray[np.bool_]:
    logits = hardness + spread * random.standard_normal((runs, 1))
    return random.random((runs, len(hardness))) < 1 / (1 + np.exp(-logits))


def points(spread: float) -> float:
    """The standard deviation of accuracy over seeds, in points, with this spread of their logits."""
    random = np.random.default_rng(1)
    hardness = 2.5 + 2.5 * random.standard_normal(20_000) + random.standard_normal(20_000)
    logits = hardness + spread * random.standard_normal((300, 1))
    return 100 * float((1 / (1 + np.exp(-logits))).mean(1).std())


def alarms(runs: tuple[int, int], spreads: tuple[float, float]) -> float:
    random = np.random.default_rng(0)
    told = 0
    for _ in range(REPEATS):
        hardness = 2.5 + 2.5 * random.standard_normal(500)
        sides = [answers(random, runs[i], hardness + random.standard_normal(500), spreads[i]) for i in (0, 1)]
        told += noise.top1(*sides).p < 0.05
    return told / REPEATS


def macro_alarms(runs: tuple[int, int], spreads: tuple[float, float]) -> float:
    """The same of macro F1; who is wrong takes any class. With fewer draws than the product makes: they only blur single p values."""
    resampling.SWAPS, resampling.BOOTSTRAPS = 499, 500
    random = np.random.default_rng(0)
    told = 0
    for _ in range(FEWER):
        truths = random.choice(5, 500, p=[0.4, 0.3, 0.15, 0.1, 0.05])
        hardness = 2.5 + 2.5 * random.standard_normal(500)
        right = [answers(random, runs[i], hardness + random.standard_normal(500), spreads[i]) for i in (0, 1)]
        one, other = (np.where(side, truths, random.integers(0, 5, side.shape)) for side in right)
        told += resampling.difference("val/f1_macro", truths, one, other).p < 0.05
    return told / FEWER


def coverage(samples: int, only_one: float, only_other: float) -> tuple[float, float]:
    random = np.random.default_rng(0)
    truth, closed, bootstrap = only_other - only_one, 0, 0
    for _ in range(REPEATS):
        a, b, same = random.multinomial(samples, [only_one, only_other, 1 - only_one - only_other])
        one = np.repeat([True, False, True], [a, b, same])[None]
        other = np.repeat([False, True, True], [a, b, same])[None]
        found = noise.top1(one, other)
        closed += found.low <= truth <= found.high
        draws = random.multinomial(samples, [a / samples, b / samples, same / samples], size=1000)
        low, high = np.quantile((draws[:, 1] - draws[:, 0]) / samples, [0.025, 0.975])
        bootstrap += low - 1e-12 <= truth <= high + 1e-12
    return closed / REPEATS, bootstrap / REPEATS


if __name__ == "__main__":
    main()
