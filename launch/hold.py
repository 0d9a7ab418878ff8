"""Signals that an agent holds back, for itself until it hears them on a thread, for its ranks until they listen."""

import signal

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT)
STACKS = signal.SIGRTMIN  # sft_dist.guard's: a rank that does not listen yet would die of it


def heard() -> set[signal.Signals]:
    """Those that the agent waits for; not what it was started to ignore (nohup; a shell's background jobs). To be asked before
    torchrun's agent sets its own handlers, which never run, as what they are for is held back."""
    return {number for number in HEARD if signal.getsignal(number) is not signal.SIG_IGN}


def back() -> None:
    """Hold all back in this thread and in all that it starts: from the first moment on, as one that comes early would be deadly."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*HEARD, STACKS})
