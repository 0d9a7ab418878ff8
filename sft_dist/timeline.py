"""Where a rank's time goes: a mark where one phase ends and the next begins, so that all phases together are the whole time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol


@dataclass(frozen=True)
class Clock:
    """A way to measure."""

    mark: Callable[[], Any]
    """Now."""
    wait: Callable[[Any], None]
    """Return when a mark is past."""
    seconds: Callable[[Any, Any], float]
    """From one mark to a later one, both past."""


HOST = Clock(time.perf_counter, lambda _: None, lambda start, end: end - start)


class Event(Protocol):
    """What torch calls an event, as torch.cuda.Event(enable_timing=True) is one."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end: Any) -> float: ...


def by_events(make: Callable[[], Event]) -> Clock:
    """The clock of a device that works off a queue, which the host is ahead of: a mark is an event in the queue, past when the device gets there.

    A phase costs what the device does between its marks, and not what the host takes to enqueue it; where the device has nothing to do, as
    while data is waited for, the phase costs what it keeps the device idle.
    """

    def mark() -> Event:
        event = make()
        event.record()
        return event

    return Clock(mark, lambda event: event.synchronize(), lambda start, end: start.elapsed_time(end) / 1000)


class Timeline:
    """The marks of one process, since they were last added up."""

    def __init__(self, phase: str, clock: Clock = HOST) -> None:
        self.clock = clock
        self.marks = [(phase, clock.mark())]
        self.before: dict[str, float] = {}
        """Seconds by the clock that was used before this one."""

    def at(self, phase: str) -> None:
        """A phase begins, if it is not the one that lasts."""
        if phase != self.marks[-1][0]:
            self.marks.append((phase, self.clock.mark()))

    def measure_by(self, clock: Clock) -> None:
        """Use another clock from now on."""
        self.before = self.spent()
        self.clock, self.marks = clock, [(self.marks[-1][0], clock.mark())]

    def spent(self) -> dict[str, float]:
        """Seconds of each phase since this was last asked, up to now. Waits for the device to get here: ask where that was waited for anyhow."""
        now = (self.marks[-1][0], self.clock.mark())
        self.clock.wait(now[1])
        found, self.before = self.before, {}
        for (phase, start), (_, end) in pairwise([*self.marks, now]):
            found[phase] = found.get(phase, 0.0) + self.clock.seconds(start, end)
        self.marks = [now]
        return found
