"""Where the time of a run went: every second once, under one name."""

from pathlib import Path

import pytest
from given_runs import a_run, guesses, write
from test_chronicle import an_attempt

from sft_dist.history import reading
from sft_dist.report import telling
from sft_dist.report.study import study
from sft_dist.report.times import Times, times

STEP = {"time/data_s": 0.5, "time/forward_s": 1.0, "time/backward_s": 2.0, "time/update_s": 0.25, "time/exchange_s": 0.25}


def told(run: Path) -> Times:
    found = times(study(reading.read(run), "best"))
    assert found is not None
    return found


def a_timed_run(folder: Path, **more: float) -> Path:
    """Four steps of 4 s, the first of which came after 10 s of starting."""
    run = a_run(folder, guesses([]))
    rows = [{"step": step, "kind": "train", "samples": 32 * step, "speed/samples_per_s": 8.0, **STEP, **more} for step in range(1, 5)]
    write(run / "metrics.jsonl", {**rows[0], "time/start_up_s": 10.0}, *rows[1:])
    return run


def test_rows_and_what_came_after_the_last_one_add_up(tmp_path: Path) -> None:
    run = a_timed_run(tmp_path / "run")
    (run / "attempts" / "1").mkdir(parents=True)
    write(
        run / "attempts" / "1" / "tail.json", {"time/evaluation_s": 3.0, "time/save_s": 0.5, "time/end_s": 0.25, "time/bookkeeping_s": 0.25}
    )
    found = told(run)
    assert found.parts == {
        "forward": 4.0, "backward": 8.0, "the optimizer": 1.0, "exchanging sums": 1.0, "waiting for data": 2.0,
        "evaluation": 3.0, "saving": 0.5, "starting": 10.0, "the rest": 0.5,
    }  # fmt: skip
    assert (found.total, found.measured, found.waiting, found.slow_data) == (30.0, False, 2 / 16, False)
    assert telling.spent(found) == (
        "Of 0:00:30: 33 % starting, 27 % backward, 13 % forward, 10 % evaluation, 7 % waiting for data, 3 % the optimizer, "
        "3 % exchanging sums, 2 % saving, 2 % the rest."
    )


def test_with_the_times_of_attempts_the_parts_are_their_wall_time(tmp_path: Path) -> None:
    """What no row tells has a name of its own."""
    run = a_timed_run(tmp_path / "run")
    an_attempt(run, 1, 36, 0)
    found = told(run)
    assert (found.total, found.measured, found.parts["starting and ending processes"]) == (36.0, True, 10.0)


def test_steps_that_were_made_again_are_lost_but_not_the_save_between_them(tmp_path: Path) -> None:
    run = a_timed_run(tmp_path / "run")
    an_attempt(run, 1, 20, 0)
    write(an_attempt(run, 2, 20, 2) / "rewound.jsonl", {"step": 3, "kind": "train", "samples": 96, **STEP, "time/save_s": 1.5})
    found = told(run)
    assert found.parts["steps that were lost and made again"] == 4.0
    assert found.parts["saving"] == 1.5
    assert found.parts["backward"] == 8.0
    assert found.total == 40.0


def test_waiting_for_data_is_a_share_of_the_steps(tmp_path: Path) -> None:
    found = told(a_timed_run(tmp_path / "run", **{"time/data_s": 3.5}))
    assert found.waiting == 0.5 and found.slow_data


@pytest.mark.parametrize("value", [None, "1", True, -1, 1e400, float("nan")])
def test_seconds_that_are_none_count_for_nothing(tmp_path: Path, value: object) -> None:
    run = a_run(tmp_path / "run", guesses([]))
    write(
        run / "metrics.jsonl", {"step": 1, "kind": "train", "time/forward_s": value}, {"step": 2, "kind": "train", "time/backward_s": 2.0}
    )
    assert told(run).parts == {"backward": 2.0}


def test_without_any_nothing_is_said_of_time(tmp_path: Path) -> None:
    assert times(study(reading.read(a_run(tmp_path / "run", guesses([]))), "best")) is None


def test_communication_is_told_only_where_it_was_measured(tmp_path: Path) -> None:
    found = told(a_timed_run(tmp_path / "alone"))
    assert (found.communicating, telling.communication(found)) == (None, None)
    found = told(a_timed_run(tmp_path / "two", **{"speed/communication_pct": 30.0, "speed/exposed_communication_pct": 12.0}))
    assert telling.communication(found) == (
        "Messages among the ranks were under way for 30 % of a step, measured in a few early ones; for 12 % of it nothing was computed "
        "meanwhile. They lie within forward, backward, the optimizer and exchanging sums."
    )
