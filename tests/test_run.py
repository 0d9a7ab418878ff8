"""What a run leaves in its folder, and the ways in which it ends: one process makes several small runs through the door."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ranks import Job, output, rows, run_ranks

from sft_dist import manifest, parse

pytestmark = pytest.mark.dist

CONFIG = {
    "task": "classify",
    "data": {"name": "folder", "root": "images", "size": 16, "augment": "none", "flip": 0, "workers": 0},
    "model": {"name": "resnet18", "weights": "none", "train": "all", "norm": "train"},
    "batch": {"total": 8, "micro": 4},
    "optim": {"lr": 0.01},
    "train": {"duration": "5 epochs"},
    "device": "cpu",
}
SHADES = {"dark": 90, "light": 150}
CASES = {
    "plain": (),
    "target": ("stop.when=val/top1 >= 0.5",),
    "patience": ("stop.patience=2", "optim.lr=0"),
    "bf16": (
        "precision=bf16",
        "train.allow_emulated=true",
        "train.duration=3 steps",
        "data.size=64",
    ),  # at 16 px torch 2.14.1 returns garbage
    "transfer": ("model.weights=run:runs/plain", "model.norm=frozen", "model.train=head", "optim.head_lr_factor=10", "optim.name=adamw"),
    "sparse": ("track.every=3 steps", "eval.every=1000 steps", "save.every=1000 steps", "eval.test=false"),
}


@pytest.fixture(scope="module")
def folder(folder):
    """Noisy images of two shades, in three splits, and every case as a run."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5), ("test", 3)):
        for name, shade in SHADES.items():
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = noise.normal(shade, 60, (24, 20, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{i}.png")
    content = {**CONFIG, "data": {**CONFIG["data"], "root": str(folder / "images")}, "run": {"dir": str(folder / "runs")}}
    (folder / "config.yaml").write_text(json.dumps(content))
    jobs = []
    for name, overrides in CASES.items():
        placed = [part.replace("run:runs", f"run:{folder / 'runs'}") for part in overrides]
        page = "page" if name == "plain" else "none"  # one is enough to see that it is there
        jobs.append(Job(str(folder / "config.yaml"), (f"run.name={name}", f"report.write={page}", *placed)))
    log = folder / "log"
    run_ranks(
        1, jobs, log, call="ranks:note_exits", SFT_TEST_EXITS=str(folder / "exits"), GITHUB_TOKEN="canary-4711", SOME_API_KEY="canary-4711"
    )
    exits = json.loads((folder / "exits-0").read_text())
    assert exits == [[0, ""]] * len(CASES), output(log, 1)
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_run_leaves_what_the_design_says(folder):
    run = folder / "runs" / "plain"
    assert {path.name for path in run.iterdir()} == {
        ".lock", "attempts", "checkpoints", "config.yaml", "env.json", "metrics.jsonl", "outcome.json", "plan.json", "predictions",
        "report.html", "scores.json",
    }  # fmt: skip
    assert read(run / "outcome.json") == {"outcome": "done", "step": 15, "attempt": 1, "reason": "all 15 steps are made"}
    assert (read(run / "plan.json")["world"], read(run / "plan.json")["passes_per_rank"]) == (1, [2])
    assert set(read(run / "scores.json")) == {"best", "last", "test"}
    assert read(run / "scores.json")["test"]["samples"] == 6
    assert "test/top1" in read(run / "scores.json")["test"]
    resolved = parse.load(run / "config.yaml")
    assert resolved.optim.momentum == 0.9  # a default, written out


def test_the_checkpoint_holds_tensors_and_json_under_canonical_names(folder):
    from safetensors.torch import load_file

    latest = folder / "runs" / "plain" / "checkpoints" / "step-00000015"
    assert {path.name for path in latest.iterdir()} == {"MANIFEST.json", "model.safetensors", "optim.safetensors", "state.json"}
    assert manifest.verify(latest) == []
    assert "layer4.1.bn2.running_var" in load_file(latest / "model.safetensors")
    assert load_file(latest / "optim.safetensors")["fc.weight/momentum_buffer"].shape == (2, 512)
    assert read(latest / "MANIFEST.json")["format"] == 1


def test_every_prediction_of_the_best_and_the_last_evaluation_is_kept(folder):
    run = folder / "runs" / "plain"
    steps = {read(run / "scores.json")[name]["step"] for name in ("best", "last")}
    assert {path.stem for path in (run / "predictions").iterdir()} == {f"step-{step:08d}" for step in steps}
    lines = [json.loads(line) for line in (run / "predictions" / "step-00000015.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"val/{name}/{i}.png" for name in SHADES for i in range(5)]
    assert [line["label"] for line in lines] == [0] * 5 + [1] * 5
    assert all(abs(sum(line["probs"]) - 1) < 1e-5 for line in lines)
    right = sum(line["probs"].index(max(line["probs"])) == line["label"] for line in lines)
    assert rows(run)[15, "eval"]["val/top1"] == right / 10


def test_rows_tell_loss_and_accuracy_of_training_and_validation_at_the_end_of_every_epoch(folder):
    table = rows(folder / "runs" / "plain")
    assert [step for step, kind in table if kind == "eval"] == [3, 6, 9, 12, 15]
    of_epoch = [table[step, "train"]["train/loss"] for step in (1, 2, 3)]
    assert table[3, "eval"]["train/mean_loss"] == pytest.approx(sum(of_epoch) / 3, rel=1e-12)
    assert {"train/mean_top1", "val/loss", "val/top1", "val/top5", "val/f1_macro"} <= table[3, "eval"].keys()
    assert {"train/loss", "train/top1", "train/lr", "train/grad_norm", "samples", "epoch"} <= table[3, "train"].keys()


def test_a_target_that_is_reached_ends_the_run(folder):
    outcome = read(folder / "runs" / "target" / "outcome.json")
    assert (outcome["outcome"], outcome["step"]) == ("done", 3)
    assert outcome["reason"].startswith("val/top1 >= 0.5 is reached (0.5")


def test_patience_ends_a_run_that_does_not_get_better(folder):
    outcome = read(folder / "runs" / "patience" / "outcome.json")
    assert outcome["step"] == 9  # with a rate of zero the first of three evaluations stays the best
    assert outcome["reason"] == "no better score in 2 evaluations (stop.patience)"
    assert read(folder / "runs" / "patience" / "scores.json")["best"]["step"] == 3


def test_rows_and_evaluations_come_as_often_as_asked_and_at_the_end(folder):
    run = folder / "runs" / "sparse"
    assert sorted(rows(run)) == [(3, "train"), (6, "train"), (9, "train"), (12, "train"), (15, "eval"), (15, "train")]
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == ["step-00000015"]
    assert "test" not in read(run / "scores.json")


def test_transfer_keeps_the_head_for_equal_classes_and_moves_nothing_but_the_head(folder):
    from safetensors.torch import load_file

    before, after = (
        load_file(
            folder
            / "runs"
            / name
            / "checkpoints"
            / (folder / "runs" / name / "checkpoints" / "best").read_text().strip()
            / "model.safetensors"
        )
        for name in ("plain", "transfer")
    )
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved <= {"fc.bias", "fc.weight"}
    assert parse.load(folder / "runs" / "transfer" / "config.yaml").model.weights == f"run:{folder / 'runs' / 'plain'}"
    assert "122 of 122 tensors from run:" in output(folder / "log", 1)


def test_a_model_is_scored_on_a_folder_that_holds_nothing_but_the_split(folder):
    """`sft-dist eval RUN data.root=...`: no training images, no class folder for every class."""
    alone = folder / "alone" / "test" / "light"
    shutil.copytree(folder / "images" / "test" / "light", alone)
    command = [sys.executable, "-m", "sft_dist", "eval", str(folder / "runs" / "plain"), f"data.root={folder / 'alone'}", "--split", "test"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert (scores["samples"], [scores["per_class"][name]["support"] for name in SHADES]) == (3, [0, 3])
    (alone.parent / "grey").mkdir()
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "classes that the model does not tell apart: grey" in refused.stderr


def test_no_secret_of_the_environment_reaches_the_folder_and_only_its_owner_reads_it(folder):
    for path in (folder / "runs").rglob("*"):
        if path.is_file():
            assert b"canary-4711" not in path.read_bytes(), path
    assert stat.S_IMODE((folder / "runs" / "plain").stat().st_mode) == 0o700
