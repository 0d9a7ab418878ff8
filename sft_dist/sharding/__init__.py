"""Ways to spread model and optimizer over the ranks, by name. A new one is a file here and a line in the table."""

from sft_dist.sharding import ddp
from sft_dist.sharding.contract import Strategy, Tensors

STRATEGIES = {"ddp": ddp.STRATEGY}

__all__ = ["STRATEGIES", "Strategy", "Tensors"]
