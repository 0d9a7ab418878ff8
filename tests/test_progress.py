"""A run decides when to end from what it saved, so that a resumed run decides as the uninterrupted one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from given import a_config

from sft_dist import progress
from sft_dist.config import Stop
from sft_dist.plan import World, make_plan
from sft_dist.progress import Progress, reason_to_end

PLAN = make_plan(a_config(train__duration="10 steps"), World(), 244, 60)


def entry(step: int, top1: float) -> dict[str, Any]:
    return {"step": step, "val/top1": top1, "val/loss": 1 - top1}


def evaluated(scores: list[float]) -> Progress:
    """A step and an evaluation for each score; higher is better."""
    progress = Progress()
    for score in scores:
        progress = progress.after_step({"samples": 32, "loss": 16.0})
        improved = progress.best is None or score > progress.best["val/top1"]
        progress = progress.after_evaluation(entry(progress.step, score), improved)
    return progress


def test_a_step_counts_and_adds_its_sums() -> None:
    progress = Progress().after_step({"samples": 32, "loss": 16.0}).after_step({"samples": 32, "loss": 8.0, "top1": 3})
    assert progress == Progress(step=2, since_evaluation={"samples": 64, "loss": 24.0, "top1": 3})


def test_a_better_evaluation_becomes_the_best_and_starts_patience_anew() -> None:
    progress = evaluated([0.5, 0.4, 0.3, 0.6])
    assert progress.best == entry(4, 0.6) == progress.last
    assert (progress.worse_in_a_row, progress.evaluated, progress.since_evaluation) == (0, 4, {})


def test_a_worse_or_equal_evaluation_leaves_the_best_and_counts() -> None:
    progress = evaluated([0.5, 0.4, 0.5])
    assert progress.best == entry(1, 0.5)
    assert progress.last == entry(3, 0.5)
    assert progress.worse_in_a_row == 2


def test_progress_survives_json_unchanged() -> None:
    progress = evaluated([0.1 + 0.2, 1 / 3]).after_step({"samples": 32, "loss": 1e-17, "top1": 3})
    assert Progress(**json.loads(json.dumps(progress.to_json()))) == progress
    assert Progress(**json.loads(json.dumps(Progress().to_json()))) == Progress()


def test_a_run_ends_with_its_last_step_and_not_before() -> None:
    assert reason_to_end(Progress(step=9), PLAN, Stop()) is None
    assert reason_to_end(Progress(step=10), PLAN, Stop()) == "all 10 steps are made"
    assert reason_to_end(Progress(step=11), PLAN, Stop()) == "all 10 steps are made"


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.5, 0.4, 0.4], "no better score in 2 evaluations (stop.patience)"),
        ([0.5, 0.4, 0.6], None),
        ([0.5, 0.4, 0.6, 0.5], None),
        ([0.5, 0.5, 0.5], "no better score in 2 evaluations (stop.patience)"),
        ([0.5], None),
        ([], None),
    ],
)
def test_patience_counts_evaluations_in_a_row_without_a_new_best(scores: list[float], reason: str | None) -> None:
    assert reason_to_end(evaluated(scores), PLAN, Stop(patience=2)) == reason
    assert reason_to_end(evaluated(scores), PLAN, Stop()) is None


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("val/top1 >= 0.75", "val/top1 >= 0.75 is reached (0.7500)"),
        ("val/top1 >= 0.76", None),
        ("val/loss <= 0.25", "val/loss <= 0.25 is reached (0.2500)"),
        ("val/loss <= 0.24", None),
    ],
)
def test_a_target_ends_the_run_once_it_is_reached(when: str, reason: str | None) -> None:
    assert reason_to_end(evaluated([0.5, 0.75]), PLAN, Stop(when=when)) == reason


def test_a_target_is_judged_where_it_was_measured_and_not_steps_later() -> None:
    progress = evaluated([0.75]).after_step({"samples": 32})
    assert reason_to_end(progress, PLAN, Stop(when="val/top1 >= 0.75")) is None


def test_a_stopped_run_gives_the_same_reason_when_it_is_started_again() -> None:
    for stop, scores in ((Stop(patience=2), [0.5, 0.4, 0.4]), (Stop(when="val/top1 >= 0.75"), [0.75])):
        progress = evaluated(scores)
        again = Progress(**json.loads(json.dumps(progress.to_json())))
        assert reason_to_end(again, PLAN, stop) == reason_to_end(progress, PLAN, stop) is not None


def test_the_headlines_are_those_of_the_tasks() -> None:
    told = r'name="(\w+)",\s+headline="(val/\w+)",\s+higher_is_better=(True|False),'
    sources = [path.read_text() for path in Path(progress.__file__).with_name("tasks").glob("*.py")]  # read, not imported: they need torch
    found = {name: (headline, more == "True") for source in sources for name, headline, more in re.findall(told, source)}
    assert found == progress.HEADLINES
