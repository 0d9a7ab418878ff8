"""What a rank tells its node's agent in a few bytes, and what the agent asks back."""

import os
import time
from pathlib import Path

import pytest

from sft_dist import pulse
from sft_dist.pulse import PHASES, SIZE, Pulse


def test_the_agent_reads_what_the_rank_is_in(tmp_path: Path) -> None:
    own = Pulse(tmp_path / "3")
    before = time.time_ns()
    own.at("backward", 12)
    found = pulse.read(tmp_path / "3")
    assert found is not None
    assert (found.pid, found.step, found.phase, found.count) == (os.getpid(), 12, "backward", 2)
    assert before <= found.since_ns <= time.time_ns()
    assert found == own.beat


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_has_a_number(tmp_path: Path, phase: str) -> None:
    Pulse(tmp_path / "0").at(phase)
    found = pulse.read(tmp_path / "0")
    assert found is not None and found.phase == phase


def test_a_rank_begins_in_start_up_of_step_0(tmp_path: Path) -> None:
    Pulse(tmp_path / "0")
    found = pulse.read(tmp_path / "0")
    assert found is not None and (found.step, found.phase) == (0, "start-up")


def test_a_phase_without_a_step_stays_in_the_step_before() -> None:
    own = Pulse()
    own.at("data", 7)
    own.at("forward")
    assert (own.beat.step, own.beat.phase) == (7, "forward")


def test_the_last_beat_stays_readable_after_the_ranks_death(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        Pulse(tmp_path / "0").at("save", 5)
        os._exit(0)
    os.waitpid(child, 0)
    found = pulse.read(tmp_path / "0")
    assert found is not None and (found.pid, found.step, found.phase) == (child, 5, "save")


@pytest.mark.parametrize("content", [None, b"", b"\0" * (SIZE - 1), b"\0" * SIZE, b"x" * (SIZE + 1)])
def test_a_file_that_is_not_whole_is_no_beat(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "0").write_bytes(content)
    assert pulse.read(tmp_path / "0") is None


def test_the_agents_wish_reaches_the_rank_and_no_beat_undoes_it(tmp_path: Path) -> None:
    own = Pulse(tmp_path / "0")
    assert not own.wanted
    pulse.want(tmp_path / "0")
    own.at("data", 1)
    assert own.wanted
    own.wanted = False
    assert not own.wanted
    found = pulse.read(tmp_path / "0")
    assert found is not None and found.phase == "data"


def test_nothing_is_written_where_no_agent_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Pulse.of({})
    own.at("data", 1)
    assert own.attempt is None
    assert list(tmp_path.iterdir()) == []


def test_the_agent_says_where_by_the_environment(tmp_path: Path) -> None:
    own = Pulse.of({"SFT_PULSE": str(tmp_path), "RANK": "5", "SFT_ATTEMPT": "runs/a/attempts/1/node-1"})
    assert own.attempt == Path("runs/a/attempts/1/node-1")
    assert pulse.read(tmp_path / "5") == own.beat
