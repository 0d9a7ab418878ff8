"""A host's end of the line to `sft-launch ssh`: starts the node's agent, hands signals on to it, and leaves no process behind.

A script of its own, of the standard library alone: it is found by its path, before anything is known of the host.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

READY = "sft-launch: the line is open"
"""Said first, on stdout: what comes before it was not this program, and must not be told a secret."""
LOOK_S = 0.2
SILENT_S = 120.0
"""The other end says something four times a minute; after so long without a word the line is as good as cut."""
SAVE_S = 600.0
"""How long a node that lost its launcher may save: nobody is there to wait for it, nor to kill it."""
LEAVE_S = 75.0
"""How long ranks may stay whose agent was killed: they save, and end after a minute whatever they do (sft_dist.guard)."""
KILL_S = 10.0
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
SUBREAPER, DEATH_SIGNAL = 36, 1  # PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG of linux/prctl.h


class Line:
    """What comes over stdin: a word a line, which is the name of a signal, or nothing, as a sign of life."""

    def __init__(self, source: int) -> None:
        self.source, self.rest, self.closed, self.heard = source, b"", False, time.monotonic()
        self.pending: list[str] = []

    def first(self) -> str | None:
        """The first line, which tells what to run; None if the other end leaves before."""
        while not (self.pending or self.closed):
            self._listen(LOOK_S)
        return self.pending.pop(0) if self.pending else None

    def words(self, wait_s: float) -> list[str]:
        """What was said since; waits for it if it was nothing. `closed` tells that nothing can come any more."""
        if self.closed:
            time.sleep(wait_s)
        elif not self.pending:
            self._listen(wait_s)
        found, self.pending = self.pending, []
        return found

    def _listen(self, wait_s: float) -> None:
        if not select.select([self.source], [], [], wait_s)[0]:
            self.closed = time.monotonic() > self.heard + SILENT_S
            return
        piece, self.heard = os.read(self.source, 65536), time.monotonic()
        self.closed = not piece
        *whole, self.rest = (self.rest + piece).split(b"\n")
        self.pending += [line.decode() for line in whole]


def main() -> int:
    """Run what the line tells, and return the exit code of it; 75 where the agent was killed or never told of."""
    _prctl(SUBREAPER, 1)  # whoever loses its parent becomes a child of this process, and cannot be lost sight of
    print(READY, flush=True)
    line = Line(0)
    message = line.first()
    if message is None:
        return 75
    told = json.loads(message)
    try:
        agent = _start(told)
    except OSError as error:
        print(f"sft-launch: {told['host']} cannot start its agent: {error.strerror}: {error.filename}", file=sys.stderr, flush=True)
        return 78
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: agent.send_signal(number))
    pumps = [_thread(agent.stdout, 1), _thread(agent.stderr, 2)]
    _serve(agent, line)
    _clear_away(line)
    for pump in pumps:
        pump.join(KILL_S)
    if agent.returncode < 0:
        name = signal.Signals(-agent.returncode).name
        print(f"sft-launch: the agent of node {told['node']} ({told['host']}) was killed by {name}", file=sys.stderr, flush=True)
        return 75
    return agent.returncode


def _start(told: dict[str, Any]) -> "subprocess.Popen[bytes]":
    """The agent, in a session of its own; its environment is the host's with the launcher's over it."""

    def prepare() -> None:
        _prctl(DEATH_SIGNAL, signal.SIGTERM)  # it saves and leaves if this process is killed
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)  # as the agent itself does, but only once it is awake (launch.hold)

    return subprocess.Popen(
        told["argv"],
        cwd=told["cwd"],
        env={**os.environ, **told["env"]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=prepare,
    )


def _serve(agent: "subprocess.Popen[bytes]", line: Line) -> None:
    """Until the agent has ended. A line that closes asks it to save, and kills it if that takes too long."""
    lost: float | None = None
    while agent.poll() is None:
        for word in line.words(LOOK_S):
            _obey(agent, word)
        if line.closed and lost is None:
            lost = time.monotonic()
            agent.send_signal(signal.SIGTERM)
        if lost is not None and time.monotonic() > lost + SAVE_S:
            _kill_all()


def _obey(agent: "subprocess.Popen[bytes]", word: str) -> None:
    if word == "SIGKILL":
        _kill_all()
    elif word in {number.name for number in HANDED_ON}:
        agent.send_signal(signal.Signals[word])


def _clear_away(line: Line) -> None:
    """What an agent that was killed has left may save; then it is killed as well."""
    end = time.monotonic() + LEAVE_S
    while _bury():
        if "SIGKILL" in line.words(LOOK_S) or time.monotonic() > end:
            _kill_all()
            return


def _bury() -> bool:
    """Take note of those that have ended; whether there are others."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def _kill_all() -> None:
    """Kill all that descends from here: ranks lead sessions of their own, and are in no group of the agent's."""
    end = time.monotonic() + KILL_S
    while (there := _descendants(os.getpid())) and time.monotonic() < end:
        for pid in there:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _descendants(root: int) -> set[int]:
    """Processes below this one that have not ended yet."""
    parents, ended = {}, set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
            parents[int(stat.parent.name)] = int(parent)
            ended |= {int(stat.parent.name)} if state in "XZ" else set()
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - ended - {root}


def _thread(source: IO[bytes] | None, target: int) -> threading.Thread:
    thread = threading.Thread(target=_pump, args=(source, target), daemon=True)
    thread.start()
    return thread


def _pump(source: IO[bytes], target: int) -> None:
    """Pass output on; to nobody where nobody listens any more, for who writes must not die of it in the midst of a save."""
    gone = False
    while piece := os.read(source.fileno(), 65536):
        while piece and not gone:
            try:
                piece = piece[os.write(target, piece) :]
            except OSError:
                gone = True


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    sys.exit(main())
