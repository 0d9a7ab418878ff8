"""What happened to a run, from the records of its attempts."""

from pathlib import Path

from given_runs import a_run, guesses, write

from sft_dist import attempts
from sft_dist.attempts import Failure
from sft_dist.history import reading
from sft_dist.report.chronicle import Chapter, chapters

SECOND = 10**9
BEGAN = 1_767_330_000 * SECOND  # 2026-01-02 05:00:00 UTC


def an_attempt(run: Path, number: int, seconds: float, from_step: int, **ended: object) -> Path:
    """A record as an agent leaves it, of two processes on one node."""
    place = run / "attempts" / str(number)
    (place / "node-0").mkdir(parents=True)
    write(place / "attempt.json", {"nodes": 1, "procs": 2, "started_ns": BEGAN, "from_step": from_step})
    write(place / "node-0" / "exit.json", {"code": 0, "time_ns": BEGAN + round(seconds * SECOND), "asked": None, **ended})
    return place


def told(run: Path) -> list[Chapter]:
    return chapters(reading.read(run))


def test_each_attempt_says_when_it_began_how_long_it_took_and_how_it_ended(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", guesses([]))
    write(run / "outcome.json", {"outcome": "done", "step": 4, "attempt": 4, "reason": "all 4 steps are made"})
    an_attempt(run, 1, 60, 0, asked="SIGTERM")
    failed = an_attempt(run, 2, 30, 2, code=1)
    attempts.write_failure(failed, Failure(BEGAN, 1, "gpu7", 3, "backward", 1, "RuntimeError", "out of luck\nand more"))
    write(an_attempt(run, 3, 9, 2, code=75) / "rewound.jsonl", {"step": 3, "kind": "train"}, {"step": 3, "kind": "eval"})
    write(an_attempt(run, 4, 40, 2) / "saves.jsonl", {"step": 3, "seconds": 0.5}, {"step": 4, "seconds": 2.0})
    found = told(run)
    assert [one.end for one in found] == [
        "saved and stopped: asked by SIGTERM",
        "failed: rank 1 on gpu7, in backward of step 3: RuntimeError: out of luck",
        "exit code 75",
        "done: all 4 steps are made",
    ]
    assert [one.failed for one in found] == [False, True, False, False]
    assert [(one.seconds, one.from_step, one.lost) for one in found] == [(60, 0, 0), (30, 2, 0), (9, 2, 1), (40, 2, 0)]
    assert (found[0].began, found[0].processes, found[0].nodes) == ("2026-01-02 05:00 UTC", 2, 1)
    assert found[3].saves == [0.5, 2.0]


def test_lost_steps_are_counted_where_rows_are_further_apart(tmp_path: Path) -> None:
    """By the rows that were taken back, and from the step that the attempt went on from."""
    run = a_run(tmp_path / "run", guesses([]))
    write(an_attempt(run, 1, 60, 15) / "rewound.jsonl", *({"step": step, "kind": "train"} for step in (20, 30)))
    write(an_attempt(run, 2, 60, 25) / "rewound.jsonl", *({"step": step, "kind": "train"} for step in (21, 22, 23, 24)))
    place = an_attempt(run, 3, 60, 0)
    write(place / "attempt.json", {})
    write(place / "rewound.jsonl", {"step": 7, "kind": "train"}, {"step": 8, "kind": "train"})
    assert [one.lost for one in told(run)] == [15, 4, 2]


def test_of_several_nodes_the_exit_code_is_that_of_the_one_that_failed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", guesses([]), outcome=None)
    place = an_attempt(run, 1, 60, 0)
    (place / "node-1").mkdir()
    write(place / "node-1" / "exit.json", {"code": 75, "time_ns": BEGAN, "asked": None})
    assert [one.end for one in told(run)] == ["exit code 75"]


def test_an_attempt_without_a_record_was_killed_or_still_runs(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", guesses([]), outcome=None)
    for number in "12":
        (run / "attempts" / number).mkdir()
    before, one = told(run)
    assert before.end == "left no record of its end: it was killed"
    assert one.end == "left no record of its end: it was killed, or still runs"
    assert (one.began, one.processes, one.seconds) == (None, None, None)
