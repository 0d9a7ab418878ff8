"""Every way to start a run makes the same run, and a launcher's summary names what went wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import free_port, largest_difference, rows

pytestmark = pytest.mark.dist

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = str(REPOSITORY / "sft_dist" / "train.py")
BIN = Path(sys.executable).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 32, "augment": "padded_crop", "flip": 0, "classes": ["1", "7"], "per_class": 16, "workers": 0},
    "model": {"name": "mobilenet_v3_small", "weights": "start.pth", "train": "all", "norm": "frozen", "dropout": "none"},
    "batch": {"total": 10, "micro": 3},
    "optim": {"lr": 0.01},
    "train": {"duration": "3 steps"},
    "precision": "fp64",
    "device": "cpu",
    "report": {"write": "none"},
}


@pytest.fixture(scope="module")
def folder(folder):
    import torch
    import torchvision

    torch.manual_seed(1)
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), folder / "start.pth")
    (folder / "config.yaml").write_text(json.dumps(CONFIG))
    return folder


def enter(folder: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, with nothing of a launcher left in the environment."""
    leaked = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    variables = {name: value for name, value in os.environ.items() if name not in leaked}
    variables |= {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port()), **env}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def reference(folder):
    done = enter(folder, sys.executable, "-m", "sft_dist", "train", "config.yaml", "run.name=module")
    assert done.returncode == 0, done.stderr
    assert "world  1 rank, ddp, fp64, cpu" in done.stdout
    return rows(folder / "runs" / "module")


@pytest.mark.parametrize(
    ("name", "command", "env"),
    [
        ("command", [str(BIN / "sft-dist"), "train"], {}),
        ("script", [sys.executable, SCRIPT], {}),
        ("torchrun", [*TORCHRUN, "--master-port", "PORT", SCRIPT], {"SFT_EXPECT_WORLD": "2"}),
        (
            "accelerate",
            [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "PORT", SCRIPT],
            {"ACCELERATE_USE_CPU": "1", "SFT_EXPECT_WORLD": "2"},
        ),
    ],
)
def test_every_door_leads_to_the_same_curve(folder, reference, name, command, env):
    command = [str(free_port()) if part == "PORT" else part for part in command]
    done = enter(folder, *command, "config.yaml", f"--run.name={name}", "batch.micro=2", **env)
    assert done.returncode == 0, done.stderr
    assert largest_difference(reference, rows(folder / "runs" / name)) < 1e-9


def test_a_launcher_that_starts_one_process_in_silence_is_found_out(folder):
    command = [*ACCELERATE, "--cpu", "--num_processes", "2", SCRIPT, "config.yaml", "run.name=alone"]
    done = enter(folder, *command, SFT_EXPECT_WORLD="2")
    assert done.returncode != 0
    assert "SFT_EXPECT_WORLD = 2, but 1 process came" in done.stderr
    assert "returned non-zero exit status 78" in done.stderr
    assert not (folder / "runs" / "alone").exists()


def test_torchrun_names_rank_type_and_message(folder):
    done = enter(folder, *TORCHRUN, "--master-port", str(free_port()), SCRIPT, "config.yaml", "run.name=nan", "optim.lr=1e200")
    assert done.returncode == 1
    assert "DivergedError: step " in done.stderr
    assert "(local_rank: " in done.stderr


def test_eval_scores_a_run_again_and_on_other_data(folder, reference):
    done = enter(folder, str(BIN / "sft-dist"), "eval", "runs/module")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    best = json.loads((folder / "runs" / "module" / "scores.json").read_text())["best"]
    assert {name: found[name] for name in best if name != "step"} == {name: value for name, value in best.items() if name != "step"}
    other = enter(folder, str(BIN / "sft-dist"), "eval", "runs/module", "data.classes=['1', '7', '9']")
    assert other.returncode == 2
    assert "tells apart 2 classes" in other.stderr
    smaller = enter(folder, str(BIN / "sft-dist"), "eval", "runs/module", "data.split_seed=3", "--split", "train", "--checkpoint", "latest")
    assert json.loads(smaller.stdout)["samples"] == 32


def test_without_torch_a_refusal_and_help_still_answer(folder):
    """A login node has no torch: a module of that name that cannot be imported stands in its way."""
    (folder / "no_torch" / "torch").mkdir(parents=True, exist_ok=True)
    (folder / "no_torch" / "torch" / "__init__.py").write_text("raise ImportError('torch is not for login nodes')")
    blocked = {"PYTHONPATH": str(folder / "no_torch")}
    assert enter(folder, str(BIN / "sft-dist"), "--help", **blocked).returncode == 0
    refused = enter(folder, str(BIN / "sft-dist"), "train", "config.yaml", "optim.lr=-1", **blocked)
    assert refused.returncode == 2
    assert "optim.lr = -1" in refused.stderr
    planned = enter(folder, str(BIN / "sft-dist"), "plan", "config.yaml", "--quick", "--world", "4", "run.name=planned", **blocked)
    assert planned.returncode == 0, planned.stderr
    assert "4 ranks, ddp, fp64" in planned.stdout
