"""One cluster for all tests of the tier, and one uninterrupted run in one process, whose curve all the others must have."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, obstacle
from home import CONFIG, REPOSITORY, Home


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    import torch
    import torchvision

    home = Home(tmp_path_factory.mktemp("slurm"))
    torch.manual_seed(1)
    model = torchvision.models.mobilenet_v3_small().train()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None  # the statistics of what it sees, so that the features do not vanish on the way
    with torch.no_grad():
        model(torch.randn(64, 3, 32, 32))
    torch.save(model.state_dict(), home.path / "start.pth")
    config = {**CONFIG, "run": {"dir": str(home.path / "runs")}}
    config["model"] = {**CONFIG["model"], "weights": str(home.path / "start.pth")}
    Path(home.config).write_text(json.dumps(config))
    command = [sys.executable, "-m", "sft_dist", "train", home.config, "run.name=reference"]
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    done = subprocess.run(command, cwd=REPOSITORY, env={**alone, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="session")
def cluster(home: Home) -> Iterator[Cluster]:
    """The private Slurm; skipped where there can be none, unless SFT_REQUIRE_SLURM says that there must be one."""
    reason = obstacle()
    if reason and os.environ.get("SFT_REQUIRE_SLURM"):
        pytest.fail(f"SFT_REQUIRE_SLURM is set, but {reason}")
    if reason:
        pytest.skip(reason)
    logs = home.path / "daemons"
    logs.mkdir()
    given = {"SFT_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with Cluster(logs, given) as cluster:
        yield cluster
