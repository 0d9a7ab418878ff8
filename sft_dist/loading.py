"""From windows to batches: what is read, by which worker, with which random draws, and how it gets to the device."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from sft_dist import signals
from sft_dist.datasets import Split
from sft_dist.errors import MachineError
from sft_dist.plan import Plan
from sft_dist.schedule import Pick, draw_seed, window
from sft_dist.tasks import Prepare, Sample, Task

AHEAD = 2  # batches that each worker has ready, torch's default


class Samples(Dataset[Sample]):
    """A split with what each sample goes through. What that draws depends on (seed, epoch, index) alone, in whichever process it runs."""

    def __init__(self, split: Split, prepare: Prepare, size: int, seed: int) -> None:
        self.split, self.prepare, self.size, self.seed = split, prepare, size, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, pick: Pick) -> Sample:
        position, draw = pick.position, draw_seed("augment", self.seed, pick.epoch, pick.position)
        torch.default_generator.manual_seed(draw)
        try:
            return Sample(position, *self.prepare(self.split.read(position), self.split.target(position)), None, draw)
        except (OSError, ValueError) as error:
            # Told with the batch and raised by all ranks together: a rank that stopped here would leave the others waiting.
            return self.blank(position, f"data: unreadable sample {self.split.names[position]}: {error}")

    def blank(self, position: int, problem: str) -> Sample:
        """A black image in the place of one that cannot be read."""
        return Sample(position, torch.zeros(3, self.size, self.size, dtype=torch.uint8), None, problem)


class Windows:
    """The micro-batches of one rank from a step on, laid end to end; what a DataLoader takes as its batch sampler."""

    def __init__(self, plan: Plan, rank: int, start: int) -> None:
        self.plan, self.rank, self.start = plan, rank, start

    def __iter__(self) -> Iterator[list[Pick]]:
        for step in range(self.start, self.plan.total_steps):
            yield from window(step, self.rank, self.plan)

    def __len__(self) -> int:
        return (self.plan.total_steps - self.start) * self.plan.passes_per_rank[self.rank]


def training_batches(task: Task, samples: Samples, plan: Plan, rank: int, start: int, workers: int, pin: bool) -> "DataLoader[Any]":
    """Micro-batches for the steps after `start`, loaded ahead by `workers` processes. Raises MachineError if they cannot be passed on."""
    waiting = plan.passes_per_rank[rank] if task.count else 1  # what is counted first is held until then
    _check_shared_memory(workers, waiting, plan.micro_batch * _bytes(task, samples.blank(0, "")))
    return _loader(samples, Windows(plan, rank, start), task.collate, workers, pin)


def evaluation_batches(task: Task, samples: Samples, shares: Sequence[Sequence[int]], workers: int, pin: bool) -> "DataLoader[Any]":
    """One batch for each share of positions. Raises MachineError as `training_batches` does."""
    if workers and shares:
        one = samples[Pick(0, shares[0][0])] if task.alone else samples.blank(0, "")  # the first says how large whole images are
        _check_shared_memory(workers, 1, max(map(len, shares)) * _bytes(task, one))
    return _loader(samples, [[Pick(0, i) for i in share] for share in shares], task.collate, workers, pin)


def _loader(samples: Samples, batches: Any, collate: Callable[..., Any], workers: int, pin: bool) -> "DataLoader[Any]":
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context="fork" if workers else None,  # a split reads through closures, which no other way carries over
    )


def _bytes(task: Task, sample: Sample) -> int:
    return int(task.collate([sample]).bytes)


def _check_shared_memory(workers: int, in_use: int, batch_bytes: int) -> None:
    """A worker that finds no room for a batch says so on the screen and drops it, and the rank waits for ever (torch 2.14.1)."""
    place, needed = Path("/dev/shm"), (workers * AHEAD + in_use) * batch_bytes  # noqa: S108, it is where torch puts them
    if workers and place.is_dir() and (free := shutil.disk_usage(place).free) < needed:
        raise MachineError(
            f"shared memory ({place}) has {free / 2**20:.1f} MiB free, but {workers} data workers pass on batches of {needed / 2**20:.1f} MiB; "
            "make it larger (docker run --shm-size), or use fewer data.workers (0 needs none of it)"
        )


def _start_worker(_: int) -> None:
    signals.ignore()
    torch.set_num_threads(1)
