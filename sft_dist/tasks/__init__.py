"""Kinds of work by name. A new kind is a file here, a line in the table, and a config."""

from sft_dist.tasks import classify
from sft_dist.tasks.contract import Batch, Losses, Sample, Scores, Task, with_tensors

TASKS = {"classify": classify.TASK}

__all__ = ["TASKS", "Batch", "Losses", "Sample", "Scores", "Task", "with_tensors"]
