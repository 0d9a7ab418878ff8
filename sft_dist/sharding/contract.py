"""What a way of spreading model and optimizer over the ranks must bring along."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from sft_dist.config import Config
from sft_dist.plan import World


class Tensors(NamedTuple):
    """Model and optimizer in the machine-free form: canonical parameter names, and `<parameter>/<moment>`.

    The mappings may read a file at each look-up: a strategy takes one tensor at a time and keeps none of them.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


class Piece(NamedTuple):
    """A whole tensor of the machine-free form, on its way into a checkpoint."""

    part: str
    """`model` or `optim`."""
    name: str
    tensor: Tensor


class Held(NamedTuple):
    """What one rank holds: elements of the parameters that learn, as the optimizer and as the model sees them."""

    masters: int
    """Elements that this rank's optimizer updates; each of its moments is as large."""
    parameters: int
    """Elements of all parameters that this rank stores between two steps."""


@dataclass(frozen=True)
class Prepared:
    """A model and its optimizer, spread over the ranks."""

    accelerator: Accelerator
    world: World
    module: nn.Module
    """The bare model: canonical names, hooks of the strategy included."""
    wrapped: nn.Module
    """What the loop calls."""
    optimizer: Optimizer
    """The torch optimizer whose `param_groups` carry the learning rate of the coming update."""
    clip: float | None
    """Largest global norm of the gradient."""


@dataclass(frozen=True)
class Strategy:
    """One way. Every function is called on all ranks, in the same order, and may talk to the others."""

    name: str
    params_sharded: bool
    """Must every rank take part in a forward pass?"""
    equal_passes: bool
    """Must every rank make the same number of forward and backward passes in a step?"""
    fills_meta: bool
    """Can `prepare` fill a model that has no memory yet (meta device) from rank 0's?"""
    start: Callable[[Config, World, str], AbstractContextManager[dict[str, object]]]
    """(config, world, kind of device) -> arguments for the Accelerator, in the surroundings that it needs to be made in."""
    prepare: Callable[[Accelerator, World, nn.Module, Callable[[nn.Module], Optimizer], Config], Prepared]
    """(accelerator, world, module, optimizer over a module's parameters, config)."""
    one_pass: Callable[[Prepared, bool], AbstractContextManager[Callable[[Tensor], None]]]
    """(prepared, last) -> context of one forward pass, with the backward pass to call in it; gradients are averaged over ranks by the last."""
    update: Callable[[Prepared, float | None], Tensor]
    """(prepared, scale of the gradient) Divide it by its scale, clip it, make the optimizer's step, forget it; -> its global norm before
    clipping, equal on all ranks. With a scale (not None), a step whose norm is not finite is left out: nothing but the gradient changes."""
    masters: Callable[[Prepared], Sequence[Tensor]]
    """The tensors that this rank's optimizer updates: the keys of its state. What is written into them goes live with `publish`."""
    publish: Callable[[Prepared], None]
    """Let the model compute with what the masters hold."""
    take: Callable[[Prepared], Iterator[Piece]]
    """What this rank writes into a checkpoint, whole tensor by whole tensor; the ranks share the work where they share the state."""
    put: Callable[[Prepared, Tensors], None]
    """The way back, from a whole checkpoint; without optimizer tensors only the model changes."""
    held: Callable[[Prepared], Held]
    """Counted on the live tensors."""
    end: Callable[[], None]
    """Destroy the process group, and what the strategy's library keeps of it."""


def owners(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """Which rank writes which tensor: the largest first, each to the rank with the least so far; equal on all ranks."""
    load = [0] * world
    chosen = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = load.index(min(load))
        load[rank] += sizes[name]
        chosen[name] = rank
    return chosen
