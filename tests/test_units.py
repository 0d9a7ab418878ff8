"""Lengths and targets: what is read, what is refused, and that what is written is read again."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_dist.units import Span, Target


@pytest.mark.parametrize(
    ("text", "count", "unit", "written"),
    [
        ("3 epochs", Fraction(3), "epoch", "3 epochs"),
        ("1 epochs", Fraction(1), "epoch", "1 epoch"),
        ("0.5 epoch", Fraction(1, 2), "epoch", "0.5 epochs"),
        ("0.1 epochs", Fraction(1, 10), "epoch", "0.1 epochs"),
        ("0.00001 epochs", Fraction(1, 100_000), "epoch", "0.00001 epochs"),
        ("500 steps", Fraction(500), "step", "500 steps"),
        (" 1   step ", Fraction(1), "step", "1 step"),
        ("0 steps", Fraction(0), "step", "0 steps"),
        ("8000 samples", Fraction(8000), "sample", "8000 samples"),
        ("2.0 steps", Fraction(2), "step", "2 steps"),
    ],
)
def test_a_length_is_a_number_and_a_unit(text: str, count: Fraction, unit: str, written: str) -> None:
    span = Span.parse(text)
    assert (span.count, span.unit) == (count, unit)
    assert str(span) == written


@pytest.mark.parametrize(
    "text", ["", "3", "epochs", "3epochs", "-1 epochs", "1e3 steps", "3 days", "3 epochs long", "1/2 epochs", "nan steps", "\u0663 epochs"]
)
def test_anything_else_is_not_a_length(text: str) -> None:
    with pytest.raises(ValueError, match='is not a length of training; write a number and a unit, like "3 epochs" or "500 steps"'):
        Span.parse(text)


@pytest.mark.parametrize("text", ["0.5 steps", "1.5 samples"])
def test_only_epochs_can_be_fractions(text: str) -> None:
    with pytest.raises(ValueError, match="only epochs can be fractions"):
        Span.parse(text)


@given(st.decimals(min_value=0, max_value=10**9, places=12))
def test_every_length_that_is_written_is_read_again(count: object) -> None:
    span = Span.parse(f"{count:f} epochs")
    assert Span.parse(str(span)) == span


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("25 epochs", Fraction(25 * 244, 32)),
        ("0.5 epochs", Fraction(244, 64)),
        ("7 steps", Fraction(7)),
        ("100 samples", Fraction(100, 32)),
    ],
)
def test_a_length_in_steps_is_exact(text: str, steps: Fraction) -> None:
    assert Span.parse(text).steps(244, 32) == steps


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("val/top1 >= 0.95", Target("val/top1", True, 0.95)),
        ("val/loss<=1e-3", Target("val/loss", False, 0.001)),
        ("  val/loss  <=  -.5 ", Target("val/loss", False, -0.5)),
    ],
)
def test_a_target_is_a_score_a_direction_and_a_number(text: str, target: Target) -> None:
    assert Target.parse(text) == target


@pytest.mark.parametrize(
    "text", ["", "val/top1", "val/top1 > 0.9", "top1 >= 0.9", "train/loss <= 1", "val/top1 >= high", "val/top1 >= 1e", "val/top1 >= 1 2"]
)
def test_anything_else_is_not_a_target(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape('is not a target; write a score, >= or <=, and a number, like "val/top1 >= 0.95"')):
        Target.parse(text)


def test_a_target_is_reached_at_its_value_and_beyond() -> None:
    high, low = Target("val/top1", True, 0.5), Target("val/loss", False, 0.5)
    assert [high.reached(score) for score in (0.4999, 0.5, 0.6)] == [False, True, True]
    assert [low.reached(score) for score in (0.4999, 0.5, 0.6)] == [True, True, False]
    assert not high.reached(float("nan"))
    assert not low.reached(float("nan"))
