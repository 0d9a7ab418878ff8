"""How long a rank may be silent, and which one is: from values."""

from typing import Any

import pytest
from given import a_config

from launch.watch import Limits, silent
from sft_dist.pulse import Beat

NOW = 1_767_330_751_000_000_000
ASKED = {"start-up": 1800, "step": 10, "evaluation": 40, "save": 100, "waiting for rank 0": 7200}


def limits(**changes: Any) -> Limits:
    return Limits.of(a_config(**changes))


def beat(phase: str, silent_s: float) -> Beat:
    return Beat(pid=1, step=3, phase=phase, since_ns=NOW - round(silent_s * 1e9), count=9)


@pytest.mark.parametrize(
    ("phase", "silent_s", "late"),
    [
        ("start-up", 1799, False),
        ("start-up", 1801, True),
        ("data", 9.9, False),
        ("data", 10.1, True),
        ("forward", 10.1, True),
        ("exchange", 10.1, True),
        ("update", 9.9, False),
        ("evaluation", 39, False),
        ("evaluation", 41, True),
        ("save", 99, False),
        ("save", 101, True),
        ("waiting for rank 0", 7199, False),
        ("end", 10.1, True),
    ],
)
def test_each_phase_has_its_own_patience(phase: str, silent_s: float, late: bool) -> None:
    assert silent({0: beat(phase, silent_s)}, (), Limits(ASKED), NOW) == ([0] if late else [])


def test_a_stopped_rank_gets_no_more_than_a_step_whatever_it_was_in() -> None:
    beats = {0: beat("save", 12), 1: beat("save", 12), 2: beat("start-up", 9)}
    assert silent(beats, {1, 2}, Limits(ASKED), NOW) == [1]


def test_every_silent_rank_is_named() -> None:
    assert silent({4: beat("data", 60), 5: beat("data", 1), 6: beat("exchange", 50)}, (), Limits(ASKED), NOW) == [4, 6]


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
