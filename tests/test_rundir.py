"""The folder of a run: one owner at a time, never another run's, no half-written file, no step twice."""

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from given import a_config

from sft_dist import attempts, locks, parse, rundir
from sft_dist.config import Config
from sft_dist.errors import ConfigError, MachineError
from sft_dist.rundir import RunDir


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return a_config(run__dir=str(tmp_path / "runs"))


@pytest.fixture
def run(config: Config) -> RunDir:
    made = rundir.create(config)
    made.config.write_text(parse.to_yaml(config))
    return made


def test_everything_lies_where_scripts_look_for_it(run: RunDir, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "small"
    assert run.path == folder
    found = [run.config, run.metrics, run.checkpoints, run.predictions, run.outcome, run.scores]
    assert [path.relative_to(folder).as_posix() for path in found] == [
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "predictions",
        "outcome.json",
        "scores.json",
    ]
    assert rundir.step_name(400) == "step-00000400"


def test_only_the_owner_may_read_a_run_and_the_probe_is_gone(run: RunDir) -> None:
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert sorted(path.name for path in run.path.iterdir()) == ["attempts", "checkpoints", "config.yaml", "predictions"]


def test_a_folder_that_cannot_be_written_is_the_machines_fault_and_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(MachineError, match=r"run\.dir = '.*runs': cannot write to .*runs/small: (File exists|Not a directory)"):
        rundir.create(a_config(run__dir=str(tmp_path / "runs")))


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a file system that even root cannot write to")
def test_a_file_system_without_the_right_to_write_is_named() -> None:
    with pytest.raises(MachineError, match="cannot write to /proc/runs/small"):
        rundir.create(a_config(run__dir="/proc/runs"))


def test_a_folder_that_is_not_there_or_holds_this_run_is_accepted(config: Config, run: RunDir) -> None:
    rundir.check(config)
    rundir.check(a_config(run__dir=config.run.dir, run__name="another"))
    rundir.check(a_config(run__dir=config.run.dir, batch__micro=4, train__duration="50 epochs", save__keep=1))


def test_a_folder_with_anything_else_in_it_is_refused(config: Config) -> None:
    folder = RunDir.of(config).path
    folder.mkdir(parents=True)
    rundir.check(config)
    (folder / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"small exists and is not a run \(no config.yaml in it\); use another run.name or run.dir"):
        rundir.check(config)


def test_a_run_that_died_before_its_config_was_written_can_be_started_again(config: Config) -> None:
    made = rundir.create(config)
    with locks.hold(made):
        attempts.begin(made)
    (made.path / ".config.yaml.4711").write_text("task: cla")
    (made.path / ".probe-4711").touch()
    made.outcome.write_text('{"outcome": "failed"}')
    rundir.check(config)


def test_checkpoints_without_a_config_are_not_taken_over(config: Config) -> None:
    made = rundir.create(config)
    (made.checkpoints / "step-00000001").mkdir()
    with pytest.raises(ConfigError, match="is not a run"):
        rundir.check(config)


def test_a_run_of_another_config_is_refused_with_every_key_that_differs(config: Config, run: RunDir) -> None:
    with pytest.raises(ConfigError) as refused:
        rundir.check(a_config(run__dir=config.run.dir, optim__lr=0.1, train__seed=1, batch__micro=4))
    assert refused.value.problems == (
        f"{run.path} holds a run of another config; to go on with it, undo the changes, or start another with run.name=...",
        "optim.lr: 0.001 -> 0.1",
        "train.seed: 0 -> 1",
    )


def test_attempts_are_counted_from_1_and_keep_their_folders(run: RunDir) -> None:
    assert [attempts.begin(run) for _ in range(3)] == [1, 2, 3]
    (run.path / "attempts" / "10").mkdir()
    (run.path / "attempts" / "notes").mkdir()
    assert attempts.begin(run) == 11
    assert (run.path / "attempts" / "11").is_dir()


@pytest.mark.parametrize("text", ["", "step-1", "../../elsewhere", "step-00000009", "step-00000001/..", "model"])
def test_a_pointer_to_what_is_no_checkpoint_points_nowhere(run: RunDir, text: str) -> None:
    (run.checkpoints / "step-00000001").mkdir()
    (run.checkpoints / "best").write_text(text + "\n")
    assert run.pointed_to("best") is None
    assert run.pointed_to("latest") is None


def test_a_pointer_names_its_checkpoint(run: RunDir) -> None:
    (run.checkpoints / "step-00000001").mkdir()
    (run.checkpoints / "best").write_text("step-00000001\n")
    assert run.pointed_to("best") == run.checkpoints / "step-00000001"


@pytest.mark.parametrize(
    ("outcome", "changes", "finished"),
    [
        ({"outcome": "done"}, {}, True),
        ({"outcome": "saved"}, {}, False),
        ({"outcome": "failed"}, {}, False),
        ({}, {}, False),
        ({"outcome": "done"}, {"train__duration": "26 epochs"}, False),
        ({"outcome": "done"}, {"stop__patience": 3}, False),
        ({"outcome": "done"}, {"eval__test": False}, False),
        ({"outcome": "done"}, {"batch__micro": 4, "data__workers": 0}, True),
    ],
)
def test_a_run_is_finished_when_it_came_to_its_end_and_is_asked_for_nothing_more(
    config: Config, run: RunDir, outcome: dict[str, str], changes: dict[str, object], finished: bool
) -> None:
    rundir.write_json(run.outcome, outcome)
    found = rundir.finished(a_config(run__dir=config.run.dir, **changes))
    assert found == (run if finished else None)


def test_a_folder_that_is_not_there_is_not_finished(tmp_path: Path) -> None:
    assert rundir.finished(a_config(run__dir=str(tmp_path / "none"))) is None


def row(step: int, kind: str = "train", **more: float) -> dict[str, object]:
    return {"step": step, "kind": kind, **more}


def write_rows(run: RunDir, *rows: dict[str, object], rest: str = "") -> None:
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + rest)


def test_a_last_row_that_a_crash_cut_short_is_left_out(run: RunDir) -> None:
    assert rundir.read_rows(run.metrics) == []
    full = json.dumps(row(3, loss=0.5))
    for length in range(len(full)):
        write_rows(run, row(1), row(2), rest=full[:length])
        assert rundir.read_rows(run.metrics) == [row(1), row(2)]
    write_rows(run, row(1), rest=full)
    assert rundir.read_rows(run.metrics) == [row(1), row(3, loss=0.5)]
    write_rows(run, row(1), rest="\0\0\0")
    assert rundir.read_rows(run.metrics) == [row(1)]


def test_a_row_broken_in_the_middle_is_refused_by_its_line(run: RunDir) -> None:
    write_rows(run, row(1), rest='{"step": 2, "ki\n{"step": 3, "kind": "train"}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 2 is not JSON; the file was changed by hand or the disk is damaged"):
        rundir.read_rows(run.metrics)


def test_rewinding_cuts_each_kind_of_row_at_its_own_step_and_keeps_what_it_cut(run: RunDir) -> None:
    attempts.begin(run)
    write_rows(run, row(1), row(2), row(2, "eval"), row(3), row(4), row(4, "eval"), row(5), rest='{"step": 6, "k')
    rundir.rewind(run, step=4, evaluated=2, attempt=1)
    assert rundir.read_rows(run.metrics) == [row(1), row(2), row(2, "eval"), row(3), row(4)]
    assert rundir.read_rows(run.path / "attempts" / "1" / "rewound.jsonl") == [row(4, "eval"), row(5)]
    assert run.metrics.read_text().endswith("}\n")


def test_rewinding_to_where_the_run_is_changes_nothing_and_leaves_no_leftovers(run: RunDir) -> None:
    attempts.begin(run)
    write_rows(run, row(1, loss=0.1 + 0.2), row(2))
    before = run.metrics.read_bytes()
    rundir.rewind(run, step=2, evaluated=0, attempt=1)
    assert run.metrics.read_bytes() == before
    assert list((run.path / "attempts" / "1").iterdir()) == []


def test_a_run_without_rows_can_be_rewound(run: RunDir) -> None:
    attempts.begin(run)
    rundir.rewind(run, step=0, evaluated=0, attempt=1)
    assert run.metrics.read_text() == ""


KILLED_WHILE_WRITING = """
import itertools, sys
from pathlib import Path
from sft_dist.rundir import write_atomically
for letter in itertools.cycle("ab"):
    write_atomically(Path(sys.argv[1]), letter * 200_000)
    print(letter, flush=True)
"""


def test_a_process_killed_while_it_writes_leaves_the_old_text_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    writer = subprocess.Popen([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout
    for _ in range(5):
        writer.stdout.readline()
        assert path.read_text() in ("a" * 200_000, "b" * 200_000)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert path.read_text() in ("a" * 200_000, "b" * 200_000)


def test_several_that_write_one_file_leave_the_text_of_one_of_them_though_their_process_has_one_number(tmp_path: Path) -> None:
    """As the tasks of a sweep write its table, on nodes whose containers count processes from 1."""

    def write(letter: str) -> None:
        for _ in range(50):
            rundir.write_atomically(tmp_path / "table.txt", letter * 20_000)

    with ThreadPoolExecutor(2) as writers:
        list(writers.map(write, "ab"))
    assert (tmp_path / "table.txt").read_text() in ("a" * 20_000, "b" * 20_000)
    assert [path.name for path in tmp_path.iterdir()] == ["table.txt"]


def test_text_is_written_in_utf_8_whatever_the_machines_locale(tmp_path: Path) -> None:
    """A config is read back as UTF-8, on any machine."""
    write = f"from pathlib import Path; from sft_dist import rundir; rundir.write_atomically(Path({str(tmp_path / 'a')!r}), '\\xe9')"
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", write], cwd=Path(__file__).parent.parent, env={**os.environ, **ascii_alone}, check=True, timeout=60
    )
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9"


def test_writing_leaves_no_other_file_behind(tmp_path: Path) -> None:
    rundir.write_json(tmp_path / "a.json", {"one": 1, "two": [1, 2]})
    rundir.write_json(tmp_path / "a.json", {"one": 1, "two": [[1, 2], [3, 4]]})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n "one": 1,\n "two": [[1, 2], [3, 4]]\n}\n'


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "7", "\xff"])
def test_what_is_no_json_object_reads_as_an_empty_one(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    assert rundir.read_json(tmp_path / "a.json") == {}


def test_the_summary_tells_the_scores_of_best_last_and_test(run: RunDir) -> None:
    best = {"step": 4, "val/top1": 0.75, "val/loss": 0.5, "samples": 60}
    rundir.write_json(run.scores, {"best": best, "last": {**best, "step": 8}, "test": {"step": 4, "test/top1": 0.7}})
    assert rundir.summary(run) == [
        "     best  step 4: val/top1 0.7500  val/loss 0.5000",
        "     last  step 8: val/top1 0.7500  val/loss 0.5000",
        "     test  step 4: test/top1 0.7000",
        f"      run  {run.path}",
    ]
