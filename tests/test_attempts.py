"""What an attempt leaves is read back as it was written, and what a crash or a stranger left instead is passed over."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sft_dist import attempts
from sft_dist.attempts import Failure
from sft_dist.errors import InfrastructureError
from sft_dist.pulse import Beat
from sft_dist.rundir import RunDir

FELL = Failure(
    time_ns=1_767_330_751_000_000_001, rank=3, host="node-b", step=13, phase="backward", code=1, type="ValueError", message="wrong\nindeed",
    node=1, traceback=("Traceback:", "  File x"), signal=None,
)  # fmt: skip
BEAT = Beat(pid=77, step=13, phase="exchange", since_ns=1_767_330_750_000_000_000, count=99)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "attempts" / "1" / "node-1"
    made.mkdir(parents=True)
    return made


def read(place: Path) -> attempts.Attempt:
    return attempts.read(RunDir(place.parents[2]), 1)


def test_a_failure_is_read_back_as_it_was_written(place: Path) -> None:
    attempts.write_failure(place, FELL)
    assert read(place).failures == (FELL,)


def test_what_a_rank_has_said_itself_stays_unless_it_is_to_be_replaced(place: Path) -> None:
    attempts.write_failure(place, FELL)
    attempts.write_failure(place, replace(FELL, message="it hangs", told_by="watchdog"), replace=False)
    assert read(place).failures == (FELL,)
    attempts.write_failure(place, replace(FELL, message="killed", told_by="agent"))
    assert [failure.message for failure in read(place).failures] == ["killed"]


def test_beats_are_read_back_with_the_rank_and_when_they_were_written(place: Path) -> None:
    attempts.write_beats(place, {2: BEAT, 3: replace(BEAT, phase="data")})
    (node,) = read(place).nodes
    assert (node.index, dict(node.beats), node.ended) == (1, {2: BEAT, 3: replace(BEAT, phase="data")}, None)
    assert node.beaten_ns > BEAT.since_ns


def test_failures_come_by_time_and_nodes_by_number(place: Path) -> None:
    (place.parent / "node-10").mkdir()
    (place.parent / "node-0").mkdir()
    for rank, time_ns in ((3, 30), (0, 10), (1, 20)):
        attempts.write_failure(place, replace(FELL, rank=rank, time_ns=time_ns))
    found = read(place)
    assert [failure.rank for failure in found.failures] == [0, 1, 3]
    assert [node.index for node in found.nodes] == [0, 1, 10]


def test_what_is_torn_or_of_another_kind_is_left_out(place: Path) -> None:
    attempts.write_failure(place, FELL)
    whole = (place / "rank-3.json").read_text()
    wrong = {**json.loads(whole), "rank": "3"}
    for rank, content in enumerate([whole[: len(whole) // 2], "", "[]", "{}", json.dumps(wrong), "\0" * 40]):
        (place / f"rank-{rank + 10}.json").write_text(content)
    (place / "heartbeats.json").write_text('{"time_ns": 5, "ranks": {"0": {"pid": 1}, "x": 3, "2": ')
    (place / "exit.json").write_text("")
    found = read(place)
    assert found.failures == (FELL,)
    assert (dict(found.nodes[0].beats), found.nodes[0].ended) == ({}, None)


def test_keys_of_a_later_version_are_passed_over(place: Path) -> None:
    attempts.write_failure(place, FELL)
    (place / "rank-3.json").write_text(json.dumps({**json.loads((place / "rank-3.json").read_text()), "weather": "fair"}))
    assert read(place).failures == (FELL,)


def test_an_exception_is_recorded_with_its_place_in_the_run_and_the_end_of_its_traceback() -> None:
    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        raise InfrastructureError(["the peer is gone", "or was never there"])

    with pytest.raises(InfrastructureError) as raised:
        deep(20)
    found = attempts.failure_of(raised.value, 75, 3, BEAT, node=1)
    assert (found.rank, found.node, found.step, found.phase, found.code) == (3, 1, 13, "exchange", 75)
    assert (found.type, found.message) == ("InfrastructureError", "the peer is gone\nor was never there")
    assert len(found.traceback) == 12
    assert found.traceback[-1] == "or was never there"


def test_an_exception_without_words_is_named_by_its_type() -> None:
    assert attempts.failure_of(KeyError(), 1, 0, BEAT).message == "KeyError"


def test_one_line_says_who_where_and_what() -> None:
    assert attempts.describe(FELL) == "rank 3 on node-b, in backward of step 13: ValueError: wrong"


def test_a_new_attempt_clears_what_is_half_written_but_not_in_the_launchers_own_folder(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    launched = tmp_path / "attempts" / "4" / "node-0"
    (tmp_path / "attempts" / "3").mkdir(parents=True)
    launched.mkdir(parents=True)
    half, own = tmp_path / "attempts" / "3" / ".rank-0.json.123", tmp_path / "attempts" / "4" / ".attempt.json.77"
    half.touch()
    own.touch()
    assert attempts.begin(run, launched) == 4
    assert (half.exists(), own.exists()) == (False, True)
    assert attempts.begin(run) == 5
    assert not own.exists()
