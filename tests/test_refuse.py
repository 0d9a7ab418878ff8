"""What is refused before anything is paid for: the key, why not, what to write instead, and the exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from given import a_config

from sft_dist import datasets, parse, preflight, refuse
from sft_dist.config import Data
from sft_dist.errors import ConfigError, MachineError, SftError
from sft_dist.plan import World
from sft_dist.refuse import check

ONE = World()
EMPTY: dict[str, str] = {}


def refused(config: parse.Config, world: World = ONE, env: dict[str, str] = EMPTY) -> SftError:
    with pytest.raises(SftError) as error:
        check(config, world, env)
    return error.value


def world(size: int) -> World:
    return World(size=size, local_size=size)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__weights": "none", "model__train": "all", "model__norm": "train"},
        {"model__name": "vit_b_16", "model__weights": "none", "model__train": "all"},
        {"model__name": "convnext_tiny", "model__weights": "none", "model__train": "all"},
        {"model__name": "swin_v2_t", "model__weights": "none", "model__train": "all"},
        {"model__weights": "IMAGENET1K_V2"},
        {"model__weights": "ResNet18_Weights.IMAGENET1K_V1"},
        {"optim__nesterov": True},
        {"optim__momentum": 0.0},
        {"model__norm": "sync"},
        {"data__crop_scale": [1.0, 1.0]},
        {"stop__when": "val/f1_macro >= 0.9"},
        {"precision": "fp64"},
        {"precision": "bf16", "device": "cpu", "train__allow_emulated": True},
        {"precision": "fp16", "device": "cpu", "train__allow_emulated": True},
        {"precision": "fp16"},
        {"batch__total": 4, "batch__micro": 64},
        {"run__expect_world": 4},
    ],
    ids=str,
)
def test_what_can_be_done_is_not_refused(changes: dict[str, object]) -> None:
    check(a_config(**changes), world(4), {"SFT_EXPECT_WORLD": "4", "ACCELERATE_MIXED_PRECISION": "no"})


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in refuse.NOT_BUILT.items() for value in values])
def test_a_value_that_is_not_built_yet_is_refused_and_never_ignored(key: str, value: object) -> None:
    error = refused(a_config(**{key.replace(".", "__"): value}))
    assert error.problems == (f"{key} = {value!r} is not built yet",)
    assert error.exit_code == 2


def test_the_values_that_are_not_built_yet_are_these() -> None:
    assert refuse.NOT_BUILT == {
        "task": ("detect", "segment", "text"),
        "data.name": ("voc", "coco", "masks", "csv"),
        "data.bad": ("skip",),
    }


SCORES = "val/loss, val/top1, val/top5, val/precision_macro, val/recall_macro, val/f1_macro"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model__weights": "none", "model__train": "all"},
            "model.norm = 'frozen' with model.weights = 'none' would leave every batch norm at identity; use model.norm: train",
        ),
        (
            {"model__weights": "none", "model__norm": "train"},
            "model.train = 'head' with model.weights = 'none' would freeze random features; use model.train: all",
        ),
        (
            {"model__weights": "none", "model__norm": "train", "model__train": "last:2"},
            "model.train = 'last:2' with model.weights = 'none' would freeze random features; use model.train: all",
        ),
        (
            {"model__norm": "sync", "device": "cpu"},
            "model.norm = 'sync' needs GPUs: torch's SyncBatchNorm does not run on CPU; use frozen or train",
        ),
        ({"optim__nesterov": True, "optim__momentum": 0.0}, "optim.nesterov needs optim.momentum > 0"),
        ({"data__crop_scale": [0.5, 0.2]}, "data.crop_scale = [0.5, 0.2]; use 0 < smallest <= largest <= 1"),
        ({"data__crop_scale": [0, 1]}, "data.crop_scale = [0.0, 1.0]; use 0 < smallest <= largest <= 1"),
        ({"data__crop_scale": [0.5, 1.5]}, "data.crop_scale = [0.5, 1.5]; use 0 < smallest <= largest <= 1"),
        ({"data__std": [1, 0, 1]}, "data.std = [1.0, 0.0, 1.0]; every deviation must be above 0"),
        ({"data__classes": ["1", "2", "1"]}, "data.classes names a class twice"),
        ({"stop__when": "val/accuracy >= 0.9"}, f"stop.when watches val/accuracy, which classify does not score; use {SCORES}"),
        (
            {"model__weights": "imagenet"},
            "model.weights = 'imagenet'; use DEFAULT, an enum name like IMAGENET1K_V2, a .safetensors or .pth file, run:<folder> or none",
        ),
        (
            {"model__weights": "model.bin"},
            "model.weights = 'model.bin'; use DEFAULT, an enum name like IMAGENET1K_V2, a .safetensors or .pth file, run:<folder> or none",
        ),
        ({"model__weights": "a.safetensors"}, "model.weights = 'a.safetensors': there is no such file (from {here})"),
        ({"model__weights": "a.pth"}, "model.weights = 'a.pth': there is no such file (from {here})"),
        ({"model__weights": "run:runs/a"}, "model.weights = 'run:runs/a': runs/a is not the folder of a run (no config.yaml in it)"),
    ],
)
def test_a_contradiction_is_refused_with_its_keys(
    changes: dict[str, object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(a_config(**changes))
    assert error.problems == (told.replace("{here}", str(tmp_path)),)
    assert error.exit_code == 2


def test_the_scores_that_can_be_watched_are_those_that_the_task_gives() -> None:
    import re

    source = Path(refuse.__file__).with_name("tasks") / "classify.py"  # read, not imported: it needs torch
    assert sorted(set(re.findall(r'"(val/\w+)":', source.read_text()))) == sorted(kinds.SCORES["classify"])


def test_weights_of_a_file_or_run_are_accepted_once_they_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    check(a_config(model__weights=str(tmp_path / "a.pth")), ONE, EMPTY)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    config = a_config(model__weights=f"run:{run}")
    assert refused(config).problems == (f"model.weights = 'run:{run}': that run has no checkpoint yet",)
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert refused(config).problems == (f"model.weights = 'run:{run}': that run has no checkpoint yet",)
    (run / "checkpoints" / "step-00000001" / "MANIFEST.json").touch()
    check(config, ONE, EMPTY)


def test_fewer_samples_a_step_than_ranks_are_refused_with_both_numbers() -> None:
    error = refused(a_config(batch__total=3, batch__micro=1), world(8))
    told = "batch.total = 3 is fewer than the 8 ranks: 5 would have nothing to do; use batch.total >= 8, or fewer processes"
    assert (error.problems, error.exit_code) == ((told,), 2)
    check(a_config(batch__total=8, batch__micro=1), world(8), EMPTY)


LAUNCH = "`accelerate launch --cpu --num_processes N` starts only one and says nothing; use torchrun --nproc-per-node N"


@pytest.mark.parametrize(
    ("wanted", "env", "size", "told"),
    [
        (2, {}, 1, f"run.expect_world = 2, but 1 process came. {LAUNCH}"),
        (1, {}, 4, f"run.expect_world = 1, but 4 processes came. {LAUNCH}"),
        (None, {"SFT_EXPECT_WORLD": "2"}, 1, f"SFT_EXPECT_WORLD = 2, but 1 process came. {LAUNCH}"),
        (None, {"SFT_EXPECT_WORLD": "two"}, 2, f"SFT_EXPECT_WORLD = two, but 2 processes came. {LAUNCH}"),
    ],
)
def test_another_world_than_expected_is_the_machines_fault(wanted: int | None, env: dict[str, str], size: int, told: str) -> None:
    error = refused(a_config(run__expect_world=wanted), world(size), env)
    assert (error.problems, error.exit_code) == ((told,), 78)
    check(a_config(run__expect_world=wanted and size), world(size), {name: str(size) for name in env})


@pytest.mark.parametrize(
    ("changes", "env", "told"),
    [
        (
            {},
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            "ACCELERATE_MIXED_PRECISION = bf16, but precision = fp32; unset it, or write precision: bf16",
        ),
        (
            {"precision": "bf16"},
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            "ACCELERATE_MIXED_PRECISION = fp16, but precision = bf16; unset it, or write precision: fp16",
        ),
        (
            {"precision": "fp64"},
            {"ACCELERATE_MIXED_PRECISION": "fp8"},
            "ACCELERATE_MIXED_PRECISION = fp8, but precision = fp64; unset it",
        ),
        (
            {},
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "ACCELERATE_USE_DEEPSPEED = true, but shard.strategy = ddp; unset it, or write shard.strategy: zero1, zero2 or zero3",
        ),
        (
            {},
            {"ACCELERATE_USE_FSDP": "on"},
            "ACCELERATE_USE_FSDP = on, but shard.strategy = ddp; unset it, or write shard.strategy: fsdp",
        ),
        (
            {},
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS = 4, but accumulation follows from batch.total and batch.micro; unset it",
        ),
        (
            {"device": "cuda"},
            {"ACCELERATE_USE_CPU": "True"},
            "ACCELERATE_USE_CPU = True, but device = cuda; unset it, or write device: cpu",
        ),
    ],
)
def test_an_environment_that_says_otherwise_is_refused_with_both_values(changes: dict[str, object], env: dict[str, str], told: str) -> None:
    error = refused(a_config(**changes), ONE, env)
    assert (error.problems, error.exit_code) == ((told,), 78)


@pytest.mark.parametrize(
    "env",
    [
        {"ACCELERATE_MIXED_PRECISION": "no"},
        {"ACCELERATE_MIXED_PRECISION": ""},
        {"ACCELERATE_USE_DEEPSPEED": "false"},
        {"ACCELERATE_USE_FSDP": ""},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ""},
        {"ACCELERATE_USE_CPU": "true"},
        {"SFT_EXPECT_WORLD": ""},
    ],
    ids=str,
)
def test_an_environment_that_agrees_is_accepted(env: dict[str, str]) -> None:
    check(a_config(), ONE, env)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_of_the_launcher_may_repeat_the_configs(precision: str) -> None:
    check(a_config(precision=precision), ONE, {"ACCELERATE_MIXED_PRECISION": precision})


def test_fp16_on_a_processor_is_refused_unless_insisted_on() -> None:
    """Here for `device: cpu`, and by every rank for `device: auto` where there is no GPU."""
    from sft_dist import machine

    told = "precision = fp16 is for GPUs: on CPU torch computes it 7 to 27 times slower than fp32; use fp32, or train.allow_emulated: true"
    error = refused(a_config(precision="fp16", device="cpu"))
    assert (error.problems, error.exit_code) == ((told,), 78)
    with pytest.raises(MachineError) as refusal:
        machine.choose_device(a_config(precision="fp16", device="cpu"), ONE)
    assert refusal.value.problems == (told,)
    assert machine.choose_device(a_config(precision="fp16", device="cpu", train__allow_emulated=True), ONE) == "cpu"


def test_emulated_bf16_is_refused_unless_insisted_on() -> None:
    config = a_config(precision="bf16", device="cpu")
    if refuse.native_bf16():
        check(config, ONE, EMPTY)
        return
    error = refused(config)
    told = "precision = bf16, but this processor only emulates it, 13 to 18 times slower than fp32; use fp32, or train.allow_emulated: true"
    assert (error.problems, error.exit_code) == ((told,), 78)


def test_all_problems_are_told_at_once_and_the_users_come_first() -> None:
    config = a_config(
        data__bad="skip", optim__nesterov=True, optim__momentum=0.0, model__weights="imagenet", batch__total=1, run__expect_world=2
    )
    error = refused(config, world(4), {"ACCELERATE_USE_FSDP": "true"})
    assert isinstance(error, ConfigError)
    assert [problem.split()[0] for problem in error.problems] == [
        "data.bad",
        "optim.nesterov",
        "model.weights",
        "batch.total",
        "run.expect_world",
        "ACCELERATE_USE_FSDP",
    ]


def test_every_problem_of_the_machine_is_told_at_once() -> None:
    env = {
        "SFT_EXPECT_WORLD": "2",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2",
    }
    error = refused(a_config(run__expect_world=3), ONE, env)
    assert (len(error.problems), error.exit_code) == (5, 78)


def test_problems_of_all_rooms_are_told_together(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "task: classify\ndata: {name: folder, root: nowhere}\nmodel: {name: resnet18, weights: lost.pth}\n"
        "batch: {total: 8, micro: 8}\ntrain: {duration: 1 epoch}\nrun: {expect_world: 3}\n"
    )
    done = subprocess.run([sys.executable, "-m", "sft_dist", "train", str(config)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    for part in ("lost.pth", "data.root = 'nowhere'", "run.expect_world = 3"):
        assert part in done.stderr


def test_what_the_system_does_not_let_us_look_at_is_refused_once_and_not_by_a_traceback(tmp_path: Path) -> None:
    name = 300 * "a"
    with pytest.raises(MachineError) as error:
        preflight.check(a_config(run__dir=str(tmp_path), run__name=name), ONE, EMPTY)
    assert error.value.problems == (f"cannot look at {tmp_path / name}: File name too long",)
    with pytest.raises(MachineError) as error:
        preflight.check(a_config(run__dir=str(tmp_path), data__name="folder", data__root=name), ONE, EMPTY)
    assert error.value.problems == (f"cannot look at {name}: File name too long",)
    with pytest.raises(MachineError, match="File name too long"):
        datasets.load(Data(name="folder", root=name))


def test_a_rank_that_is_no_number_is_refused_in_a_sentence_and_not_by_a_traceback(tmp_path: Path) -> None:
    told = {"RANK": "four", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "sft_dist", "train", "configs/quickstart.yaml", f"run.dir={tmp_path}"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, env={**os.environ, **told}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert done.stderr.splitlines()[1:] == [
        "  - the launcher's variables are incomplete or contradictory: RANK=four, WORLD_SIZE=2, LOCAL_RANK=0, LOCAL_WORLD_SIZE=2; "
        "start with torchrun"
    ]
