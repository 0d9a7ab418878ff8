"""Who may write: one process at a time for a run, and one of this machine for a folder that many share."""

import errno
import fcntl
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sft_dist import attempts
from sft_dist.errors import InfrastructureError, MachineError
from sft_dist.rundir import RunDir

LEASE_S = 120.0
"""How long a file server may keep the lock of a host that died: NFS 4 lets go after 90 s, unless it was set otherwise."""
HOLDER = re.compile(r"process (?P<pid>\d+) on (?P<host>\S+)")
ALIVE = 3
"""So many heartbeats, one after the other, come from no dead host: the file server may show one late, but not two."""


@contextmanager
def hold(run: RunDir, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the run for this process; where another one has it, the error names the holder. The system lets go when we die.

    patience_s: how long to wait for a holder on another host, which may be dead without its file server knowing. Raises MachineError
    where the run is going on, InfrastructureError where it was waited for in vain.
    """
    with (run.path / ".lock").open("a+") as file:
        end = time.monotonic() + patience_s
        signs: set[int] = set()
        told = False
        while not _taken(file, run):
            signs |= _beaten(run, _holder(file))
            _refuse(file, run, patience_s, alive=len(signs) >= ALIVE, over=time.monotonic() > end)
            if not told:
                waits = f"waiting for {patience_s:.0f} s at most"
                print(f"{waits}: {run.path} is in use by {_holder(file)}, or was, if that host is dead", file=sys.stderr, flush=True)
                told = True
            time.sleep(1.0)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time work on a folder, which is made if need be; the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".sft-dist.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _taken(file: TextIO, run: RunDir) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which data workers would inherit and hold after our death
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise MachineError(f"{run.path}: this file system cannot lock files ({error.strerror}); use another run.dir") from error
        return False
    return True


def _refuse(file: TextIO, run: RunDir, patience_s: float, alive: bool, over: bool) -> None:
    """Raise, unless the holder is on another host, shows no sign of life, and there is patience left."""
    holder = _holder(file)
    elsewhere = HOLDER.fullmatch(holder)
    if not patience_s or alive or not elsewhere or elsewhere["host"] == socket.gethostname():
        raise MachineError(f"{run.path} is in use by {holder}; wait for it, or use another run.name")
    if over:
        raise InfrastructureError(
            f"{run.path} is in use by {holder}, after {patience_s:.0f} s still; if that host is dead, its file server has not noticed: "
            "start the same command again later"
        )


def _beaten(run: RunDir, holder: str) -> set[int]:
    """When the agent of a holder last wrote what its ranks do; empty where no agent knows of it."""
    if not (told := HOLDER.fullmatch(holder)):
        return set()
    nodes = [node for number in attempts.numbers(run)[-2:] for node in attempts.read(run, number).nodes]  # one attempt may be our own
    beating = [node for node in nodes if int(told["pid"]) in {beat.pid for beat in node.beats.values()}]
    return {node.beaten_ns for node in beating if node.about.get("host") == told["host"]}


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
