"""The moving average of the weights, one more moment in the optimizer's state: sharded, saved and restored as the others are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sft_dist.archive import AVERAGE
from sft_dist.config import Ema
from sft_dist.engine import Engine


@torch.no_grad()
def update(engine: Engine, ema: Ema, made: int) -> None:
    """Take the weights after `made` updates into the average: a <- d a + (1 - d) w. It begins as the weights after its first update."""
    if ema.decay is None:
        return
    engine.pulse.at("update")
    decay = min(ema.decay, (1 + made) / (10 + made)) if ema.warmup else ema.decay
    for master in engine.masters():
        state = engine.optimizer.state[master]
        if AVERAGE in state:
            state[AVERAGE].lerp_(master, 1 - decay)
        else:
            state[AVERAGE] = master.detach().clone()


@contextmanager
def used(engine: Engine, ema: Ema) -> Iterator[None]:
    """Let the model compute with the average for as long as the context lasts. Batch-norm statistics are the model's own."""
    if ema.decay is None:
        yield
        return
    _swap(engine)
    yield
    _swap(engine)  # not after an error: the run ends, and the ranks that raised none are waiting elsewhere


@torch.no_grad()
def _swap(engine: Engine) -> None:
    for master in engine.masters():
        average = engine.optimizer.state[master].get(AVERAGE)
        if average is not None:
            weights = master.detach().clone()
            master.copy_(average)
            average.copy_(weights)
    engine.publish()
