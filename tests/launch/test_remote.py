"""A host's end of a line: what is told over stdin runs there, signals reach it, and nothing is left, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import REPOSITORY, command_of

from launch import remote

LIMIT_S = 60
HOSTILE = ["two words", "it's", '"', "$(touch owned)", "`touch owned`", "a\nb", "${local_rank}", "", "図"]
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['SFT_TOLD'], os.getcwd()])); print('!', file=sys.stderr); sys.exit(93)"
SAVES = """import signal, sys, time
def save(number, frame):
    time.sleep(0.5)
    open('saved', 'w').write(signal.Signals(number).name)
    sys.exit(0)
for number in (signal.SIGTERM, signal.SIGUSR1): signal.signal(number, save)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1])
print('up', flush=True)
while True: time.sleep(0.05)
"""
STUBBORN = """import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
below = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)
print(below.pid, flush=True)
time.sleep(600)
"""
DIES = """import os, signal, subprocess, sys
program = "import time; time.sleep(1); open('saved', 'w').write('by itself')"
subprocess.Popen([sys.executable, '-c', program], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def begun() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for each in started:
        each.kill()
        each.wait()
        for stream in (each.stdin, each.stdout, each.stderr):
            assert stream
            stream.close()


@pytest.fixture
def begin(begun: list[subprocess.Popen[bytes]], tmp_path: Path) -> Any:
    """A host's end, which is told to run a program of Python in place of an agent."""

    def begin(program: str, *arguments: str, cwd: Path = tmp_path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", str(REPOSITORY / "launch" / "remote.py")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", bufsize=0)
        begun.append(process)
        assert process.stdin and process.stdout
        assert process.stdout.readline().decode().strip() == remote.READY
        argv = [sys.executable, "-c", program, *arguments]
        message = {"host": "hosta", "node": 0, "cwd": str(cwd), "env": {"SFT_TOLD": "x y"}, "argv": argv}
        process.stdin.write(json.dumps(message).encode() + b"\n")
        return process

    return begin


def line_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    return process.stdout.readline().decode().strip()


def until(is_so: Any) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_is_told_runs_with_its_environment_its_folder_and_its_exit_code(begin: Any, tmp_path: Path) -> None:
    process = begin(SHOW, *HOSTILE)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (json.loads(out), err, process.returncode) == ([HOSTILE, "x y", str(tmp_path)], b"!\n", 93)
    assert not list(tmp_path.iterdir())


def test_a_line_that_closes_lets_the_agent_save_and_leave(begin: Any, tmp_path: Path) -> None:
    process = begin(SAVES)
    assert line_of(process) == "up"
    process.stdin.close()
    assert process.wait(LIMIT_S) == 0
    assert (tmp_path / "saved").read_text() == "SIGTERM"


def test_a_signal_is_handed_on_and_signs_of_life_are_not(begin: Any, tmp_path: Path) -> None:
    process = begin(SAVES)
    assert line_of(process) == "up"
    process.stdin.write(b"\n\nSIGUSR1\n")
    assert process.wait(LIMIT_S) == 0
    assert (tmp_path / "saved").read_text() == "SIGUSR1"


def test_a_signal_that_comes_before_the_agent_listens_waits_for_it(begin: Any, tmp_path: Path) -> None:
    process = begin("import time; time.sleep(0.5)\n" + SAVES)
    process.stdin.write(b"SIGUSR1\n")
    assert process.wait(LIMIT_S) == 0
    assert (tmp_path / "saved").read_text() == "SIGUSR1"


def test_a_kill_reaches_sessions_of_their_own(begin: Any) -> None:
    process = begin(STUBBORN)
    below = int(line_of(process))
    process.stdin.write(b"SIGKILL\n")
    _, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (75, b"sft-launch: the agent of node 0 (hosta) was killed by SIGKILL\n")
    assert command_of(below) == ""


def test_ranks_whose_agent_was_killed_are_waited_for(begin: Any, tmp_path: Path) -> None:
    process = begin(DIES)
    assert process.wait(LIMIT_S) == 75
    assert (tmp_path / "saved").read_text() == "by itself"


def test_the_agent_saves_and_leaves_when_this_end_is_killed(begin: Any, tmp_path: Path) -> None:
    process = begin(SAVES)
    assert line_of(process) == "up"
    process.kill()
    until(lambda: (tmp_path / "saved").exists() and (tmp_path / "saved").read_text() == "SIGTERM")


def test_an_agent_lives_on_when_nobody_hears_what_it_says(begin: Any, tmp_path: Path) -> None:
    process = begin("import time\nfor _ in range(9): print('x' * 99999, flush=True)\nopen('saved', 'w').write('heard or not')")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(LIMIT_S) == 0
    assert (tmp_path / "saved").read_text() == "heard or not"


def test_a_folder_that_the_host_does_not_have_is_named_with_the_host(begin: Any, tmp_path: Path) -> None:
    process = begin(SHOW, cwd=tmp_path / "nowhere")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 78
    assert err.decode() == f"sft-launch: hosta cannot start its agent: No such file or directory: {tmp_path}/nowhere\n"


def test_a_launcher_that_leaves_before_it_has_told_anything_starts_nothing() -> None:
    command = [sys.executable, "-P", str(REPOSITORY / "launch" / "remote.py")]
    done = subprocess.run(command, input=b'{"half', capture_output=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (75, f"{remote.READY}\n", b"")


def test_a_line_without_a_sign_of_life_counts_as_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENT_S", 0.3)
    source, target = os.pipe()
    line = remote.Line(source)
    for _ in range(6):
        os.write(target, b"\n")
        assert line.words(0.1) == [""]
        time.sleep(0.1)
    assert not line.closed
    while not line.closed:
        assert line.words(0.1) == []
    os.close(source)
    os.close(target)


def test_words_that_come_in_pieces_are_put_together() -> None:
    source, target = os.pipe()
    line = remote.Line(source)
    os.write(target, b'{"a": 1}\nSIG')
    assert line.first() == '{"a": 1}'
    assert line.words(0.01) == []
    os.write(target, b"INT\nSIGTERM\n")
    assert line.words(1) == ["SIGINT", "SIGTERM"]
    os.close(target)
    assert (line.words(1), line.closed) == ([], True)
    os.close(source)


def test_signals_are_those_that_the_launcher_forwards() -> None:
    from launch import ssh

    assert remote.HANDED_ON == ssh.FORWARDED == (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
