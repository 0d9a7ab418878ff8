"""The repeated parts of a network: what a sharding strategy gathers one at a time, and what is computed again to save memory."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from sft_dist.errors import ConfigError

CONTAINERS = (nn.Sequential, nn.ModuleList)  # these alone, not what derives from them: a Conv2dNormActivation is a part of its own


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The repeated parts with their names, from input to output: what stands in a plain container, has children, and holds parameters.

    No block holds another. A container in a container is entered; layers without children (a classifier's) are no blocks.
    """
    return list(_walk(model, ""))


def recompute(model: nn.Module) -> None:
    """Activation checkpointing: keep only what enters each block, and compute its inside a second time in the backward pass.

    Names of parameters stay as they are, and so does every number: the second pass draws the same dropout, and leaves the statistics
    of batch norms alone. A block runs once as ever where no gradient passes through it. Raises ConfigError if there are no blocks.
    """
    found = blocks(model)
    if not found:
        raise ConfigError(f"model.activation_checkpointing = True, but {type(model).__name__} has no blocks to recompute; use false")
    for _, block in found:
        block.forward = MethodType(_forward, block)  # a closure would follow no deepcopy: the copy would go on with these weights


def _walk(parent: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in parent.named_children():
        if type(parent) not in CONTAINERS or type(child) in CONTAINERS:
            yield from _walk(child, f"{prefix}{name}.")
        elif any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield f"{prefix}{name}", child


def _forward(block: nn.Module, *args: Any) -> Any:
    forward = MethodType(type(block).forward, block)
    learns = any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in (*args, *block.parameters()))
    if not (torch.is_grad_enabled() and learns):
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _KeptStatistics(block)))


class _KeptStatistics:
    """While it is open, a block's batch norms write into copies of their statistics. It can be opened again, for another backward pass.

    Setting `track_running_stats` to false is not enough: the second pass would save fewer tensors than the first, which torch refuses.
    """

    def __init__(self, block: nn.Module) -> None:
        self.norms = [norm for norm in block.modules() if isinstance(norm, _BatchNorm) and norm.training]

    def __enter__(self) -> None:
        self.kept = [(norm, name, buffer) for norm in self.norms for name, buffer in norm.named_buffers(recurse=False)]
        for norm, name, buffer in self.kept:
            setattr(norm, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for norm, name, buffer in self.kept:
            setattr(norm, name, buffer)
