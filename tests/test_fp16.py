"""fp16 with its loss scale: torch's own GradScaler on one rank, the same curve on every strategy, and overflows that change nothing."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ranks import Job, largest_difference, make_runs, note_exits, output, rows, run_ranks

from sft_dist.sharding import STRATEGIES

pytestmark = pytest.mark.dist

CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 32, "augment": "none", "flip": 0, "classes": ["3", "5", "8"], "val_fraction": 0.02, "workers": 0},
    "model": {"name": "mobilenet_v3_small", "train": "all", "norm": "frozen", "dropout": "none"},
    "batch": {"total": 5, "micro": 2},  # two ranks make 2 passes and 1: the second is idle where gradients meet in each
    "optim": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
    "schedule": {"name": "constant"},
    "train": {"duration": "4 steps", "clip": 1.0, "allow_emulated": True},
    "eval": {"every": "4 steps", "micro": 40, "test": False},
    "save": {"every": "1 step", "keep": 9},
    "ema": {"decay": 0.5, "warmup": False},
    "precision": "fp16",
    "device": "cpu",
    "report": {"write": "none"},
}


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    write_config(folder)
    return folder


def write_config(folder: Path, **keys: Any) -> None:
    """A config, and weights whose batch norms know the data."""
    import torch
    import torchvision
    from given import a_config
    from safetensors.torch import save_file
    from torch.nn.functional import interpolate

    from sft_dist.datasets import load

    digits = load(a_config().data).train
    images = torch.stack([digits.read(i) for i in range(64)]) / 255
    torch.manual_seed(1)
    model = torchvision.models.mobilenet_v3_small().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over what it sees, not over the last few
    with torch.no_grad():
        model((interpolate(images, size=32, mode="bilinear") - 0.45) / 0.225)
    state = model.state_dict()
    save_file(state, folder / "start.safetensors")
    save_file({**state, "classifier.0.weight": 1e6 * state["classifier.0.weight"]}, folder / "hot.safetensors")
    config = {**CONFIG, "run": {"dir": str(folder / "runs"), "name": "alone"}, **keys}
    config["model"] = {**CONFIG["model"], "weights": str(folder / "start.safetensors")}
    (folder / "config.yaml").write_text(json.dumps(config))


def job(folder: Path, name: str, *overrides: str) -> Job:
    return Job(str(folder / "config.yaml"), (f"run.name={name}", *overrides))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """Runs of one process with ddp; the last one fails."""
    jobs = [job(folder, "alone"), job(folder, "recomputed", "model.activation_checkpointing=true", "train.duration=2 steps")]
    jobs.append(job(folder, "hot", f"model.weights={folder / 'hot.safetensors'}"))
    log, exits = folder / "one", str(folder / "exits")
    assert run_ranks(1, jobs, log, "test_fp16:runs_and_a_failure", SFT_TEST_EXITS=exits) == [0], output(log, 1)[-4000:]
    return folder / "runs"


def runs_and_a_failure(jobs: Sequence[Job]) -> None:
    make_runs(jobs[:-1])
    note_exits(jobs[-1:])


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    """Runs of two processes: every strategy, and one that goes on as another; and after them `exercise`."""
    jobs = [job(folder, strategy, f"shard.strategy={strategy}") for strategy in STRATEGIES]
    jobs.append(job(folder, "changed", "shard.strategy=zero1", "train.duration=2 steps"))
    jobs.append(job(folder, "changed", "shard.strategy=ddp"))
    jobs += [Job(strategy) for strategy in STRATEGIES]
    log, found = folder / "two", str(folder / "found")
    assert run_ranks(2, jobs, log, "test_fp16:runs_and_exercise", SFT_TEST_FOUND=found) == [0, 0], output(log, 2)[-4000:]
    return folder / "runs"


def runs_and_exercise(jobs: Sequence[Job]) -> None:
    """Runs on both ranks."""
    make_runs([job for job in jobs if job.config not in STRATEGIES])
    found = {}
    for job in jobs:
        if job.config in STRATEGIES:
            os.environ["MASTER_PORT"] = str(job.port)
            found[job.config] = exercise(job.config)
    Path(f"{os.environ['SFT_TEST_FOUND']}-{os.environ['RANK']}").write_text(json.dumps(found))


def exercise(strategy: str) -> dict[str, Any]:
    """Three steps with AdamW, and between the first and the second one with an overflow on rank 1 alone."""
    import torch
    from given import a_config
    from torch import nn

    from sft_dist import optim, plan
    from sft_dist.engine import Engine

    config = a_config(
        shard__strategy=strategy, precision="fp16", train__allow_emulated=True, train__clip=0.1, device="cpu", optim__name="adamw"
    )
    with Engine(config, plan.World.from_env(os.environ)) as engine:
        torch.manual_seed(0)
        engine.prepare(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), lambda model: optim.build(model, config))

        def step(seed: int, too_large: float = 1.0) -> float:
            numbers = torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * seed + engine.rank))
            with engine.backward_pass(last=True) as backward:
                backward(nn.functional.cross_entropy(engine.wrapped(numbers), torch.tensor([0, 1, 2, 0])) * 1024.0 * too_large)
            return float(engine.update(1024.0))

        def state() -> dict[str, list[float]]:
            return {piece.name: piece.tensor.flatten().tolist() for piece in engine.take()}

        norms = [step(1)]
        before = state()
        overflow = step(2, too_large=2.0**40 if engine.rank == 1 else 1.0)
        unchanged = state() == before
        norms += [step(2), step(3)]
        counts = [value for name, value in state().items() if name.endswith("/step")]
    return {"norms": norms, "overflow": math.isfinite(overflow), "unchanged": unchanged, "counts": counts, "pieces": len(before)}


def exercised(together: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((together.parent / f"found-{rank}").read_text())
    return found


def steps(run: Path) -> list[dict[str, Any]]:
    return [row for (_, kind), row in rows(run).items() if kind == "train"]


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    """Every tensor of a checkpoint, whichever rank wrote it."""
    from safetensors.torch import load_file

    files = sorted((run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"))
    return {f"{file.name.split('.')[0].split('-')[0]}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def test_one_rank_draws_the_curve_of_torchs_own_grad_scaler(alone: Path) -> None:
    """Loss, norm and scale of every step, those with an overflow among them; the same products in the same order."""
    ours = steps(alone / "alone")
    assert len(ours) == 4
    for row, (loss, norm, scale) in zip(ours, bare_loop(alone.parent), strict=True):
        assert row["train/loss_scale"] == scale, row
        assert row["train/loss"] == pytest.approx(loss, rel=1e-6), row
        assert (row["train/grad_norm"] is None) == (not math.isfinite(norm)), row
        if math.isfinite(norm):
            assert row["train/grad_norm"] == pytest.approx(norm, rel=1e-6), row


def bare_loop(folder: Path) -> Iterator[tuple[float, float, float]]:
    """Loss, gradient norm and scale of each step, by torch.autocast, torch.amp.GradScaler and torch's own clipping."""
    import torch
    import torchvision
    from safetensors.torch import load_file

    from sft_dist import datasets, loading, models, parse, plan, tasks

    config = parse.load(folder / "config.yaml")
    splits = datasets.load(config.data)
    ours, _ = models.build(config, splits.classes)
    model = torchvision.models.mobilenet_v3_small(num_classes=3).to(device := str(config.device))
    model.load_state_dict(ours.state_dict())
    assert torch.equal(model.state_dict()["features.0.0.weight"].cpu(), load_file(folder / "start.safetensors")["features.0.0.weight"])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout):
            module.eval()
    decay, rest = ([p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
    optimizer = torch.optim.SGD([{"params": decay, "weight_decay": 1e-4}, {"params": rest}], lr=0.01, momentum=0.9)
    scaler = torch.amp.GradScaler(device)
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    mean, std = (torch.tensor(three, device=device)[:, None, None] for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    numbers = plan.make_plan(config, plan.World(), len(splits.train), len(splits.val))
    samples = loading.Samples(splits.train, tasks.TASKS["classify"].prepare(config.data, True), 32, 0)
    batches = iter(loading.training_batches(tasks.TASKS["classify"], samples, numbers, 0, 0, 0, pin=False))
    for _ in range(4):
        loss = 0.0
        for _ in range(3):
            batch = next(batches).to(torch.device(device))
            with torch.autocast(device, torch.float16):
                logits = model((batch.images.contiguous(memory_format=layout) / 255 - mean) / std)
            part = torch.nn.functional.cross_entropy(logits.float(), batch.labels, reduction="sum") / 5
            scaler.scale(part).backward()
            loss += part.item()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        yield loss, norm, scale


def test_the_first_gradients_overflow_and_the_scale_falls_until_they_fit(alone: Path) -> None:
    """What the other tests compare has overflows in it, after an update too, and gradients that are clipped."""
    found = steps(alone / "alone")
    assert [row["train/loss_scale"] for row in found] == [65536, 32768, 32768, 16384]
    assert [row["train/grad_norm"] is None for row in found] == [True, False, True, False]
    assert all(row["train/grad_norm"] > 5 for row in found if row["train/grad_norm"] is not None)


@pytest.mark.parametrize("strategy", list(STRATEGIES)[1:])
def test_every_strategy_logs_the_numbers_of_ddp(together: Path, strategy: str) -> None:
    """On the same layout nothing but the order of fp32 sums differs. The evaluation is that of the moving average."""
    assert largest_difference(rows(together / "ddp"), rows(together / strategy)) < 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_log_the_numbers_of_one(alone: Path, together: Path, strategy: str) -> None:
    """Micro-batches are cut otherwise, and a weight's gradient over each is rounded to the 11 bits of fp16, after which this network,
    with weights that were never trained, amplifies."""
    for one, two in zip(steps(alone / "alone"), steps(together / strategy), strict=True):
        assert one["train/loss_scale"] == two["train/loss_scale"]
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-3)
        assert one["train/grad_norm"] == (pytest.approx(two["train/grad_norm"], rel=1e-2) if two["train/grad_norm"] else None)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_that_overflows_leaves_every_tensor_of_the_checkpoint_as_it_was(together: Path, strategy: str) -> None:
    """Weights, momentum and moving average. The first step has no other effect either: no moment exists after it."""
    import torch

    first, before, after, later = (checkpoint(together / strategy, step) for step in (1, 2, 3, 4))
    assert all(name.startswith("model/") for name, tensor in first.items() if tensor.any())
    assert before.keys() == after.keys() == later.keys()
    assert {name: torch.equal(before[name], after[name]) for name in before} == dict.fromkeys(before, True)
    learned = [name for name in before if not torch.equal(after[name], later[name])]
    assert {"model/classifier.3.weight", "optim/classifier.3.weight/momentum_buffer", "optim/classifier.3.weight/ema"} <= set(learned)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_overflow_on_one_rank_is_left_out_on_all(together: Path, strategy: str, rank: int) -> None:
    found = exercised(together, rank)[strategy]
    assert found["overflow"] is False
    assert found["unchanged"] is True
    assert found["norms"] == pytest.approx(exercised(together, 0)["ddp"]["norms"], rel=1e-6)
    assert all(count == [3.0] for count in found["counts"])
    assert sum(exercised(together, rank)[strategy]["pieces"] for rank in (0, 1)) == 4 + 3 * 4  # parameters; two moments and a count of each


def test_a_run_goes_on_with_its_scale_as_another_strategy(together: Path) -> None:
    whole, changed = ({(row["step"], "train"): row for row in steps(together / run)} for run in ("ddp", "changed"))
    assert largest_difference(whole, changed) < 1e-5
    states = [json.loads((together / run / "checkpoints/step-00000004/state.json").read_text())["progress"] for run in ("ddp", "changed")]
    assert [(state["loss_scale"], state["good_steps"]) for state in states] == [(16384.0, 1), (16384.0, 1)]


def test_checkpoints_hold_fp32(together: Path) -> None:
    dtypes = {str(tensor.dtype) for name, tensor in checkpoint(together / "zero3", 4).items() if not name.endswith("num_batches_tracked")}
    assert dtypes == {"torch.float32"}


def test_a_row_without_a_norm_is_json(together: Path) -> None:
    first = (together / "ddp" / "metrics.jsonl").read_text().splitlines()[0]
    assert '"train/grad_norm": null, "train/loss_scale": 65536.0' in first
    assert "NaN" not in first and "Infinity" not in first


def test_an_update_that_is_left_out_is_said(together: Path) -> None:
    said = (together.parent / "two-0").read_text()
    assert said.count("step      1  the gradient overflowed fp16 at loss scale 65536; no update was made, and the scale is halved") == 6
    assert said.count("step      3  the gradient overflowed fp16 at loss scale 32768; no update was made, and the scale is halved") == 6


def test_a_forward_pass_that_overflows_is_divergence_with_the_remedy(alone: Path) -> None:
    """No loss scale can mend it: the forward pass is not scaled."""
    [[code, told]] = json.loads((alone.parent / "exits-0").read_text())
    assert code == 1
    assert "step 1: loss nan, gradient norm nan" in told
    assert "use a lower optim.lr, a warm-up, or train.clip, or precision: bf16 or fp32" in told


def test_computing_activations_again_changes_no_number(alone: Path) -> None:
    assert steps(alone / "recomputed") == steps(alone / "alone")[:2]
