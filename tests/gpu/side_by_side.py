"""Starts runs on one GPU, several processes at a time."""

import signal
from collections.abc import Sequence
from pathlib import Path

from ranks import Job, output, start, wait


def made(groups: Sequence[Sequence[Job]], folder: Path) -> None:
    """Runs on one process each group, all groups side by side; a job that shall die by SIGKILL is the last of its group."""
    started = [start(1, jobs, folder / f"log-{place}") for place, jobs in enumerate(groups)]
    for place, (jobs, processes) in enumerate(zip(groups, started, strict=True)):
        expected = -signal.SIGKILL if jobs[-1].die_at else 0
        assert wait(processes) == [expected], output(folder / f"log-{place}", 1)[-4000:]
