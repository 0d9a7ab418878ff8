"""What each rank takes of its machine, and how long it waits for data: measured by the rank itself, told by rank 0 in metrics.jsonl."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

SUMS = ("data_wait_pct", "cpu_pct")
LEVELS = ("memory_gib", "gpu_memory_gib")
LOOK_S = 1.0
ROW_S = 10.0
"""Seconds between two rows that tell of the ranks: with many of them that is most of a row."""


class Usage:
    """One rank's own side, from one step to the next."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.levels, self.looked = device, [math.nan] * len(LEVELS), -math.inf
        self.ranks: list[list[float]] = []
        """What every rank has told of the latest step, in the order of the ranks."""
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self.waited_s, self.cpu_s = 0.0, time.process_time()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for data."""
        began = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - began

    def told(self) -> list[float]:
        """Seconds waited for data and of processor time in this step, GiB of memory and of the GPU's that this process holds; NaN: unknown."""
        now = time.monotonic()
        if now - self.looked > LOOK_S:
            self.looked, self.levels = now, [_resident_gib(), _gpu_gib(self.device)]
        return [self.waited_s, time.process_time() - self.cpu_s, *self.levels]

    def placed(self, rank: int, world: int) -> list[float]:
        """What is told, in its place among zeros for the other ranks: summed over them, it is what all tell."""
        own = self.told()
        return [*[0.0] * (rank * len(own)), *own, *[0.0] * ((world - 1 - rank) * len(own))]

    def hear(self, told: Sequence[float]) -> None:
        """Keep what all ranks have told of a step, one after the other."""
        size = len(SUMS) + len(LEVELS)
        self.ranks = [list(told[place : place + size]) for place in range(0, len(told), size)]

    def peak_gib(self) -> float | None:
        """Most device memory held so far, in GiB; None on CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else None


class Ranks:
    """What all ranks have told since a row last had it."""

    def __init__(self) -> None:
        self.told_at, self.seconds = -math.inf, 0.0
        self.sums: list[list[float]] = []
        self.levels: list[list[float]] = []

    def add(self, told: Sequence[Sequence[float]], seconds: float) -> None:
        """told: for each rank what `Usage.told` says of a step that took so many seconds."""
        before = self.sums or [[0.0] * len(SUMS) for _ in told]
        self.seconds += seconds
        self.sums = [[one + more for one, more in zip(sums, rank, strict=False)] for sums, rank in zip(before, told, strict=True)]
        self.levels = [list(rank[len(SUMS) :]) for rank in told]

    def row(self) -> dict[str, float]:
        """`system/rank0/cpu_pct` and so on: the mean share of time, and memory now; empty where that was told less than ROW_S ago."""
        now = time.monotonic()
        if not self.sums or now - self.told_at < ROW_S:
            return {}
        row = {
            f"system/rank{rank}/{name}": value
            for rank, (sums, levels) in enumerate(zip(self.sums, self.levels, strict=True))
            for name, value in zip((*SUMS, *LEVELS), (*(100 * one / self.seconds for one in sums), *levels), strict=True)
            if not math.isnan(value)
        }
        self.told_at, self.seconds, self.sums = now, 0.0, []
        return row


def _resident_gib() -> float:
    with suppress(OSError):  # Linux tells it
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    return math.nan


def _gpu_gib(device: torch.device) -> float:
    return torch.cuda.memory_reserved(device) / 2**30 if device.type == "cuda" else math.nan
