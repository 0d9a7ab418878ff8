"""`sft-dist ls`: a line a run, whatever state it is in."""

import json
from pathlib import Path

from given_runs import a_run, aged, guesses

from sft_dist.history import listing
from sft_dist.history.listing import Line

NOON = 1_767_268_800.0


def test_every_state_of_a_run_has_its_line(tmp_path: Path) -> None:
    for name, outcome in (("a-2", "done"), ("a-10", "failed"), ("b", None)):
        aged(a_run(tmp_path / name, guesses([0, 1, 2]), outcome=outcome, train__seed=len(name)), NOON)
    (tmp_path / "b" / "scores.json").unlink()
    (tmp_path / "other").mkdir()
    found, passed = listing.lines(tmp_path)
    assert [(line.name, line.outcome, line.step, line.of, line.metric, line.best, line.seed) for line in found] == [
        ("a-2", "done", 4, 4, "val/top1", 0.95, 3),
        ("a-10", "failed", 4, 4, "val/top1", 0.95, 4),
        ("b", "unfinished", 4, 4, None, None, 1),
    ]
    assert passed == ["other: no run in it"]


def test_columns_line_up() -> None:
    long = Line("a-long-name", "unfinished", None, None, None, None, None, "2026-01-01 12:00")
    short = Line("b", "done", 4, 400, "val/top1", 0.95, 3, "2026-01-01 12:00")
    assert listing.describe([long, short]) == [
        "a-long-name  unfinished  ?/?                             2026-01-01 12:00",
        "b            done        4/400  val/top1 0.9500  seed 3  2026-01-01 12:00",
    ]


def test_the_best_score_is_read_without_the_confusion_matrix_behind_it(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    (run / "scores.json").write_text('{\n "best": {"step": 4, "val/loss": 1e-05, "val/top1": 0.5, "per_class": {"cut short')
    [line] = listing.lines(tmp_path)[0]
    assert line.best == 0.5


def test_scores_in_another_order_or_shape_are_read_whole(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    (run / "scores.json").write_text(json.dumps({"best": {"per_class": {}, "val/top1": 0.25}}, indent=2))
    assert listing.lines(tmp_path)[0][0].best == 0.25
    (run / "scores.json").write_text("[]")
    assert listing.lines(tmp_path)[0][0].best is None


def test_a_last_row_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]), outcome=None)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "kind": "tr')
    assert listing.lines(tmp_path)[0][0].step == 4


def test_values_of_a_wrong_kind_are_not_shown(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]))
    (run / "plan.json").write_text('{"seed": "0", "total_steps": true}')
    (run / "outcome.json").write_text('{"outcome": "\\u001b[31m", "step": [4]}')
    [line] = listing.lines(tmp_path)[0]
    assert (line.seed, line.of, line.outcome, line.step) == (None, None, "unfinished", None)


def test_a_run_that_is_named_itself_is_listed_under_its_own_name(tmp_path: Path) -> None:
    [line] = listing.lines(a_run(tmp_path / "a", guesses([])))[0]
    assert line.name == "a"


def test_a_file_that_is_far_too_large_is_passed_over_and_told(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", guesses([]))
    with (run / "plan.json").open("ab") as added:
        added.truncate(65 << 20)  # a hole: nothing is written
    [line], passed = listing.lines(tmp_path)
    assert (line.step, line.of, line.outcome) == (4, None, "done")
    assert passed == ["run/plan.json (65 MiB; at most 64 MiB are read)"]
