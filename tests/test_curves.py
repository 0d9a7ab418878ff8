"""Rows become curves against steps, samples and time, and a cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given_runs import a_run, guesses

from sft_dist.history import curves, reading
from sft_dist.history.curves import Cost, Point
from sft_dist.history.records import Curves, Turn


def trained(*steps: int, speed: float | None = 16.0) -> list[dict[str, Any]]:
    return [{"step": step, "kind": "train", "samples": 32 * step, "train/loss": 1.0, "speed/samples_per_s": speed} for step in steps]


def test_evaluations_stand_at_the_time_of_the_training_before_them(tmp_path: Path) -> None:
    rows = reading.read(a_run(tmp_path / "a", guesses([0, 1, 2]))).curves().rows
    assert curves.series(rows, "val/top1") == [Point(2, 64, 4.0, 0.25), Point(4, 128, 8.0, 0.95)]
    assert [point.seconds for point in curves.series(rows, "train/loss")] == [2.0, 4.0, 6.0, 8.0]


def test_rows_that_are_thinned_count_the_steps_between_them() -> None:
    assert [point.seconds for point in curves.series(trained(10, 20, 25), "train/loss")] == [20.0 / 10, 20.0 / 10 + 20.0, 20.0 / 10 + 30.0]


@pytest.mark.parametrize("speed", [None, 0.0, float("nan")])
def test_time_is_unknown_from_the_first_row_without_a_speed(speed: float | None) -> None:
    rows = [*trained(1), *trained(2, speed=speed), *trained(3)]
    assert [point.seconds for point in curves.series(rows, "train/loss")] == [2.0, None, None]


def test_thinning_keeps_the_last_point_and_no_more_than_asked_for() -> None:
    points = curves.series(trained(*range(1, 1001)), "train/loss")
    kept = curves.thin(points, 300)
    assert (len(kept), kept[-1].step, kept[1].step - kept[0].step) == (250, 1000, 4)
    assert curves.thin(points[:5], 300) == points[:5]
    assert curves.thin([], 300) == []


def test_cost_without_records_of_attempts_is_that_of_the_training_steps(tmp_path: Path) -> None:
    record = reading.read(a_run(tmp_path / "a", guesses([])))
    assert curves.cost(record, record.curves()) == Cost(train_s=8.0, wall_s=None, device_hours=8 / 3600, samples_per_s=16.0)


def test_steps_that_were_lost_and_made_again_are_paid_twice(tmp_path: Path) -> None:
    record = reading.read(a_run(tmp_path / "a", guesses([])))
    both = Curves(record.curves().rows, [trained(3, 4)])
    assert curves.cost(record, both).train_s == 12.0


def test_where_all_attempts_are_recorded_their_whole_time_is_the_cost(tmp_path: Path) -> None:
    record = reading.read(a_run(tmp_path / "a", guesses([])))
    whole = replace(record, turns=(Turn(8, 60.0), Turn(4, 30.0)))
    assert curves.cost(whole, record.curves()) == Cost(8.0, 90.0, (8 * 60 + 4 * 30) / 3600, 16.0)
    half = replace(record, turns=(Turn(8, 60.0), Turn(4, None)))
    assert curves.cost(half, record.curves()) == Cost(8.0, None, 8 / 3600, 16.0)


def test_a_run_without_rows_has_no_known_cost(tmp_path: Path) -> None:
    assert curves.cost(reading.read(a_run(tmp_path / "a", guesses([]))), Curves()) == Cost(None, None, None, None)
