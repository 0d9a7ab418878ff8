"""What the tests on a GPU share."""

import os

import pytest


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
