"""Machines without Slurm: what ssh is given and what it is not, and runs on two hosts of a real sshd of our own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sshd
from agents import REPOSITORY, Started, command_of, descendants, end_all, slow_disk, slow_steps, start
from ranks import largest_difference, rows
from test_agents import CONFIG, LONG

from launch import lines, plans, remote, ssh, why
from launch.plans import Launch
from launch.ssh import Hosts, Way
from sft_dist import attempts
from sft_dist.errors import ConfigError
from sft_dist.rundir import RunDir

GOLDEN = REPOSITORY / "tests" / "golden" / "ssh_dry_run.txt"
SECRET = "geheim-0123456789"
ENV = {
    "PATH": "/usr/bin",
    "HOME": "/home/me",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "SLURM_JOB_ID": "7",
    "RANK": "3",
    "NCCL_DEBUG": "INFO",
    "WANDB_API_KEY": SECRET,
    "HTTPS_PROXY": f"http://me:{SECRET}@proxy",
    "NOTE": "it's\n$(touch owned)",
}
HOSTILE_PYTHON = "a 'b' \"c\" $(touch owned) `touch owned` $HOME; touch owned/python"


def launch(folder: Path = Path("/data/runs/a/attempts/3"), python: str = "/opt/python") -> Launch:
    return Launch(Path("configs/a.yaml"), ("optim.lr=0.1",), 2, 4, folder, "n1", 23456, python)


# --- what goes where -----------------------------------------------------------------------------------------------------------------


def test_the_dry_run_shows_everything_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    told = "\n".join(ssh.describe(launch(), Way.of("ssh -p 2222", "me@n1,n2"), ENV)).replace(str(REPOSITORY), "<repository>") + "\n"
    assert told == GOLDEN.read_text()
    assert SECRET not in told


def test_what_can_be_seen_of_a_command_does_not_depend_on_the_run() -> None:
    script = f"{REPOSITORY}/launch/remote.py"
    assert Way.of("ssh", "n1,n2").argv(1, "/opt/python") == ["ssh", "-o", "BatchMode=yes", "-T", "n2", f"exec /opt/python -P {script}"]
    assert Way.of("ssh -F 'my config'", "n1").argv(0, "/opt/python")[:4] == ["ssh", "-F", "my config", "-o"]


def test_a_host_keeps_what_is_its_own_and_gets_the_rest_over_stdin() -> None:
    told = ssh.message(launch(), Way.of("ssh", "n1,me@n2"), 1, ENV)
    assert {name: told["env"][name] for name in ("PATH", "NCCL_DEBUG", "WANDB_API_KEY", "NOTE", "SFT_EXPECT_WORLD")} == {
        "PATH": "/usr/bin",
        "NCCL_DEBUG": "INFO",
        "WANDB_API_KEY": SECRET,
        "NOTE": "it's\n$(touch owned)",
        "SFT_EXPECT_WORLD": "8",
    }
    assert not {"HOME", "SSH_AUTH_SOCK", "SLURM_JOB_ID", "RANK"} & set(told["env"])
    assert (told["host"], told["node"], told["cwd"]) == ("me@n2", 1, str(Path.cwd()))
    assert told["argv"] == plans.agent(launch(), 1)


def test_a_hostile_place_of_python_is_what_the_remote_shell_runs_and_nothing_else(tmp_path: Path) -> None:
    python = tmp_path / HOSTILE_PYTHON
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n")
    python.chmod(0o755)
    command = Way.of("ssh", "n1").argv(0, str(python))[-1]
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == f"{['-P', str(REPOSITORY / 'launch' / 'remote.py')]}\n"
    assert [path.name for path in tmp_path.iterdir()] == [HOSTILE_PYTHON.partition("/")[0]]


@pytest.mark.parametrize(
    "host", ["", "-oProxyCommand=touch owned", "a b", "a\nb", "$(x)", "`x`", "a;b", "'a'", "a/b", "@a", "me@", "me@-a", "-l@a"]
)
def test_a_name_that_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a host"):
        Way.of("ssh", f"n1,{host}")


@pytest.mark.parametrize("host", ["n1", "me@n1", "10.0.0.1", "fe80::1%eth0", "first.last@gpu-3.example.org", "my_alias"])
def test_names_as_ssh_knows_them_are_taken(host: str) -> None:
    assert Way.of("ssh", host).hosts == (host,)


def test_a_host_that_stands_there_twice_is_refused_also_by_another_user() -> None:
    with pytest.raises(ConfigError, match="n1 stands there twice") as refused:
        Way.of("ssh", "n1,n2,me@n1")
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(("command", "told"), [("", "--ssh is empty"), ("ssh 'x", "is no command line")])
def test_a_command_that_is_none_is_refused(command: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Way.of(command, "n1")


def test_the_port_is_another_one_for_the_next_attempt_and_the_same_in_a_dry_run() -> None:
    ports = [ssh.port_of(Path(f"/data/runs/a/attempts/{number}")) for number in (1, 2, 1)]
    assert ports[0] == ports[2] != ports[1]
    assert all(20000 <= port < 32000 for port in ports)


# --- lines that break, on programs that stand for agents --------------------------------------------------------------------------------

WAITS = """import signal, sys, time
def leave(number, frame):
    print('asked', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
while True: time.sleep(0.05)
"""
DEAF = "import time; time.sleep(600)"


@dataclass
class Played:
    """Two lines to programs on this machine, without ssh. node folders stand there as if agents had begun."""

    hosts: Hosts
    asked: list[signal.Signals] = field(default_factory=list)

    def attend(self) -> int:
        self.hosts.attend(self.asked)
        return self.hosts.verdict()


def play(folder: Path, *programs: str, began: tuple[int, ...] = (0, 1)) -> Played:
    attempt = folder / "runs" / "a" / "attempts" / "1"
    for node in began:
        (attempt / f"node-{node}").mkdir(parents=True)
    attempt.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-P", str(REPOSITORY / "launch" / "remote.py")]
    messages = [
        {"host": f"n{node}", "node": node, "cwd": str(folder), "env": {}, "argv": [sys.executable, "-c", program]}
        for node, program in enumerate(programs)
    ]
    return Played(Hosts(launch(attempt), [lines.Line(node, f"n{node}", argv, message) for node, message in enumerate(messages)]))


def ready(played: Played) -> None:
    end = time.monotonic() + 20
    while not all(line.ready for line in played.hosts.lines):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_line_that_breaks_stops_the_others_and_is_worth_another_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    played = play(tmp_path, WAITS, WAITS)
    ready(played)
    time.sleep(0.5)
    played.hosts.lines[1].process.kill()
    assert played.attend() == 75
    out, err = capfd.readouterr()
    assert (out, err) == (
        "asked\n",
        "sft-launch: the line to n1 broke (ssh said nothing): what runs there saves and stops, and the others with it\n",
    )


def test_a_node_that_never_began_gives_its_code_stops_the_others_and_is_recorded(tmp_path: Path) -> None:
    played = play(tmp_path, WAITS, "import sys; sys.exit('  - no such folder here')", began=(0,))
    assert played.attend() == 1
    record = json.loads((tmp_path / "runs" / "a" / "attempts" / "1" / "node-1" / "rank-4.json").read_text())
    assert (record["rank"], record["node"], record["code"], record["type"]) == (4, 1, 1, "NotStarted")
    assert record["message"] == "no agent began on n1: - no such folder here"


def test_who_does_not_end_after_a_second_interrupt_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "TWICE_S", 0.5)
    played = play(tmp_path, DEAF, "import signal\nsignal.signal(signal.SIGINT, lambda *_: None)\n" + DEAF)
    ready(played)
    played.asked += [signal.SIGINT, signal.SIGINT]
    begun = time.monotonic()
    assert played.attend() == 75
    assert played.hosts.killed
    assert time.monotonic() - begun < 15


def test_the_others_of_a_node_that_failed_are_killed_when_they_stay_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "OTHERS_S", 0.5)
    assert play(tmp_path, DEAF, "import sys; sys.exit(93)").attend() == 75  # node 0 was killed
    assert play(tmp_path / "again", "import sys; sys.exit(93)", DEAF).attend() == 93


def test_an_interrupt_before_the_line_stands_starts_nothing(tmp_path: Path) -> None:
    line = lines.Line(
        0, "n0", [sys.executable, "-c", f"import time; time.sleep(1); print({remote.READY!r}, flush=True); print(input())"], {}
    )
    hosts = Hosts(launch(tmp_path), [line])
    hosts.attend([signal.SIGINT])
    assert (hosts.verdict(), line.ready, line.dropped) == (75, False, True)


def test_what_a_shell_says_before_is_named_by_host_and_does_not_hide_the_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = f"import sys; print('welcome'); print('no newline' + {remote.READY!r}, flush=True); print(sys.stdin.readline()); sys.exit(3)"
    line = lines.Line(0, "n0", [sys.executable, "-c", program], {"told": "here"})
    (tmp_path / "node-0").mkdir()
    hosts = Hosts(launch(tmp_path), [line])
    hosts.attend([])
    assert hosts.verdict() == 3
    assert capfd.readouterr().out == 'n0| welcome\n{"told": "here"}\n\n'


# --- two hosts of a real sshd ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import torch
    import torchvision

    folder = tmp_path_factory.mktemp("ssh")
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
    path = f"{REPOSITORY}:{slow_steps(folder / 'slow')}"
    eyes = Eyes()
    first = begin(server, folder, "story", PYTHONPATH=path, WANDB_API_KEY=SECRET)
    first.until_step(1, nodes=2)
    environ = Path(f"/proc/{first.ranks(1)[1]['pid']}/environ").read_bytes()
    seen = eyes.close()
    os.kill(first.process.pid, signal.SIGKILL)
    killed = ended(server, first)
    second = begin(server, folder, "story", PYTHONPATH=path)
    second.until_step(killed.saved() + 1, nodes=2)
    interrupt(second)
    interrupted = ended(server, second)
    alone = start(folder, folder / "runs" / "alone", ["sft_dist", "train", "config.yaml", "run.name=alone"])
    done = ended(server, begin(server, folder, "story"))
    assert alone.end() == 0, alone.screen
    return Story(killed, interrupted, done, seen, environ)


@pytest.mark.dist
def test_a_launcher_that_is_killed_leaves_nothing_on_the_hosts_which_save_first(story: Story) -> None:
    assert (story.killed.code, story.killed.left) == (-signal.SIGKILL, []), story.killed.screen
    step = story.killed.saved()
    assert 1 <= step < 16
    assert story.killed.exits() == [(0, "SIGTERM", step), (0, "SIGTERM", step)]


@pytest.mark.dist
def test_an_interrupt_saves_on_all_hosts_and_leaves_nothing(story: Story) -> None:
    found = story.interrupted
    assert (found.code, found.left) == (0, []), found.screen
    step = found.saved()
    assert f"resumed at step {story.killed.saved()}" in found.screen
    assert story.killed.saved() < step < 16
    assert f"saved step {step} and stopped as asked; the same command goes on from there" in found.screen
    assert found.exits() == [(0, "SIGINT", step), (0, "SIGINT", step)]


@pytest.mark.dist
def test_the_curve_on_two_hosts_is_that_of_one_process(story: Story, folder: Path) -> None:
    assert (story.done.code, story.done.left) == (0, []), story.done.screen
    assert f"resumed at step {story.interrupted.saved()}" in story.done.screen
    assert "world  2 ranks" in story.done.screen
    assert largest_difference(rows(folder / "runs" / "alone"), rows(folder / "runs" / "story")) < 1e-9


@pytest.mark.dist
def test_no_process_list_shows_a_secret_that_the_ranks_have(story: Story) -> None:
    assert f"WANDB_API_KEY={SECRET}".encode() in story.environ.split(b"\0")
    for part in (b"BatchMode=yes", b"launch/remote.py", b"launch.node_agent", b"sft_dist/train.py"):
        assert any(part in line for line in story.seen), "one looked too late, or at nothing"
    assert not [line for line in story.seen if SECRET.encode() in line]


@pytest.mark.dist
def test_a_second_interrupt_ends_a_slow_save_within_seconds(server: sshd.Sshd, folder: Path) -> None:
    started = begin(server, folder, "twice", *LONG, hosts="hosta", PYTHONPATH=f"{REPOSITORY}:{slow_disk(folder / 'slow once more')}")
    started.until_step(2, nodes=1)
    interrupt(started)
    started.until(lambda: any(beat["phase"] == "save" for beat in started.ranks(0).values()), "the save")
    interrupt(started)
    asked = time.monotonic()
    found = ended(server, started)
    assert time.monotonic() - asked < 40
    assert (found.code, found.left) == (1, []), found.screen
    assert ": killed from outside, " in found.screen
    assert "KeyboardInterrupt\n               interrupted twice\n" in found.screen
    assert found.screen.count("first cause  ") == 1
    assert "               sft-launch ssh -H hosta --procs 1 --head 127.0.0.1 --ssh " in found.screen


@pytest.mark.dist
def test_a_host_that_does_not_answer_is_named_and_the_others_are_stopped(server: sshd.Sshd, folder: Path) -> None:
    found = ended(server, begin(server, folder, "gone", hosts="hosta,gone"))
    assert (found.code, found.left) == (75, []), found.screen
    assert "gone| ssh: connect to host 127.0.0.1 port " in found.screen
    assert "first cause  rank 1 on gone, in start-up of step 0: NotStarted\n" in found.screen
    assert "ssh cannot reach gone: ssh: connect to host 127.0.0.1 port " in found.screen
    assert not list(found.attempt.glob("node-*/heartbeats.json"))


@pytest.mark.dist
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
