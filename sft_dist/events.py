"""A run in TensorBoard: event files with the rows of metrics.jsonl, which a resume continues without a step twice."""

import importlib.util
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sft_dist import parse, redact
from sft_dist.config import Track
from sft_dist.errors import ConfigError
from sft_dist.kinds import SCORES
from sft_dist.progress import HEADLINES
from sft_dist.rundir import RunDir, read_rows

FOLDER = "tensorboard"
NAME = "events.out.tfevents."


def check(track: Track) -> None:
    """Refuse to write for a package that is missing."""
    if track.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise ConfigError("track.tensorboard = true, but the package tensorboard is not installed; pip install 'sft-dist[tensorboard]'")


class Events:
    """An open event file. It is written by the process that trains, in a third of a millisecond a row, and no failure of it is one of the run's."""

    def __init__(self, run: RunDir, secrets: Collection[str], warn: Callable[[str], None]) -> None:
        """secrets: what no text may hold. warn: hears, once, that something cannot be written; from then on nothing is."""
        self.warn = warn
        self.file: IO[bytes] | None = None
        with self._harmless():
            self._begin(run, secrets)

    def add(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        if not self.file:
            return
        with self._harmless():
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if _is_shown(name, value)]
            self._write(step=row["step"], summary=Summary(value=values))

    def flush(self) -> None:
        """What was added is on the disk when this returns."""
        with self._harmless():
            if self.file:
                os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.file:
            with suppress(OSError):  # it was told, and Python tries to write the rest once more
                self.file.close()
        self.file = None

    def _begin(self, run: RunDir, secrets: Collection[str]) -> None:
        """A new file. It takes back what older ones hold from the newest row on, or all that there is, and tells that from the rows."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        folder = run.path / FOLDER
        folder.mkdir(exist_ok=True)
        older = [_number(path) for path in folder.glob(f"{NAME}*")]
        number = max([int(time.time()), *(one + 1 for one in older)])  # TensorBoard reads them in the order of their names
        self.file = (folder / f"{NAME}{number:010d}.{socket.gethostname()}.{os.getpid()}").open("xb")
        rows = read_rows(run.metrics)
        newest = rows[-1]["step"] if rows and older else 0
        self._write(file_version="brain.Event:2")
        self._write(step=newest, session_log=SessionLog(status=SessionLog.START))
        for summary in _summaries(redact.without(secrets, parse.flat(parse.load(run.config)))):
            self._write(step=newest, summary=summary)
        for row in rows:
            if row["step"] >= newest:
                self.add(row)

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self._harmless():
            if self.file:
                RecordWriter(self.file).write(Event(wall_time=time.time(), **event).SerializeToString())
                self.file.flush()

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the disk's, and whatever TensorBoard's package raises where another one does not fit it
            self.close()
            told = (error.strerror if isinstance(error, OSError) else None) or next(iter(str(error).splitlines()), type(error).__name__)
            self.warn(f"nothing more is written for TensorBoard: {told}; metrics.jsonl has every row")


def _summaries(config: Mapping[str, Any]) -> Iterator[Any]:
    """A config as a text, and as hyperparameters with the scores that they are judged by."""
    from torch.utils.tensorboard import summary

    make: Any = summary  # without types
    plain = {key: value if isinstance(value, int | float) else str(value) for key, value in config.items()}
    yield make.text("config", "\n".join(["| key | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in plain.items())]))
    task = named if (named := str(config.get("task"))) in HEADLINES else "classify"
    yield from make.hparams(plain, {name: 0 for name in (HEADLINES[task][0], "val/loss") if name in SCORES[task]})


def _is_shown(name: str, value: object) -> bool:
    return isinstance(value, int | float) and ("/" in name or name == "epoch")


def _number(path: Path) -> int:
    number = path.name.removeprefix(NAME).partition(".")[0]
    return int(number) if number.isdecimal() else 0
