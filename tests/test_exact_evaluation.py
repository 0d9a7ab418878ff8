"""P2: every validation sample counts once, whatever the size of the set and of the world."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import Job, output, run_ranks

pytestmark = pytest.mark.dist

SIZES = range(1, 41)
CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 16, "augment": "none", "workers": 0},
    "model": {"name": "resnet18", "weights": "none", "train": "all", "norm": "train"},
    "batch": {"total": 8, "micro": 3},
    "train": {"duration": "1 step"},
    "device": "cpu",
}


def evaluate_all_sizes(jobs: Sequence[Job]) -> None:
    """Runs on every rank: evaluate the first n digits for each size, by all ranks and by rank 0, and let rank 0 write what came out."""
    import torch

    from sft_dist import datasets, parse, plan, signals
    from sft_dist.engine import Engine
    from sft_dist.evaluate import evaluate
    from sft_dist.tasks import TASKS

    [job] = jobs
    os.environ["MASTER_PORT"] = str(job.port)
    world = plan.World.from_env(os.environ)
    found = {}
    for where in ("all", "rank0"):
        config = parse.load(Path(job.config), [f"eval.where={where}"])
        val = datasets.load(config.data).val
        with Engine(config, world) as engine:
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
            model.register_forward_pre_hook(lambda _, args: (args[0].float() / 255,))
            engine.prepare(model, lambda module: torch.optim.SGD(module.parameters(), lr=0.1))
            for size in SIZES:
                result = evaluate(TASKS["classify"], val.subset(range(size)), list("0123456789"), config, engine, signals.StopRequest())
                assert result is not None
                scores, evidence = result
                ids = sorted(i for table in evidence.rows for i in table["id"].tolist())
                found[f"{where}-{size}"] = [scores.values, scores.details, ids]
        os.environ["MASTER_PORT"] = str(job.port + 1)
    if world.rank == 0:
        Path(job.overrides[0]).write_text(json.dumps(found))


@pytest.fixture(scope="module")
def evaluations(folder):
    """World -> where-size -> (scores, details, ids on rank 0)."""
    (folder / "config.yaml").write_text(json.dumps(CONFIG))
    tables = {}
    for world in (1, 2, 3, 4):
        job = Job(str(folder / "config.yaml"), (str(folder / f"{world}.json"),))
        codes = run_ranks(world, [job], folder / f"world{world}", call="test_exact_evaluation:evaluate_all_sizes")
        assert codes == [0] * world, output(folder / f"world{world}", world)
        tables[world] = json.loads((folder / f"{world}.json").read_text())
    return tables


@pytest.mark.parametrize("where", ["all", "rank0"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_counts_equal_those_of_one_process_to_the_last_digit(evaluations, world, where):
    for size in SIZES:
        alone, together = evaluations[1][f"all-{size}"], evaluations[world][f"{where}-{size}"]
        assert together[1] == alone[1], size  # confusion matrix, per-class figures, number of samples
        assert together[1]["samples"] == size
        for name, value in alone[0].items():
            assert together[0][name] == (pytest.approx(value, abs=1e-6) if name == "val/loss" else value), (size, name)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_rank_0_holds_the_prediction_of_every_sample_once(evaluations, world):
    for size in SIZES:
        assert evaluations[world][f"all-{size}"][2] == list(range(size))


@given(samples=st.integers(1, 200), world=st.integers(1, 9), micro=st.integers(1, 17))
def test_shares_deal_every_position_to_one_rank(samples, world, micro):
    from sft_dist.evaluate import shares

    dealt = [shares(samples, rank, world, micro) for rank in range(world)]
    assert sorted(i for share in dealt for batch in share for i in batch) == list(range(samples))
    assert all(1 <= len(batch) <= micro for share in dealt for batch in share)
    rounds = -(-samples // (world * micro))
    assert max(len(share) for share in dealt) == rounds
