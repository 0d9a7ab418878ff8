"""Machines without Slurm: what ssh is given and what it is not, and what becomes of the others when a line breaks."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agents import REPOSITORY, clean_environment

from launch import lines, plans, remote, ssh
from launch.plans import Launch
from launch.ssh import Hosts
from launch.way import Way
from sft_dist.errors import ConfigError

CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 32},
    "model": {"name": "mobilenet_v3_small", "weights": "none", "train": "all", "norm": "train"},
    "batch": {"total": 4, "micro": 4},
    "optim": {"lr": 0.01},
    "train": {"duration": "2 steps"},
    "device": "cpu",
}
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


def test_a_first_host_that_every_host_takes_for_itself_is_no_head() -> None:
    for host in ("localhost", "me@127.0.0.1", "[::1]"):
        with pytest.raises(ConfigError, match=r"to the other hosts .* is themselves; .* with --head"):
            Way.of("ssh", f"{host},n2").head()
        assert Way.of("ssh", host).head() == host.removeprefix("me@")
    assert Way.of("ssh", "me@localhost.example.org,localhost").head() == "localhost.example.org"


def test_a_program_that_is_not_there_is_refused_before_a_run_is_begun(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(CONFIG))
    command = [sys.executable, "-P", "-m", "launch", "ssh", "-H", "n1", "--ssh", "/nowhere/ssh -v", "config.yaml", "run.name=a"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == (
        "sft-launch: cannot start this\n"
        "  - --ssh /nowhere/ssh: there is no such program here; install it (OpenSSH's client is ssh), or name another one\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


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
LATE = f"""import select, signal, sys, time
def come(number, frame):
    print({remote.READY!r}, flush=True)
    sys.exit(3 if select.select([0], [], [], 1)[0] else 4)
signal.signal(signal.SIGTERM, come)
print('on the way', file=sys.stderr, flush=True)
time.sleep(600)
"""


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
    end = time.monotonic() + 60
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
    line = lines.Line(0, "n0", [sys.executable, "-c", LATE], {"told": "here"})
    end = time.monotonic() + 60
    while line.last != "on the way":
        assert time.monotonic() < end
        time.sleep(0.05)
    hosts = Hosts(launch(tmp_path), [line])
    hosts.attend([signal.SIGINT])
    assert (hosts.verdict(), line.ready, line.dropped) == (75, False, True)
    assert line.code == 4, "the host's end was there, and was told nothing"


def test_what_a_shell_says_before_is_named_by_host_and_does_not_hide_the_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = f"import sys; print('welcome'); print('no newline' + {remote.READY!r}, flush=True); print(sys.stdin.readline()); sys.exit(3)"
    line = lines.Line(0, "n0", [sys.executable, "-c", program], {"told": "here"})
    (tmp_path / "node-0").mkdir()
    hosts = Hosts(launch(tmp_path), [line])
    hosts.attend([])
    assert hosts.verdict() == 3
    assert capfd.readouterr().out == 'n0| welcome\n{"told": "here"}\n\n'
