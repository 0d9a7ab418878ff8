"""P3 across strategies: a checkpoint knows nothing of world, strategy or rank order, so a run may move from any to any."""

import json
import os
import signal
from pathlib import Path

import pytest
from ranks import Job, largest_difference, output, rows, run_ranks, start, wait, wait_for_step
from safetensors.torch import load_file
from test_curve import write_config

pytestmark = [pytest.mark.dist, pytest.mark.real]

CHAIN = [("zero3", 4, 7), ("ddp", 1, 12), ("fsdp", 3, 17), ("zero1", 2, None)]  # strategy, ranks, killed once this step is logged


@pytest.fixture(scope="module")
def runs(folder, real_data, real_weights):
    """One run without interruption, and one that was killed and went on three times, each time on other ranks and another strategy."""
    configs = {}
    for name in ("whole", "chain"):
        path = write_config(folder, real_data, real_weights, name, 7, train="last:8", precision="fp64", lr=0.001)
        config = json.loads(path.read_text())
        config |= {"optim": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01}, "ema": {"decay": 0.9}}
        config["save"] = {"every": "5 steps", "keep": 9, "background": False}  # or a kill could come before it is committed
        config["data"]["size"] = 32
        config["train"]["seed"] = 3
        path.write_text(json.dumps(config))
        configs[name] = str(path)
    assert run_ranks(1, [Job(configs["whole"])], folder / "whole-log") == [0], output(folder / "whole-log", 1)[-4000:]
    for strategy, world, until in CHAIN:
        log = folder / strategy
        started = start(world, [Job(configs["chain"], (f"shard.strategy={strategy}",), wait_in=until + 1 if until else 0)], log)
        if until is None:
            assert wait(started) == [0] * world, output(log, world)[-4000:]
            break
        wait_for_step(folder / "runs" / "chain", until, limit_s=300)
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
        assert wait(started) == [-signal.SIGKILL] * world
    return folder / "runs"


def test_a_chain_of_four_strategies_draws_the_uninterrupted_curve(runs: Path) -> None:
    assert largest_difference(rows(runs / "whole"), rows(runs / "chain")) < 1e-5


def test_the_last_checkpoint_of_the_chain_holds_the_same_names_and_values(runs: Path) -> None:
    whole, chain = ({**_tensors(runs / name, "model"), **_tensors(runs / name, "optim")} for name in ("whole", "chain"))
    assert whole.keys() == chain.keys()
    assert {name.rpartition("/")[2] for name in whole if "/" in name} == {"step", "exp_avg", "exp_avg_sq", "ema"}
    for name, tensor in whole.items():
        other = chain[name].to(tensor.dtype)
        assert other.shape == tensor.shape, name
        assert (other - tensor).abs().max() < 1e-4 * max(1.0, float(tensor.abs().max())), name


def test_ranks_that_share_the_state_share_the_writing(runs: Path) -> None:
    """The checkpoint of step 5 was written by four ranks, that of step 10 by one; both are whole by themselves."""
    shared, alone = runs / "chain" / "checkpoints" / "step-00000005", runs / "chain" / "checkpoints" / "step-00000010"
    sizes = [(shared / f"model{suffix}.safetensors").stat().st_size for suffix in ("", "-00001", "-00002", "-00003")]
    assert max(sizes) < 1.2 * min(sizes)
    assert [path.name for path in sorted(alone.glob("model*"))] == ["model.safetensors"]
    assert _tensors(runs / "chain", "model", 5).keys() == _tensors(runs / "chain", "model", 10).keys()


def _tensors(run: Path, part: str, step: int = 20) -> dict:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {name: tensor for path in sorted(folder.glob(f"{part}*.safetensors")) for name, tensor in load_file(path).items()}
