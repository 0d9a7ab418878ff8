"""How a run stands is told from its files alone, in whatever state they are."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from given_runs import a_run, guesses
from given_watched import NOON, aged, looked, training

from sft_dist import attempts
from sft_dist.pulse import Beat
from sft_dist.watch import rows, sight
from sft_dist.watch.rows import Rows
from sft_dist.watch.sight import Left, Ranks


def landed(run: Path, step: int, when: float) -> None:
    """A checkpoint whose commit came at that time."""
    manifest = run / "checkpoints" / f"step-{step:08d}" / "MANIFEST.json"
    manifest.parent.mkdir(exist_ok=True)
    manifest.write_text("{}")
    aged(manifest, when)


def test_a_finished_run_is_over_and_has_nothing_left(tmp_path: Path) -> None:
    found = looked(a_run(tmp_path / "a", guesses([0, 1, 2])))
    assert (found.state, found.over, found.step, found.total, found.left, found.ranks) == ("done", True, 4, 4, None, [])
    assert found.curves["val/top1"] == [0.25, 0.95]
    assert list(found.curves) == ["train/loss", "val/loss", "val/top1"]


def test_a_failed_run_tells_the_first_line_of_its_error(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", guesses([]), outcome=None)
    (run / "outcome.json").write_text(json.dumps({"outcome": "failed", "step": 4, "error": {"message": "loss nan\x1b[31m\nmore"}}))
    found = looked(run)
    assert (found.state, found.reason) == ("failed", "loss nan\\x1b[31m")


def an_agent(run: Path, attempt: int, code: int | None = None, nodes: int = 1) -> Path:
    """The folder of node 0 in an attempt; code: of its end, if it has ended."""
    node = run / "attempts" / str(attempt) / "node-0"
    node.mkdir(parents=True)
    (node.parent / "attempt.json").write_text(json.dumps({"nodes": nodes, "procs": 2}))
    if code is not None:
        (node / "exit.json").write_text(json.dumps({"code": code}))
    return node


def outcome(run: Path, state: str, attempt: int) -> None:
    (run / "outcome.json").write_text(json.dumps({"outcome": state, "attempt": attempt, "error": {"message": "connection closed by peer"}}))


def failure(node: Path, rank: int, when: int, message: str) -> None:
    told = {"time_ns": when, "rank": rank, "host": "alpha", "step": 9, "phase": "forward", "code": 75, "type": "Killed", "message": message}
    (node / f"rank-{rank}.json").write_text(json.dumps(told))


def test_of_a_failure_the_first_cause_is_told_and_not_what_it_did_to_rank_0(tmp_path: Path) -> None:
    run = training(tmp_path / "a", 15)
    node = an_agent(run, 1, code=75)
    outcome(run, "failed", 1)
    failure(node, 0, 2, "connection closed by peer")
    failure(node, 1, 1, "killed by SIGKILL\nmore")
    found = looked(run)
    assert (found.state, found.reason) == ("failed", "rank 1 on alpha, in forward of step 9: Killed: killed by SIGKILL")


@pytest.mark.parametrize(("code", "nodes", "state"), [(75, 1, "failed"), (75, 2, "running"), (0, 1, "running"), (None, 1, "running")])
def test_a_run_whose_rank_0_was_killed_has_failed_when_all_its_agents_have(
    tmp_path: Path, code: int | None, nodes: int, state: str
) -> None:
    run = training(tmp_path / "a", 15)
    an_agent(run, 1, code, nodes)
    assert looked(run).state == state


@pytest.mark.parametrize(
    ("before", "code", "state"), [("failed", None, "running"), ("saved", None, "running"), ("saved", 2, "failed"), ("done", 0, "done")]
)
def test_the_outcome_of_an_earlier_attempt_is_not_that_of_this_one(tmp_path: Path, before: str, code: int | None, state: str) -> None:
    run = training(tmp_path / "a", 15)
    an_agent(run, 1, 0)
    outcome(run, before, 1)
    assert looked(run).state == before
    an_agent(run, 2, code)
    assert looked(run).state == state
    assert "peer" not in looked(run).reason or state == before


def test_the_score_is_the_latest_also_before_the_rows_that_were_read(tmp_path: Path) -> None:
    run = training(tmp_path / "a", 25)
    (run / "scores.json").write_text('{"last": {"step": 20, "val/top1": 0.75}}')
    assert looked(run).score == 0.2
    assert looked(run, rows=Rows(run / "metrics.jsonl", most_bytes=200)).score == 0.75
    (run / "scores.json").unlink()
    assert looked(run, rows=Rows(run / "metrics.jsonl", most_bytes=200)).score is None


def test_without_a_sign_of_life_for_two_minutes_a_run_is_silent(tmp_path: Path) -> None:
    run = training(tmp_path / "a", 15)
    assert looked(run, NOON + 118).state == "running"
    silent = looked(run, NOON + 179)
    assert (silent.state, silent.quiet_s, silent.over) == ("silent", 180.0, False)


def test_what_is_left_counts_the_steps_and_the_coming_evaluations(tmp_path: Path) -> None:
    run = training(tmp_path / "a", 15)
    # 85 steps of 2 s, and evaluations after 20, 30, ... 100, of 80 samples at 16 a second as long as nothing was measured
    assert looked(run).left == Left(seconds=85 * 2 + 9 * 5.0, evaluations=9, evaluation_s=5.0, measured=False)


def test_an_evaluation_costs_what_lay_between_two_checkpoints_beside_their_steps(tmp_path: Path) -> None:
    run = training(tmp_path / "a", 45)
    for step, when in ((10, 0.0), (20, 23.0), (30, 47.0), (40, 70.0), (45, 95.0)):  # ten steps are 20 s; none at 45
        landed(run, step, NOON - 100 + when)
    assert looked(run).left == Left(seconds=55 * 2 + 6 * 3.0, evaluations=6, evaluation_s=3.0, measured=True)


def test_a_checkpoint_that_is_gone_again_is_remembered_from_an_earlier_look(tmp_path: Path) -> None:
    run = training(tmp_path / "a", 45)
    rows = Rows(run / "metrics.jsonl")
    for step, when in ((30, 0.0), (40, 26.0)):
        landed(run, step, NOON - 50 + when)
        left = looked(run, rows=rows).left
        (run / "checkpoints" / f"step-{step:08d}" / "MANIFEST.json").unlink()
    assert left is not None and (left.evaluation_s, left.measured) == (6.0, True)


def test_the_time_between_two_attempts_is_no_evaluations(tmp_path: Path) -> None:
    run = training(tmp_path / "a", 45)
    aged(run / "env.json", NOON - 60)  # the second attempt wrote it anew
    for step, when in ((20, -4977.0), (30, -50.0), (40, -26.0)):
        landed(run, step, NOON + when)
    left = looked(run).left
    assert left is not None and left.evaluation_s == 4.0


@pytest.mark.parametrize(
    ("step", "total", "every", "count"),
    [
        (0, 100, "10", 10),
        (99, 100, "10", 1),
        (100, 100, "10", 0),
        (95, 100, "1000", 1),
        (0, 45, "45/4", 4),
        (11, 45, "45/4", 3),
        (0, 10, "1/0", 0),
    ],
)
def test_coming_evaluations_are_those_that_a_run_makes(step: int, total: int, every: str, count: int) -> None:
    assert sight._evaluations(step, total, every) == count


def test_ranks_that_do_the_same_stand_together_with_how_long_they_have_done_it(tmp_path: Path) -> None:
    run = training(tmp_path / "a", 15)
    node = run / "attempts" / "1" / "node-0"
    node.mkdir(parents=True)
    (node / "agent.json").write_text('{"host": "alpha"}')
    beats = {rank: Beat(100 + rank, 16, "forward", int(9e9) - rank, 5) for rank in range(3)}
    beats[3] = replace(beats[0], phase="data", since_ns=int(2e9))
    (node / "heartbeats.json").write_text(json.dumps({"time_ns": int(10e9), "ranks": {rank: asdict(beat) for rank, beat in beats.items()}}))
    aged(node / "heartbeats.json", NOON - 2)
    aged(node.parent, NOON - 500)
    found = looked(run)
    assert found.attempt == 1
    assert found.ranks == [Ranks("alpha", 16, "forward", (0, 1, 2), 1.000000002, 2.0), Ranks("alpha", 16, "data", (3,), 8.0, 2.0)]
    assert looked(run, NOON + 90).quiet_s == 91.0


@pytest.mark.parametrize(("lasted_s", "state", "quiet_s"), [((300, 30), "running", 31.0), ((300, 180), "silent", 181.0)])
def test_ranks_that_hang_under_a_live_agent_are_silent_since_the_last_of_them_moved(
    tmp_path: Path, lasted_s: tuple[int, ...], state: str, quiet_s: float
) -> None:
    run = training(tmp_path / "a", 15)
    node = an_agent(run, 1)
    beats = {rank: asdict(Beat(100 + rank, 16, "exchange", int((1000 - lasted) * 1e9), 5)) for rank, lasted in enumerate(lasted_s)}
    (node / "heartbeats.json").write_text(json.dumps({"time_ns": int(1000e9), "ranks": beats}))
    aged(node / "heartbeats.json", NOON + 399)
    aged(node.parent, NOON)
    found = looked(run, NOON + 400)
    assert (found.state, found.quiet_s, found.ranks[0].silent_s) == (state, quiet_s, 301.0)


def test_rows_are_read_on_from_where_the_last_look_ended_and_a_half_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = Rows(path)
    assert rows.look() == []
    path.write_text('{"step": 1, "kind": "train", "train/loss": 3}\n{"step": 2, "kind": "tr')
    assert [row["step"] for row in rows.look()] == [1]
    with path.open("a") as file:
        file.write('ain", "train/loss": 2, "other": "x"}\n')
    assert rows.look() == [{"step": 1, "kind": "train", "train/loss": 3}, {"step": 2, "kind": "train", "train/loss": 2}]


def test_a_file_that_a_resume_rewound_is_read_anew(tmp_path: Path) -> None:
    path, fresh = tmp_path / "metrics.jsonl", tmp_path / "fresh"
    lines = [f'{{"step": {step}, "kind": "train"}}\n' for step in range(1, 6)]
    path.write_text("".join(lines))
    rows = Rows(path)
    assert len(rows.look()) == 5
    fresh.write_text("".join(lines[:3]) + "".join(lines[:3]).replace("train", "eval "))
    fresh.replace(path)
    assert [row["step"] for row in rows.look()] == [1, 2, 3]


def test_a_file_that_was_cut_in_place_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "kind": "train"}\n')
    reader = Rows(path)
    assert len(reader.look()) == 2
    path.write_text('{"step": 1, "kind": "train"}\n')
    assert [row["step"] for row in reader.look()] == [1]


def test_of_a_long_file_only_the_end_is_read_where_that_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "kind": "train"}}\n' for step in range(100, 200)))
    assert [row["step"] for row in Rows(path, most_bytes=100).look()] == [197, 198, 199]


@pytest.mark.parametrize("at_once", [True, False])
def test_of_many_rows_some_are_held_evenly_with_the_latest_and_all_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr(rows, "MOST_ROWS", 10)
    monkeypatch.setattr(rows, "BLOCK", 200)
    path = tmp_path / "metrics.jsonl"
    reader = Rows(path)
    path.touch()
    for step in range(1, 76):
        with path.open("a") as file:
            file.write(f'{{"step": {step}, "kind": "train"}}\n' + (f'{{"step": {step}, "kind": "eval"}}\n' if step in (7, 8) else ""))
        assert at_once or reader.look()[-1]["step"] == step
    held = reader.look()
    assert [row["step"] for row in held if row["kind"] == "train"] == [8, 16, 24, 32, 40, 48, 56, 64, 72, 75]
    assert [row["step"] for row in held if row["kind"] == "eval"] == [7, 8]


HOSTILE = ("", "[]", "{", "null", "[" * 100_000, '{"step": 1e400}', "\x00\xff", '{"outcome": ["done"], "error": [], "ranks": {"x": {}}}')


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_a_folder_holds_a_look_returns(tmp_path: Path, text: str) -> None:
    run = training(tmp_path / "a", 15)
    node = attempts.node_folder(run / "attempts" / "1", 0)
    node.mkdir(parents=True)
    landed(run, 10, NOON)
    for path in (run / "plan.json", run / "outcome.json", run / "metrics.jsonl", node / "heartbeats.json", node / "agent.json"):
        path.write_text(text, encoding="latin-1")
    assert looked(run).step == 0
    assert looked(tmp_path / "gone").state == "silent"


def test_numbers_that_are_no_counts_and_no_times_do_no_harm(tmp_path: Path) -> None:
    huge = 10**300
    run = training(tmp_path / "a", 15, total=huge, every="1e-300", global_batch=huge, val_samples=huge, epochs=float("inf"))
    node = run / "attempts" / "1" / "node-0"
    node.mkdir(parents=True)
    beat = {"pid": 1, "step": -huge, "phase": "\x1b[2J", "since_ns": -huge, "count": 0}
    (node / "heartbeats.json").write_text(json.dumps({"time_ns": huge, "ranks": {"0": beat}}))
    found = looked(run)
    assert (found.epochs, found.ranks[0].phase, found.ranks[0].longest_s) == (None, "\\x1b[2J", 1e9)
