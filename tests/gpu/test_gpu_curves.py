"""The numbers of a GPU: those of a bare PyTorch loop and of a CPU, on every strategy, in every arithmetic, again and again."""

import json
import math
from pathlib import Path

import pytest
import test_curve
import test_fp16
from ranks import Job, largest_difference, rows
from safetensors.numpy import load_file
from side_by_side import made
from test_strategies import RULER

pytestmark = pytest.mark.gpu

OFFLOADED = {"zero1": "optimizer", "zero2": "optimizer", "zero3": "optimizer", "fsdp": "params"}
SHARDED = [strategy for strategy in RULER if strategy not in ("ddp", "hybrid")]  # hybrid groups need four ranks
PART = {"train": "last:8", "precision": "fp64", "lr": 0.01}
SMALL = "data.size=32"  # with more layers, or larger images, the fp32 masters of ZeRO are no ruler (docs/log.md)
SHORT = (SMALL, "precision=fp32", "train.deterministic=true", "train.duration=3 steps")  # fp32: DeepSpeed has no zero3 in fp64 on a GPU
AGAIN = ("precision=bf16", "train.deterministic=true", "model.norm=train", "model.dropout=keep", "data.workers=2", "train.duration=8 steps")


@pytest.fixture(scope="module")
def curves(folder: Path, device: str, real_data: Path, real_weights: Path) -> Path:
    """mobilenet_v2 on real images, 33 samples a step in micro-batches of 7, most of them 20 steps in fp64: a run each, in five processes."""

    def config(name: str, where: str, **settings: object) -> str:
        path = test_curve.write_config(folder, real_data, real_weights, name, 7, device=where, **settings)
        keys = json.loads(path.read_text())
        keys["save"] |= {"every": "5 steps"}
        path.write_text(json.dumps(keys | {"train": {**keys["train"], "allow_emulated": device == "cpu"}}))
        return str(path)

    whole, elsewhere = config("whole", device, **test_curve.WHOLE), config("cpu", "cpu", **test_curve.WHOLE)
    part = config("ddp", device, **PART)
    shards = [(one, f"shard.strategy={one}", f"run.name={one}") for one in SHARDED]
    shards += [(one, f"shard.strategy={one}", f"shard.offload={what}", f"run.name={one}-offloaded") for one, what in OFFLOADED.items()]
    recomputed = ("model.activation_checkpointing=true", "run.name=recomputed")
    groups = [
        [Job(whole), Job(whole, recomputed), Job(part, (SMALL,)), Job(part, (*SHORT, "run.name=ddp-short"))],
        [Job(part, (SMALL, *keys)) for one, *keys in shards if one != "zero3"],
        [Job(part, (*SHORT, *keys)) for one, *keys in shards if one == "zero3"],
        [Job(elsewhere), Job(whole, ("run.name=there",), die_at="before rename", die_step=10)],
        [Job(whole, (f"run.name=repeated-{turn}", *AGAIN)) for turn in (1, 2)],
        [Job(elsewhere, ("run.name=back", "train.duration=20 steps"), die_at="before rename", die_step=10)],
    ]
    made(groups, folder)
    resumed = [Job(elsewhere, ("run.name=there",)), Job(whole, ("run.name=back",))]
    made([[job] for job in resumed], folder)
    return folder / "runs"


def test_a_bare_pytorch_loop_on_the_same_device_draws_the_same_curve(
    curves: Path, device: str, real_data: Path, real_weights: Path
) -> None:
    ours = rows(curves / "whole")
    for step, (loss, norm) in enumerate(test_curve.bare_loop(real_data / "cifar10" / "train", real_weights, device), 1):
        row = ours[step, "train"]
        assert abs(row["train/loss"] - loss) < 1e-9, step
        assert abs(row["train/grad_norm"] - norm) < 1e-9 * max(1, norm), step


def test_a_gpu_and_a_cpu_log_the_same_numbers(curves: Path) -> None:
    assert largest_difference(rows(curves / "cpu"), rows(curves / "whole")) < 1e-9


@pytest.mark.parametrize("run", ["there", "back"])
def test_a_run_that_was_killed_goes_on_on_the_other_kind_of_device(curves: Path, run: str) -> None:
    assert largest_difference(rows(curves / "whole"), rows(curves / run)) < 1e-9
    attempts = sorted((curves / run / "attempts").iterdir())
    assert len(attempts) == 2


@pytest.mark.parametrize("run", [*SHARDED, *(f"{strategy}-offloaded" for strategy in OFFLOADED)])
def test_every_strategy_logs_the_numbers_of_ddp(curves: Path, run: str) -> None:
    strategy = run.removesuffix("-offloaded")
    alone = "ddp-short" if strategy == "zero3" else "ddp"
    assert largest_difference(rows(curves / alone), rows(curves / run)) < RULER[strategy]


def test_computing_activations_again_changes_no_number(curves: Path) -> None:
    assert largest_difference(rows(curves / "whole"), rows(curves / "recomputed")) < 1e-9


def test_deterministic_runs_are_bit_equal(curves: Path) -> None:
    """In bf16, with batch norms that learn, dropout and data workers."""
    one, two = (curves / f"repeated-{turn}" for turn in (1, 2))
    assert rows(one) == rows(two)
    tensors = [load_file(run / "checkpoints" / "step-00000008" / "model.safetensors") for run in (one, two)]
    assert {name: tensor.tobytes() for name, tensor in tensors[0].items()} == {
        name: tensor.tobytes() for name, tensor in tensors[1].items()
    }


def test_fp16_logs_the_numbers_of_torchs_grad_scaler(tmp_path: Path, device: str) -> None:
    keys = {"device": device, "train": {**test_fp16.CONFIG["train"], "deterministic": True, "allow_emulated": device == "cpu"}}  # type: ignore[dict-item]
    test_fp16.write_config(tmp_path, **keys)
    made([[Job(str(tmp_path / "config.yaml"))]], tmp_path)
    ours = [row for (_, kind), row in rows(tmp_path / "runs" / "alone").items() if kind == "train"]
    for row, (loss, norm, scale) in zip(ours, test_fp16.bare_loop(tmp_path), strict=True):
        assert row["train/loss_scale"] == scale, row
        assert row["train/loss"] == pytest.approx(loss, rel=1e-6), row
        assert row["train/grad_norm"] == (pytest.approx(norm, rel=1e-6) if math.isfinite(norm) else None), row
