"""`fsdp`: parameters, gradients and optimizer state in rows over the ranks, by torch's own `fully_shard` (FSDP2), on CPU and GPU alike."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import SGD, Optimizer

from sft_dist.blocks import blocks
from sft_dist.config import Config
from sft_dist.plan import World, timeout_s
from sft_dist.sharding import alone, ddp
from sft_dist.sharding.contract import Held, Piece, Prepared, Strategy, Tensors, owners


def start(config: Config, world: World, kind: str) -> AbstractContextManager[dict[str, Any]]:
    if config.shard.offload == "params" and kind == "cuda" and world.size > 1:
        # Rows in host memory travel by gloo; Accelerate would start NCCL alone.
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timedelta(seconds=timeout_s(config)))
    return alone.group(world, kind, {"cpu": kind == "cpu"})


def prepare(
    accelerator: Accelerator, world: World, module: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer], config: Config
) -> Prepared:
    """Shard block by block, so that a rank holds one whole block at a time; then fill each rank's rows from rank 0's model.

    Other ranks' models may be on the meta device; if rank 0's is as well, nothing is filled: a checkpoint will do it.
    """
    device = accelerator.device
    source = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    module.to("meta")
    settings: dict[str, Any] = {
        # Gathered as they are, in fp32: bf16 and fp16 are autocast here as everywhere, which leaves norms and sums in fp32.
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=None if config.precision == "fp64" else torch.float32, cast_forward_inputs=False),
        "mesh": _mesh(device.type, world.size, config.shard.hybrid),
        "reshard_after_forward": config.shard.reshard_after_forward,
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.shard.offload == "params" else OffloadPolicy(),
    }
    for _, block in blocks(module):
        block.register_forward_hook(_no_view)  # before torch's own hook, which is given what it makes
        fully_shard(block, **settings)
    fully_shard(module, **settings)
    module.to_empty(device="cpu" if config.shard.offload == "params" else device)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)  # only parameters wait in host memory
    _fill(module, source, world)
    optimizer = make_optimizer(module)
    if isinstance(optimizer, SGD):
        for group in optimizer.param_groups:
            group["fused"] = False  # torch 2.14 has no fused SGD over DTensor, and raises NotImplementedError
    return Prepared(accelerator, world, module, module, optimizer, config.train.clip)


@contextmanager
def one_pass(prepared: Prepared, last: bool) -> Iterator[Callable[[Tensor], None]]:
    assert isinstance(prepared.module, FSDPModule)
    prepared.module.set_requires_gradient_sync(last)
    yield lambda loss: loss.backward()  # type: ignore[no-untyped-call]


def publish(prepared: Prepared) -> None:
    """The masters are the model's own rows; blocks that are still gathered, with what was in them before, are let go of."""
    for module in prepared.module.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def take(prepared: Prepared) -> Iterator[Piece]:
    """Every tensor is gathered on all ranks, one at a time, and taken by its owner."""
    tensors = prepared.module.state_dict()
    owner = owners({name: tensor.numel() for name, tensor in tensors.items()}, prepared.world.size)
    for name, tensor in tensors.items():
        whole = _whole(tensor)
        if owner[name] == prepared.world.rank:
            yield Piece("model", name, whole)
    for name, parameter in prepared.module.named_parameters():
        for moment, value in prepared.optimizer.state.get(parameter, {}).items():
            whole = _whole(value)
            if owner[name] == prepared.world.rank:
                yield Piece("optim", f"{name}/{moment}", whole)


@torch.no_grad()
def put(prepared: Prepared, tensors: Tensors) -> None:
    for name, own in prepared.module.state_dict().items():
        own.copy_(_spread(tensors.model[name], own))
    if not tensors.optimizer:
        return
    learning = dict(prepared.module.named_parameters())
    prepared.optimizer.state.clear()
    for key in tensors.optimizer:
        name, _, moment = key.rpartition("/")
        parameter, value = learning[name], tensors.optimizer[key]
        if value.ndim:
            value = _spread(value.to(parameter.dtype), parameter)
        prepared.optimizer.state[parameter][moment] = value.to(parameter.device, copy=True)  # not a view of the mapped file


def held(prepared: Prepared) -> Held:
    def rows(tensors: Any) -> int:
        return sum(tensor.to_local().numel() for tensor in tensors)

    return Held(rows(ddp.masters(prepared)), rows(prepared.module.parameters()))


def _no_view(_: nn.Module, __: Any, output: Any) -> Any:
    """A block's output as memory of its own. torch 2.14 hangs the gathering for the backward pass on it and warns, for an in-place
    operation on a view would drop that in silence; ConvNeXt's stem ends in a view (a permuted norm). It can go with the warning."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _mesh(kind: str, world: int, group: int | None) -> DeviceMesh:
    """All ranks share the rows; with `shard.hybrid` groups of that many do, and each group holds a copy (HSDP)."""
    if group is None:
        return init_device_mesh(kind, (world,))
    return init_device_mesh(kind, (world // group, group), mesh_dim_names=("replicate", "shard"))


@torch.no_grad()
def _fill(module: nn.Module, source: dict[str, Tensor], world: World) -> None:
    """Rank 0's values into every rank's rows, one tensor at a time."""
    told = [all(tensor.is_meta for tensor in source.values())]
    dist.broadcast_object_list(told)
    if told[0]:
        return
    for name, own in module.state_dict().items():
        whole = source.pop(name)
        device = own.device
        whole = whole.to(device) if world.rank == 0 else torch.empty(whole.shape, dtype=whole.dtype, device=device)
        dist.broadcast(whole, src=0)
        own.copy_(_spread(whole, own))


def _spread(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's rows of a tensor that every rank has whole, laid out like another one."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


STRATEGY = Strategy(
    "fsdp",
    params_sharded=True,
    equal_passes=True,
    fills_meta=True,
    start=start,
    prepare=prepare,
    one_pass=one_pass,
    update=ddp.update,
    masters=ddp.masters,
    publish=publish,
    take=take,
    put=put,
    held=held,
    end=dist.destroy_process_group,
)
