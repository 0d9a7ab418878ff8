"""The same plan on machines without Slurm: an agent on each host, over a line of ssh that stays open."""

import math
import re
import shlex
import signal
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch import plans, why
from launch.lines import Line
from launch.plans import Launch
from launch.way import SCRIPT, Way
from sft_dist import attempts, rundir
from sft_dist.attempts import Failure
from sft_dist.errors import MachineError
from sft_dist.redact import SECRET_NAME
from sft_dist.rundir import RunDir

THEIR_OWN = re.compile(  # what belongs to a machine or to a login there
    r"(HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|SHLVL|_|MAIL|HOSTNAME|HOST|TERM|TERMINFO|TTY|DISPLAY|XAUTHORITY|TMPDIR|TMP|TEMP|LS_COLORS)"
    r"|(SSH|XDG|DBUS|SLURM|SLURMD|SBATCH|SRUN|TMUX|STY|BASH_FUNC)(_.*)?"
)
BARRED = re.compile(
    r"Permission denied|Host key verification failed|Too many authentication failures|Bad owner or permissions|Name or service not known"
)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
LOOK_S = 0.2
TWICE_S = 10.0
"""After a second interrupt the ranks get so long to say where they were."""
OTHERS_S = 600.0
"""After one node has gone the others get so long to end by themselves: they may be saving what they have."""
ANSWER_S = 15.0
"""A host gets so long to kill what it runs."""


def port_of(attempt: Path) -> int:
    """One that the next attempt does not use again, below those that the kernel gives to others."""
    return 20000 + zlib.crc32(str(attempt).encode()) % 12000


def carried(launch: Launch, env: Mapping[str, str]) -> dict[str, str]:
    """The part of this environment that goes to the hosts, where it lies over their own."""
    return {name: value for name, value in plans.environment(launch, env).items() if not THEIR_OWN.fullmatch(name)}


def message(launch: Launch, way: Way, node: int, env: Mapping[str, str]) -> dict[str, Any]:
    """What is said to a host once it listens: everything that the run needs there."""
    return {"host": way.hosts[node], "node": node, "cwd": str(Path.cwd()), "env": carried(launch, env), "argv": plans.agent(launch, node)}


def describe(launch: Launch, way: Way, env: Mapping[str, str]) -> list[str]:
    """Everything that a start would do; secrets are redacted."""
    lines = [
        f"# {launch.world} rank(s) on {launch.nodes} host(s), attempt folder {launch.attempt}",
        "# each host gets over standard input, where no process list shows it: this folder, this environment over its own, and its command",
        f"cd {shlex.quote(str(Path.cwd()))}",
        *(f"export {name}={shlex.quote(_shown(name, value))}" for name, value in sorted(carried(launch, env).items())),
    ]
    for node, host in enumerate(way.hosts):
        lines += [f"# {host} is reached by", shlex.join(way.argv(node, launch.python)), "# and told", shlex.join(plans.agent(launch, node))]
    return lines


def _shown(name: str, value: str) -> str:
    return "..." if SECRET_NAME.search(name) or re.search(r"://[^/\s]*@", value) else value


def start(launch: Launch, way: Way, env: Mapping[str, str]) -> int:
    """Run the launch on its hosts and return its exit code."""
    asked: list[signal.Signals] = []
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, _: asked.append(signal.Signals(number)))
    lines = [Line(node, host, way.argv(node, launch.python), message(launch, way, node, env)) for node, host in enumerate(way.hosts)]
    hosts = Hosts(launch, lines)
    hosts.attend(asked)
    return _judged(launch, hosts)


class Hosts:
    """Lives until the last host's line has ended: hands signals on, and sees to it that no host waits for ever for one that is gone."""

    def __init__(self, launch: Launch, lines: Sequence[Line]) -> None:
        self.launch, self.lines = launch, lines
        self.ended: set[int] = set()
        self.never: dict[int, int] = {}
        """Exit codes of nodes on which nothing was started, the first first."""
        self.interrupts = 0
        self.deadline = math.inf
        self.killed = False

    def attend(self, asked: list[signal.Signals]) -> None:
        """asked: the signals that this process got and that nobody has handed on yet; they may grow meanwhile."""
        while len(self.ended) < len(self.lines):
            time.sleep(LOOK_S)
            while asked:
                self._hand_on(asked.pop(0))
            for line in self.lines:
                line.beat()
                if line.code is not None and line.node not in self.ended:
                    line.close()
                    self.ended.add(line.node)
                    self._look_at(line, line.code)
            if time.monotonic() > self.deadline:
                self._kill()

    def verdict(self) -> int:
        """The exit code: what kept a node from starting, else what an agent said (each judges the whole job), else 75 for a broken line."""
        said = [line.code for line in self.lines if line.code and not line.broken]
        broken = [75 for line in self.lines if line.broken]
        return next((code for code in [*self.never.values(), *said, *broken] if code), 0)

    def _hand_on(self, number: signal.Signals) -> None:
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            self._within(TWICE_S if self.interrupts == 2 else 0.0)
        self._tell(number.name)

    def _tell(self, word: str) -> None:
        for line in self.lines:
            if line.node not in self.ended:
                line.tell(word)

    def _within(self, limit_s: float) -> None:
        if not self.killed:
            self.deadline = min(self.deadline, time.monotonic() + limit_s)

    def _look_at(self, line: Line, code: int) -> None:
        """One host is through; if it failed, the others have to end as well: those that wait for it by being told, else by themselves."""
        if line.dropped and self.never:
            return
        if code != 0 and not attempts.node_folder(self.launch.attempt, line.node).is_dir():
            self.never[line.node], told = _why_never(line, code, self.launch.python)
            _record(self.launch, line, self.never[line.node], told)
            _say(f"sft-launch: {told}")
            self._tell("SIGTERM")
        elif line.broken and not self.killed:
            told = line.last or "ssh said nothing"
            _say(f"sft-launch: the line to {line.host} broke ({told}): what runs there saves and stops, and the others with it")
            self._tell("SIGTERM")
        if code != 0:
            self._within(OTHERS_S)

    def _kill(self) -> None:
        """Have the hosts kill what they run; those that do not answer are left alone."""
        there = [line for line in self.lines if line.node not in self.ended]
        if not self.killed:
            self._tell("SIGKILL")
            self.killed, self.deadline = True, time.monotonic() + ANSWER_S
            return
        for line in there:
            _say(f"sft-launch: {line.host} does not answer; look there for processes of this run")
            line.process.kill()
        self.deadline = math.inf


def _why_never(line: Line, code: int, python: str) -> tuple[int, str]:
    """The exit code for a node on which no agent began, and the reason in a sentence."""
    last = line.last or "it said nothing"
    if line.dropped:
        return 75, f"asked to stop before anything ran on {line.host}"
    if line.broken:
        return 78 if BARRED.search(last) else 75, f"ssh cannot reach {line.host}: {last}"
    if not line.ready:
        return 78, f"{line.host} cannot run {python} {SCRIPT}: {last}; all hosts must see the same Python and repository, at the same place"
    return code, f"no agent began on {line.host}: {last}"


def _record(launch: Launch, line: Line, code: int, told: str) -> None:
    """The host cannot leave its own word where `why` looks for it."""
    folder = attempts.node_folder(launch.attempt, line.node)
    rank = line.node * launch.procs
    with suppress(MachineError), rundir.writing(folder):
        folder.mkdir(exist_ok=True)
        failure = Failure(time.time_ns(), rank, line.host, 0, "start-up", code, "NotStarted", told, line.node, told_by="agent")
        attempts.write_failure(folder, failure, replace=False)


def _judged(launch: Launch, hosts: Hosts) -> int:
    """The exit code; with the failure screen where the agent of node 0, which tells it, never began, or was cut off before it could."""
    code = hosts.verdict()
    told = (attempts.node_folder(launch.attempt, 0) / "exit.json").exists() and not hosts.never
    if code == 0 or (told and not hosts.killed):
        return code
    run = RunDir(launch.attempt.parents[1])
    judged = why.look(run, int(launch.attempt.name), over=True)
    if not told:
        _say("\n".join(why.screen(run, judged)))
    return judged.code or code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
