"""`ddp`: a whole copy of model and optimizer on every rank; gradients are averaged as the last backward pass makes them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from sft_dist import optim
from sft_dist.sharding.contract import Strategy, Tensors


def prepare(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    wrapped: nn.Module = accelerator.prepare_model(module)
    if accelerator.num_processes > 1:
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped.broadcast_buffers = False  # or every forward pass overwrites the batch-norm statistics with rank 0's
    return wrapped


def one_pass(accelerator: Accelerator, wrapped: nn.Module, last: bool) -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = nullcontext() if last else accelerator.no_sync(wrapped)
    return context


def clip(module: nn.Module, max_norm: float | None) -> Tensor:
    learning = [p for p in module.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in learning if p.grad is not None])
    if max_norm is not None:
        clip_grads_with_norm_(learning, max_norm, norm)
    return norm


def take(module: nn.Module, optimizer: Optimizer, rank: int) -> Tensors:
    if rank != 0:
        return Tensors({}, {})
    return Tensors(module.state_dict(), optim.state_tensors(optimizer, module))


@torch.no_grad()
def put(module: nn.Module, optimizer: Optimizer, tensors: Tensors) -> None:
    module.load_state_dict(tensors.model)
    optim.load_state_tensors(optimizer, module, tensors.optimizer)


STRATEGY = Strategy("ddp", params_sharded=False, prepare=prepare, one_pass=one_pass, clip=clip, take=take, put=put)
