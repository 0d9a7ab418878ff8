"""Starts real runs of a few gloo processes with a fault in them, and looks at what they leave behind."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import waits
from injections import Fault, inject
from ranks import become, forks, free_port, largest_difference, rows

from sft_dist import manifest

LIMIT_S = 300
KILLED = -signal.SIGKILL
STEPS = 10
CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 32, "crop_scale": [0.5, 1.0], "flip": 0, "classes": ["3", "5", "8"], "per_class": 20, "workers": 0},
    "model": {"name": "mobilenet_v3_small", "train": "last:3", "norm": "frozen", "dropout": "keep"},
    "batch": {"total": 12, "micro": 5},
    "optim": {"name": "adamw", "lr": 0.002, "weight_decay": 0.01},
    "schedule": {"name": "cosine", "warmup": "2 steps"},
    "train": {"duration": f"{STEPS} steps", "clip": 1.0, "deterministic": True},
    "eval": {"every": "4 steps", "micro": 40},
    "save": {"every": "2 steps", "keep": 2},
    "ema": {"decay": 0.9},
    "precision": "fp64",
    "device": "cpu",
    "report": {"write": "none"},
}


@dataclass
class Ranks:
    """The started ranks of one run, each the leader of a process group of its own."""

    processes: list[Any]
    log: Path
    go: Path

    def let_go(self) -> None:
        """What waits by a fault goes on."""
        self.go.touch()

    def wait(self, limit_s: float = LIMIT_S) -> list[int]:
        """The exit codes. A rank that still runs after the limit fails the test, and so does a process that outlives its rank."""
        end = time.monotonic() + limit_s
        for process in self.processes:
            process.join(max(0.1, end - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        while self.orphans() and time.monotonic() < end + 10:  # a data worker looks every 5 s whether its rank is alive
            time.sleep(0.1)
        left = self.orphans()
        self.kill()
        assert not late, f"ranks {late} hang\n{self.said()}"
        assert not left, f"processes {left} outlive their ranks\n{self.said()}"
        return [process.exitcode for process in self.processes]

    def wait_for_the_dead(self) -> list[int]:
        """As `wait`, for a fault that takes the whole machine: as soon as one rank was killed all are."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end and any(process.is_alive() for process in self.processes):
            if any(process.exitcode == KILLED for process in self.processes):
                break
            time.sleep(0.005)
        self.kill()
        return self.wait()

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive():
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:  # it has no group of its own yet
                    process.kill()

    def orphans(self) -> list[int]:
        """Processes in the ranks' process groups, once the ranks are gone."""
        groups = {process.pid for process in self.processes if not process.is_alive()}
        return [pid for pid, state, _, group in _processes() if group in groups and state != "Z"]

    def pid(self, rank: int) -> int:
        pid: int = self.processes[rank].pid
        return pid

    def said(self, rank: int | None = None) -> str:
        ranks = range(len(self.processes)) if rank is None else [rank]
        return "\n".join(Path(f"{self.log}-{one}").read_text(errors="replace") for one in ranks)


class Workshop:
    """A folder of runs over one config."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "config.yaml"
        self.started: list[Ranks] = []

    def start(self, name: str, *overrides: str, world: int = 2, fault: Fault = Fault(), config: Path | None = None) -> Ranks:  # noqa: B008
        """The ranks of the run of that name, with a fault in them."""
        log = self.folder / f"log-{len(self.started):03d}-{name}"
        arguments = ["train", str(config or self.config), f"run.name={name}", *overrides]
        port, go = free_port(), Path(f"{log}-go")
        processes = []
        for rank in range(world):
            places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
            environment = {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"} if world > 1 else {}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", waits.GO: str(go), **environment}
            process = forks().Process(target=_rank, args=(arguments, environment, fault, f"{log}-{rank}"))
            process.start()
            processes.append(process)
        self.started.append(Ranks(processes, log, go))
        return self.started[-1]

    def run(self, name: str, *overrides: str, world: int = 2, fault: Fault = Fault(), config: Path | None = None) -> tuple[list[int], str]:  # noqa: B008
        """As `start`; the exit codes and what was said, once the ranks are gone."""
        ranks = self.start(name, *overrides, world=world, fault=fault, config=config)
        return ranks.wait(), ranks.said()

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def copy(self, source: str, name: str) -> Path:
        """A run's folder under another name."""
        shutil.copytree(self.path(source), self.path(name))
        return self.path(name)

    def close(self) -> None:
        for ranks in self.started:
            ranks.kill()


def resume(shop: Workshop, name: str, *overrides: str, world: int = 2, whole: str = "whole") -> str:
    """Go on with a run to its end, and hold it against the uninterrupted one; what was said."""
    codes, said = shop.run(name, *overrides, world=world)
    assert codes == [0] * world, said
    assert differences(shop.path(whole), shop.path(name)) == [], said
    return said


def image_config(shop: Workshop, images: Path) -> Path:
    """The config of a run over a folder of images, all of which are in its first window."""
    config = json.loads(shop.config.read_text())
    config["data"] = {"name": "folder", "root": str(images), "size": 32, "flip": 0, "workers": 0}
    total = sum(1 for path in (images / "train").rglob("*") if path.is_file())
    config["batch"] = {"total": total, "micro": 4}
    path = images / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def differences(whole: Path, run: Path, exact: bool = True) -> list[str]:
    """What tells a finished run from the uninterrupted one: its curve, its scores, its last tensors, and what it left behind.

    exact: the tensors must have every bit in common; for the same layout.
    """
    found = []
    if (worst := largest_difference(rows(whole), rows(run))) > 1e-9:
        found.append(f"the curve differs by {worst:.3g}")
    one, other = (json.loads((path / "scores.json").read_text()) for path in (whole, run))
    if [(entry, one[entry]["step"], one[entry]["confusion"]) for entry in one] != [
        (entry, other[entry]["step"], other[entry]["confusion"]) for entry in other
    ]:
        found.append("the scores differ")
    if exact and _hashes(whole) != _hashes(run):
        found.append("the last model or optimizer tensors differ")
    return found + litter(run)


def litter(run: Path) -> list[str]:
    """What stands in the way in a run's folder, or is not whole."""
    found = [f"{path.name} is left" for path in run.rglob(".*") if path.name != ".lock"]
    for path in (run / "checkpoints").glob("step-*"):
        found += manifest.verify(path)
    return found


def whole_steps(run: Path) -> list[int]:
    """The steps of the verified checkpoints, also of one that lacks nothing but its name."""
    folders = (run / "checkpoints").glob("*step-*[0-9]")
    return sorted(int(path.name[-8:]) for path in folders if not path.name.startswith("damaged") and not manifest.verify(path))


def wait_until(there: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """What `there` returns, once it is something."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if found := there():
            return found
        time.sleep(0.005)
    raise AssertionError(f"nothing came in {limit_s} s")


def children(pid: int) -> list[int]:
    return sorted(child for child, state, parent, _ in _processes() if parent == pid and state != "Z")


def first_line(text: str, *, having: str) -> str:
    """The line of a message that has these words, without the paths of this machine's folders."""
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if having in line]
    assert lines, f"no line says {having!r}:\n{text}"
    return lines[0]


def _hashes(run: Path) -> dict[str, Any]:
    last = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    content = json.loads((last / manifest.NAME).read_text())
    return {name: entry for name, entry in content["files"].items() if name.endswith(".safetensors")}


def _processes() -> list[tuple[int, str, int, int]]:
    """(pid, state, parent, group) of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # gone meanwhile
            continue
        found.append((int(path.parent.name), state, int(parent), int(group)))
    return found


def _rank(arguments: list[str], environment: dict[str, str], fault: Fault, log: str) -> None:
    """What a forked process does: it gets its fault, and enters by the command line's door."""
    become(environment, log)
    inject(fault)
    from sft_dist import cli

    cli.main(arguments)
