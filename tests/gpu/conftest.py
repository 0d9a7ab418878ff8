"""What the tests on a GPU share."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from ranks import Job, output, start, wait


@pytest.fixture(scope="session")
def device() -> str:
    """`cuda`, or a skip. SFT_TEST_DEVICE=cpu tries out most of these tests themselves where there is no GPU."""
    import torch

    wanted = os.environ.get("SFT_TEST_DEVICE", "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here (`make gpu`, as `pytest -m gpu`, is shown those of this machine)")
    return wanted


@pytest.fixture(scope="session")
def cuda(device: str) -> str:
    """The device, for what a CPU cannot stand in for."""
    if device != "cuda":
        pytest.skip("there is no such thing on a CPU")
    return device


def made(groups: Sequence[Sequence[Job]], folder: Path) -> None:
    """Runs on one process each group, all groups side by side; a job that shall die by SIGKILL is the last of its group."""
    started = [start(1, jobs, folder / f"log-{place}") for place, jobs in enumerate(groups)]
    for place, (jobs, processes) in enumerate(zip(groups, started, strict=True)):
        expected = -signal.SIGKILL if jobs[-1].die_at else 0
        assert wait(processes) == [expected], output(folder / f"log-{place}", 1)[-4000:]
