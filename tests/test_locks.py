"""A run belongs to one process: who holds it is named, and a holder whose host died is waited for."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from given import a_config

from sft_dist import attempts, locks, rundir
from sft_dist.errors import InfrastructureError, MachineError
from sft_dist.pulse import Beat
from sft_dist.rundir import RunDir

HOLDER = """
import sys, time
from pathlib import Path
from sft_dist.locks import hold
from sft_dist.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
with hold(run):
    if sys.argv[2:]:
        file = (run.path / ".lock").open("w")  # never closed: that would give up the lock
        file.write(sys.argv[2])
        file.flush()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create(a_config(run__dir=str(tmp_path)))


@pytest.fixture
def hold(run: RunDir) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that holds the run, and says who it is: itself, or what it is told to say."""
    started = []

    def hold(*said: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path), *said], stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout and started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield hold
    for each in started:
        each.send_signal(signal.SIGKILL)
        each.communicate()


@pytest.mark.parametrize("patience_s", [0, 60])
def test_a_run_that_a_process_of_this_host_holds_is_refused_at_once_until_that_dies(run: RunDir, hold, patience_s: int) -> None:
    holder = hold()
    told = rf"small is in use by process {holder.pid} on {os.uname().nodename}; wait for it, or use another run\.name"
    with pytest.raises(MachineError, match=told), locks.hold(run, patience_s):
        pytest.fail("two holders")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locks.hold(run):
        assert (run.path / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    with locks.hold(run):  # and again after it was given back
        pass


def test_a_holder_on_another_host_is_waited_for_and_worth_another_attempt(run: RunDir, hold, capsys: pytest.CaptureFixture[str]) -> None:
    hold("process 4711 on node3")
    with pytest.raises(InfrastructureError) as refused, locks.hold(run, 0.5):
        pytest.fail("two holders")
    assert str(refused.value) == (
        f"{run.path} is in use by process 4711 on node3, after 0 s still; if that host is dead, its file server has not noticed: "
        "start the same command again later"
    )
    assert (
        capsys.readouterr().err == f"waiting for 0 s at most: {run.path} is in use by process 4711 on node3, or was, if that host is dead\n"
    )
    with pytest.raises(MachineError, match="in use by process 4711 on node3; wait for it"), locks.hold(run):
        pytest.fail("two holders")


def beat(node: Path, pid: int = 4711, host: str = "node3") -> None:
    """What the agent of a holder writes every two seconds."""
    rundir.write_json(node / "agent.json", {"host": host})
    attempts.write_beats(node, {0: Beat(pid, 7, "forward", 1, 1)})


def test_a_holder_on_another_host_whose_heartbeats_go_on_is_alive_and_refused_within_seconds(run: RunDir, hold) -> None:
    hold("process 4711 on node3")
    node = run.path / "attempts" / "1" / "node-0"
    node.mkdir(parents=True)
    (run.path / "attempts" / "2").mkdir()  # that of who asks
    over = threading.Event()

    def live() -> None:
        while not over.wait(0.2):
            beat(node)

    living = threading.Thread(target=live)
    living.start()
    try:
        with pytest.raises(MachineError) as refused, locks.hold(run, 60):
            pytest.fail("two holders")
    finally:
        over.set()
        living.join()
    assert str(refused.value) == f"{run.path} is in use by process 4711 on node3; wait for it, or use another run.name"


@pytest.mark.parametrize(("pid", "host"), [(4711, "node3"), (4712, "node3"), (4711, "node4")])
def test_neither_the_last_heartbeat_of_a_dead_host_nor_those_of_others_are_its_life(run: RunDir, hold, pid: int, host: str) -> None:
    hold("process 4711 on node3")
    node = run.path / "attempts" / "1" / "node-0"
    node.mkdir(parents=True)
    beat(node)
    for late_s in (0.5, 1.5) if (pid, host) != (4711, "node3") else (0.5,):  # a file server may show the last one late
        threading.Timer(late_s, beat, (node, pid, host)).start()
    with pytest.raises(InfrastructureError, match="after 2 s still"), locks.hold(run, 2.5):
        pytest.fail("two holders")


def test_a_run_is_taken_as_soon_as_the_file_server_lets_go_of_it(run: RunDir, hold) -> None:
    holder = hold("process 4711 on node3")
    threading.Timer(0.5, holder.kill).start()
    with locks.hold(run, 30):
        assert (run.path / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
