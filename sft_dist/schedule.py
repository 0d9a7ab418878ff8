"""Pure functions of the step: which samples it sees, at which rate it learns, and what is due after it."""

import hashlib
import math
import random
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from sft_dist.plan import Plan


class Pick(NamedTuple):
    """One training sample of one epoch. The epoch belongs to it, because augmentation is drawn anew in each."""

    epoch: int
    position: int


def window(step: int, rank: int, plan: Plan) -> list[list[Pick]]:
    """The micro-batches of one rank in one step (0-based).

    Epochs are laid end to end, shuffled each, and cut by the global batch: every window is full, no sample is padded or
    dropped, and a step sees the same samples on 1 process and on 64. A pure function: to resume is to start at a step.
    """
    first = step * plan.global_batch
    batch = [pick(place, plan.samples, plan.seed) for place in range(first + rank, first + plan.global_batch, plan.world)]
    return [batch[i : i + plan.micro_batch] for i in range(0, len(batch), plan.micro_batch)]


def pick(place: int, samples: int, seed: int) -> Pick:
    """The sample at a place of the endless stream of shuffled epochs."""
    epoch, offset = divmod(place, samples)
    return Pick(epoch, _order(samples, seed, epoch)[offset])


@lru_cache(maxsize=2)  # a window touches two epochs at most, unless an epoch is shorter than a window
def _order(samples: int, seed: int, epoch: int) -> list[int]:
    order = list(range(samples))
    random.Random(draw_seed("order", seed, epoch)).shuffle(order)
    return order


def draw_seed(*of: str | int) -> int:
    """A seed below 2^63 that depends on every part and on nothing else: not on the machine, the process or Python's hash seed."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, of)).encode(), digest_size=8).digest(), "big") >> 1


def lr_factor(step: int, plan: Plan) -> float:
    """What the learning rate is multiplied by in the update after `step` updates: warm-up, then the schedule's course."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    match plan.schedule:
        case "step":
            return plan.gamma ** marks(step, plan.step_every)
        case "cosine":
            done = (step - plan.warmup_steps) / max(1, plan.total_steps - plan.warmup_steps)
            return plan.final + (1 - plan.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        case _:
            return 1.0


def due(step: int, every: Fraction, total: int) -> bool:
    """True where a mark falls (every n-th step, or the last step of epoch k: floor(k N / batch)), and at the end."""
    return step == total or marks(step, every) > marks(step - 1, every)


def marks(step: int, every: Fraction) -> int:
    """How many marks k = 1, 2, ... with floor(k * every) <= step there are, for `every` in steps."""
    return max(0, math.ceil((step + 1) / every) - 1)
