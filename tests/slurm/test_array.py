"""`sft-launch slurm array` on a real Slurm of two nodes: a run for each task, queued again alone, and one table at the end."""

import json
import subprocess
import sys

import pytest
import yaml
from home import REPOSITORY, Home
from ranks import largest_difference, rows, wait_for_step

pytestmark = pytest.mark.slurm

EXACT = 1e-9
RATES = (0.03, 0.01, 0.0001)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("array")


@pytest.fixture(scope="module")
def launch(cluster, place):
    """Runs sft-launch as a user would, from a folder of their own."""

    def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "launch", "slurm", *arguments]
        return subprocess.run(command, cwd=place, env=cluster.env, capture_output=True, text=True, timeout=120)

    return launch


@pytest.fixture(scope="module")
def array(cluster, home, place, launch):
    """A sweep of three rates. The last task, whose SLURM_JOB_ID is that of the whole array, is warned half-way; the first is requeued by hand."""
    base = yaml.safe_load((home.path / "config.yaml").read_text())
    config = place / "base.yaml"
    config.write_text(json.dumps({**base, "run": {"dir": "runs"}}))
    (place / "rates.yaml").write_text(yaml.safe_dump({"config": "base.yaml", "grid": {"optim.lr": list(RATES)}}))
    done = launch("array", "rates.yaml", "train.duration=120 steps", "--", "--cpus-per-task=2")
    assert done.returncode == 0, done.stderr
    job = json.loads((place / "runs" / "rates" / "sweep.json").read_text())["job"]
    assert done.stdout.splitlines()[0] == "# task 0  rates-0  optim.lr=0.03"
    assert f"job {job}, tasks 0-2: 1 rank(s) on 1 node(s) each" in done.stdout
    for path in (config, place / "rates.yaml"):
        path.write_text("edited\n")
    wait_for_step(place / "runs" / "rates" / "rates-2", 10)
    cluster.scancel("--batch", "--signal=USR1", f"{job}_2")
    wait_for_step(place / "runs" / "rates" / "rates-0", 10)
    subprocess.run(["scontrol", "requeue", f"{job}_0"], env=cluster.env, check=True, timeout=60)
    yield job
    cluster.scancel(job)


def test_all(array, cluster, home, place, launch):
    print(launch("status", "runs/rates").stdout)
    ended = [cluster.wait(f"{array}_{task}", "COMPLETED", limit_s=120) for task in range(3)]
    print([job["Restarts"] for job in ended])
    print([e["JobId"] for e in ended], array)
    print((place / "runs" / "rates" / "table.txt").read_text())
    print((place / "runs" / "rates" / "results.json").read_text())
    print(launch("status", "runs/rates").stdout)
    print(launch("status", array).stdout)
    print(launch("status", "runs/rates/rates-1").stdout)
    for k in range(3): print((place/f"runs/rates/slurm-{array}_{k}.log").read_text())
    assert 0
