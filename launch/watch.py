"""The agent's eye on the ranks of its node: hands signals on, writes heartbeats, and ends a job in which a rank has fallen silent."""

import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launch.nodes import Place
from sft_dist import attempts, pulse
from sft_dist.config import Config
from sft_dist.errors import MachineError
from sft_dist.guard import STACKS
from sft_dist.pulse import Beat

HELD_BACK = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT}
LOOK_S, WRITE_S = 0.5, 2.0
STACKS_S = 3.0
"""How long the ranks get to write their stacks before they are killed."""
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
        return cls(
            {"start-up": watch.startup_s, "step": watch.step_s, "evaluation": watch.evaluation_s, "save": save, "waiting for rank 0": 7200}
        )

    def of_phase(self, phase: str) -> float:
        kind = phase if phase in self.asked else "step"
        asked = self.asked[kind]
        return max(AT_LEAST_S, PATIENCE * self.longest_s.get(kind, 0.0)) if isinstance(asked, str) else float(asked)

    def learn(self, phase: str, silent_s: float) -> None:
        kind = phase if phase in self.asked else "step"
        self.longest_s[kind] = max(silent_s, self.longest_s.get(kind, 0.0))


def silent(beats: Mapping[int, Beat], stopped: Collection[int], limits: Limits, now_ns: int) -> list[int]:
    """The ranks that have been in one phase for longer than they may; those that were stopped for longer than a step may take."""
    allowed_s = {rank: limits.of_phase("data" if rank in stopped else beat.phase) for rank, beat in beats.items()}
    return [rank for rank, beat in beats.items() if (now_ns - beat.since_ns) / 1e9 > allowed_s[rank]]


class Watch:
    """Lives as long as the ranks do, on two threads: one waits for signals, one looks at the pulses."""

    def __init__(self, place: Place, pulses: Path, limits: Limits) -> None:
        """Hold signals back, in this thread and in all that it starts; the ranks inherit that, and let them in when they listen."""
        self.place, self.pulses, self.limits = place, pulses, limits
        self.asked: signal.Signals | None = None
        self.fell_silent = False
        self.beats: dict[int, Beat] = {}
        self.told: set[int] = set()
        self.over = threading.Event()
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        self.threads = [threading.Thread(target=act, daemon=True) for act in (self._hear, self._look)]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """Look for the last time; what the ranks did last stays readable."""
        self.over.set()
        self.threads[1].join(10)

    def _hear(self) -> None:
        while True:
            number = signal.sigwait(HELD_BACK)
            if number == signal.SIGQUIT:
                self.show_stacks()
                continue
            self.asked = signal.Signals(signal.SIGTERM if number == signal.SIGHUP else number)
            self.told.clear()  # a second interrupt means something else to the ranks than the first
            self._hand_on()

    def _hand_on(self) -> None:
        if self.asked is None:
            return
        for rank, beat in self._read().items():
            if rank not in self.told:
                self.told.add(rank)
                with suppress(ProcessLookupError):
                    os.kill(beat.pid, self.asked)

    def _look(self) -> None:
        written = 0.0
        while True:
            ended = self.over.wait(LOOK_S)
            now, self.beats = time.time_ns(), self._read()
            self._hand_on()
            if ended or time.monotonic() > written + WRITE_S:
                written = time.monotonic()
                with suppress(MachineError):  # a full disk is the run's problem first
                    attempts.write_beats(self.place.folder, self.beats)
            if ended:
                return
            states = {rank: _state(beat.pid) for rank, beat in self.beats.items()}
            here = {rank: beat for rank, beat in self.beats.items() if states[rank] not in "?XZ"}  # who has ended may be silent
            if late := silent(here, [rank for rank in here if states[rank] in "Tt"], self.limits, now):
                self._end(late)
                return
            for beat in here.values():
                self.limits.learn(beat.phase, (now - beat.since_ns) / 1e9)

    def _read(self) -> dict[int, Beat]:
        found = {rank: pulse.read(self.pulses / str(rank)) for rank in self.place.ranks}
        return {rank: beat for rank, beat in found.items() if beat}

    def show_stacks(self) -> None:
        """Let every rank of this node write its Python stacks and its last collectives into the attempt's folder."""
        for rank, beat in self._read().items():
            with suppress(ProcessLookupError, OSError):
                os.kill(beat.pid, STACKS)
                pulse.want(self.pulses / str(rank))

    def _end(self, late: list[int]) -> None:
        """Write down who is silent and what all were doing; then end the ranks, which no longer can themselves."""
        self.fell_silent = True
        self.show_stacks()
        time.sleep(STACKS_S)
        for rank in late:
            with suppress(MachineError):
                attempts.write_failure(self.place.folder, _silence(self.beats[rank], rank, self.place.index))
        for beat in self.beats.values():
            with suppress(ProcessLookupError):
                os.kill(beat.pid, signal.SIGKILL)


def _silence(beat: Beat, rank: int, node: int) -> attempts.Failure:
    since = time.strftime("%H:%M:%S", time.localtime(beat.since_ns / 1e9))
    stopped = "; the process is stopped (state T, SIGSTOP)" if _state(beat.pid) in "Tt" else ""
    message = f"in {beat.phase} since {since}, {(time.time_ns() - beat.since_ns) / 1e9:.0f} s without a sign{stopped}"
    host = socket.gethostname()
    return attempts.Failure(beat.since_ns, rank, host, beat.step, beat.phase, 75, "Silent", message, node, told_by="watchdog")


def _state(pid: int) -> str:
    """The kernel's letter for what a process does: T is stopped, D waits for a disk."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] or "?"
    except OSError:
        return "?"
