"""Whether sharding came about: what a rank holds beside what it should (a strategy that fell back to copies says nothing)."""

from typing import NamedTuple

from torch import nn

from sft_dist.config import Config
from sft_dist.errors import MachineError
from sft_dist.sharding.contract import Held


class Whole(NamedTuple):
    """A model before it is spread."""

    held: Held
    """What a rank with all of it would hold."""
    granularity: Held
    """Elements by which a share may miss its even part: fsdp splits by rows, so a row of each tensor; DeepSpeed pads by less."""


def of_whole(module: nn.Module) -> Whole:
    parameters = list(module.parameters())
    learning = [parameter for parameter in parameters if parameter.requires_grad]

    def rows(tensors: list[nn.Parameter]) -> int:
        return sum(tensor.numel() // max(1, tensor.shape[0] if tensor.ndim else 1) for tensor in tensors)

    held = Held(*(sum(tensor.numel() for tensor in tensors) for tensors in (learning, parameters)))
    return Whole(held, Held(rows(learning), rows(parameters)))


def check(held: Held, whole: Whole, config: Config, world: int) -> str:
    """What this rank holds, in words. Raises MachineError if it is more than the share that the strategy promises."""
    strategy, ranks = config.shard.strategy, config.shard.hybrid or world
    masters = whole.held.masters // (1 if strategy == "ddp" else ranks)
    parameters = whole.held.parameters // (ranks if strategy in ("zero3", "fsdp") else 1)
    if held.masters > masters + whole.granularity.masters or held.parameters > parameters + whole.granularity.parameters:
        raise MachineError(
            f"shard.strategy = {strategy} should leave each of {ranks} ranks {masters:,} elements of each optimizer moment and "
            f"{parameters:,} of the parameters, but this rank holds {held.masters:,} and {held.parameters:,}"
        )
    return (
        f"rank 0 of {world} holds {held.masters:,} of {whole.held.masters:,} elements of each optimizer moment and "
        f"{held.parameters:,} of {whole.held.parameters:,} of the parameters"
    )
