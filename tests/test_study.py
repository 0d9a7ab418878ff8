"""A run looked at closely: its intervals are those of scipy, its samples in the order that helps, its remarks only where they hold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given_runs import a_run, guesses, write
from scipy.stats import binomtest
from test_report import a_whole_run

from sft_dist.history import reading
from sft_dist.report import telling
from sft_dist.report.calibration import calibrate
from sft_dist.report.chronicle import Chapter
from sft_dist.report.study import Mistake, Study, study, wilson


def looked(run: Path, at: str = "best") -> Study:
    return study(reading.read(run), at)


def remarks(run: Path) -> str:
    return " ".join(telling.remarks(looked(run), None, []))


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (55, 60), (500, 1000)])
def test_the_interval_is_that_of_scipy(right: int, n: int) -> None:
    theirs = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


def test_mistakes_are_counted_the_most_frequent_first(tmp_path: Path) -> None:
    found = looked(a_whole_run(tmp_path / "run", [0, 3, 6, 1]))
    assert found.mistakes == [Mistake("cat", "dog", 3, 0.15), Mistake("dog", "eel", 1, 0.05)]
    assert found.support == 60 and found.commonest == pytest.approx(1 / 3)


def test_the_worst_are_wrong_and_the_least_sure_come_first(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    rows = [("a", 0, [0.5, 0.3, 0.2]), ("b", 0, [0.04, 0.9, 0.06]), ("c", 1, [0.4, 0.35, 0.25]), ("d", 2, [0.01, 0.01, 0.98])]
    write(run / "predictions" / "step-00000004.jsonl", *({"id": i, "label": label, "probs": probs} for i, label, probs in rows))
    found = looked(run)
    assert [one.id for one in found.worst] == ["b", "c"]
    assert [one.id for one in found.doubtful] == ["c", "a", "b", "d"]
    assert (found.worst[0].truth, found.worst[0].said, found.worst[0].certainty, found.worst[0].confidence) == ("cat", "dog", 0.04, 0.9)


def test_the_other_evaluation_is_shown_where_the_one_asked_for_is_not_there(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", guesses([]))
    write(run / "scores.json", {"last": {"step": 4, "val/top1": 0.5}})
    assert (looked(run).at, looked(run).headline) == ("last", 0.5)


def test_sureness_is_about_right_only_where_every_answer_is() -> None:
    """Half of the answers surer than they should be and half less sure make a mean that hides both."""
    told = [telling.sureness(found) for found in (calibrate([0.9] * 500 + [0.5] * 500, right) for right in (
        [i % 10 < 9 for i in range(500)] + [i % 2 < 1 for i in range(500)],
        [i % 10 < 7 for i in range(500)] + [i % 10 < 7 for i in range(500)],
        [i % 10 < 7 for i in range(500)] + [i % 2 < 1 for i in range(500)],
    )) if found]  # fmt: skip
    assert [sentence.partition(": ")[2] for sentence in told] == [
        "about as sure as it is right, as far as so many samples can tell.",
        "as sure as it is right on the whole, but too sure of some answers and not sure enough of others.",
        "surer than it should be.",
    ]


def test_lost_steps_are_told_however_few(tmp_path: Path) -> None:
    chapters = [Chapter(number, None, 2, 1, 0, 1.0, lost, [], "", failed=False) for number, lost in ((1, 0), (2, 1))]
    assert "made again, in 2 attempts: 1." in " ".join(telling.remarks(looked(a_whole_run(tmp_path / "run")), None, chapters))


def curve(run: Path, *rows: tuple[int, float, float]) -> None:
    """step, train/mean_loss, val/loss of each evaluation"""
    made = [{"step": s, "kind": "eval", "train/mean_loss": train, "val/loss": val, "val/top1": 1 - val / 2} for s, train, val in rows]
    write(run / "metrics.jsonl", *made)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(1, 2.0, 1.0), (2, 1.0, 0.5), (4, 0.1, 0.9)], "val/loss was lowest, 0.5, at step 2 and rose to 0.9 by step 4, while train/mean_loss fell from 1 to 0.1: it overfits from there on."),
        ([(1, 2.0, 1.0), (4, 1.0, 0.5)], "The last evaluation is the best: longer training may still gain."),
        ([(4, 1.0, 0.5)], ""),
        ([(1, 1.0, 0.5), (4, 1.1, 0.9)], ""),  # both rise: that is no overfitting, and no reason to go on
    ],
    ids=["overfits", "still gains", "one evaluation", "diverges"],
)  # fmt: skip
def test_the_curves_are_read_only_as_far_as_they_speak(tmp_path: Path, rows: list[Any], told: str) -> None:
    run = a_whole_run(tmp_path / "run")
    curve(run, *rows)
    assert told in remarks(run)
    assert ("overfits" in remarks(run), "longer training" in remarks(run)) == ("overfits" in told, "longer" in told)


def test_a_test_split_speaks_first(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    assert "no test split has scored it" in remarks(run)
    scores = reading.read(run).scores
    write(run / "scores.json", {**scores, "test": {"step": 4, "test/top1": 0.25, "test/loss": 3.0}})
    assert remarks(run).startswith("On the test split, which chose nothing: top1 0.2500.")


def test_a_run_that_left_no_outcome_stands_as_its_latest_attempt_does(tmp_path: Path) -> None:
    found = looked(a_whole_run(tmp_path / "run", outcome=None))
    chapter = Chapter(1, None, None, None, None, None, 0, (), "failed: rank 0", failed=True)
    assert [telling.ended(found, those) for those in ([], [chapter], [chapter, replace(chapter, failed=False)])] == [
        "unfinished",
        "failed",
        "unfinished",
    ]
    done = looked(a_whole_run(tmp_path / "done"))
    assert telling.ended(done, [chapter]) == "done"
