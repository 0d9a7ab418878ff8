"""P3 and P4: killed at any moment, resumed on another world, the remaining curve is the one of the uninterrupted run."""

import json
import os
import signal
from pathlib import Path

import pytest
from ranks import Job, largest_difference, output, rows, run_ranks, start, wait, wait_for_step

from sft_dist import manifest

pytestmark = pytest.mark.dist

CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 32, "crop_scale": [0.5, 1.0], "flip": 0, "classes": ["3", "5", "8"], "per_class": 30, "workers": 1},
    "model": {"name": "mobilenet_v3_small", "weights": "start.safetensors", "train": "last:3", "norm": "frozen", "dropout": "none"},
    "batch": {"total": 12, "micro": 5},
    "optim": {"name": "adamw", "lr": 0.002, "weight_decay": 0.01},
    "schedule": {"name": "cosine", "warmup": "2 steps"},
    "train": {"duration": "24 steps", "clip": 1.0},
    "eval": {"every": "5 steps", "micro": 40},
    "save": {"every": "4 steps", "keep": 2},
    "precision": "fp64",
    "device": "cpu",
    "report": {"write": "none"},
}


@pytest.fixture(scope="module")
def folder(folder):
    """A folder with a config, weights that are not random statistics, and the uninterrupted run `whole` on one process."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = torchvision.models.mobilenet_v3_small().train()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None  # the statistics of what it sees, so that the features do not vanish on the way
    with torch.no_grad():
        model(torch.randn(64, 3, 32, 32))
    save_file(model.state_dict(), folder / "start.safetensors")
    config = {**CONFIG, "run": {"dir": str(folder / "runs"), "name": "whole"}}
    config["model"] = {**CONFIG["model"], "weights": str(folder / "start.safetensors")}
    (folder / "config.yaml").write_text(json.dumps(config))
    assert run_ranks(1, [Job(str(folder / "config.yaml"))], folder / "whole") == [0], output(folder / "whole", 1)
    return folder


def job(folder: Path, name: str, **fault) -> Job:
    return Job(str(folder / "config.yaml"), (f"run.name={name}",), **fault)


def scores(run: Path) -> dict:
    return json.loads((run / "scores.json").read_text())


def test_killed_between_steps_and_resumed_on_another_world(folder):
    run = folder / "runs" / "between"
    processes = start(2, [job(folder, "between", wait_in=11)], folder / "between-a")
    wait_for_step(run, 10)
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
    assert wait(processes) == [-signal.SIGKILL] * 2
    assert run_ranks(3, [job(folder, "between")], folder / "between-b") == [0] * 3, output(folder / "between-b", 3)
    assert "resumed at step" in output(folder / "between-b", 1)
    whole = folder / "runs" / "whole"
    assert largest_difference(rows(whole), rows(run)) < 1e-9
    assert scores(run)["best"]["step"] == scores(whole)["best"]["step"]
    assert scores(run)["last"]["confusion"] == scores(whole)["last"]["confusion"]


def test_killed_at_every_point_of_a_save_and_resumed_on_other_worlds(folder):
    run = folder / "runs" / "saves"
    points = [
        ("half a file", 4, 2),
        ("before manifest", 8, 1),
        ("before rename", 8, 2),
        ("before pointer", 12, 1),
        ("before retention", 16, 2),
    ]
    for point, step, world in points:
        log = folder / f"saves-{step}-{world}"
        codes = run_ranks(world, [job(folder, "saves", die_at=point, die_step=step)], log)
        assert codes[0] == -signal.SIGKILL, (point, output(log, world))
        whole_ones = [path for path in (run / "checkpoints").iterdir() if path.is_dir() and not manifest.verify(path)]
        assert whole_ones or step == 4, f"no verified checkpoint after a kill {point} of step {step}"
    assert run_ranks(2, [job(folder, "saves")], folder / "saves-end") == [0, 0], output(folder / "saves-end", 2)
    assert largest_difference(rows(folder / "runs" / "whole"), rows(run)) < 1e-9
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    best = f"step-{scores(run)['best']['step']:08d}"
    assert set(names) == {"best", "latest", "step-00000020", "step-00000024", best}


def test_a_restore_that_forgets_the_moments_is_caught(folder):
    """The ruler itself: without AdamW's moments the curve leaves the uninterrupted one."""
    from safetensors.torch import load_file, save_file

    run = folder / "runs" / "forgetful"
    saved_at_once = ("run.name=forgetful", "save.background=false")  # so that the checkpoint of step 8 is committed, or there is none
    processes = start(1, [Job(str(folder / "config.yaml"), saved_at_once, wait_in=10)], folder / "forgetful-a")
    wait_for_step(run, 9)
    os.killpg(processes[0].pid, signal.SIGKILL)
    assert wait(processes) == [-signal.SIGKILL]
    checkpoint = max(path for path in (run / "checkpoints").glob("step-*") if (path / manifest.NAME).is_file())  # what the resume takes
    moments = load_file(checkpoint / "optim.safetensors")
    save_file({name: value * (0 if "exp_avg" in name else 1) for name, value in moments.items()}, checkpoint / "optim.safetensors")
    (checkpoint / manifest.NAME).unlink()
    manifest.write(checkpoint, int(checkpoint.name[5:]), {path.name: manifest.entry(path) for path in checkpoint.iterdir()})
    assert run_ranks(1, [job(folder, "forgetful")], folder / "forgetful-b") == [0]
    assert largest_difference(rows(folder / "runs" / "whole"), rows(run)) > 1e-6


def test_a_signal_to_one_rank_lets_all_save_the_same_step_and_exit_0(folder):
    run = folder / "runs" / "asked"
    processes = start(2, [job(folder, "asked", wait_in=7)], folder / "asked-a")
    wait_for_step(run, 6)
    os.kill(processes[1].pid, signal.SIGUSR1)
    assert wait(processes) == [0, 0], output(folder / "asked-a", 2)
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["outcome"] == "saved"
    assert outcome["reason"] == "asked to stop by another rank"
    assert (run / "checkpoints" / "latest").read_text() == f"step-{outcome['step']:08d}\n"
    assert max(step for step, _ in rows(run)) == outcome["step"] < 24
    # Asked again, now between a training step and the evaluation that is due after it: the evaluation is made up for.
    again = [job(folder, "asked", die_at="asked in evaluation", die_step=15)]
    assert run_ranks(2, again, folder / "asked-b") == [0, 0], output(folder / "asked-b", 2)
    assert json.loads((run / "outcome.json").read_text())["step"] == 15
    assert (15, "eval") not in rows(run)
    assert run_ranks(1, [job(folder, "asked")], folder / "asked-c") == [0], output(folder / "asked-c", 1)
    assert largest_difference(rows(folder / "runs" / "whole"), rows(run)) < 1e-9
    # A finished run answers without training; a longer duration goes on from its end.
    assert run_ranks(1, [job(folder, "asked")], folder / "asked-d") == [0]
    assert "this run is finished" in output(folder / "asked-d", 1)
    longer = Job(str(folder / "config.yaml"), ("run.name=asked", "train.duration=26 steps"))
    assert run_ranks(1, [longer], folder / "asked-e") == [0], output(folder / "asked-e", 1)
    assert [step for step, kind in rows(run) if kind == "train"] == list(range(1, 27))
