"""Starts runs by the launcher, as a person would, and looks at what they leave: processes, sockets, folders."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 400
LISTENS = "0A"
STARTED: "list[Started]" = []
OWN_MACHINE = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, ::1, ::ffff:127.0.0.1


@dataclass
class Started:
    """A run that is on its way. out: stdout and stderr of its launcher, which are its screen."""

    process: subprocess.Popen[bytes]
    run: Path
    out: Path
    attempt: Path
    pids: set[int] = field(default_factory=set)

    @property
    def screen(self) -> str:
        return self.out.read_text(errors="replace")

    def agent(self, node: int) -> int:
        told: int = self.told(node, "agent")["pid"]
        return told

    def ranks(self, node: int) -> dict[int, dict[str, Any]]:
        """The last beats that the agent wrote down, by rank."""
        return {int(rank): beat for rank, beat in self.told(node, "heartbeats").get("ranks", {}).items()}

    def told(self, node: int, what: str) -> dict[str, Any]:
        path = self.attempt / f"node-{node}" / f"{what}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for something that the run does; notes all processes that are seen meanwhile."""
        end = time.monotonic() + LIMIT_S
        while not is_so():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}:\n{self.screen}"
            assert time.monotonic() < end, f"waited in vain for {what}:\n{self.screen}"
            time.sleep(0.05)
        self.pids |= descendants(self.process.pid)

    def until_step(self, step: int, nodes: int) -> None:
        """Until every node's agent has seen its ranks at a step, or beyond."""

        def made() -> bool:
            beats = [self.ranks(node) for node in range(nodes)]
            return all(beats) and all(beat["step"] >= step for ranks in beats for beat in ranks.values())

        self.until(made, f"step {step}")

    def end(self) -> int:
        """The exit code; a run that does not come to its end is a failure of the test. Notes all processes that are seen meanwhile."""
        end = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < end, f"did not end:\n{self.screen}"
            self.pids |= descendants(self.process.pid)
            time.sleep(0.2)
        return self.process.returncode

    def left(self) -> list[str]:
        """Processes of this run that are still there, after a moment to leave in."""
        end = time.monotonic() + 30
        while (there := self.there()) and time.monotonic() < end:
            time.sleep(0.2)
        return [command_of(pid) for pid in there]

    def there(self) -> list[int]:
        """Those that were seen and still live. A number may belong to others by now, who run in another folder."""
        found = []
        for pid in self.pids:
            with suppress(OSError):  # gone, or only waits to be buried
                found += [pid] if Path(f"/proc/{pid}/cwd").readlink() == self.out.parent else []
        return found


def clean_environment(**more: str) -> dict[str, str]:
    leaked = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SFT_EXPECT_WORLD")
    kept = {name: value for name, value in os.environ.items() if name not in leaked and not name.startswith("SLURM_")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


def start(folder: Path, run: Path, command: list[str], env: Mapping[str, str] | None = None, inside: Sequence[str] = ()) -> Started:
    """A command of the launcher, in a folder; `run` is the folder that it makes. inside: what begins a command line on another host."""
    out = folder / f"screen-{time.monotonic_ns()}"
    attempts = run / "attempts"
    number = 1 + len(list(attempts.iterdir())) if attempts.is_dir() else 1
    with out.open("wb") as file:
        process = subprocess.Popen(
            [*inside, sys.executable, "-m", *command],
            cwd=folder,
            env=clean_environment(**(env or {})),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = Started(process, run, out, attempts / str(number))
    STARTED.append(started)
    return started


def end_all() -> None:
    """Kill what a test that failed has left."""
    for started in STARTED:
        started.pids |= descendants(started.process.pid) if started.process.poll() is None else set()
        for pid in started.there():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.process.wait()
    STARTED.clear()


def descendants(root: int) -> set[int]:
    """A process and all that it started, as far as they live."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(") ")[2].split()[1])
        except OSError:
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def command_of(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def listening(pids: set[int]) -> dict[str, set[str]]:
    """Where these processes listen for TCP: each address and socket as the kernel writes them, by `own machine` or `beyond`."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(link.readlink()))
            except OSError:
                continue
    found: dict[str, set[str]] = {"own machine": set(), "beyond": set()}
    for local, number in _listeners():
        if f"socket:[{number}]" in sockets:
            found["own machine" if local.partition(":")[0] in OWN_MACHINE else "beyond"].add(f"{local} {number}")
    return found


def still_open(listened: set[str]) -> set[str]:
    """Those of them that are there still. By the socket's own number: others may have got the port since."""
    return listened & {f"{local} {number}" for local, number in _listeners()}


def _listeners() -> Iterator[tuple[str, str]]:
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENS:
                yield local, rest[5]
