"""Ways to spread model and optimizer over the ranks, by name. A new one is a file here and a line in the table."""

from sft_dist.sharding import ddp, fsdp, zero
from sft_dist.sharding.contract import Held, Piece, Prepared, Strategy, Tensors

STRATEGIES = {"ddp": ddp.STRATEGY, "zero1": zero.ZERO1, "zero2": zero.ZERO2, "zero3": zero.ZERO3, "fsdp": fsdp.STRATEGY}

__all__ = ["STRATEGIES", "Held", "Piece", "Prepared", "Strategy", "Tensors"]
