"""Requests to stop: a signal sets a flag that the loop looks at once a step; the second interrupt stops at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether this process was asked to stop, and by which signal (`SIGTERM`)."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.interrupted = False

    @property
    def made(self) -> bool:
        return self.signal is not None

    def note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT and self.interrupted:
            raise KeyboardInterrupt("interrupted twice")
        self.interrupted = self.interrupted or number == signal.SIGINT


@contextmanager
def watch() -> Iterator[StopRequest]:
    """Turn the stopping signals into a flag for as long as the context lasts."""
    request = StopRequest()
    before = {number: signal.signal(number, request.note) for number in STOPPING}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # a launcher holds them back until somebody listens
    try:
        yield request
    finally:
        for number, handler in before.items():  # one more of the kind, on the way out, must not kill what has saved
            signal.signal(number, signal.SIG_IGN if request.made and number != signal.SIGINT else handler)


@contextmanager
def held_back() -> Iterator[None]:
    """What is started meanwhile never hears of them, from its first instant on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """For loading processes: a scheduler may signal the whole tree, and the save still needs its data workers."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
