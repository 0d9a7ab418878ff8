"""`ddp`: a whole copy of model and optimizer on every rank; gradients are averaged as the last backward pass makes them."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from sft_dist import optim
from sft_dist.config import Config
from sft_dist.plan import World
from sft_dist.sharding.contract import Held, Piece, Prepared, Strategy, Tensors


def start(_: Config, __: World, kind: str) -> AbstractContextManager[dict[str, Any]]:
    return nullcontext({"cpu": kind == "cpu"})


def prepare(
    accelerator: Accelerator, world: World, module: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer], config: Config
) -> Prepared:
    optimizer = make_optimizer(module)
    wrapped: nn.Module = accelerator.prepare_model(module)
    if accelerator.num_processes > 1:
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped.broadcast_buffers = False  # or every forward pass overwrites the batch-norm statistics with rank 0's
    return Prepared(accelerator, world, module, wrapped, optimizer, config.train.clip)


@contextmanager
def one_pass(prepared: Prepared, last: bool) -> Iterator[Callable[[Tensor], None]]:
    with nullcontext() if last else prepared.accelerator.no_sync(prepared.wrapped):
        yield prepared.accelerator.backward


def update(prepared: Prepared, scale: float | None) -> Tensor:
    """Also fsdp's: the norm of a sharded gradient is a sharded sum, which `full_tensor` completes."""
    learning = [parameter for parameter in prepared.module.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
    if scale is not None:
        torch._foreach_mul_(gradients, 1 / scale)
    norm = get_total_norm(gradients)
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if scale is None or math.isfinite(whole.item()):
        if prepared.clip is not None:
            clip_grads_with_norm_(learning, prepared.clip, norm)
        prepared.optimizer.step()
    prepared.optimizer.zero_grad()
    return whole


def masters(prepared: Prepared) -> Sequence[Tensor]:
    return [parameter for group in prepared.optimizer.param_groups for parameter in group["params"]]


def publish(prepared: Prepared) -> None:
    """The masters are the model's own parameters."""


def take(prepared: Prepared) -> Iterator[Piece]:
    if prepared.world.rank == 0:
        yield from (Piece("model", name, tensor) for name, tensor in prepared.module.state_dict().items())
        yield from (Piece("optim", *item) for item in optim.state_tensors(prepared.optimizer, prepared.module).items())


@torch.no_grad()
def put(prepared: Prepared, tensors: Tensors) -> None:
    for name, own in prepared.module.state_dict().items():
        own.copy_(tensors.model[name])
    if tensors.optimizer:
        optim.load_state_tensors(prepared.optimizer, prepared.module, tensors.optimizer)


def held(prepared: Prepared) -> Held:
    return Held(sum(master.numel() for master in masters(prepared)), sum(p.numel() for p in prepared.module.parameters()))


STRATEGY = Strategy(
    "ddp",
    params_sharded=False,
    equal_passes=False,
    fills_meta=False,
    start=start,
    prepare=prepare,
    one_pass=one_pass,
    update=update,
    masters=masters,
    publish=publish,
    take=take,
    put=put,
    held=held,
    end=dist.destroy_process_group,
)
