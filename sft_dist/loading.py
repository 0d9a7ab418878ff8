"""From windows to batches: what is read, by which worker, with which random draws, and how it gets to the device."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sft_dist import signals
from sft_dist.datasets import Split
from sft_dist.errors import MachineError
from sft_dist.plan import Plan
from sft_dist.schedule import Pick, draw_seed, window
from sft_dist.tasks import Sample, Task, with_tensors

AHEAD = 2  # batches that each worker has ready, torch's default


class Samples(Dataset[Sample]):
    """A split with its transform. What it draws for a pick depends on (seed, epoch, index) alone, in whichever process it runs."""

    def __init__(self, split: Split, transform: Callable[[Tensor], Tensor], size: int, seed: int) -> None:
        self.split, self.transform, self.size, self.seed = split, transform, size, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, pick: Pick) -> Sample:
        torch.default_generator.manual_seed(draw_seed("augment", self.seed, pick.epoch, pick.position))
        label = self.split.labels[pick.position]
        try:
            return Sample(pick.position, self.transform(self.split.read(pick.position)), label, None)
        except (OSError, ValueError) as error:
            # Told with the batch and raised by all ranks together: a rank that stopped here would leave the others waiting.
            black = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
            return Sample(pick.position, black, label, f"data: unreadable sample {self.split.names[pick.position]}: {error}")


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
    _check_shared_memory(workers, plan.micro_batch * 3 * samples.size**2)
    return _loader(samples, Windows(plan, rank, start), task.collate, workers, pin)


def evaluation_batches(task: Task, samples: Samples, shares: Sequence[Sequence[int]], workers: int, pin: bool) -> "DataLoader[Any]":
    """One batch for each share of positions. Raises MachineError as `training_batches` does."""
    _check_shared_memory(workers, max(map(len, shares), default=0) * 3 * samples.size**2)
    return _loader(samples, [[Pick(0, i) for i in share] for share in shares], task.collate, workers, pin)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch (dataclass) with its tensors on the device; copies from pinned memory overlap with what runs there."""
    return with_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


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


def _check_shared_memory(workers: int, batch_bytes: int) -> None:
    """A worker that finds no room for a batch says so on the screen and drops it, and the rank waits for ever (torch 2.14.1)."""
    place, needed = Path("/dev/shm"), (workers * AHEAD + 1) * batch_bytes  # noqa: S108, it is where torch puts them; one is in use
    if workers and place.is_dir() and (free := shutil.disk_usage(place).free) < needed:
        raise MachineError(
            f"shared memory ({place}) has {free / 2**20:.1f} MiB free, but {workers} data workers pass on batches of {needed / 2**20:.1f} MiB; "
            "make it larger (docker run --shm-size), or use fewer data.workers (0 needs none of it)"
        )


def _start_worker(_: int) -> None:
    signals.ignore()
    torch.set_num_threads(1)
