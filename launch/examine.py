"""What one node sees of itself, without torch: devices, disk, memory, processors, names."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from launch.software import software
from launch.symptoms import Report
from sft_dist.plan import processors

STARTER = "starter"
"""Whoever starts an examination from outside of its nodes."""


def look(node: int, folder: Path, procs: int, workers: int | None, wanted_gpu: bool, env: Mapping[str, str]) -> Report:
    """This node's report, as far as it can be told alone. folder: of the runs; it need not exist yet."""
    place = nearest(folder)
    usage = os.statvfs(place)
    promised = env.get("SLURM_CPUS_PER_TASK", "")
    return Report(
        node=node,
        host=host(env),
        software=software(),
        gpus=gpus(env),
        driver=_driver(),
        wanted_gpu=wanted_gpu,
        folder=str(place),
        free_bytes=shutil.disk_usage(place).free,
        free_inodes=usage.f_favail if usage.f_files else None,
        shm_bytes=shutil.disk_usage(shm).total if (shm := Path("/dev/shm")).is_dir() else 0,  # noqa: S108 (only looked at)
        processors=processors(),
        promised=int(promised) if promised.isdigit() else None,
        procs=procs,
        workers=workers,
    )


def nearest(folder: Path) -> Path:
    """The folder, or what there is of the way to it: looking must not make it."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())


def host(env: Mapping[str, str]) -> str:
    """What the scheduler calls this node, or its own name."""
    return env.get("SLURMD_NODENAME") or socket.gethostname()


def gpus(env: Mapping[str, str]) -> int:
    """How many GPUs a process here would see: those in /dev, less what CUDA_VISIBLE_DEVICES hides."""
    found = len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])
    visible = env.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else min(found, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def unresolved(names: Iterable[str]) -> list[str]:
    """Those that have no address here."""
    return [name for name in dict.fromkeys(names) if not _addresses(name)]


def loopback() -> bool:
    """Whether this node's own name leads to itself only."""
    return any(address.startswith("127.") or address == "::1" for address in _addresses(socket.gethostname()))


def hosts(env: Mapping[str, str]) -> list[str]:
    """What Slurm calls the nodes of this step, in their order; empty without Slurm, or where it does not answer."""
    listed = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if listed:
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, timeout=30).stdout.split()
    return []


def leave_note(folder: Path, token: str, who: str) -> Path:
    """A file that only this node can have written, or the STARTER; to be taken away again by `remove_notes`."""
    path = _note(folder, token, who)
    path.write_text(f"{token} {who}")
    return path


def notes_missing(folder: Path, token: str, whose: Iterable[str], patience_s: float) -> list[str]:
    """Those whose file is not here even after a while: a network file system may answer from its cache at first."""
    deadline, names = time.monotonic() + patience_s, list(whose)
    while True:
        missing = [who for who in names if not _holds(_note(folder, token, who), f"{token} {who}")]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def remove_notes(folder: Path, token: str, whose: Iterable[str]) -> None:
    """Take away what `leave_note` left, as far as it is there."""
    for who in whose:
        with suppress(OSError):
            _note(folder, token, who).unlink()


def _note(folder: Path, token: str, who: str) -> Path:
    return nearest(folder) / f".doctor-{token}-{who}"


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def _addresses(name: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None)]
    except OSError:
        return []


def _driver() -> str:
    try:
        told = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return ""
    return told[1] if told else "unknown"
