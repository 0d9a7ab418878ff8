"""Saving in two parts: the step pays for a copy to host memory; writing, hashing and the commit run behind the training."""

import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sft_dist import archive, checkpoint
from sft_dist.checkpoint import About
from sft_dist.config import Save
from sft_dist.engine import Engine
from sft_dist.errors import MachineError, SftError
from sft_dist.manifest import Entry
from sft_dist.progress import Progress
from sft_dist.rundir import RunDir, step_name


class WriterError(Exception):
    """A bug met by the thread that writes a checkpoint of some rank, with its traceback in words; raised on all ranks."""


class Work:
    """A function on a thread of its own, and what came of it. The thread does not keep the process alive: a disk may be stuck."""

    def __init__(self, act: Callable[[], dict[str, Entry]]) -> None:
        self.files: dict[str, Entry] = {}
        self.error: OSError | None = None
        self.bug: str | None = None
        """The traceback of what is not the disk's fault."""
        self.thread = threading.Thread(target=self._run, args=(act,), name="checkpoint writer", daemon=True)
        self.thread.start()

    def _run(self, act: Callable[[], dict[str, Entry]]) -> None:
        time.sleep(0.001)  # or the new thread would hold Python's lock for some milliseconds first, and the step would wait for it
        try:
            self.files = act()
        except OSError as error:
            self.error = error
        except MachineError as error:  # what `write_atomically` makes of an OSError
            self.error = error.__cause__ if isinstance(error.__cause__, OSError) else OSError(str(error))
        except BaseException:  # must reach the screen too, not die with the thread
            self.bug = traceback.format_exc()

    @property
    def over(self) -> bool:
        return not self.thread.is_alive()


@dataclass
class Flight:
    """A save on its way: first every rank's files are written, then rank 0 commits."""

    progress: Progress
    aside: Path
    work: Work
    started: float
    committing: bool = False
    given_up: bool = False
    """Its failure was told; a writer that was stuck and comes to life again must not commit it after all."""


class Saver:
    """The saves of a run, one at a time. All ranks must make the same calls; what goes wrong on one is raised on all."""

    def __init__(self, run: RunDir, engine: Engine, settings: Save, about: About, landed: Callable[[Progress, float], None]) -> None:
        """landed: called on rank 0 with the progress that a committed checkpoint holds, and the seconds that the save took."""
        self.run, self.engine, self.settings, self.about, self.landed = run, engine, settings, about, landed
        self.buffers: dict[tuple[str, str], Tensor] = {}
        self.flight: Flight | None = None
        self.warnings: list[str] = []
        self.lost: Sequence[str] = ()
        """Why the newest checkpoint is not there, if it is not."""

    def save(self, progress: Progress) -> None:
        """Begin a checkpoint of this step; without `save.background` also end it. The save before must have ended first."""
        self.engine.pulse.at("save")
        self.finish()
        self.engine.even_out_statistics()
        try:
            aside = self.engine.on_main(lambda: self._begin(progress))
        except MachineError as error:
            self._fail(error.problems)
            return
        parts = self._snapshot()
        self.flight = Flight(progress, aside, Work(lambda: self._write(aside, parts)), time.monotonic())
        if not self.settings.background:
            self.finish()

    def poll(self) -> None:
        """Look after the save in flight, without waiting for it; one message among the ranks if there is one, none otherwise."""
        while self.flight:
            over, late = self.flight.work.over, time.monotonic() > self.flight.started + self.settings.limit_s
            ranks_over, ranks_late = self.engine.sum([float(over), float(late)])
            if ranks_over < self.engine.world and not ranks_late:
                return
            self._go_on(self.flight, [] if over else [self._too_late(self.flight)])

    def finish(self, final: bool = False) -> None:
        """Wait for the save in flight, `save.limit_s` seconds at most. final: its failure ends the run even with `on_error: continue`."""
        self.engine.pulse.at("save")
        while self.flight:
            flight = self.flight
            flight.work.thread.join(max(0.0, flight.started + self.settings.limit_s - time.monotonic()))
            self._go_on(flight, [] if flight.work.over else [self._too_late(flight)])
        if final and self.lost:
            self.warnings = []
            raise MachineError(self.lost, everywhere=True)

    @contextmanager
    def landing(self) -> Iterator[None]:
        """What all ranks raise together leaves time for the save in flight; after the loss of a rank it is given up."""
        try:
            yield
        except SftError as error:
            if error.everywhere:
                phase = self.engine.pulse.beat.phase
                try:
                    self.finish()
                except MachineError as late:  # the first error stays the first
                    raise type(error)([*error.problems, *late.problems], everywhere=True) from error
                finally:
                    self.engine.pulse.at(phase)  # the record tells where it went wrong, not what was still waited for
            raise

    def warned(self) -> list[str]:
        """What went wrong and did not stop the run, since this was last asked."""
        warnings, self.warnings = self.warnings, []
        return warnings

    def _go_on(self, flight: Flight, late: list[str]) -> None:
        """From written to committing, and from committing to landed; or to the failure that any rank met."""
        work = flight.work
        own = late or ([checkpoint.cannot_save(self.run, self._bytes(), work.error)] if work.error else [])
        where = f"rank {self.engine.rank}: " if self.engine.world > 1 else ""
        bugs = [f"{where}a bug in the writer of a checkpoint\n{work.bug}"] if work.bug else []
        said = self.engine.agree([json.dumps([[where + one for one in own], bugs, work.files, bool(late)])])
        told = [json.loads(line) for line in said]
        problems, bugs = ([line for lines in told for line in lines[i]] for i in (0, 1))
        if problems or bugs:
            self._give_up(flight, stuck=any(stuck for *_, stuck in told))
            if bugs:
                raise WriterError("\n".join([*bugs, *problems]))
            self._fail(problems)
        elif flight.committing:
            self.flight, self.lost = None, ()
        else:
            files = {name: Entry(*entry) for _, _, written, _ in told for name, entry in written.items()}
            flight.committing = True
            flight.work = Work(lambda: self._commit(flight, files))

    def _begin(self, progress: Progress) -> Path:
        try:
            return checkpoint.begin(self.run, progress.step)
        except OSError as error:
            raise MachineError(checkpoint.cannot_save(self.run, self._bytes(), error)) from error

    def _commit(self, flight: Flight, files: dict[str, Entry]) -> dict[str, Entry]:
        if self.engine.is_main:
            keep, wanted = self.settings.keep, lambda: not flight.given_up
            if checkpoint.commit(self.run, flight.aside, files, flight.progress, self.about, keep, wanted):
                self.landed(flight.progress, time.monotonic() - flight.started)
        return {}

    @torch.no_grad()
    def _snapshot(self) -> dict[str, dict[str, Tensor]]:
        """This rank's tensors in host memory. The copies' memory is kept for the next save: fresh memory costs as much again."""
        parts: dict[str, dict[str, Tensor]] = {}
        pinned = self.engine.device.type == "cuda"
        for part, name, tensor in self.engine.take():
            copy = self.buffers.get((part, name))
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = self.buffers[part, name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            copy.copy_(tensor, non_blocking=True)
            parts.setdefault(part, {})[name] = copy
        if pinned:
            torch.cuda.synchronize(self.engine.device)
        return parts

    def _write(self, aside: Path, parts: dict[str, dict[str, Tensor]]) -> dict[str, Entry]:
        names = {checkpoint.file_name(part, self.engine.rank): tensors for part, tensors in parts.items()}
        return {name: archive.write(aside / name, tensors) for name, tensors in names.items()}

    def _bytes(self) -> int:
        return sum(copy.nbytes for copy in self.buffers.values())

    def _too_late(self, flight: Flight) -> str:
        return (
            f"the checkpoint of {step_name(flight.progress.step)} has not reached the disk of {self.run.checkpoints} in "
            f"save.limit_s = {self.settings.limit_s} seconds; the file system is stuck or too slow"
        )

    def _give_up(self, flight: Flight, stuck: bool) -> None:
        """Forget a save. A stuck disk is not touched again, and the memory that its writer may still read is left to it."""
        flight.given_up, self.flight = True, None
        if stuck:
            self.buffers = {}
        elif self.engine.is_main:
            checkpoint.clear_unfinished(self.run)

    def _fail(self, problems: Sequence[str]) -> None:
        self.lost = problems
        if self.settings.on_error == "stop":
            raise MachineError(problems, everywhere=True)
        self.warnings += [f"training goes on without this checkpoint (save.on_error = continue): {problem}" for problem in problems]
