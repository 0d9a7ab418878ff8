"""The agent's eye on the ranks of its node: hands signals on, writes heartbeats, and ends a job in which a rank has fallen silent."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launch import hold
from launch.nodes import Place
from sft_dist import attempts, pulse
from sft_dist.config import Config
from sft_dist.errors import MachineError
from sft_dist.guard import STACKS
from sft_dist.pulse import Beat

LOOK_S, WRITE_S = 0.5, 2.0
STACKS_S = 3.0
"""How long the ranks get to write their stacks before they are killed."""
DISK_S = 10.0
"""How long the disk gets to take a record: it may be what the ranks wait for."""
GIVE_UP_S = 300.0
PATIENCE = 30
"""`auto` is this many times the longest silence that was normal so far."""
AT_LEAST_S = 300


@dataclass
class Limits:
    """Seconds that a rank may be silent in each kind of phase; learned from the run's own pace where the config says `auto`."""

    asked: Mapping[str, int | str]
    longest_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> "Limits":
        watch = config.watch
        save = watch.save_s if watch.save_s != "auto" else config.save.limit_s + AT_LEAST_S
        end = config.track.limit_s + config.report.limit_s + AT_LEAST_S  # rank 0 waits there for W&B and for the report
        asked = {"start-up": watch.startup_s, "step": watch.step_s, "evaluation": watch.evaluation_s}
        return cls({**asked, "save": save, "end": end, "waiting for rank 0": 7200})

    def of_phase(self, phase: str) -> float:
        kind = phase if phase in self.asked else "step"
        asked = self.asked[kind]
        return max(AT_LEAST_S, PATIENCE * self.longest_s.get(kind, 0.0)) if isinstance(asked, str) else float(asked)

    def learn(self, phase: str, lasted_s: float) -> None:
        """A phase that came to its end was a normal one."""
        kind = phase if phase in self.asked else "step"
        self.longest_s[kind] = max(lasted_s, self.longest_s.get(kind, 0.0))


class Silences:
    """How long each rank has been in its phase, by the agent's own looks: a stopped clock or a machine that slept count for nothing."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.beats: dict[int, Beat] = {}
        self.lasted_s: dict[int, float] = {}

    def look(self, beats: Mapping[int, Beat], stopped: Collection[int], passed_s: float) -> list[int]:
        """The ranks that have been in one phase for longer than they may, stopped ones in any; passed_s: since the last look."""
        late = []
        for rank, beat in beats.items():
            before = self.beats.get(rank)
            if before is None or before.count != beat.count:
                if before:
                    self.limits.learn(before.phase, self.lasted_s[rank])
                self.lasted_s[rank] = 0.0
            else:
                self.lasted_s[rank] += min(passed_s, 10 * LOOK_S)  # a longer gap was the agent's own
            allowed_s = self.limits.of_phase("data" if rank in stopped else beat.phase)
            if self.lasted_s[rank] > allowed_s and before == beat:  # the same twice: a beat may be read while it is written
                late.append(rank)
        self.beats = dict(beats)
        return late


class Watch:
    """Lives as long as the ranks do, on three threads: for signals, for the pulses, and for the file system, which may be stuck."""

    def __init__(self, place: Place, pulses: Path, limits: Limits) -> None:
        """Signals must be held back already (`hold.back`); the ranks inherit that, and let them in when they listen."""
        self.place, self.pulses, self.silences = place, pulses, Silences(limits)
        self.asked: signal.Signals | None = None
        self.fell_silent = False
        self.beats: dict[int, Beat] = {}
        self.told: set[int] = set()
        self.heard = hold.heard()
        self.telling = threading.Lock()
        self.over = threading.Event()
        self.looking = _thread(self._look)
        _thread(self._hear)
        _thread(self._write)

    def close(self) -> None:
        """Look for the last time; what the ranks did last stays readable."""
        self.over.set()
        self.looking.join(DISK_S)
        _within(DISK_S, lambda: attempts.write_beats(self.place.folder, self.beats))

    def _hear(self) -> None:
        while True:
            number = signal.sigwait(self.heard)
            if number == signal.SIGQUIT:
                self.show_stacks()
                continue
            with self.telling:
                self.asked = signal.Signals(signal.SIGTERM if number == signal.SIGHUP else number)
                self.told.clear()  # a second interrupt means something else to the ranks than the first
            self._hand_on()

    def _hand_on(self) -> None:
        with self.telling:  # or both threads could tell a rank, which would take it for a second interrupt
            for rank, beat in self._read().items():
                if self.asked and rank not in self.told and _state(beat.pid) != "?":
                    self.told.add(rank)
                    _kill(beat.pid, self.asked)

    def _look(self) -> None:
        last = time.monotonic()
        while not self.over.wait(LOOK_S):
            passed_s, last = time.monotonic() - last, time.monotonic()
            self.beats = self._read()
            self._hand_on()
            states = {rank: _state(beat.pid) for rank, beat in self.beats.items()}
            here = {rank: beat for rank, beat in self.beats.items() if states[rank] not in "?XZ"}  # who has ended may be silent
            if late := self.silences.look(here, [rank for rank in here if states[rank] in "Tt"], passed_s):
                self._end(late)
                return
        self.beats = self._read()

    def _write(self) -> None:
        while not self.over.wait(WRITE_S):
            with suppress(MachineError):  # a full disk is the run's problem first
                attempts.write_beats(self.place.folder, self.beats)

    def _read(self) -> dict[int, Beat]:
        found = {rank: pulse.read(self.pulses / str(rank)) for rank in self.place.ranks}
        return {rank: beat for rank, beat in found.items() if beat}

    def show_stacks(self) -> None:
        """Let every rank of this node write its Python stacks and its last collectives into the attempt's folder."""
        for rank, beat in self._read().items():
            if _state(beat.pid) != "?":
                _kill(beat.pid, STACKS)
                with suppress(OSError):
                    pulse.want(self.pulses / str(rank))

    def _end(self, late: list[int]) -> None:
        """Write down who is silent and what all were doing; then end the ranks, which no longer can themselves."""
        self.fell_silent = True
        self.show_stacks()
        time.sleep(STACKS_S)
        records = [_silence(self.beats[rank], rank, self.silences.lasted_s[rank], self.place.index) for rank in late]
        _within(DISK_S, lambda: self._record(records))
        for beat in self.beats.values():
            if _state(beat.pid) != "?":
                _kill(beat.pid, signal.SIGKILL)
        _thread(_give_up)

    def _record(self, records: list[attempts.Failure]) -> None:
        for record in records:
            attempts.write_failure(self.place.folder, record, replace=False)  # what a rank said itself, before it hung, is the cause


def _give_up() -> None:
    """What the agent still has to write may hang as well, on the disk that the ranks waited for; the nodes must be free at last."""
    time.sleep(GIVE_UP_S)
    os._exit(75)


def _silence(beat: Beat, rank: int, lasted_s: float, node: int) -> attempts.Failure:
    since = time.strftime("%H:%M:%S", time.localtime(beat.since_ns / 1e9))
    stopped = "; the process is stopped (state T, SIGSTOP)" if _state(beat.pid) in "Tt" else ""
    message = f"in {beat.phase} since {since}, {lasted_s:.0f} s without a sign{stopped}"
    host = socket.gethostname()
    return attempts.Failure(beat.since_ns, rank, host, beat.step, beat.phase, 75, "Silent", message, node, told_by="watchdog")


def _state(pid: int) -> str:
    """The kernel's letter for what a rank does: T is stopped, D waits for a disk; ? if it is gone, and its number perhaps another's."""
    try:
        letter, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:2]
    except (OSError, ValueError):
        return "?"
    return letter if int(parent) == os.getpid() else "?"


def _kill(pid: int, number: int) -> None:
    with suppress(OSError):
        os.kill(pid, number)


def _thread(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def _within(limit_s: float, act: Callable[[], None]) -> None:
    """Let something be written, but do not wait for ever for a disk that is stuck; nor fail where it is full."""

    def quietly() -> None:
        with suppress(MachineError, OSError):
            act()

    _thread(quietly).join(limit_s)
