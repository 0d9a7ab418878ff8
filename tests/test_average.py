"""The moving average is torch's own, is lent to the model and given back to the bit, and goes on after a restore."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from given import a_config
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sft_dist import average, checkpoint, optim, rundir
from sft_dist.checkpoint import About
from sft_dist.config import Ema
from sft_dist.engine import Engine
from sft_dist.plan import World
from sft_dist.progress import Progress
from sft_dist.rundir import RunDir
from sft_dist.saver import Saver

ABOUT = About(("cat", "dog", "eel"), "0123456789abcdef")
CONSTANT = Ema(decay=0.9, warmup=False)


class Small(nn.Module):
    """A frozen convolution, a batch norm that learns, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).requires_grad_(False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(images)).mean((2, 3)))


@pytest.fixture(scope="module")
def one_process() -> Iterator[Engine]:
    with Engine(a_config(device="cpu", precision="fp64"), World()) as engine:
        yield engine


@pytest.fixture
def engine(one_process: Engine) -> Engine:
    return fresh(one_process)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create(a_config(run__dir=str(tmp_path)))


def fresh(engine: Engine, name: str = "adamw") -> Engine:
    torch.manual_seed(0)
    engine.prepare(Small(), lambda model: optim.build(model, a_config(optim__name=name, optim__lr=0.05)))
    return engine


def train(engine: Engine, ema: Ema, first: int, last: int, also: Callable[[], object] = lambda: None) -> None:
    """Updates `first` to `last`, each on images of its own, taken into the average; `also` comes after each."""
    for made in range(first, last + 1):
        images = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(made))
        with engine.backward_pass(last=True) as backward:
            backward(nn.functional.cross_entropy(engine.wrapped(images), torch.tensor([0, 1, 2, 0])))
        engine.update()
        average.update(engine, ema, made)
        also()


def averages(engine: Engine) -> dict[str, Tensor]:
    return {piece.name.removesuffix("/ema"): piece.tensor.clone() for piece in engine.take() if piece.name.endswith("/ema")}


def everything(engine: Engine) -> dict[str, Tensor]:
    return {piece.name: piece.tensor.clone() for piece in engine.take()}


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


LEARNING = {"norm.weight", "norm.bias", "fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_with_a_constant_decay_the_average_is_torchs(one_process: Engine, name: str) -> None:
    engine = fresh(one_process, name)
    theirs = AveragedModel(engine.module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    train(engine, CONSTANT, 1, 12, lambda: theirs.update_parameters(engine.module))
    wanted = dict(theirs.module.named_parameters())
    ours = averages(engine)
    assert set(ours) == LEARNING
    for parameter, value in ours.items():
        torch.testing.assert_close(value, wanted[parameter], rtol=0, atol=1e-14)
        assert not torch.equal(value, engine.module.state_dict()[parameter])


def test_it_begins_as_the_weights_after_the_first_update(engine: Engine) -> None:
    before = weights(engine)
    train(engine, CONSTANT, 1, 1)
    now = weights(engine)
    assert equal(averages(engine), {name: now[name] for name in LEARNING})
    assert not torch.equal(before["fc.weight"], now["fc.weight"])


@pytest.mark.parametrize(
    ("decay", "used"),
    [
        (0.5, [3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 9 / 18, 0.5]),  # (1 + n) / (10 + n) for n from 2, until it meets the decay
        (0.3, [0.25, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]),
    ],
)
def test_with_warm_up_its_memory_grows_until_it_is_the_decay(engine: Engine, decay: float, used: list[float]) -> None:
    seen: list[Tensor] = []
    train(engine, Ema(decay=decay), 1, 9, lambda: seen.append(engine.module.fc.bias.detach().clone()))
    wanted = seen[0]
    for share, bias in zip(used, seen[1:], strict=True):
        wanted = share * wanted + (1 - share) * bias
    torch.testing.assert_close(averages(engine)["fc.bias"], wanted, rtol=0, atol=1e-14)


def test_without_a_decay_nothing_is_kept_and_nothing_is_lent(engine: Engine) -> None:
    train(engine, Ema(), 1, 3)
    before = everything(engine)
    assert averages(engine) == {}
    with average.used(engine, Ema()):
        assert equal(everything(engine), before)
    assert equal(everything(engine), before)


def test_averaging_changes_nothing_of_the_training(one_process: Engine) -> None:
    engine = fresh(one_process)
    train(engine, Ema(), 1, 5)
    without = everything(engine)
    train(fresh(engine), CONSTANT, 1, 5)
    assert equal({name: tensor for name, tensor in everything(engine).items() if not name.endswith("/ema")}, without)


def test_the_model_computes_with_the_average_and_gets_its_weights_back_to_the_bit(engine: Engine) -> None:
    train(engine, CONSTANT, 1, 5)
    before, mean = everything(engine), averages(engine)
    images = torch.ones(2, 3, 5, 5, dtype=torch.float64)
    engine.module.eval()
    plain = engine.module(images)
    with average.used(engine, CONSTANT):
        lent = weights(engine)
        assert {name: torch.equal(lent[name], mean.get(name, before[name])) for name in lent} == dict.fromkeys(lent, True)
        assert not torch.allclose(engine.module(images), plain)
    assert equal(everything(engine), before)
    assert torch.equal(engine.module(images), plain)


def test_it_can_be_lent_before_the_first_update(engine: Engine) -> None:
    before = everything(engine)
    with average.used(engine, CONSTANT):
        assert equal(everything(engine), before)
    assert equal(everything(engine), before)


def test_it_goes_on_after_a_save_and_a_restore_to_the_same_bits(run: RunDir, engine: Engine) -> None:
    ema = Ema(decay=0.99)
    train(engine, ema, 1, 4)
    saver = Saver(run, engine, a_config().save, ABOUT, lambda *_: None)
    saver.save(Progress(step=4))
    saver.finish()
    at_save = everything(engine)
    train(engine, ema, 5, 8)
    uninterrupted = everything(engine)
    checkpoint.restore(run, fresh(engine), ABOUT, run.checkpoints / "step-00000004")
    assert equal(everything(engine), at_save)
    train(engine, ema, 5, 8)
    assert equal(everything(engine), uninterrupted)


def test_a_checkpoint_is_scored_with_its_average(run: RunDir, engine: Engine) -> None:
    train(engine, CONSTANT, 1, 4)
    saver = Saver(run, engine, a_config().save, ABOUT, lambda *_: None)
    saver.save(Progress(step=4))
    saver.finish()
    mean, own = averages(engine), weights(engine)
    checkpoint.load_model(run.checkpoints / "step-00000004", fresh(engine))
    assert equal(weights(engine), {name: mean.get(name, tensor) for name, tensor in own.items()})
