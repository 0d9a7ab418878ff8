"""The collectives, over two real ranks: sums, evidence with an empty rank, shared outcomes, evened statistics; and a lost peer."""

import json
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from ranks import Job, output, run_ranks, start, wait, wait_for_checkpoint

pytestmark = pytest.mark.dist

CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 16, "augment": "none", "flip": 0, "classes": ["0", "1"], "workers": 0},
    "model": {"name": "resnet18", "weights": "none", "train": "all", "norm": "train"},
    "batch": {"total": 8, "micro": 4},
    "train": {"duration": "400 steps", "deterministic": True},
    "save": {"every": "2 steps", "keep": 1},
    "device": "cpu",
}


def exercise(jobs: Sequence[Job]) -> None:
    """Runs on both ranks: every collective once, on values that the test knows; rank 0 writes what came out."""
    import torch

    from sft_dist import parse, plan
    from sft_dist.engine import Engine
    from sft_dist.errors import ConfigError
    from sft_dist.tally import Evidence

    [job] = jobs
    os.environ["MASTER_PORT"] = str(job.port)
    config, world = parse.load(Path(job.config)), plan.World.from_env(os.environ)
    found: dict[str, object] = {}
    with Engine(config, world) as engine:
        rank = engine.rank
        found["sum"] = engine.sum([0.1 + rank, torch.tensor(2.0**40), 3])
        engine.usage.told = lambda: [rank + 0.25, 1.5, 2.0, float("nan") if rank else 8.0]
        found["exchange"] = engine.exchange([torch.tensor(2), 0.5]), engine.usage.ranks
        found["agree"] = engine.agree([f"rank {rank}"] * (rank + 1))
        own = Evidence({"hits": torch.tensor([1, 2])}, ({"id": rank},)) if rank == 0 else Evidence()
        merged = engine.merge(own)
        found["merged"] = [merged.sums["hits"].tolist(), len(merged.rows)]
        found["on_main"] = engine.on_main(lambda: ("made by", rank))
        try:
            engine.on_main(lambda: (_ for _ in ()).throw(ConfigError(["one", "two"])))
        except ConfigError as error:
            found["error"] = list(error.problems)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
        engine.prepare(model, lambda module: torch.optim.SGD(module.parameters(), lr=0.1))
        model[1].running_mean.fill_(float(rank))
        model[1].running_var.fill_(1.0 + 2 * rank)
        engine.even_out_statistics()
        found["statistics"] = [model[1].running_mean.tolist(), model[1].running_var.tolist()]
        found["threads"] = torch.get_num_threads()
    Path(f"{job.overrides[0]}-{rank}").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(folder):
    (folder / "config.yaml").write_text(json.dumps({**CONFIG, "run": {"dir": str(folder / "runs"), "name": "long"}}))
    return folder


@pytest.fixture(scope="module")
def found(folder):
    job = Job(str(folder / "config.yaml"), (str(folder / "found"),))
    assert run_ranks(2, [job], folder / "exercise", call="test_engine:exercise") == [0, 0], output(folder / "exercise", 2)
    return [json.loads((folder / f"found-{rank}").read_text()) for rank in (0, 1)]


def test_sums_travel_in_double_precision(found):
    assert found[0]["sum"] == found[1]["sum"] == [0.1 + 1.1, 2.0**41, 6.0]


def test_one_message_brings_sums_and_what_each_rank_says_of_itself(found):
    for rank in (0, 1):
        sums, said = found[rank]["exchange"]
        assert sums == [4.0, 1.0]
        assert said[1][:3] == [1.25, 1.5, 2.0] and math.isnan(said[1][3])
        assert said[0] == [0.25, 1.5, 2.0, 8.0]


def test_every_rank_hears_what_any_has_to_say(found):
    assert found[0]["agree"] == found[1]["agree"] == ["rank 0", "rank 1", "rank 1"]


def test_a_rank_without_a_sample_adds_its_zeros(found):
    assert found[0]["merged"] == [[1, 2], 1]
    assert found[1]["merged"] == [[1, 2], 0]


def test_what_rank_0_makes_or_fails_at_is_everybodys(found):
    assert found[0]["on_main"] == found[1]["on_main"] == ["made by", 0]
    assert found[0]["error"] == found[1]["error"] == ["one", "two"]


def test_batch_norm_statistics_are_evened_out(found):
    assert found[0]["statistics"] == found[1]["statistics"] == [[0.5, 0.5], [2.0, 2.0]]


def test_a_lost_peer_is_infrastructure_and_leaves_a_checkpoint_to_go_on_from(folder):
    processes = start(2, [Job(str(folder / "config.yaml"), wait_in=5)], folder / "lost")
    wait_for_checkpoint(folder / "runs" / "long")
    os.kill(processes[1].pid, signal.SIGKILL)
    assert wait(processes, 120) == [75, -signal.SIGKILL], output(folder / "lost", 1)
    said = output(folder / "lost", 1)
    assert "another rank was lost or did not answer" in said
    assert "Traceback" not in said
    outcome = json.loads((folder / "runs" / "long" / "outcome.json").read_text())
    assert outcome["outcome"] == "failed"
    assert outcome["step"] >= 2
