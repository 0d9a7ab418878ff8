"""One process evaluates every sample once, in any micro-batches, and tells what it cannot read."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from given import a_config
from sklearn.metrics import confusion_matrix
from torch import nn

from sft_dist import datasets, models, optim, signals
from sft_dist.config import Config, Data
from sft_dist.datasets import Split
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError
from sft_dist.evaluate import evaluate, shares
from sft_dist.plan import World
from sft_dist.signals import StopRequest
from sft_dist.tasks import TASKS, Scores

CLASSES = tuple("0123456789")


def config_of(**keys: object) -> Config:
    base = {"data__size": 8, "data__augment": "none", "data__workers": 0, "model__weights": "none", "model__norm": "train", "device": "cpu"}
    return a_config(**{**base, "precision": "fp64", **keys})


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    config = config_of()
    with Engine(config, World()) as engine:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 10))
        model.register_forward_pre_hook(models.normalise((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
        engine.prepare(model, lambda module: optim.build(nn.ModuleDict({"fc": module}), config))
        yield engine


def digits(samples: int) -> Split:
    return datasets.load(Data(name="digits")).val.subset(range(samples))


def scored(engine: Engine, split: Split, request: StopRequest | None = None, **keys: object) -> Scores | None:
    found = evaluate(TASKS["classify"], split, CLASSES, config_of(**keys), engine, request or StopRequest())
    return found[0] if found else None


@pytest.mark.parametrize("micro", [1, 3, 40])
@pytest.mark.parametrize("where", ["all", "rank0"])
@pytest.mark.parametrize("samples", [1, 2, 7, 40])
def test_micro_batches_do_not_change_a_score(engine: Engine, samples: int, where: str, micro: int) -> None:
    split = digits(samples)
    found = scored(engine, split, eval__where=where, eval__micro=micro)
    images, labels = torch.stack([split.read(i) for i in range(samples)]), torch.tensor(split.labels)
    with torch.no_grad():
        logits = engine.module.eval()(images)
    assert found is not None
    assert found.details["samples"] == samples
    assert found.details["confusion"] == confusion_matrix(labels, logits.argmax(1), labels=range(10)).tolist()
    assert found.values["val/top1"] == int((logits.argmax(1) == labels).sum()) / samples
    assert found.values["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-12)


def test_loading_processes_do_not_change_a_score(engine: Engine) -> None:
    assert scored(engine, digits(30), data__workers=2) == scored(engine, digits(30))


def test_the_batch_size_of_training_is_taken_where_none_is_given(engine: Engine) -> None:
    sizes: list[int] = []
    handle = engine.module.register_forward_hook(lambda *passed: sizes.append(len(passed[-1])))
    scored(engine, digits(20))
    scored(engine, digits(20), eval__micro=15)
    handle.remove()
    assert sizes == [8, 8, 4, 15, 5]


def test_an_evaluation_leaves_no_trace_on_the_model(engine: Engine) -> None:
    before = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    engine.module.train()
    scored(engine, digits(20))
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.module.state_dict().items())
    assert not engine.module.training


@pytest.mark.parametrize("bad", [(0,), (3, 17), (19,)])
def test_unreadable_samples_end_it_with_their_names(engine: Engine, bad: tuple[int, ...]) -> None:
    split = digits(20)

    def read(i: int) -> torch.Tensor:
        if i in bad:
            raise ValueError(f"file {i} cannot be decoded")
        return split.read(i)

    with pytest.raises(ConfigError) as caught:
        scored(engine, Split(split.names, split.labels, read))
    told = [f"data: unreadable sample {split.names[i]}: file {i} cannot be decoded" for i in bad]
    assert set(caught.value.problems) <= set(told)
    assert caught.value.problems[0] == told[0]


def test_a_request_to_stop_ends_it_without_scores(engine: Engine) -> None:
    with signals.watch() as request:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert scored(engine, digits(20), request) is None


def test_shares_of_one_process_are_all_positions_in_order() -> None:
    assert shares(7, rank=0, world=1, micro=3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert shares(2, rank=2, world=3, micro=4) == []
