"""The metrics of a run as they grow, read on from where the last look ended."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from sft_dist.history.records import is_number
from sft_dist.progress import HEADLINES

HEADS = tuple(name for name, _ in HEADLINES.values())
KEPT = (*HEADS, "step", "kind", "samples", "epoch", "train/loss", "train/lr", "speed/samples_per_s", "speed/data_wait_pct", "val/loss")
MOST_ROWS = 5_000  # of a run's training that are held, evenly over all of it: a curve shows no more
BLOCK = 8 * 2**20  # bytes of the metrics that are taken at a time


class Rows:
    """The rows of one metrics file."""

    def __init__(self, path: Path, most_bytes: int | None = None) -> None:
        """most_bytes: of the file's end, that a first look reads; None reads all."""
        self.path, self.most_bytes = path, most_bytes
        self.file, self.read_to = 0, 0
        self.rows: list[dict[str, Any]] = []
        self.trained, self.every = 0, 1  # training rows so far, and of which one is held
        self.latest: list[dict[str, Any]] = []  # the training row after those that are held, if there is one
        self.landed: dict[int, float] = {}
        """Step -> when its checkpoint was committed, of all that were seen: a run deletes its older ones."""

    def look(self) -> Sequence[Mapping[str, Any]]:
        """All rows so far, cut to what is shown. A file that was rewound by a resume is another one, and is read from its start."""
        with suppress(OSError), self.path.open("rb") as file:
            known = os.fstat(file.fileno())
            if known.st_ino != self.file or known.st_size < self.read_to:
                self.file, self.rows, self.trained, self.every, self.latest = known.st_ino, [], 0, 1, []
                self.read_to = max(0, known.st_size - self.most_bytes) if self.most_bytes else 0
            while lines := self._next(file):
                self.read_to += len(lines)
                for row in _numbers(lines):
                    self._hold(row)
        return self.rows + self.latest

    def _next(self, file: BinaryIO) -> bytes:
        """Whole lines from where the last ones ended: the last of the file may be half written."""
        file.seek(self.read_to)
        block = file.read(BLOCK)
        return block[: block.rfind(b"\n") + 1]

    def _hold(self, row: dict[str, Any]) -> None:
        """All evaluations, and every so many of the training rows: one of two goes whenever there are too many."""
        if row["kind"] == "eval":
            self.rows.append(row)
            return
        self.trained += 1
        if self.trained > MOST_ROWS * self.every:
            self.every *= 2
            place = count()
            self.rows = [held for held in self.rows if held["kind"] == "eval" or next(place) % 2]
        self.latest = [row] if self.trained % self.every else []
        if not self.latest:
            self.rows.append(row)


def _numbers(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and row.get("kind") in ("train", "eval") and whole(row.get("step")) is not None:
                yield {name: row[name] for name in KEPT if name == "kind" or is_number(row.get(name))}


def whole(value: object) -> int | None:
    return value if is_number(value) and isinstance(value, int) else None
