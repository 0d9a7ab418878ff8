"""From a sweep's file to one array of Slurm, and to its table; no cluster is asked."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from scenes import at, attempt

from launch import arrays, jobs, plans, queue, results, slurm, snapshot, software, sweep, whose
from launch.cli import cli
from launch.jobs import Job
from launch.slurm import Submission, Wishes
from sft_dist import parse, rundir
from sft_dist.errors import ConfigError, MachineError
from sft_dist.rundir import RunDir, write_json

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "slurm"
FILES = {"slurm/array.sh": b"#!/bin/bash\n#SBATCH --nodes=1\n#SBATCH --requeue\necho\n", "slurm/finetune.sh": b"", "sweep.yaml": b""}
FILES |= {"configs/0.yaml": b"", "configs/1.yaml": b"", "launch/cli.py": b"", "sft_dist/train.py": b"", "as-written.yaml": b""}
SHOWN = """JobId=80 ArrayJobId=77 ArrayTaskId=1 JobName=lr
   JobState=RUNNING Reason=None Dependency=(null)
   Command=/runs/a b/lr/code/0123456789abcdef/slurm/array.sh /runs/a b/lr/code/0123456789abcdef/configs
   StdOut=/runs/a b/lr/slurm-77_1.log
"""

ONE = Wishes()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # there is no Slurm
    Path("x.yaml").write_text((software.REPOSITORY / "configs" / "quickstart.yaml").read_text())
    return tmp_path


def written(file: str = "lr", **tree: Any) -> Path:
    path = Path(f"{file}.yaml")
    path.write_text(yaml.safe_dump({"config": "x.yaml", **tree}, sort_keys=False))
    return path


def made(path: Path, *overrides: str, wishes: Wishes = ONE) -> sweep.Sweep:
    return arrays.checked(path, overrides, wishes, {})


def problems(path: Path, *overrides: str, wishes: Wishes = ONE) -> tuple[str, ...]:
    with pytest.raises((ConfigError, MachineError)) as caught:
        made(path, *overrides, wishes=wishes)
    return caught.value.problems


def submitted(found: sweep.Sweep, path: Path) -> RunDir:
    """The sweep's folder as it is after a submission."""
    _, files = arrays.prepare(found, path, None, ONE, {})
    for task in found.tasks:
        rundir.create(task.settings)
    code = snapshot.make(RunDir(found.folder), files)
    write_json(found.folder / "sweep.json", {"configs": f"code/{code.name}/configs", "job": "77"})
    return RunDir(found.folder)


def ended(run: RunDir, score: float, how: str = "done", code: int = 0, **more: Mapping[str, Any]) -> None:
    """What a run leaves that ended."""
    write_json(run.path / "plan.json", {"total_steps": 42})
    write_json(run.scores, {"best": {"step": 40, "val/top1": score, "val/loss": 1.0}, "last": {"step": 42}, **more})
    attempt(run, ends={0: {"code": code, "asked": None, "time_ns": at(0)}}, nodes=1, procs=1)
    write_json(run.outcome, {"outcome": how, "step": 42, "attempt": 1})


def test_each_of_the_runs_meets_each_corner_of_the_grid_in_order() -> None:
    found = made(
        written(runs=[{"optim.lr": 0.1}, {"optim.lr": 0.2, "model.train": "all"}], grid={"train.seed": [3, 4], "batch.total": [64]})
    )
    assert [dict(task.varied) for task in found.tasks] == [
        {"optim.lr": 0.1, "train.seed": 3, "batch.total": 64},
        {"optim.lr": 0.1, "train.seed": 4, "batch.total": 64},
        {"optim.lr": 0.2, "model.train": "all", "train.seed": 3, "batch.total": 64},
        {"optim.lr": 0.2, "model.train": "all", "train.seed": 4, "batch.total": 64},
    ]
    assert [(task.settings.optim.lr, task.settings.train.seed) for task in found.tasks] == [(0.1, 3), (0.1, 4), (0.2, 3), (0.2, 4)]


def test_runs_are_numbered_under_the_sweep_s_name_in_its_folder(here: Path) -> None:
    found = made(written(grid={"train.seed": [0, 1]}), "run.dir=deep/runs", "optim.lr=0.5")
    assert found.folder == here / "deep" / "runs" / "lr"
    assert [task.run.path for task in found.tasks] == [found.folder / "lr-0", found.folder / "lr-1"]
    assert {task.settings.optim.lr for task in found.tasks} == {0.5}
    assert [task.settings.run.name for task in made(written("2026-11", grid={"train.seed": [0]})).tasks] == ["2026-11-0"]


@pytest.mark.parametrize("value", ["a, b: c", "it's #1", "[x]", "~", "null", "1e-3", "no", " x ", "ü", "$(touch pwned)", "-", "%j"])
def test_a_value_reaches_its_config_as_it_stands_in_the_sweep(value: str) -> None:
    [task] = made(written(runs=[{"data.root": value}])).tasks
    assert task.settings.data.root == value
    Path("again.yaml").write_text(parse.to_yaml(task.settings))
    assert parse.load(Path("again.yaml")) == task.settings


def test_what_is_wrong_with_any_run_is_told_of_all_of_them_at_once() -> None:
    path = written(grid={"optim.lr": [0.1, -1, "fast"], "model.trian": ["all"], "data.root": ["a\nb"]})
    told = problems(path)
    assert told == (
        "every task: x.yaml: data.root: 'a\\nb' has control characters in it",
        "every task: x.yaml: unknown key model.trian; did you mean model.train?",
        'task 1 (optim.lr=-1, model.trian=all, data.root="a\\nb"): x.yaml: optim.lr = -1: it should be greater than or equal to 0',
        "task 2 (optim.lr=fast, model.trian=all, data.root=\"a\\nb\"): x.yaml: optim.lr = 'fast': "
        "it should be a valid number, unable to parse string as a number",
    )


def test_what_the_cluster_would_be_given_is_checked_for_every_run() -> None:
    path = written(grid={"batch.total": [8, 16, 64, 2]})
    told = problems(path, "batch.micro=1", wishes=Wishes(nodes=4, procs=4))
    assert [line.partition(" ranks")[0] for line in told] == [
        "task 0 (batch.total=8): batch.total = 8 is fewer than the 16",
        "task 3 (batch.total=2): batch.total = 2 is fewer than the 16",
    ]


def test_a_missing_folder_of_data_is_told_before_anything_is_submitted() -> None:
    told = problems(written(grid={"data.root": ["here", "there"]}), "data.name=folder")
    assert [line[:28] for line in told] == ["task 0 (data.root=here): dat", "task 1 (data.root=there): da"]


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"gird": {"train.seed": [1]}, "runs": [{"train.seed": 1}]}, "unknown key gird; did you mean grid?"),
        ({"grid": {"train.seed": [1]}, "task": "classify"}, "task is a key of a config, not of a sweep; name the config with `config:`"),
        ({"grid": {"train.seed": [1]}, "task": "classify", "data": {}}, "task, data are keys of a config, not of a sweep; name the config"),
        ({}, "nothing varies; write `grid: {train.seed: [0, 1, 2]}`"),
        ({"grid": {"train.seed": 3}}, "grid is not key: [value, value]"),
        ({"grid": {"train.seed": []}}, "grid is not key: [value, value]"),
        ({"runs": {"train.seed": 3}}, "runs is not a list of runs"),
        ({"runs": []}, "runs is not a list of runs"),
        ({"runs": [{"optim": {"lr": 1}}]}, "optim is a section; write its keys with dots, like optim.lr: 0.1"),
        ({"runs": [{"optim.lr": 1}], "grid": {"optim.lr": [2]}}, "optim.lr stands in runs and in grid"),
        ({"runs": [{"run.name": "mine"}]}, "run.name cannot vary: a sweep numbers its runs"),
        ({"runs": [{"run.dir": "there"}]}, "run.dir cannot vary: all runs of a sweep lie in its folder"),
        ({"grid": {"task": ["classify", "detect"]}}, "task cannot vary: scores of different tasks cannot stand in one table"),
        ({"grid": {"a=b": [1]}}, "'a=b' is no key; write it like optim.lr"),
        ({"grid": {True: [1]}}, "True is no key; write it like optim.lr"),
        ({"grid": {"train.seed": [1]}, "name": "../x"}, "name: '../x' cannot name a folder"),
        ({"grid": {"train.seed": [1]}, "name": "$(touch pwned)"}, "name: '$(touch pwned)' cannot name a folder"),
        ({"grid": {"train.seed": [1]}, "name": "a\nscancel -u me"}, "name: 'a\\nscancel -u me' cannot name a folder"),
        ({"grid": {"train.seed": [1]}, "name": 7}, "name: 7 is no text; put it in quotes"),
        ({"grid": {"train.seed": [*range(40)], "optim.lr": [*range(40)]}}, "1600 runs; a sweep has at most 1000"),
        ({"grid": {"train.seed": [1, 2, 1]}}, "tasks 0 and 2 are the same run"),
        ({"runs": [{}, {"train.seed": 0}]}, "tasks 0 and 1 are the same run"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
def test_a_sweep_that_cannot_be_meant_is_refused(tree: dict[str, Any], told: str) -> None:
    [problem] = problems(written(**tree))
    assert told in problem
    assert sorted(path.name for path in Path().iterdir()) == ["lr.yaml", "x.yaml"]


def test_a_key_cannot_vary_and_be_set_on_the_command_line() -> None:
    path = written(grid={"train.seed": [1, 2]})
    assert problems(path, "--train.seed=3") == ("lr.yaml: train.seed varies, and is set on the command line as well",)
    assert "run.name on the command line: a sweep numbers its runs" in problems(path, "run.name=x")[0]


def test_a_sweep_without_a_config_is_told_what_it_lacks() -> None:
    Path("no.yaml").write_text("grid: {train.seed: [1]}\n")
    assert problems(Path("no.yaml")) == ("no.yaml: config is missing: the file that all runs share, like `config: configs/x.yaml`",)
    Path("empty.yaml").write_text("")
    assert "it begins with `config: configs/x.yaml`" in problems(Path("empty.yaml"))[0]


def test_one_array_has_one_number_of_processes() -> None:
    path = written(runs=[{"device": "cpu"}, {"device": "auto"}])
    assert "1 and 4 processes a node" in problems(path, wishes=Wishes(gpus_per_node="4"))[0]
    assert len(made(path, wishes=Wishes(procs=2)).tasks) == 2


def test_a_sweep_does_not_move_into_the_folder_of_a_run() -> None:
    run = rundir.create(parse.load(Path("x.yaml"), ["run.name=lr"]))
    run.config.write_text("task: classify\n")
    assert problems(written(grid={"train.seed": [0, 1]})) == (
        f"{run.path.absolute()} is the folder of a single run; give the sweep another `name:`",
    )


def test_only_unfinished_runs_are_submitted_and_only_so_many_at_a_time() -> None:
    path = written(grid={"train.seed": [*range(8)]})
    found = made(path)
    assert sweep.indices(found.unfinished) == "0-7"
    for number in (0, 2, 3):
        run = rundir.create(found.tasks[number].settings)
        run.config.write_text(parse.to_yaml(found.tasks[number].settings))
        write_json(run.outcome, {"outcome": "done"})
    assert sweep.indices(made(path).unfinished, 3) == "1,4-7%3"


def test_a_dry_run_of_a_sweep_prints_what_the_golden_file_holds() -> None:
    place = Path("/runs/it's/lr")
    wishes = Wishes(nodes=2, time="1-0", gpus_per_node="4", others=("--mem=64G",))
    job = Submission("lr", place, place / "code" / "c0de", 4, wishes, "/opt/py/bin/python", Path("/repository"), "0-1%1")
    found = made(written(grid={"train.seed": [0, 1]}))
    assert "\n".join([*arrays.runs(found), *slurm.describe(job, {"RANK": "3"}, FILES)]) + "\n" == (GOLDEN / "sweep_dry_run.txt").read_text()
    assert "\n".join(slurm.submitted_array("77", job)) + "\n" == (GOLDEN / "sweep_submitted.txt").read_text()


def test_a_dry_run_of_a_sweep_writes_nothing_and_asks_nobody() -> None:
    path = written(grid={"train.seed": [0, 1, 2]})
    done = CliRunner().invoke(cli, ["slurm", "array", str(path), "--limit=2", "--dry-run", "optim.lr=0.5", "--", "--mem=4G"])
    assert (done.exit_code, sorted(path.name for path in Path().iterdir())) == (0, ["lr.yaml", "x.yaml"])
    last = done.stdout.splitlines()[-1]
    assert last.startswith("sbatch --parsable --job-name=lr --array=0-2%2 --nodes=1 ")
    assert last.endswith("/configs") and "/slurm/array.sh " in last
    refused = CliRunner().invoke(cli, ["slurm", "array", str(path)])
    assert "there is no sbatch on this machine" in str(refused.exception)
    assert sorted(path.name for path in Path().iterdir()) == ["lr.yaml", "x.yaml"]
    assert "--array=3 is not for you to set here" in str(
        CliRunner().invoke(cli, ["slurm", "array", str(path), "--", "--array=3"]).exception
    )


def test_the_snapshot_holds_a_config_for_each_task_that_makes_its_run_again() -> None:
    path = written(grid={"train.seed": [5, 6]})
    found = made(path, "run.dir=there")
    _, files = arrays.prepare(found, path, None, ONE, {})
    assert {"slurm/array.sh", "slurm/finetune.sh", "sweep.yaml", "as-written.yaml", "configs/0.yaml", "configs/1.yaml"} <= set(files)
    Path("1.yaml").write_bytes(files["configs/1.yaml"])
    frozen = parse.load(Path("1.yaml"))
    assert frozen == found.tasks[1].settings
    assert (frozen.train.seed, frozen.run.dir, frozen.run.name) == (6, "there/lr", "lr-1")


def test_the_table_has_the_best_run_first_and_only_the_keys_that_differ() -> None:
    path = written(grid={"optim.lr": [0.1, 0.2, 0.3, 0.4], "optim.momentum": [0.5]})
    found = made(path)
    place = submitted(found, path)
    ended(found.tasks[0].run, 0.75)
    ended(found.tasks[2].run, 0.875, test={"step": 40, "test/top1": 0.8})
    ended(found.tasks[3].run, float("nan"), "failed", 78)
    told = results.text(results.read(place.path))
    assert told == [
        f"{place.path}: 2 of 4 done; best val/top1 first",
        "",
        "task  run   state                        step   val/top1  at step  test    optim.lr",
        "2     lr-2  done                         42/42  0.8750    40       0.8000  0.3",
        "0     lr-0  done                         42/42  0.7500    40       -       0.1",
        "1     lr-1  not begun                    -      -         -        -       0.2",
        "3     lr-3  the machine cannot run this  42/42  -         40       -       0.4",
    ]


def test_the_means_over_seeds_stand_below_the_table() -> None:
    path = written(grid={"optim.lr": [0.1, 0.2], "train.seed": [0, 1, 2]})
    found = made(path)
    place = submitted(found, path)
    for task, score in zip(found.tasks, (0.5, 0.625, 1.0, 0.875, 0.875), strict=False):
        ended(task.run, score)
    told = results.text(results.read(place.path))
    assert told[-5:] == [
        "",
        "over train.seed:",
        "runs  mean val/top1  lowest  highest  optim.lr",
        "2     0.8750         0.8750  0.8750   0.2",
        "3     0.7083         0.5000  1.0000   0.1",
    ]


def test_the_table_is_written_for_people_and_for_scripts_where_the_sweep_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(grid={"train.seed": [4, 5]})
    found = made(path)
    place = submitted(found, path)
    ended(found.tasks[1].run, 0.75)
    configs = next((place.path / "code").iterdir()) / "configs"
    monkeypatch.chdir("/")  # the runs are found wherever it is asked
    done = CliRunner().invoke(cli, ["slurm", "table", str(configs), "--over", "1"])  # as slurm/array.sh does
    assert done.exit_code == 0
    assert done.stdout == (place.path / "table.txt").read_text()
    told = json.loads((place.path / "results.json").read_text())
    assert (told["headline"], [run["task"] for run in told["runs"]]) == ("val/top1", [1, 0])
    assert told["runs"][0] == {
        "task": 1,
        "run": str(place.path / "lr-1"),
        "state": "done",
        "step": 42,
        "total_steps": 42,
        "best": 0.75,
        "best_step": 40,
        "test": None,
        "varied": {"train.seed": 5},
    }
    assert not list(configs.glob("*.txt"))


def test_the_table_of_an_array_by_hand_lies_with_its_configs() -> None:
    folder = Path("configs-of-mine")
    folder.mkdir()
    for number in (0, 1, 10):
        config = parse.load(Path("x.yaml"), [f"run.name=mine{number}", f"train.seed={number}"])
        (folder / f"{number}.yaml").write_text(parse.to_yaml(config))
    (folder / "base.yaml").write_text("no config\n")
    ended(rundir.create(config), 0.5)
    told = results.text(results.write(folder))
    assert [line.split()[:2] for line in told[3:]] == [["10", "mine10"], ["0", "mine0"], ["1", "mine1"]]
    assert (folder / "table.txt").read_text().splitlines() == told
    with pytest.raises(ConfigError, match="is neither the folder of a sweep, nor has it a "):
        results.read(Path())


def test_of_two_tasks_that_end_together_the_table_has_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run ends, and its task writes its table, while the first one's task is between its look and its table."""
    path = written(grid={"train.seed": [0, 1]})
    found = made(path)
    place = submitted(found, path)
    ended(found.tasks[0].run, 0.75)
    look, late = results.read, iter([True])

    def slowly(*arguments: Any) -> results.Table:
        table = look(*arguments)
        if next(late, False):
            ended(found.tasks[1].run, 0.875)
            results.write(place.path, 1)
        return table

    monkeypatch.setattr(results, "read", slowly)
    results.write(place.path, 0)
    assert [run["state"] for run in json.loads((place.path / "results.json").read_text())["runs"]] == ["done", "done"]


def test_what_slurm_says_of_a_task_comes_before_what_its_folder_says() -> None:
    path = written(grid={"train.seed": [0, 1, 2, 3]})
    found = made(path)
    place = submitted(found, path)
    ended(found.tasks[0].run, 0.5, "saved")
    attempt(found.tasks[1].run, ends={0: None}, nodes=1, procs=1, beaten={0: time.time() - at(0) / 1e9})
    live = {0: Job("77_0", "PENDING", "BeginTime"), 2: Job("77_2", "PENDING", "Resources")}
    states = {line.task: line.state for line in results.read(place.path, live=live).lines}
    assert states == {0: "waits in the queue", 1: "its job is gone", 2: "waits in the queue", 3: "its job is gone; it had not begun"}
    assert results.waiting(live)[1].startswith("task 2: Resources: it is next")
    states = {line.task: line.state for line in results.read(place.path).lines}
    assert states == {0: "saved and stopped as asked", 1: "still going on", 2: "not begun", 3: "not begun"}
    assert {line.task: line.state for line in results.read(place.path, over=1).lines}[1] == "killed from outside"


def test_the_run_of_a_task_is_found_by_every_number_that_slurm_gives_it() -> None:
    place = Path("/runs/a b/lr")
    assert [getattr(jobs.read(number, SHOWN), "run", None) for number in ("77_1", "80")] == [place / "lr-1", place / "lr-1"]
    last = SHOWN.replace("JobId=80", "JobId=77")
    assert [getattr(jobs.read(number, last), "run", None) for number in ("77_1", "77")] == [place / "lr-1", place]
    waits = SHOWN.replace("ArrayTaskId=1", "ArrayTaskId=1-3%2")
    assert getattr(jobs.read("77_3", waits), "run", None) == place / "lr-3"


def test_an_array_that_is_too_large_for_the_cluster_is_refused_with_where_its_limit_stands() -> None:
    why = queue.refusal("allocation failure: Invalid job array specification\n")
    assert (why.mended_by_user, "`scontrol show config | grep MaxArraySize`" in why.sentence) == (True, True)


def test_a_task_of_an_array_bears_the_array_s_number_and_its_own() -> None:
    env = {"SLURM_JOB_ID": "77"}
    assert (plans.job_number({}), plans.job_number(env)) == (None, "77")
    assert plans.job_number({**env, "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "0"}) == "77_0"


def test_the_last_job_of_a_run_is_a_task_of_its_array_never_the_array() -> None:
    run = rundir.create(parse.load(Path("x.yaml")))
    attempt(run, launcher="Slurm job 77_2, start 1")
    assert whose.last_job(run) == "77_2"
