"""TensorBoard reads what metrics.jsonl says: each step once whatever a resume takes back, and a disk that fails costs a warning."""

import io
import json
import resource
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from given import a_config
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from sft_dist import events, parse, rundir
from sft_dist.errors import ConfigError
from sft_dist.events import Events
from sft_dist.plan import World, make_plan
from sft_dist.rundir import RunDir
from sft_dist.track import Tracker


def a_run(folder: Path, **keys: Any) -> RunDir:
    config = a_config(run__dir=str(folder), **keys)
    run = rundir.create(config)
    run.config.write_text(parse.to_yaml(config))
    return run


def a_row(step: int, kind: str = "train", **values: float | None) -> dict[str, Any]:
    return {
        "step": step,
        "kind": kind,
        "samples": 32 * step,
        "epoch": step / 4,
        **(values or {"train/loss": 1 / step, "train/grad_norm": None}),
    }


def attempt(run: RunDir, *rows: dict[str, Any], secrets: tuple[str, ...] = ()) -> list[str]:
    """Rows as an attempt writes them, here and there; what was warned of."""
    said: list[str] = []
    with closing(Events(run, secrets, said.append)) as written, run.metrics.open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()
            written.add(row)
        written.flush()
    return said


def seen(run: RunDir) -> EventAccumulator:
    read = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return read.Reload()


def curve(run: RunDir, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in seen(run).Scalars(name)]


def test_every_number_of_every_row_is_there_at_its_step(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert attempt(run, a_row(1), a_row(2), a_row(2, "eval", **{"val/top1": 0.25})) == []
    read = seen(run)
    assert sorted(read.Tags()["scalars"]) == ["epoch", "train/loss", "val/top1"]
    assert curve(run) == [(1, 1.0), (2, 0.5)]
    assert curve(run, "val/top1") == [(2, 0.25)]


def test_a_resume_takes_back_the_steps_that_it_makes_again(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    attempt(run, *map(a_row, (1, 2, 3, 4)), a_row(4, "eval", **{"val/top1": 0.25}))
    (run.path / "attempts" / "2").mkdir()
    rundir.rewind(run, 3, 3, attempt=2)
    attempt(run, a_row(4, **{"train/loss": 8.0}), a_row(5))
    rundir.rewind(run, 5, 5, attempt=2)
    attempt(run, a_row(5, "eval", **{"val/top1": 0.5}))  # the evaluation that the attempt before still owed
    assert curve(run) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 8.0), (5, pytest.approx(0.2))]
    assert curve(run, "val/top1") == [(5, 0.5)]
    assert len(list((run.path / "tensorboard").iterdir())) == 3


def test_a_run_that_is_shown_only_from_its_second_attempt_on_has_its_first_rows_too(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.metrics.write_text("".join(json.dumps(a_row(step)) + "\n" for step in (1, 2)))
    attempt(run, a_row(3))
    assert [step for step, _ in curve(run)] == [1, 2, 3]
    for file in (run.path / "tensorboard").iterdir():
        file.rename(file.with_name(file.name.replace("tfevents.1", "tfevents.8")))  # of a host whose clock is ahead
    attempt(run, a_row(4))
    assert [step for step, _ in curve(run)] == [1, 2, 3, 4]


def test_the_config_is_a_text_and_a_row_of_hyperparameters_without_a_secret(tmp_path: Path) -> None:
    run = a_run(tmp_path, track={"notes": "a slip: canary1"}, optim={"lr": 0.25})
    attempt(run, a_row(1), secrets=("canary1",))
    read = seen(run)
    [text] = read.Tensors("config/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:3] == ["| key | value |", "|---|---|", "| task | classify |"]
    assert "| optim.lr | 0.25 |" in lines and "| track.notes | a slip: (redacted) |" in lines
    assert b"optim.lr" in read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    [file] = (run.path / "tensorboard").iterdir()
    assert b"canary1" not in file.read_bytes()


@pytest.mark.parametrize(
    ("task", "scores"), [("classify", ["val/top1", "val/loss"]), ("segment", ["val/miou", "val/loss"]), ("detect", ["val/map"])]
)
def test_runs_are_judged_by_scores_that_their_kind_of_work_has(tmp_path: Path, task: str, scores: list[str]) -> None:
    run = a_run(tmp_path, task=task)
    attempt(run, a_row(1))
    content = HParamsPluginData.FromString(seen(run).SummaryMetadata("_hparams_/experiment").plugin_data.content)
    assert [info.name.tag for info in content.experiment.metric_infos] == scores


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """As on a full disk, a write beyond this many bytes of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_is_told_once_and_what_was_written_before_is_read(tmp_path: Path) -> None:
    run, said = a_run(tmp_path), list[str]()
    with files_end_at(20_000), closing(Events(run, (), said.append)) as written:
        for step in range(1, 301):
            written.add(a_row(step))
    assert said == ["nothing more is written for TensorBoard: File too large; metrics.jsonl has every row"]
    steps = [step for step, _ in curve(run)]
    assert 10 < len(steps) < 300 and steps == list(range(1, len(steps) + 1))


def test_a_folder_that_cannot_be_made_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    run, screen = a_run(tmp_path), io.StringIO()
    (run.path / "tensorboard").touch()
    tracker = Tracker(run, make_plan(a_config(), World(), samples=128, val_samples=10), Console(file=screen), tensorboard=True)
    tracker._row(1, "train", {"train/loss": 0.5})
    tracker.close()
    assert screen.getvalue() == "nothing more is written for TensorBoard: File exists; metrics.jsonl has every row\n"
    assert json.loads(run.metrics.read_text())["train/loss"] == 0.5


@pytest.mark.parametrize("part", ["event_pb2", "summary_pb2"])
def test_a_package_that_does_not_fit_is_told_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setitem(sys.modules, f"tensorboard.compat.proto.{part}", None)  # its import fails, as with a protobuf of another age
    [said] = attempt(a_run(tmp_path), a_row(1), a_row(2))
    assert said.startswith("nothing more is written for TensorBoard: import of tensorboard.compat.proto.") and said.endswith(
        "; metrics.jsonl has every row"
    )


def test_a_missing_package_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    events.check(a_config().track)
    with pytest.raises(ConfigError, match=r"^track.tensorboard = true, but .* pip install 'sft-dist\[tensorboard\]'$"):
        events.check(a_config(track={"tensorboard": True}).track)
