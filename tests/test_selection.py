"""Conditions and orders are read by a small parser, and never evaluated."""

from pathlib import Path

import pytest
from given_runs import a_run, guesses

from sft_dist.errors import ConfigError
from sft_dist.history import reading, selection
from sft_dist.history.selection import Condition

VALUES = {"optim.lr": 0.001, "optim.name": "sgd", "train.deterministic": False, "train.clip": None, "val/top1": 0.9, "train.seed": 0}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("optim.lr<1e-2", True),
        ("optim.lr<1e-3", False),
        ("optim.lr <= 1e-3", True),
        ("optim.lr=0.001", True),
        ("optim.lr==0.001", True),
        ("optim.lr!=0.001", False),
        ("val/top1>=0.9", True),
        ("val/top1>.9", False),
        ("optim.name=sgd", True),
        ("optim.name='sgd'", True),
        ("optim.name!=adamw", True),
        ("optim.name<3", False),
        ("train.deterministic=false", True),
        ("train.deterministic=0", False),
        ("train.seed=0", True),
        ("train.seed=false", False),
        ("train.clip=null", True),
        ("train.clip<3", False),
        ("train.clip!=1", True),
        ("no.such=1", False),
    ],
)
def test_a_condition_holds(text: str, holds: bool) -> None:
    assert Condition.parse(text).holds(VALUES) is holds


@pytest.mark.parametrize("text", ["optim.lr", "<3", "optim.lr<", "optim.lr<big", "__import__('os')<3", "a b<3"])
def test_what_is_no_condition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr<1e-3"):
        Condition.parse(text)


def test_what_looks_like_code_is_a_text_to_compare_with() -> None:
    assert Condition.parse("optim.name=sgd or 1") == Condition("optim.name", "=", "sgd or 1")


def test_the_runs_that_meet_all_conditions_stay(tmp_path: Path) -> None:
    runs = [reading.read(a_run(tmp_path / str(i), guesses(range(i)), optim__lr=0.01 * i)) for i in range(4)]
    kept = selection.where(runs, ["optim.lr>=0.01", "val/top1>0.96"], "last")
    assert [run.name for run in kept] == ["1", "2"]


def test_a_key_that_no_run_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    runs = [reading.read(a_run(tmp_path / "a", guesses([])))]
    with pytest.raises(ConfigError, match=r"--where optim\.lrr: no run has that; did you mean optim\.lr\?"):
        selection.where(runs, ["optim.lrr<1"], "last")


def test_the_best_scores_come_first_then_small_values_then_words_and_what_is_missing_last() -> None:
    assert sorted([0.1, None, 0.9], key=lambda value: selection.rank("val/top1", value)) == [0.9, 0.1, None]
    assert sorted([0.9, 0.1], key=lambda value: selection.rank("val/loss", value)) == [0.1, 0.9]
    assert sorted(["sgd", 3, None, 1], key=lambda value: selection.rank("optim.lr", value)) == [1, 3, "sgd", None]
