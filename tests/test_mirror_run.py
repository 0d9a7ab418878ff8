"""A whole run beside W&B: a server that hangs changes no number, and one curve goes through a signal, a death and two resumes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from ranks import Job, largest_difference, output, rows, run_ranks, wait_for_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_server import KEY, Server, serve

pytestmark = pytest.mark.dist

ROOT = Path(__file__).resolve().parent.parent
STEPS = 30
CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 32, "flip": 0, "per_class": 20, "workers": 0},
    "model": {"name": "mobilenet_v3_small", "weights": "none", "train": "all", "norm": "train", "dropout": "none"},
    "batch": {"total": 12, "micro": 6},
    "train": {"duration": f"{STEPS} steps"},
    "eval": {"every": "5 steps", "micro": 60},
    "save": {"every": "4 steps"},
    "device": "cpu",
    "report": {"write": "none"},
    "track": {"project": "pets", "limit_s": 10, "tensorboard": True},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({**CONFIG, "run": {"dir": str(tmp_path / "runs"), "name": "small"}}))
    return path


def holders(pipe: IO[str] | None) -> set[int]:
    """Which other processes have a pipe open that this one reads."""
    assert pipe
    name, found = f"pipe:[{os.fstat(pipe.fileno()).st_ino}]", set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # gone meanwhile
            found |= {int(link.parts[2])} if str(link.readlink()) == name else set()
    return found - {os.getpid()}


def environment(server: Server) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**kept, **server.environment(), "OMP_NUM_THREADS": "1"}


def test_a_server_that_hangs_changes_no_number_of_a_run_on_two_ranks(config: Path, tmp_path: Path, saw: Callable[[str], None]) -> None:
    kinds = ("disabled", "online")
    asked = ("train.duration=6 steps", "track.limit_s=30")
    jobs = [Job(str(config), (f"run.name={kind}", f"track.wandb={kind}", *asked)) for kind in kinds]
    with serve("hangs") as server:
        codes = run_ranks(2, jobs, tmp_path / "log", **server.environment())
    said = output(tmp_path / "log", 2)
    assert codes == [0, 0], said
    plain, tracked = (tmp_path / "runs" / kind for kind in kinds)
    assert largest_difference(rows(plain), rows(tracked)) == 0.0
    saw("beside a server that hangs: the curve of the run that is not tracked, to the last bit")
    first = json.loads((plain / "metrics.jsonl").read_text().splitlines()[0])
    told = {name for name in first if name.startswith("system/")}
    assert told == {f"system/rank{rank}/{name}" for rank in (0, 1) for name in ("data_wait_pct", "cpu_pct", "memory_gib")}
    assert all(first[f"system/rank{rank}/cpu_pct"] > 0 < first[f"system/rank{rank}/memory_gib"] < 8 for rank in (0, 1))
    assert said.count("sft-dist sync") == 1, said
    assert "/graphql" in server.requests


def test_one_curve_goes_through_a_signal_a_death_and_two_resumes(config: Path, tmp_path: Path, saw: Callable[[str], None]) -> None:
    run = tmp_path / "runs" / "small"
    train = ["train", str(config), "track.wandb=online", "track.artifact=export", "track.limit_s=200"]

    def start(wait_in: int = 0) -> "subprocess.Popen[str]":
        """The run; it waits in a step until it is asked to stop, or killed."""
        program = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import waits; waits.wait_in({wait_in}); from sft_dist.cli import main; main()"
        command = [sys.executable, "-c", program, *train]
        return subprocess.Popen(command, env=environment(server), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with serve() as server:
        for number, step in ((signal.SIGUSR1, 6), (signal.SIGKILL, 15)):
            training = start(wait_in=step + 1)
            wait_for_step(run, step)
            assert holders(training.stdout) == {training.pid}, "the pipe would outlive the training"
            os.kill(training.pid, number)
            said, _ = training.communicate(timeout=400)
            assert training.returncode == (0 if number == signal.SIGUSR1 else -9), said
        said, _ = start().communicate(timeout=400)
        assert "W&B has" not in said and "sft-dist sync" not in said, said
        [model] = server.shelf.of_kind("model")
        mirror = run / "wandb" / "mirror.json"
        mirror.write_text(json.dumps({**json.loads(mirror.read_text()), "model": 0}))
        sync = [sys.executable, "-m", "sft_dist", "sync", str(run)]
        again = subprocess.run(sync, env=environment(server), capture_output=True, text=True, timeout=400)
        assert again.returncode == 0, again.stderr
    assert server.shelf.of_kind("model") == [model], "the same files made another artifact"
    assert (model.name, sorted(model.aliases), server.shelf.asked.count("model")) == ("small", ["best", "latest"], 2)
    assert {"model.safetensors", "classes.json", "preprocessing.json", "predict.py", "config.yaml"} <= set(model.files)
    assert not any(KEY.encode() in content for content in model.files.values())
    best = json.loads((run / "scores.json").read_text())["best"]
    assert (model.metadata["step"], model.metadata["val/top1"]) == (best["step"], best["val/top1"])
    weights = run / "checkpoints" / f"step-{best['step']:08d}" / "model.safetensors"
    assert model.files["model.safetensors"] == weights.read_bytes(), "without an average and on one rank the export is the checkpoint"
    assert "resumed at step" in said and "done" in said
    [number_in_wandb] = server.runs
    assert server.steps(number_in_wandb) == list(range(1, STEPS + 1)), said
    saw(f"USR1, SIGKILL, and the end: one run in W&B, with each of {STEPS} steps once")
    truth = {step: row for (step, kind), row in rows(run).items() if kind == "eval"}
    sent = {row["step"]: row for row in server.history[number_in_wandb]}
    assert {step: sent[step]["val/loss"] for step in truth} == {step: row["val/loss"] for step, row in truth.items()}
    assert server.exits[number_in_wandb][-1] == 0
    shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in shown.Scalars("train/loss")] == list(range(1, STEPS + 1))
    assert [event.step for event in shown.Scalars("val/loss")] == sorted(truth)
    assert [event.value for event in shown.Scalars("val/loss")] == pytest.approx([truth[step]["val/loss"] for step in sorted(truth)])


def test_wandbs_own_agent_drives_a_sweep_of_runs_with_folders_of_their_own(config: Path, tmp_path: Path) -> None:
    python = [
        sys.executable,
        "-m",
        "sft_dist",
        "train",
        str(config),
        "--track.wandb=online",
        "--track.limit_s=200",
        "--train.duration=2 steps",
    ]
    runs = [{"id": "first111", "args": {"optim.lr": 0.01}}, {"id": "second22", "args": {"optim.lr": 0.02}}]
    with serve(sweep=list(runs), command=[*python, "${args}"]) as server:
        agent = [sys.executable, "-m", "wandb", "agent", "tester/pets/sweep1"]
        place = {"cwd": tmp_path, "env": {**environment(server), "PYTHONPATH": str(ROOT)}}
        done = subprocess.run(agent, **place, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["small-first111", "small-second22"]
    for run in runs:
        told = server.runs[run["id"]]
        assert (told["sweep"], json.loads(told["config"])["optim.lr"]["value"]) == ("sweep1", run["args"]["optim.lr"])
        assert server.steps(run["id"]) == [1, 2]
        assert list((tmp_path / "runs" / f"small-{run['id']}" / "wandb").glob("run-*")), "the agent's WANDB_DIR was obeyed"
