"""Kinds of work by name. A new kind is a file here, a line in the table, and a config."""

from sft_dist.tasks import classify, detect
from sft_dist.tasks.contract import Batch, Losses, Prepare, Sample, Scores, Task

TASKS = {"classify": classify.TASK, "detect": detect.TASK}

__all__ = ["TASKS", "Batch", "Losses", "Prepare", "Sample", "Scores", "Task"]
