"""What keeps the nodes of a job apart, and a rank that stands still, are named in its log within seconds: on a real Slurm of two nodes."""

import json
import signal
import socket
import sys

import pytest
from cluster import until
from home import REPOSITORY
from ranks import wait_for_step

pytestmark = pytest.mark.slurm

HOST = socket.gethostname()
HEADLESS = """#!/bin/sh
case "$SLURM_NODEID $*" in "0 -P -m launch.node_agent "*) exec sleep 600;; esac
exec {python} "$@"
"""


@pytest.fixture(scope="module")
def jobs(cluster, home):
    """Four jobs of two nodes, by the name of their run, at the same time: the port of one is taken, the head of one hangs before it
    listens, one expects three ranks, and one waits for what the test does. None of them may start twice."""
    submitted = {}

    def submit(name: str, *overrides: str, hold: bool = False, **env: str) -> None:
        flags = ["--nodes=2", "--cpus-per-task=2", f"--output={home.path}/{name}.log", *(["--hold"] if hold else [])]
        run = [home.config, f"run.name={name}", *overrides]
        submitted[name] = cluster.sbatch(REPOSITORY, *flags, "slurm/finetune.sh", *run, SFT_MAX_STARTS="1", **env)

    headless = home.path / "headless"
    headless.write_text(HEADLESS.format(python=sys.executable))
    headless.chmod(0o755)
    submit("taken", hold=True)
    with socket.create_server(("127.0.0.1", port_of(submitted["taken"]))):
        cluster.release(submitted["taken"])
        submit("headless", SFT_PYTHON=str(headless))
        submit("three", SFT_EXPECT_WORLD="3")
        endless = [f"{key}=100000 steps" for key in ("train.duration", "eval.every", "save.every")]  # it hangs in a step, nowhere else
        submit("hangs", *endless, "watch.step_s=15")
        yield submitted
    cluster.scancel(*submitted.values())


def port_of(job: str) -> int:
    """The one that slurm/finetune.sh gives it."""
    return 20000 + int(job) % 12000


def line_of(log: str, text: str) -> str:
    return next(line.strip(" -") for line in log.splitlines() if text in line)


def test_a_port_that_is_taken_is_named_by_the_head(jobs, cluster, saw):
    job = jobs["taken"]
    ended = cluster.wait(job, "FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("0", "78:0")
    named = line_of(cluster.log(job), "cannot listen on ")
    assert named.startswith(f"cannot listen on 127.0.0.1:{port_of(job)} ({HOST}): Address already in use; ")
    assert "no: the same machine would refuse it again; the job ends here" in cluster.log(job)
    saw(f"on Slurm: {named}; the job ends after {ended['RunTime']}")
    cluster.assert_nothing_is_left(job)


def test_a_head_that_cannot_be_reached_is_named_by_the_others(jobs, cluster, saw):
    job = jobs["headless"]
    named = f"waiting: node 1 ({HOST}) cannot reach the head at 127.0.0.1:{port_of(job)}: Connection refused"
    until(lambda: named in cluster.log(job), "node 1 has not said what it waits for")
    saw(f"on Slurm, while it runs: {named}")
    cluster.scancel(job)
    cluster.wait(job, "CANCELLED")
    assert "first cause  rank 1 on " in cluster.log(job)
    cluster.assert_nothing_is_left(job)


def test_another_world_than_the_expected_one_is_refused(jobs, cluster, home, saw):
    job = jobs["three"]
    ended = cluster.wait(job, "FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("0", "78:0")
    named = line_of(cluster.log(job), "SFT_EXPECT_WORLD = 3, but 2 processes came")
    saw(f"on Slurm: {named}; the job ends after {ended['RunTime']}")
    assert not (home.run("three") / "metrics.jsonl").exists()
    cluster.assert_nothing_is_left(job)


def test_a_rank_that_stands_still_is_named_with_the_stack_of_the_one_on_the_other_node(jobs, cluster, home, saw):
    job, attempt = jobs["hangs"], home.run("hangs") / "attempts" / "1"
    wait_for_step(home.run("hangs"), 2)
    cluster.signal_rank(job, 1, signal.SIGSTOP)
    ended = cluster.wait(job, "FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("0", "75:0")
    log = cluster.log(job)
    saw(f"on Slurm: {line_of(log, 'first cause')}")
    assert log.count(f"first cause  rank 1 on {HOST} has been in ") == 1
    assert "the process is stopped (state T, SIGSTOP)" in log
    assert "rank 0 waits in " in log and '|   File "' in log
    assert "train_step" in (attempt / "node-0" / "rank-0.stack").read_text()
    assert json.loads((attempt / "node-0" / "rank-0.flight.json").read_text())["entries"], "the last collectives"
    cluster.assert_nothing_is_left(job)
