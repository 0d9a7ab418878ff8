"""A run in Weights & Biases: each step once whatever happens, and nothing that W&B does reaches the training."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import given_runs
import pytest
import wandb
from given import a_config
from rich.console import Console
from wandb_server import KEY, Server, serve

from sft_dist import beside, finale, mirror, parse, rundir
from sft_dist.config import Config
from sft_dist.errors import ConfigError, InfrastructureError
from sft_dist.rundir import RunDir
from sft_dist.session import Record, Session, first_line, let_go
from sft_dist.steps import Steps

LIMIT_S = 200
"""The mirror is polite to other processes, and gets next to nothing of a busy machine."""


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a key nor a setting of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def a_row(step: int, kind: str = "train", **values: float) -> dict[str, Any]:
    return {"step": step, "kind": kind, "samples": 32 * step, "epoch": step / 4, **(values or {"train/loss": 1 / step})}


def write(run: RunDir, rows: Iterable[dict[str, Any]]) -> None:
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def a_run(folder: Path, steps: int = 0, outcome: str = "", **keys: object) -> tuple[RunDir, Config]:
    """A run's folder with so many training rows, and an evaluation at the last step."""
    config = a_config(run__dir=str(folder), track={"wandb": "online", "project": "pets", "limit_s": 200, **keys})
    run = rundir.create(config)
    run.config.write_text(parse.to_yaml(config))
    rundir.write_json(run.path / "env.json", {"commit": "c0ffee" * 6 + "c0ff", "argv": ["sft-dist", "train"]})
    write(run, [a_row(step) for step in range(1, steps + 1)])
    if outcome:
        end(run, steps, outcome)
    return run, config


def end(run: RunDir, step: int, outcome: str = "done") -> None:
    write(run, [a_row(step, "eval", **{"val/top1": 0.75})])
    rundir.write_json(run.outcome, {"outcome": outcome, "step": step})
    rundir.write_json(run.scores, {"best": {"step": 2, "val/top1": 0.875, "confusion": [[1]]}, "last": {"step": step, "val/top1": 0.75}})


def go_back(run: RunDir, step: int) -> None:
    """As a resume from an earlier checkpoint does."""
    (run.path / "attempts" / "1").mkdir()
    rundir.rewind(run, step, step, 1)


def mirrored(run: RunDir, config: Config, rows: Iterable[dict[str, Any]] = (), finished: int = 0) -> tuple[list[str], float, float]:
    """Rows come while the mirror looks on; what it said, and the seconds that the training and its end took."""
    screen = io.StringIO()
    began = time.monotonic()
    with beside.mirrored(run, config.track, Console(file=screen)):
        for row in rows:
            write(run, [row])
        if finished:
            end(run, finished)
        trained = time.monotonic()
    ended = time.monotonic()
    return screen.getvalue().splitlines(), trained - began, ended - trained


def offline_steps(run: RunDir) -> dict[str, list[int]]:
    """The steps in each offline run's log, read by W&B's own program."""
    return {file.parent.name: [row["step"]["num"] for row in log(file) if row["type"] == "history"] for file in logs(run)}  # fmt: skip


def logs(run: RunDir) -> list[Path]:
    return sorted(run.path.glob("wandb/offline-run-*/*.wandb"))


def log(file: Path) -> Iterator[dict[str, Any]]:
    told = []
    for line in subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file], capture_output=True, text=True, timeout=LIMIT_S, check=True
    ).stdout.splitlines():
        entry = json.loads(line)
        told.append({**entry, **({"step": entry["history"]["step"]} if entry["type"] == "history" else {})})
    yield from told


def processes_of(run: RunDir) -> list[int]:
    """Processes that have the run's folder on their command line, or that their parent, a mirror, left behind."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run.path).encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:  # gone meanwhile
            continue
    return found


def test_rows_of_one_step_are_laid_together_and_the_newest_waits_for_its_evaluation(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path)
    steps = Steps(run.metrics)
    assert list(steps.new()) == []
    write(run, [a_row(1), a_row(2, **{"train/loss": 0.5}), a_row(2, "eval", **{"val/top1": 0.25})])
    assert list(steps.new()) == [{"step": 1, "samples": 32, "epoch": 0.25, "train/loss": 1.0}]
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "kind": "train", "train/lo')
    assert list(steps.new()) == []
    with run.metrics.open("a") as file:
        file.write('ss": null}\n')
    assert list(steps.new()) == [{"step": 2, "samples": 64, "epoch": 0.5, "train/loss": 0.5, "val/top1": 0.25}]
    (tmp_path / "new").write_text(json.dumps(a_row(1)) + "\n")
    (tmp_path / "new").replace(run.metrics)  # the next attempt has gone back to a checkpoint
    assert list(steps.new()) == []
    assert list(steps.rest()) == [{"step": 3}]
    assert list(steps.rest()) == []
    steps.close()


def test_a_runs_id_is_kept_and_an_agents_id_is_taken(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path)
    (run.path / "wandb").mkdir()
    first = Record.of(run, {"WANDB_RUN_ID": "sweep123"})
    first.write(run)
    assert (first.id, Record.of(run, {"WANDB_RUN_ID": "another1"}).id, Record.of(run).id) == ("sweep123", "sweep123", "sweep123")
    other, _ = a_run(tmp_path / "other")
    assert len(Record.of(other).id) == 8
    assert Record.of(other).id != Record.of(other).id  # drawn until it is written


def test_a_damaged_metrics_file_is_named(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path)
    run.metrics.write_text('{"step": 1, "kind": "train"}\n\0\0\n')
    with closing(Steps(run.metrics)) as steps, pytest.raises(ConfigError, match=r"metrics.jsonl holds a line that is not JSON"):
        list(steps.new())


@pytest.mark.parametrize(
    ("wandb", "variables", "told"),
    [
        ("online", {"WANDB_MODE": "offline"}, "WANDB_MODE = offline, but track.wandb = online; unset it, or write track.wandb: offline"),
        ("offline", {"WANDB_MODE": "run"}, "WANDB_MODE = run, but track.wandb = offline; unset it, or write track.wandb: online"),
        ("online", {"WANDB_DISABLED": "true"}, "WANDB_DISABLED is set, but track.wandb = online; unset it, or write track.wandb: disabled"),
    ],
)
def test_an_environment_that_says_otherwise_is_refused(wandb: str, variables: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mirror.check(a_config(track={"wandb": wandb}).track, variables)
    assert caught.value.problems == (told,)
    mirror.check(a_config(track={"wandb": "disabled"}).track, variables)
    mirror.check(a_config(track={"wandb": wandb}).track, {"WANDB_MODE": wandb})


@pytest.mark.parametrize(
    ("overrides", "variables", "name"),
    [
        ((), {}, "pets"),
        ((), {"WANDB_RUN_ID": "abc"}, "pets"),
        ((), {"WANDB_RUN_ID": "abc", "WANDB_SWEEP_ID": "s"}, "pets-abc"),
        (("--optim.lr=0.1", "--run.name=mine"), {"WANDB_RUN_ID": "abc", "WANDB_SWEEP_ID": "s"}, "mine"),
    ],
)
def test_each_run_of_a_sweep_has_a_name_of_its_own(
    tmp_path: Path, overrides: tuple[str, ...], variables: dict[str, str], name: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(parse.to_yaml(a_config(run__name="pets")))
    assert parse.load(path, parse.named(path, overrides, variables)).run.name == name
    once = parse.named(path, overrides, variables)
    assert parse.named(path, once, variables) == once  # a launcher asks before its ranks do
    (tmp_path / "as-written.yaml").write_text(path.read_text())
    path.write_text(parse.to_yaml(parse.load(path, once)))
    assert parse.load(path, parse.named(path, (), variables)).run.name == name  # now it is a job's snapshot


def test_a_run_that_is_not_tracked_starts_no_process(tmp_path: Path) -> None:
    run, config = a_run(tmp_path, wandb="disabled")
    assert mirrored(run, config, [a_row(1)])[0] == []
    assert not (run.path / "wandb").exists()


def test_a_table_has_every_row_of_every_attempt(tmp_path: Path) -> None:
    run, config = a_run(tmp_path, wandb="disabled", csv=True)
    mirrored(run, config, [a_row(1)])
    assert mirrored(run, config, finished=1)[0] == []
    assert (run.path / "metrics.csv").read_text().splitlines() == [
        "step,kind,samples,epoch,train/loss,val/top1", "1,train,32,0.25,1.0,", "1,eval,32,0.25,,0.75",
    ]  # fmt: skip


def test_a_table_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    run, config = a_run(tmp_path, wandb="disabled", csv=True)
    (run.path / "metrics.csv").mkdir()
    [said], _, _ = mirrored(run, config, [a_row(1)])
    assert said.startswith("metrics.csv is not written: cannot write ")
    run.metrics.write_bytes(b"\xff\n")
    [said], _, _ = mirrored(run, config)
    assert said.startswith("metrics.csv is not written: 'utf-8' codec can't decode")


@pytest.mark.dist
def test_offline_logs_of_several_attempts_hold_each_step_once_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "canary0wandb0123456789abcdef"
    monkeypatch.setenv("WANDB_API_KEY", canary)
    monkeypatch.setenv("HUB_TOKEN", canary[::-1])
    patiently(monkeypatch)
    run, config = a_run(tmp_path, wandb="offline", notes=f"a slip: {canary[::-1]}", tags=["seeds"], group="g")
    said, _, _ = mirrored(run, config, [a_row(1), a_row(2), a_row(3)])
    go_back(run, 1)
    (run.predictions / "step-00000002.jsonl").write_text(json.dumps({"id": f"{canary}/a.png", "label": 0, "probs": [0.25, 0.75]}) + "\n")
    said += mirrored(run, config, [a_row(2), a_row(3), a_row(4), a_row(5)], finished=5)[0]
    assert said == []
    assert list(offline_steps(run).values()) == [[1, 2], [3, 4, 5]]
    assert len({file.name for file in logs(run)}) == 1, "another id after the resume"
    last = [entry["history"]["item"] for entry in log(logs(run)[-1]) if entry["type"] == "history"][-1]
    assert {name: last[name] for name in ("step", "train/loss", "val/top1")} == {"step": 5, "train/loss": 0.2, "val/top1": 0.75}
    for file in run.path.rglob("*"):
        assert file.is_symlink() or not file.stat().st_mode & 0o077 or file.parent == run.path or "wandb" not in file.parts, file
        held = file.read_bytes() if file.is_file() and file != run.config and file.parent != run.predictions else b""
        assert canary.encode() not in held and canary[::-1].encode() not in held, file
    assert any(b"a slip: (redacted)" in file.read_bytes() for file in logs(run))
    assert any(
        "(redacted)/a.png" in file.read_text() for file in run.path.glob("wandb/offline-run-*/files/media/table/best/predictions*.json")
    )
    assert any(b"c0ffee" in file.read_bytes() for file in logs(run))


@pytest.mark.dist
def test_what_a_killed_mirror_has_left_half_written_is_written_anew(tmp_path: Path) -> None:
    run, config = a_run(tmp_path, steps=3, wandb="offline")
    screen = io.StringIO()
    with beside.mirrored(run, config.track, Console(file=screen)):
        assert wait_for(lambda: logs(run) and any(entry["type"] == "history" for entry in log(logs(run)[0])))
        for process in processes_of(run):
            os.kill(process, 9)
    assert screen.getvalue().startswith("W&B: the mirror ended with code -9, see wandb/mirror.log; metrics.jsonl has every row")
    [half] = logs(run)
    assert mirrored(run, config, [a_row(4)], finished=4)[0] == []
    assert not half.exists()
    assert list(offline_steps(run).values()) == [[1, 2, 3, 4]]


@pytest.mark.dist
def test_only_one_process_sends_a_run_at_a_time(tmp_path: Path) -> None:
    run, config = a_run(tmp_path, steps=2, wandb="offline")
    screen = io.StringIO()
    before = ExitStack()
    assert before.enter_context(mirror._alone(run, 0))
    with beside.mirrored(run, config.track, Console(file=screen)):
        time.sleep(1.5)
        assert not logs(run)
        before.close()
        assert wait_for(lambda: logs(run))
        assert mirror.sync(run, 10) == "the run's own process is sending it"
        end(run, 2)
    assert screen.getvalue() == ""
    assert list(offline_steps(run).values()) == [[1, 2]]


@pytest.mark.dist
def test_online_each_step_arrives_once_also_after_a_resume_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saw: Callable[[str], None]
) -> None:
    with serve() as server:
        enter(monkeypatch, server)
        patiently(monkeypatch)
        run, config = a_run(tmp_path, tags=["a", "b"], group="seeds", job_type="tune", notes="a try")
        said, _, _ = mirrored(run, config, [a_row(1), a_row(2), a_row(3), a_row(4)])
        go_back(run, 2)
        number = Record.of(run).id
        assert server.steps(number) == [1, 2, 3]
        said += mirrored(run, config, [a_row(3), a_row(4), a_row(5)], finished=5)[0]
    assert said == [f"W&B: http://127.0.0.1:{server.port}/tester/pets/runs/{number}"] * 2
    assert server.steps(number) == [1, 2, 3, 4, 5]
    saw("W&B had steps 1 to 3, the run went on from 2 to 5: one run with steps 1 to 5")
    assert server.history[number][-1]["train/loss"] == 0.2 and server.history[number][-1]["val/top1"] == 0.75
    summary = server.summary[number]
    assert (summary["val/top1"], summary["best/val/top1"], summary["best/step"]) == (0.75, 0.875, 2)
    about = server.runs[number]
    assert {name: about[name] for name in ("displayName", "groupName", "jobType", "notes", "tags")} == {
        "displayName": "small", "groupName": "seeds", "jobType": "tune", "notes": "a try", "tags": ["a", "b"],
    }  # fmt: skip
    assert about["commit"].startswith("c0ffee")
    assert json.loads(about["config"])["optim.lr"]["value"] == 0.001
    assert not any(KEY in body for body in server.raw)


def table(server: Server, name: str) -> dict[str, Any]:
    """What W&B holds of the one table of that name."""
    files = [file for artifact in server.shelf.of_kind("run_table") for file in artifact.files.items()]
    [content] = [content for title, content in files if title.startswith(name)]
    return json.loads(content)


@pytest.mark.dist
def test_the_end_of_a_run_shows_its_mistakes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        enter(monkeypatch, server)
        track = {"wandb": "online", "project": "zoo", "limit_s": 200, "predictions": 2}
        run = RunDir(given_runs.a_run(tmp_path / "small", given_runs.guesses([0, 1, 4]), track=track))
        said, _, _ = mirrored(run, parse.load(run.config))
        number = Record.of(run).id
        told = [sync(tmp_path, server)[1].split("  ")[1]]
        Record(**{**json.loads((run.path / "wandb/mirror.json").read_text()), "shown": 0}).write(run)  # as if their end had been cut off
        told.append(sync(tmp_path, server)[1].split("  ")[1])
    assert said == [f"W&B: http://127.0.0.1:{server.port}/tester/zoo/runs/{number}"]
    assert told == ["nothing new in 4 steps", "0 of 4 steps sent"]
    assert server.steps(number) == [1, 2, 3, 4]
    assert {name: table(server, "best/predictions")[name] for name in ("columns", "data")} == {
        "columns": ["id", "truth", "guess", "confidence", "truth_probability"],
        "data": [["0.png", "cat", "dog", 0.8, 0.1], ["1.png", "dog", "eel", 0.8, 0.1]],
    }
    assert table(server, "best/confusion")["data"] == [
        ["cat", "cat", 19], ["cat", "dog", 1], ["cat", "eel", 0], ["dog", "cat", 0], ["dog", "dog", 18], ["dog", "eel", 2],
        ["eel", "cat", 0], ["eel", "dog", 0], ["eel", "eel", 20],
    ]  # fmt: skip
    assert server.history[number][-1]["best/predictions"]["nrows"] == server.summary[number]["best/predictions"]["nrows"] == 2
    assert server.history[number][-1]["val/top1"] == 0.95
    drawn = json.loads(server.runs[number]["config"])["_wandb"]["value"]["visualize"]["best/confusion"]
    assert drawn["panel_config"]["panelDefId"] == "wandb/confusion_matrix/v1"
    assert not any(KEY in body for body in server.raw)
    assert not (run.path / "wandb" / "spool" / "artifacts").exists()
    assert not (tmp_path / "home" / ".local").exists()


@pytest.mark.dist
def test_a_server_that_takes_no_tables_takes_the_steps_and_gets_the_tables_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve("no artifacts") as server:
        enter(monkeypatch, server)
        track = {"wandb": "online", "project": "zoo", "limit_s": 200}
        run = RunDir(given_runs.a_run(tmp_path / "small", given_runs.guesses([0]), track=track))
        [_, said], _, _ = mirrored(run, parse.load(run.config))
        number = Record.of(run).id
        assert server.steps(number) == [1, 2, 3, 4] and "best/predictions" not in server.history[number][-1]
        server.failure = ""
        code, told = sync(tmp_path, server)
    assert said.startswith("W&B has all steps, but not the tables of the end: ") and said.endswith(
        f"; `sft-dist sync {run.path}` tries again"
    )
    assert (code, told.split("  ")[1]) == (0, "0 of 4 steps sent")
    assert server.steps(number) == [1, 2, 3, 4]
    assert server.summary[number]["best/predictions"]["nrows"] == 60 == table(server, "best/predictions")["nrows"]


@pytest.mark.dist
def test_what_cannot_be_drawn_keeps_no_step_back_and_a_model_that_is_wanted_later_is_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        enter(monkeypatch, server)
        run = RunDir(given_runs.a_run(tmp_path / "small", given_runs.guesses([0]), track={"project": "zoo"}))
        with monkeypatch.context() as broken:
            broken.setattr(wandb.plot, "confusion_matrix", None)
            with pytest.raises(InfrastructureError, match=r"but not the tables of the end: 'NoneType' object is not callable; "):
                mirror.sync(run, 60)
        number = Record.of(run).id
        assert server.steps(number) == [1, 2, 3, 4]
        assert mirror.sync(run, 60).startswith("0 of 4 steps sent")
        assert mirror.sync(run, 60).startswith("nothing new in 4 steps")
        run.config.write_text(run.config.read_text().replace("artifact: none", "artifact: export"))
        with pytest.raises(InfrastructureError, match="but not the model of the end: it is not exported: "):  # there is no checkpoint
            mirror.sync(run, 60)
        let_go()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pets-v1.2_a", "pets-v1.2_a"),
        ("a" * 128, "a" * 128),
        ("a" * 129, "a" * 119 + "-c12cb024"),
        ("lr=0.1", "lr-0.1-f27540d9"),
        ("lr+0.1", "lr-0.1-a90b8c9b"),
        ("käfer", "k-fer-b000b344"),
    ],
)
def test_wandb_takes_every_runs_name_for_its_model(name: str, told: str) -> None:
    assert wandb.Artifact(finale.artifact_name(name), type="model").name == told


@pytest.mark.dist
def test_tables_that_an_offline_run_lacks_are_not_told_as_if_wandb_had_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(given_runs.a_run(tmp_path / "small", given_runs.guesses([0]), track={"wandb": "offline"}))
    (run.path / "wandb").mkdir()
    monkeypatch.setattr(wandb.plot, "confusion_matrix", None)
    session = Session(run, Record.of(run), "offline", 30)
    session.conclude(a_row(4))
    session.finish()
    let_go()
    assert session.trouble == (
        f"W&B: the offline run has all steps, but not the tables of the end: 'NoneType' object is not callable; `sft-dist sync {run.path}` tries again"
    )
    assert list(offline_steps(run).values()) == [[4]]


A_LOG_THAT_FAILS_ONCE = """
import sys, wandb
from sft_dist.cli import main

def log(run, *row, **keys):
    wandb.Run.log = whole
    raise ConnectionError("its service is gone\\nmore")

whole, wandb.Run.log = wandb.Run.log, log
main(sys.argv[1:])
"""


@pytest.mark.dist
def test_whatever_wandbs_library_raises_in_a_sync_is_the_trouble_of_that_run_only(tmp_path: Path) -> None:
    a_run(tmp_path, steps=2, outcome="done")[0].path.rename(tmp_path / "first")
    other, _ = a_run(tmp_path, steps=2, outcome="done")
    command = [sys.executable, "-c", A_LOG_THAT_FAILS_ONCE, "sync", str(tmp_path)]
    with serve() as server:
        done = subprocess.run(command, env={**os.environ, **server.environment()}, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 75
    assert f"  - {tmp_path / 'first'}: W&B: its service is gone; metrics.jsonl has every row, and `sft-dist sync " in done.stderr
    assert server.steps(Record.of(other).id) == [1, 2]


def test_an_error_of_wandbs_is_told_in_one_line_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "canary0wandb0123")
    assert (
        first_line(ValueError("refused: canary0wandb0123 at https://me:word@host.\nmore"))
        == "refused: (redacted) at https://(redacted)@host"
    )


@pytest.mark.dist
def test_what_a_scheduler_sends_to_the_whole_tree_and_an_error_do_not_keep_a_step_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        enter(monkeypatch, server)
        patiently(monkeypatch)
        run, config = a_run(tmp_path, steps=3)
        screen = io.StringIO()
        with pytest.raises(ZeroDivisionError), beside.mirrored(run, config.track, Console(file=screen)):
            assert wait_for(lambda: "W&B: http" in screen.getvalue())
            tree = with_children(processes_of(run)[0])
            assert len(tree) >= 2, "W&B's own process is one of them"
            for process in tree:
                os.kill(process, signal.SIGUSR1)
                os.kill(process, signal.SIGTERM)
            time.sleep(0.5)
            write(run, [a_row(4)])
            raise ZeroDivisionError
    number = Record.of(run).id
    assert server.steps(number) == [1, 2, 3]  # the fourth may be yet to be evaluated
    assert server.exits[number] == [1]
    assert len(screen.getvalue().splitlines()) == 1


TOLD_AT_ONCE = ("no key", "refuses", "nonsense")


@pytest.mark.dist
@pytest.mark.parametrize("failure", ["no key", "nobody", "refuses", "500", "nonsense", "hangs", "hangs later"])
def test_a_server_that_fails_costs_a_warning_and_a_bounded_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saw: Callable[[str], None], failure: str
) -> None:
    rows = [a_row(step) for step in range(1, 6)]
    limit_s = 200 if failure in TOLD_AT_ONCE else 8
    run, config = a_run(tmp_path, limit_s=limit_s)
    with serve(failure) as server:
        if failure != "no key":
            enter(monkeypatch, server)
        if failure == "nobody":
            monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        said, trained_s, ended_s = mirrored(run, config, rows, finished=5)
    warnings = [line for line in said if not line.startswith("W&B: http")]
    assert len(warnings) == 1 and "sft-dist sync" in warnings[0], said
    saw(f"{failure}: {warnings[0]}")
    assert trained_s < 2 and ended_s < 11
    assert failure not in TOLD_AT_ONCE or list(offline_steps(run).values()) == [[1, 2, 3, 4, 5]]
    assert no_process_is_left(run)


@pytest.mark.dist
def test_sync_sends_a_folder_of_runs_each_step_once(tmp_path: Path) -> None:
    tracked, config = a_run(tmp_path, wandb="offline")
    mirrored(tracked, config, [a_row(1), a_row(2), a_row(3), a_row(4)], finished=4)
    tracked.path.rename(tmp_path / "tracked")
    a_run(tmp_path, steps=3, outcome="done", wandb="disabled")[0].path.rename(tmp_path / "whole")
    a_run(tmp_path, steps=3, outcome="saved", wandb="disabled")
    with serve() as server:
        told = [sync(tmp_path, server) for _ in range(2)]
    assert [code for code, _ in told] == [0, 0], told
    assert [line.partition("  ")[2].split("  ")[0] for _, said in told for line in said.splitlines()] == [
        "2 of 2 steps sent", "4 of 4 steps sent", "3 of 3 steps sent",
        "nothing new in 2 steps", "nothing new in 4 steps", "nothing new in 3 steps",
    ]  # fmt: skip
    ids = {name: json.loads((tmp_path / name / "wandb" / "mirror.json").read_text())["id"] for name in ("tracked", "whole", "small")}
    assert {name: server.steps(number) for name, number in ids.items()} == {
        "tracked": [1, 2, 3, 4], "whole": [1, 2, 3], "small": [1, 2],  # the newest step of a run that is not finished stays back
    }  # fmt: skip
    assert {run["project"] for run in server.runs.values()} == {"zoo"}


@pytest.mark.dist
def test_sync_to_a_server_that_refuses_says_so_for_each_run_and_exits_75(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, steps=3, outcome="done")
    with serve("refuses") as server:
        code, said = sync(tmp_path, server)
    assert code == 75
    assert f"{run.path}: W&B is not reached: " in said and "permission denied" in said


def sync(folder: Path, server: Server) -> tuple[int, str]:
    command = [sys.executable, "-m", "sft_dist", "sync", str(folder), "--project", "zoo"]
    done = subprocess.run(command, env={**os.environ, **server.environment()}, capture_output=True, text=True, timeout=LIMIT_S)
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def patiently(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that is not done gives W&B five seconds, in which two busy cores may not start it."""
    monkeypatch.setattr(beside, "URGENT_S", LIMIT_S)


def enter(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)


def wait_for(there: Callable[[], object], limit_s: float = LIMIT_S) -> object:
    end = time.monotonic() + limit_s
    while not (found := there()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def with_children(process: int) -> list[int]:
    below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(deeper for child in below for deeper in with_children(int(child)))]


def no_process_is_left(run: RunDir) -> bool:
    return bool(wait_for(lambda: not processes_of(run), 30))
