"""Calibration agrees with torchmetrics, and says what chance alone would show."""

import numpy as np
import pytest

from sft_dist.report.calibration import BINS, calibrate


def drawn(n: int, power: float, seed: int = 0) -> tuple[list[float], list[bool]]:
    """Confidences between 0.3 and 1, and answers that are right with probability confidence ** power."""
    random = np.random.default_rng(seed)
    sure = random.uniform(0.3, 1, n)
    return sure.tolist(), (random.uniform(size=n) < sure**power).tolist()


@pytest.mark.parametrize(("n", "power"), [(5, 1), (300, 1), (4000, 3)])
def test_the_error_is_that_of_torchmetrics(n: int, power: float) -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import binary_calibration_error

    sure, right = drawn(n, power)
    found = calibrate(sure, right)
    # of two classes, torchmetrics takes the probability of class 1 for the confidence, and the label for being right
    theirs = binary_calibration_error(torch.tensor(sure, dtype=torch.float64), torch.tensor(right).long(), n_bins=BINS, norm="l1")
    assert found and found.error == pytest.approx(float(theirs), abs=1e-6)


def test_bins_hold_what_they_say() -> None:
    found = calibrate([0.0, 0.05, 1 / 15, 0.5, 0.99, 1.0], [False, True, True, True, False, True])
    assert found
    assert [(round(one.low * BINS), one.samples, one.accuracy) for one in found.bins] == [
        (0, 2, 0.5),
        (1, 1, 1.0),
        (7, 1, 1.0),
        (14, 2, 0.5),
    ]
    assert found.bins[0].confidence == pytest.approx(0.025) and found.bins[-1].high == 1.0
    assert (found.confidence, found.accuracy) == (pytest.approx(2.6066667 / 6), pytest.approx(4 / 6))


def test_an_answer_that_is_always_half_as_often_right_as_it_says_is_off_by_half() -> None:
    found = calibrate([0.8] * 100, [i % 5 < 2 for i in range(100)])
    assert found and found.error == pytest.approx(0.4) and found.by_chance == pytest.approx(0.0319, abs=1e-4)


def test_what_chance_would_show_is_what_a_calibrated_model_shows() -> None:
    """Over many draws; the normal approximation is 2 % high or low in bins of 20 samples."""
    shown = [calibrate(*drawn(300, 1, seed)) for seed in range(200)]
    assert np.mean([found.error for found in shown if found]) == pytest.approx(
        np.mean([found.by_chance for found in shown if found]), rel=0.05
    )


def test_without_samples_there_is_no_calibration() -> None:
    assert calibrate([], []) is None
