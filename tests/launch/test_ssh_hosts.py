"""Runs on two hosts of a real sshd of our own: to the end, interrupted, with a launcher that is killed, and with hosts that are not there."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sshd
from agents import Started, command_of, descendants, end_all, start
from ranks import largest_difference, rows
from sick import sick
from test_agents import CONFIG, LONG
from waits import WAITS

from launch import why
from sft_dist import attempts
from sft_dist.rundir import RunDir

pytestmark = pytest.mark.dist

SECRET = "geheim-0123456789"


@pytest.fixture(scope="module")
def folder(folder: Path) -> Iterator[Path]:
    import torch
    import torchvision

    torch.manual_seed(1)
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), folder / "start.pth")
    changed = {"train": {"duration": "16 steps"}, "eval": {"every": "16 steps"}}
    (folder / "config.yaml").write_text(json.dumps({**CONFIG, **changed}))
    yield folder
    end_all()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    if absent := sshd.missing():
        if os.environ.get("SFT_REQUIRE_SSHD"):
            pytest.fail(absent)
        pytest.skip(absent)
    made = sshd.begin(tmp_path_factory.mktemp("sshd"))
    yield made
    for pid in descendants(made.process.pid) - {made.process.pid}:  # what a test that failed has left
        os.kill(pid, signal.SIGKILL)
    made.close()


@dataclass(frozen=True)
class Ended:
    code: int
    screen: str
    left: list[str]
    attempt: Path

    def saved(self) -> int:
        step: int = json.loads((self.attempt / "node-0" / "exit.json").read_text())["step"]
        return step

    def exits(self) -> list[tuple[int, str | None, int]]:
        told = [json.loads((self.attempt / f"node-{node}" / "exit.json").read_text()) for node in (0, 1)]
        return [(each["code"], each["asked"], each["step"]) for each in told]


def begin(server: sshd.Sshd, folder: Path, name: str, *overrides: str, hosts: str = "hosta,hostb", **env: str) -> Started:
    command = ["launch", "ssh", "-H", hosts, "--head", "127.0.0.1", "--procs", "1", "config.yaml", f"run.name={name}", *overrides]
    return start(folder, folder / "runs" / name, command, {"SFT_SSH": server.ssh, **env})


def ended(server: sshd.Sshd, started: Started) -> Ended:
    code = started.end()
    return Ended(code, started.screen, left(server, started), started.attempt)


def left(server: sshd.Sshd, started: Started) -> list[str]:
    """What is still there of a run, after some time to leave in: below sshd, or in the run's folder and below nothing."""

    def there() -> list[str]:
        pids = descendants(server.process.pid) - {server.process.pid}
        for path in Path("/proc").glob("[0-9]*/cwd"):
            try:
                pids |= {int(path.parent.name)} if path.readlink() == started.out.parent else set()
            except OSError:
                continue
        return [told for pid in pids if (told := command_of(pid)) and "sft_dist train" not in told]

    end = time.monotonic() + 60
    while there() and time.monotonic() < end:
        time.sleep(0.2)
    return there()


def waiting(folder: Path, step: int) -> str:
    """A PYTHONPATH with which the second rank waits in this step until it is asked to stop."""
    return sick(folder / f"waits-{step}", ("waits", 1, step))


def interrupt(started: Started) -> None:
    """As a terminal does it: every process of the group gets the signal."""
    os.killpg(started.process.pid, signal.SIGINT)


class Eyes:
    """Looks at the command lines of all processes, again and again, as anybody on a machine can."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        while not self.over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue

    def close(self) -> set[bytes]:
        self.over.set()
        self.thread.join()
        return self.seen


@dataclass(frozen=True)
class Story:
    """A run whose launcher was killed after some steps, which was interrupted after some more, and which came to its end."""

    killed: Ended
    interrupted: Ended
    done: Ended
    seen: set[bytes]
    environ: bytes
    """Of rank 1, in the first attempt."""


@pytest.fixture(scope="module")
def story(server: sshd.Sshd, folder: Path) -> Story:
    eyes = Eyes()
    first = begin(server, folder, "story", PYTHONPATH=waiting(folder, 3), WANDB_API_KEY=SECRET)
    first.until_step(1, nodes=2)
    environ = Path(f"/proc/{first.ranks(1)[1]['pid']}/environ").read_bytes()
    seen = eyes.close()
    os.kill(first.process.pid, signal.SIGKILL)
    killed = ended(server, first)
    second = begin(server, folder, "story", PYTHONPATH=waiting(folder, killed.saved() + 3))
    second.until_step(killed.saved() + 1, nodes=2)
    interrupt(second)
    interrupted = ended(server, second)
    alone = start(folder, folder / "runs" / "alone", ["sft_dist", "train", "config.yaml", "run.name=alone"])
    done = ended(server, begin(server, folder, "story"))
    assert alone.end() == 0, alone.screen
    return Story(killed, interrupted, done, seen, environ)


def test_a_launcher_that_is_killed_leaves_nothing_on_the_hosts_which_save_first(story: Story) -> None:
    assert (story.killed.code, story.killed.left) == (-signal.SIGKILL, []), story.killed.screen
    step = story.killed.saved()
    assert 1 <= step < 16
    assert story.killed.exits() == [(0, "SIGTERM", step), (0, "SIGTERM", step)]


def test_an_interrupt_saves_on_all_hosts_and_leaves_nothing(story: Story) -> None:
    found = story.interrupted
    assert (found.code, found.left) == (0, []), found.screen
    step = found.saved()
    assert f"resumed at step {story.killed.saved()}" in found.screen
    assert story.killed.saved() < step < 16
    assert f"saved step {step} and stopped as asked; the same command goes on from there" in found.screen
    assert found.exits() == [(0, "SIGINT", step), (0, "SIGINT", step)]


def test_the_curve_on_two_hosts_is_that_of_one_process(story: Story, folder: Path) -> None:
    assert (story.done.code, story.done.left) == (0, []), story.done.screen
    assert f"resumed at step {story.interrupted.saved()}" in story.done.screen
    assert "world  2 ranks" in story.done.screen
    assert largest_difference(rows(folder / "runs" / "alone"), rows(folder / "runs" / "story")) < 1e-9


def test_no_process_list_shows_a_secret_that_the_ranks_have(story: Story) -> None:
    assert f"WANDB_API_KEY={SECRET}".encode() in story.environ.split(b"\0")
    for part in (b"BatchMode=yes", b"launch/remote.py", b"launch.node_agent", b"sft_dist/train.py"):
        assert any(part in line for line in story.seen), "one looked too late, or at nothing"
    assert not [line for line in story.seen if SECRET.encode() in line]


def test_a_second_interrupt_ends_a_slow_save_within_seconds(server: sshd.Sshd, folder: Path) -> None:
    ill = sick(folder / "a disk", ("the disk waits", None, 0))
    started = begin(server, folder, "twice", *LONG, hosts="hosta", PYTHONPATH=ill)
    started.until_step(2, nodes=1)
    interrupt(started)
    started.until(lambda: WAITS in started.screen, "the save")
    interrupt(started)
    asked = time.monotonic()
    found = ended(server, started)
    assert time.monotonic() - asked < 40
    assert (found.code, found.left) == (1, []), found.screen
    assert ": killed from outside, " in found.screen
    assert "KeyboardInterrupt\n               interrupted twice\n" in found.screen
    assert found.screen.count("first cause  ") == 1
    assert "               sft-launch ssh -H hosta --procs 1 --head 127.0.0.1 --ssh " in found.screen


def test_a_host_that_does_not_answer_is_named_and_the_others_are_stopped(server: sshd.Sshd, folder: Path) -> None:
    found = ended(server, begin(server, folder, "gone", hosts="hosta,gone"))
    assert (found.code, found.left) == (75, []), found.screen
    assert "gone| ssh: connect to host 127.0.0.1 port " in found.screen
    assert "first cause  rank 1 on gone, in start-up of step 0: NotStarted\n" in found.screen
    assert "ssh cannot reach gone: ssh: connect to host 127.0.0.1 port " in found.screen
    assert not list(found.attempt.glob("node-*/heartbeats.json"))


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("barred", "ssh cannot reach barred: nobody-of-this-name@127.0.0.1: Permission denied ("),
        ("changed", "ssh cannot reach changed: Host key verification failed."),
        ("hosta", "hosta cannot run /nowhere/python "),
    ],
)
def test_hosts_that_are_not_set_up_are_named_with_the_reason(server: sshd.Sshd, folder: Path, host: str, told: str) -> None:
    command = ["launch", "ssh", "-H", host, "--python", "/nowhere/python", "config.yaml", f"run.name=not-{host}"]
    found = ended(server, start(folder, folder / "runs" / f"not-{host}", command, {"SFT_SSH": server.ssh}))
    assert (found.code, found.left) == (78, []), found.screen
    assert f"sft-launch: {told}" in found.screen
    assert "or leave that host out (-H without it)" in found.screen
    verdict = why.look(RunDir(folder / "runs" / f"not-{host}"))
    assert (verdict.kind, verdict.code, verdict.retry) == ("machine", 78, False)
    assert attempts.read(RunDir(folder / "runs" / f"not-{host}"), 1).failures[0].message.startswith(told.rstrip())
