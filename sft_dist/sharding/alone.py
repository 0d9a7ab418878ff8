"""A process group for a run of one process, which no launcher gave one: what shards needs a group, be it of one rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from sft_dist.plan import World


@contextmanager
def group(world: World, kind: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Make it if this process is alone; a store in its own memory listens on no port. Passes the arguments on."""
    if world.size == 1 and not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield arguments
