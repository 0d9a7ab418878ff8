"""Where DeepSpeed keeps what: for each parameter group one flat fp32 partition a rank, the masters that its optimizer updates;
a parameter's part of it is a fragment. Its inner names are used here and in `zero` only (deepspeed 0.19)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sft_dist.sharding.contract import Prepared


class Fragment(NamedTuple):
    """Where a part of a parameter lies in a flat partition of this rank."""

    flat: Tensor
    start: int
    parameter_start: int
    numel: int

    def of(self, flat_like: Tensor) -> Tensor:
        """The fragment's part of a tensor laid out like the flat partition."""
        return flat_like.narrow(0, self.start, self.numel)

    def of_whole(self, whole: Tensor) -> Tensor:
        """The fragment's part of the whole parameter, or of a moment of it."""
        return whole.reshape(-1).narrow(0, self.parameter_start, self.numel)


def masters(prepared: Prepared) -> Sequence[Tensor]:
    inner: Any = prepared.wrapped.optimizer
    flat: Sequence[Tensor] = inner.fp32_partitioned_groups_flat if stage(prepared) == 3 else inner.single_partition_of_fp32_groups
    return flat


def learning(prepared: Prepared) -> Iterator[tuple[str, Any, Tensor]]:
    """Name, parameter and flat partition of everything that learns, in the same order on all ranks."""
    names = {id(parameter): name for name, parameter in prepared.module.named_parameters()}
    for group, master in zip(_groups(prepared), masters(prepared), strict=True):
        for parameter in group:
            yield names[id(parameter)], parameter, master


def fragments(prepared: Prepared) -> dict[int, Fragment]:
    """The fragment of each parameter, by identity, that lies in this rank's partitions; a rank has none of many."""
    inner: Any = prepared.wrapped.optimizer
    found = {}
    for _, parameter, master in learning(prepared):
        if stage(prepared) == 3:
            _, start, size = inner.grad_position[inner.get_param_id(parameter)]
            first = prepared.world.rank * size
            fragment = Fragment(master, start, first, min(size, parameter.ds_numel - first))
            if fragment.numel > 0:
                found[id(parameter)] = fragment
        elif (mapping := parameter._hp_mapping) is not None:
            found[id(parameter)] = Fragment(
                master, mapping.hp_fragment_address.start, mapping.lp_fragment_address.start, mapping.hp_fragment_address.numel
            )
    return found


def whole(flat: Tensor, fragment: Fragment | None, parameter: nn.Parameter, prepared: Prepared) -> Tensor:
    """A moment of one parameter, put together from all ranks' fragments, on the device: with offloading they lie elsewhere."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    whole = torch.zeros(shape, dtype=flat.dtype, device=prepared.accelerator.device)
    if fragment:
        fragment.of_whole(whole).copy_(fragment.of(flat))
    dist.all_reduce(whole)
    return whole


def _groups(prepared: Prepared) -> Sequence[Sequence[Any]]:
    """The parameters that learn, flat partition by flat partition, with what DeepSpeed has written on them."""
    inner: Any = prepared.wrapped.optimizer
    groups: Sequence[Sequence[Any]] = inner.fp16_groups if stage(prepared) == 3 else inner.bit16_groups
    return groups


def stage(prepared: Prepared) -> int:
    """1, 2 or 3."""
    engine: Any = prepared.wrapped
    number: int = engine.zero_optimization_stage()
    return number
