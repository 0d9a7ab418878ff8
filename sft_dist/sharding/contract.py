"""What a way of spreading model and optimizer over the ranks must bring along."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer


class Tensors(NamedTuple):
    """Model and optimizer in the machine-free form: canonical parameter names, and `<parameter>/<moment>`."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


@dataclass(frozen=True)
class Strategy:
    """One way. `module` is the bare model everywhere, `wrapped` what `prepare` made of it."""

    name: str
    params_sharded: bool
    """Must every rank take part in a forward pass?"""
    prepare: Callable[[Accelerator, nn.Module], nn.Module]
    """(accelerator, module) -> wrapped."""
    one_pass: Callable[[Accelerator, nn.Module, bool], AbstractContextManager[None]]
    """(accelerator, wrapped, last) -> context of one forward and backward pass; gradients are averaged over ranks in the last."""
    clip: Callable[[nn.Module, float | None], Tensor]
    """(module, max_norm) -> the global norm of the gradient before clipping; None only measures."""
    take: Callable[[nn.Module, Optimizer, int], Tensors]
    """(module, optimizer, rank) -> what this rank writes into a checkpoint; empty where others write all of it."""
    put: Callable[[nn.Module, Optimizer, Tensors], None]
    """(module, optimizer, tensors of a whole checkpoint): the way back."""
