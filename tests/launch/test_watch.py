"""How long a rank may be silent, and which one is: from looks at values."""

from typing import Any

import pytest
from given import a_config

from launch.watch import Limits, Silences
from sft_dist.pulse import Beat

NOW = 1_767_330_751_000_000_000
ASKED = {"start-up": 1800, "step": 10, "evaluation": 40, "save": 100, "end": 50, "waiting for rank 0": 7200}


def limits(**changes: Any) -> Limits:
    return Limits.of(a_config(**changes))


def beat(phase: str, count: int = 9) -> Beat:
    return Beat(pid=1, step=3, phase=phase, since_ns=NOW, count=count)


def late_after(silences: Silences, beats: dict[int, Beat], seconds: float, stopped: tuple[int, ...] = ()) -> list[int]:
    """What the looks find once the ranks have been in the same phases for so long, half a second from look to look."""
    found = silences.look(beats, stopped, 0.5)
    for _ in range(int(2 * seconds)):
        found = silences.look(beats, stopped, 0.5)
    return found


@pytest.mark.parametrize(
    ("phase", "silent_s", "late"),
    [
        ("start-up", 1800, False),
        ("start-up", 1801, True),
        ("data", 10, False),
        ("data", 11, True),
        ("forward", 11, True),
        ("exchange", 11, True),
        ("update", 10, False),
        ("evaluation", 40, False),
        ("evaluation", 41, True),
        ("save", 100, False),
        ("save", 101, True),
        ("waiting for rank 0", 7200, False),
        ("end", 50, False),
        ("end", 51, True),
    ],
)
def test_each_phase_has_its_own_patience(phase: str, silent_s: float, late: bool) -> None:
    assert late_after(Silences(Limits(ASKED)), {0: beat(phase)}, silent_s) == ([0] if late else [])


def test_a_wait_for_wandb_and_the_report_at_the_end_is_no_silence_however_short_a_step_is() -> None:
    silences = Silences(limits(watch__step_s=5, track={"wandb": "online", "limit_s": 240}, report={"limit_s": 60}))
    assert late_after(silences, {0: beat("end")}, 600) == []
    assert late_after(silences, {0: beat("end")}, 2) == [0]


def test_a_stopped_rank_gets_no_more_than_a_step_whatever_it_was_in() -> None:
    beats = {0: beat("save"), 1: beat("save"), 2: beat("start-up")}
    assert late_after(Silences(Limits(ASKED)), beats, 12, stopped=(1, 2)) == [1, 2]
    assert late_after(Silences(Limits(ASKED)), beats, 12) == []


def test_with_auto_a_rank_that_never_comes_back_is_late_after_five_minutes() -> None:
    silences = Silences(limits())
    assert late_after(silences, {0: beat("data")}, 299) == []
    assert late_after(silences, {0: beat("data")}, 3) == [0]


def test_auto_learns_from_phases_that_came_to_an_end() -> None:
    silences = Silences(limits())
    assert late_after(silences, {0: beat("data", count=1)}, 20) == []
    assert late_after(silences, {0: beat("forward", count=2)}, 599) == []
    assert late_after(silences, {0: beat("forward", count=2)}, 4) == [0]


def test_a_new_beat_begins_the_silence_again() -> None:
    silences = Silences(Limits(ASKED))
    assert late_after(silences, {0: beat("data", count=1)}, 9) == []
    assert late_after(silences, {0: beat("data", count=2)}, 9) == []


def test_a_gap_between_looks_is_the_agents_own_and_counts_for_seconds() -> None:
    """A laptop that slept for a night, or a job that Slurm suspended."""
    silences = Silences(Limits(ASKED))
    assert silences.look({0: beat("data")}, (), 0.5) == []
    assert silences.look({0: beat("data")}, (), 30_000.0) == []


def test_a_beat_that_was_read_while_it_was_written_ends_nothing() -> None:
    silences = Silences(Limits(ASKED))
    assert late_after(silences, {0: beat("start-up")}, 600) == []
    assert silences.look({0: beat("data")}, (), 0.5) == []  # the new phase, with the count of the old one
    assert silences.look({0: beat("data", count=10)}, (), 0.5) == []


def test_limits_are_those_of_the_config() -> None:
    found = limits(watch__startup_s=60, watch__step_s=5, watch__evaluation_s=7, watch__save_s=9)
    assert {phase: found.of_phase(phase) for phase in ("start-up", "data", "backward", "evaluation", "save")} == {
        "start-up": 60,
        "data": 5,
        "backward": 5,
        "evaluation": 7,
        "save": 9,
    }


def test_a_save_may_take_its_own_limit_and_five_minutes_more() -> None:
    assert limits(save__limit_s=100).of_phase("save") == 400


@pytest.mark.parametrize(("longest_s", "allowed_s"), [(0, 300), (1, 300), (10, 300), (11, 330), (100, 3000)])
def test_auto_is_thirty_times_the_longest_silence_so_far_and_five_minutes_at_least(longest_s: float, allowed_s: float) -> None:
    found = limits()
    found.learn("forward", longest_s)
    found.learn("data", longest_s / 2)
    assert found.of_phase("update") == allowed_s
    assert found.of_phase("evaluation") == 300


def test_a_long_start_teaches_nothing_about_steps() -> None:
    found = limits()
    found.learn("start-up", 1000)
    assert found.of_phase("data") == 300
