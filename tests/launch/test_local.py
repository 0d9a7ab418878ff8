"""What a start on this machine refuses, and what it writes down before anything runs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from given import TREE, a_config

from launch import local
from launch.cli import main
from sft_dist import rundir
from sft_dist.config import Config
from sft_dist.errors import ConfigError, MachineError


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return a_config(run__dir=str(tmp_path / "runs"))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file in the folder that commands are started in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(TREE)
    return path


def begin(config: Config) -> Path:
    return local.begin(config, 2, 4, "by hand", ["sft-launch", "run", "config.yaml"])


def test_attempts_are_numbered_and_said_before(config: Config, tmp_path: Path) -> None:
    found = []
    for _ in range(3):
        foretold = local.would_begin(config)
        assert not foretold.exists()
        found.append(begin(config))
        assert found[-1] == foretold
    assert found == [tmp_path / "runs" / "small" / "attempts" / str(number) for number in (1, 2, 3)]


def test_an_attempt_says_who_started_what_and_from_where(config: Config) -> None:
    before = time.time_ns()
    about = json.loads((begin(config) / "attempt.json").read_text())
    assert before <= about.pop("started_ns") <= time.time_ns()
    assert about == {"nodes": 2, "procs": 4, "launcher": "by hand", "from_step": 0, "command": ["sft-launch", "run", "config.yaml"]}


def test_an_attempt_goes_on_from_the_latest_checkpoint(config: Config) -> None:
    run = rundir.create(config)
    (run.checkpoints / "step-00000040").mkdir()
    (run.checkpoints / "latest").write_text("step-00000040")
    assert json.loads((begin(config) / "attempt.json").read_text())["from_step"] == 40


def test_a_run_that_goes_on_elsewhere_is_refused_and_its_holder_named(config: Config) -> None:
    run = rundir.create(config)
    hold = f"import sys\nfrom pathlib import Path\nfrom sft_dist import locks, rundir\nwith locks.hold(rundir.RunDir(Path({str(run.path)!r}))): "
    holder = subprocess.Popen(
        [sys.executable, "-c", hold + "print('held', flush=True); sys.stdin.read()"],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(MachineError) as refused:
            begin(config)
    finally:
        holder.communicate("")
    assert str(holder.pid) in str(refused.value)
    assert list((run.path / "attempts").iterdir()) == []
    assert begin(config).name == "1"


def test_a_start_is_refused_before_any_folder_is_made(file: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        local.checked(file, ("optim.lr=-1", "run.name=a"), {}, 2)
    assert "optim.lr = -1" in str(refused.value)
    with pytest.raises(ConfigError, match="holds a control character"):
        local.checked(file, ("data.root=a\nb",), {}, 2)
    assert sorted(path.name for path in file.parent.iterdir()) == ["config.yaml"]


def test_ranks_that_would_have_nothing_to_do_are_refused_by_the_size_of_the_job(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch\.total = 32 is fewer than the 64 ranks"):
        local.checked(file, (), {}, 64)
    assert local.checked(file, ("device=cpu",), {"SFT_EXPECT_WORLD": "9"}, None)[1] == 1


@pytest.mark.parametrize("start", [["run", "--simulate", "--nodes", "2"], ["ssh", "-H", "n1,n2"]], ids=lambda start: start[0])
def test_a_start_on_several_nodes_is_checked_for_the_processes_of_all_of_them(
    file: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where nobody says how many processes a node has."""
    with pytest.raises(SystemExit) as ended:
        main([*start, "--dry-run", str(file), "device=cpu", "run.expect_world=2", "shard.strategy=fsdp", "shard.hybrid=2"])
    told = capsys.readouterr()
    assert (ended.value.code, told.err) == (0, "")
    assert told.out.startswith("# 2 rank(s) on 2 ")


def test_begin_refuses_another_world_than_the_expected_one(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agents that a script starts after it leave the variable to their ranks, which would find out with torch loaded."""
    for world, code in (("3", 78), ("2", None)):
        monkeypatch.setenv("SFT_EXPECT_WORLD", world)
        with pytest.raises(SystemExit) as ended:
            main(["begin", "--nodes", "2", "--procs", "1", str(file), "device=cpu"])
        assert (ended.value.code or None) == code
        assert ("SFT_EXPECT_WORLD = 3, but 2 processes came" in capsys.readouterr().err) is (code == 78)


def test_several_nodes_on_one_machine_are_refused_unless_they_are_meant(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(file), "--nodes", "2"])
    assert ended.value.code == 2
    assert "--nodes 2 on one machine needs --simulate" in capsys.readouterr().err


def test_a_dry_run_makes_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(file), "--dry-run", "--procs", "2", "device=cpu"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"# 2 rank(s) on 1 node(s), attempt folder {file.parent / 'runs' / 'small' / 'attempts' / '1'}\n")
    assert sorted(path.name for path in file.parent.iterdir()) == ["config.yaml"]


def test_a_finished_run_is_not_started_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, _ = local.checked(file, (), {}, 1)
    run = rundir.create(settings)
    from sft_dist import parse

    run.config.write_text(parse.to_yaml(settings))
    rundir.write_json(run.outcome, {"outcome": "done", "step": 25, "attempt": 1, "reason": "25 epochs"})
    with pytest.raises(SystemExit) as ended:
        main(["run", str(file)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("this run is finished; a longer train.duration goes on from its end\n")
    assert list((run.path / "attempts").iterdir()) == []


@pytest.mark.dist
def test_a_run_whose_output_was_closed_comes_to_its_end(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    run = [sys.executable, "-m", "launch", "run", str(root / "configs" / "quickstart.yaml"), "--procs", "1", "device=cpu"]
    short = ["train.duration=1 step", "schedule.warmup=0 steps", "eval.micro=360"]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *run, *short]
    done = subprocess.run(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "quickstart" / "outcome.json").read_text())["reason"] == "all 1 steps are made"
