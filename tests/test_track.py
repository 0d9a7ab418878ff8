"""What a run writes about itself: one row a step, complete predictions, the scores, and no secrets."""

import io
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given import a_config
from rich.console import Console

from sft_dist import rundir, track
from sft_dist.datasets import Split
from sft_dist.loop import StepResult
from sft_dist.plan import World, make_plan
from sft_dist.progress import Progress
from sft_dist.rundir import RunDir
from sft_dist.tally import Evidence
from sft_dist.usage import Usage

SPENT = {"bookkeeping": 1.0, "save": 3.0, "data": 0.5, "forward": 0.5, "backward": 0.75, "update": 0.125, "exchange": 0.125}


def a_run(folder: Path) -> RunDir:
    return rundir.create(a_config(run__dir=str(folder)))


def a_step(number: int) -> StepResult:
    sums = {"samples": 32.0, "loss": 16.0 * number, "top1": 8.0}
    return StepResult(number, sums, grad_norm=1.5, lr=0.01, spent=SPENT, stop_asked=False)


def rows_of(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def a_tracker(run: RunDir, screen: io.StringIO, **keys: object) -> track.Tracker:
    plan = make_plan(a_config(train__duration="5 steps", **keys), World(), samples=128, val_samples=10)
    return track.Tracker(run, plan, Console(file=screen))


def tracked(run: RunDir, steps: int, screen: io.StringIO, **keys: object) -> None:
    tracker = a_tracker(run, screen, **keys)
    try:
        for number in range(1, steps + 1):
            tracker.step(a_step(number), Usage(torch.device("cpu")))
        progress = Progress(step=steps, best={"step": steps})
        tracker.evaluation(progress, {"loss": 0.75}, {"val/loss": 0.5, "val/top1": 0.25, "val/top5": 1.0}, improved=True)
    finally:
        tracker.close()


def test_every_step_and_every_evaluation_is_a_row(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    tracked(run, 2, io.StringIO())
    speed = {"speed/samples_per_s": 16.0, "speed/data_wait_pct": 25.0}
    times = {f"time/{phase}_s": seconds for phase, seconds in SPENT.items()}
    figures = {"train/top1": 0.25, "train/lr": 0.01, "train/grad_norm": 1.5, **speed, **times}
    assert rows_of(run) == [
        {"step": 1, "kind": "train", "samples": 32, "epoch": 0.25, "train/loss": 0.5, **figures},
        {"step": 2, "kind": "train", "samples": 64, "epoch": 0.5, "train/loss": 1.0, **figures},
        {
            "step": 2,
            "kind": "eval",
            "samples": 64,
            "epoch": 0.5,
            "train/mean_loss": 0.75,
            "val/loss": 0.5,
            "val/top1": 0.25,
            "val/top5": 1.0,
        },
    ]


def test_track_every_thins_the_rows_and_keeps_the_last(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    tracked(run, 5, io.StringIO(), track__every="2 steps")
    rows = [row for row in rows_of(run) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert {row["speed/samples_per_s"] for row in rows} == {16.0}
    assert [row["time/backward_s"] for row in rows] == [1.5, 1.5, 0.75]


def test_what_was_measured_of_a_step_without_a_row_stands_in_the_next_row(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    tracker = a_tracker(run, io.StringIO(), track__every="2 steps")
    with closing(tracker):
        for number in range(1, 5):
            measures = {"speed/communication_pct": 10.0 * number} if number < 2 else {}
            tracker.step(replace(a_step(number), measures=measures), Usage(torch.device("cpu")))
    assert [row.get("speed/communication_pct") for row in rows_of(run)] == [10.0, None]


def test_the_time_after_the_last_row_stands_in_the_attempts_folder(tmp_path: Path) -> None:
    """Steps too, where track.every left them without a row."""
    run = a_run(tmp_path)
    (run.path / "attempts" / "1").mkdir(parents=True, exist_ok=True)
    with closing(a_tracker(run, io.StringIO(), track__every="2 steps")) as tracker:
        for number in range(1, 4):
            tracker.step(a_step(number), Usage(torch.device("cpu")))
        tracker.tail(1, {"bookkeeping": 0.5, "end": 0.25})
    tail = json.loads((run.path / "attempts" / "1" / "tail.json").read_text())
    assert tail == {f"time/{phase}_s": seconds for phase, seconds in {**SPENT, "bookkeeping": 1.5, "end": 0.25}.items()}


def test_a_second_attempt_adds_its_rows(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    tracked(run, 1, io.StringIO())
    tracked(run, 1, io.StringIO())
    assert [row["kind"] for row in rows_of(run)] == ["train", "eval", "train", "eval"]


def test_without_a_terminal_lines_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "SECONDS_BETWEEN_LINES", -1.0)
    screen = io.StringIO()
    tracked(a_run(tmp_path), 2, screen)
    assert screen.getvalue().splitlines() == [
        "step      1/5  loss 0.5000  lr 0.01  16 samples/s, 25 % waiting for data  8 s left",
        "step      2/5  loss 1.0000  lr 0.01  16 samples/s, 25 % waiting for data  6 s left",
        "step      2  train/mean_loss 0.7500  val/loss 0.5000  val/top1 0.2500  (best)",
    ]


def test_words_in_brackets_are_printed_as_they_are() -> None:
    screen = io.StringIO()
    track.say(Console(file=screen, width=20), "[bold]/data/[cats]/a.jpg[/bold] is a long line that is not wrapped")
    assert screen.getvalue() == "[bold]/data/[cats]/a.jpg[/bold] is a long line that is not wrapped\n"


SPLIT = Split(["a.jpg", "b.jpg", "c.jpg"], [0, 1, 1], lambda _: None)


def evidence(*ids: list[int]) -> Evidence:
    """A table for each list of positions."""
    return Evidence({}, tuple({"id": np.array(i), "label": np.array(i) % 2, "probs": np.eye(3)[i]} for i in ids))


def test_predictions_stand_in_the_order_of_the_split(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    track.write_predictions(run, 4, SPLIT, evidence([2, 0], [1]))
    lines = (run.predictions / "step-00000004.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "a.jpg", "label": 0, "probs": [1.0, 0.0, 0.0]},
        {"id": "b.jpg", "label": 1, "probs": [0.0, 1.0, 0.0]},
        {"id": "c.jpg", "label": 0, "probs": [0.0, 0.0, 1.0]},
    ]


@pytest.mark.parametrize("ids", [([0, 1],), ([0, 1], [1, 2]), ([0, 1, 2], [2])])
def test_a_sample_that_is_missing_or_there_twice_is_our_mistake(tmp_path: Path, ids: tuple[list[int], ...]) -> None:
    with pytest.raises(AssertionError, match="every sample is evaluated exactly once"):
        track.write_predictions(a_run(tmp_path), 4, SPLIT, evidence(*ids))


def test_predictions_of_the_best_and_the_last_stay(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    (run.predictions / "notes.txt").touch()
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4)):
        track.write_predictions(run, step, SPLIT, evidence([0, 1, 2]))
        track.keep_predictions(run, (step, best))
    assert sorted(path.name for path in run.predictions.iterdir()) == ["notes.txt", "step-00000004.jsonl", "step-00000005.jsonl"]


def test_scores_hold_what_is_known(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    best, last, tested = ({"step": step, "val/top1": 0.5} for step in (2, 3, 2))
    track.write_scores(run, Progress())
    assert json.loads(run.scores.read_text()) == {}
    track.write_scores(run, Progress(best=best, last=last), tested)
    assert json.loads(run.scores.read_text()) == {"best": best, "last": last, "test": tested}


def test_the_environment_names_versions_and_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123secret")
    monkeypatch.setattr("sys.argv", ["sft-dist", "train", "x.yaml", "hub.token=0123secret"])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    told = track.environment(torch.device("cpu"), "f1")
    assert "0123secret" not in json.dumps(told)
    assert told["argv"] == ["sft-dist", "train", "x.yaml", "hub.token=(redacted)"]
    assert (told["device"], told["launcher"]) == ("cpu", "python")
    assert told["packages"]["torch"].split(".")[0] == "2"
