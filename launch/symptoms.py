"""What a node tells the doctor, and what is wrong with it: each check a function, over one node or over all of them."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

GIB = 2**30
LITTLE_DISK, LITTLE_SHM, FEW_INODES = 1 * GIB, 1 * GIB, 10_000
CLOCKS_S = 2.0
"""The failure screen takes what lies further apart than this for cause and consequence."""
SLOW = 1 / 3
"""Of the median: a node below this makes all the others wait."""


@dataclass(frozen=True)
class Report:
    """What one node tells. Every field has a default: a node with other code may tell less, or more.

    host: the name by which the scheduler leaves it out. came: False for a node that never answered. gpus: those that CUDA_VISIBLE_DEVICES
    leaves; wanted_gpu: the config asks for some. free_inodes: None where the file system counts none. unseen: nodes whose file in the
    run's folder it does not see. unresolved: hosts whose name it cannot turn into an address; loopback: its own name leads to itself only.
    processors: of its affinity mask; promised: by Slurm. workers: of each process, None for auto. offset_s: its clock less the head's,
    known to within_s. rates: backend -> bytes/s of an all-reduce. problems: `what: how it failed`, one each.
    """

    node: int
    host: str = "?"
    came: bool = True
    software: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    driver: str = ""
    wanted_gpu: bool = False
    folder: str = ""
    free_bytes: int = 0
    free_inodes: int | None = None
    unseen: Sequence[int] = ()
    unresolved: Sequence[str] = ()
    loopback: bool = False
    shm_bytes: int = 0
    processors: int = 1
    promised: int | None = None
    procs: int = 1
    workers: int | None = None
    offset_s: float = 0.0
    within_s: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Finding:
    """Something about one node. check: what was looked at.

    wrong: a run would fail or suffer; else it is only a remark. compared: only a comparison shows it, and of two nodes either may be odd.
    """

    check: str
    node: int
    told: str
    wrong: bool = True
    compared: bool = False


def of_json(told: Mapping[str, Any]) -> Report:
    """A report as another node wrote it; what this code does not know is left out."""
    known = {each.name for each in fields(Report)}
    return Report(**{name: value for name, value in told.items() if name in known})


def _software(here: Sequence[Report]) -> list[Finding]:
    names = dict.fromkeys(name for report in here for name in report.software)
    return [finding for name in names for finding in _odd(here, name, [report.software.get(name, "absent") for report in here])]


def _gpus(here: Sequence[Report]) -> list[Finding]:
    counts, drivers = [str(report.gpus) for report in here], [report.driver or "absent" for report in here]
    return [*_odd(here, "GPUs", counts), *_odd(here, "GPU driver", drivers)]


def _odd(here: Sequence[Report], check: str, values: Sequence[str]) -> list[Finding]:
    """Nodes that have another value than most; where two values are as common, than the first node's."""
    usual = max(values, key=Counter(values).__getitem__, default="")
    return [
        Finding(
            check,
            report.node,
            f"{check} {value}, but {usual} on node {(first := here[values.index(usual)]).node} ({first.host})",
            compared=True,
        )
        for report, value in zip(here, values, strict=True)
        if value != usual
    ]


def _seen(here: Sequence[Report]) -> list[Finding]:
    found = []
    for report in here:
        if report.unseen:
            others = ", ".join(map(str, report.unseen))
            told = f"sees in {report.folder} nothing of what node {others} wrote there: all nodes must see one folder"
            found.append(Finding("shared folder", report.node, told, compared=True))
    return found


def _clocks(here: Sequence[Report]) -> list[Finding]:
    found, usual = [], statistics.median(report.offset_s for report in here) if len(here) > 2 else 0.0
    for report in here:
        off = report.offset_s - usual
        if abs(off) - report.within_s > CLOCKS_S:
            told = f"its clock is {off:+.1f} s off (known to {report.within_s * 1000:.0f} ms): let it follow a time server, or failures"
            found.append(Finding("clock", report.node, f"{told} will be told in the wrong order", compared=True))
    return found


def _rates(here: Sequence[Report]) -> list[Finding]:
    found = []
    for backend in sorted({name for report in here for name in report.rates}):
        rated = [(report.node, report.rates[backend]) for report in here if backend in report.rates]
        usual = statistics.median(each for _, each in rated)
        for node, each in rated:
            if len(rated) > 2 and each < SLOW * usual:
                told = f"{backend} all-reduce at {rate(each)}, the median is {rate(usual)}: all others would wait for it"
                found.append(Finding(f"{backend} speed", node, told, compared=True))
    return found


def _problems(report: Report) -> list[Finding]:
    return [Finding(told.partition(":")[0], report.node, told) for told in report.problems]


def _disk(report: Report) -> list[Finding]:
    found = []
    if report.free_bytes < LITTLE_DISK:
        told = f"{size(report.free_bytes)} free in {report.folder}; a run needs {size(LITTLE_DISK)} at least"
        found.append(Finding("disk", report.node, told))
    if report.free_inodes is not None and report.free_inodes < FEW_INODES:
        told = f"{report.free_inodes} inodes free in {report.folder}: no more files can be made, whatever space there is"
        found.append(Finding("inodes", report.node, told))
    return found


def _memory(report: Report) -> list[Finding]:
    if report.workers == 0 or report.shm_bytes >= LITTLE_SHM:
        return []
    told = f"its /dev/shm holds {size(report.shm_bytes)}, through which loading processes hand over batches: docker --shm-size"
    return [Finding("shared memory", report.node, f"{told}, or data.workers=0", wrong=False)]


def _processors(report: Report) -> list[Finding]:
    found, each = [], report.procs * (1 + (report.workers or 0))
    if report.promised is not None and report.processors < report.promised:
        told = f"SLURM_CPUS_PER_TASK={report.promised}, but the affinity mask has {report.processors}: pass --cpus-per-task to srun too"
        found.append(Finding("processors", report.node, told))
    if each > report.processors:
        told = f"{each} processes ({report.procs} x (1 + data.workers={report.workers or 0})) on {report.processors} processors"
        found.append(Finding("workers", report.node, told, wrong=False))
    return found


def _devices(report: Report) -> list[Finding]:
    if report.gpus and not report.driver:
        return [Finding("driver", report.node, f"{report.gpus} GPUs in /dev, but no driver in /proc/driver/nvidia")]
    return [Finding("no GPU", report.node, "device: cuda, but there is no GPU")] if report.wanted_gpu and not report.gpus else []


def _names(report: Report) -> list[Finding]:
    found = []
    if report.unresolved:
        told = f"cannot resolve {', '.join(report.unresolved)}; this launcher uses addresses, others use names"
        found.append(Finding("names", report.node, told, wrong=False))
    if report.loopback:
        told = "its own name is a loopback address (/etc/hosts): gloo needs GLOO_SOCKET_IFNAME, which the agent sets"
        found.append(Finding("own name", report.node, told, wrong=False))
    return found


def size(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB / 10 else f"{amount / 2**20:.0f} MiB"


def rate(amount: float) -> str:
    return f"{amount / 1e9:.2f} GB/s" if amount >= 1e8 else f"{amount / 1e6:.1f} MB/s"


TOGETHER: tuple[Callable[[Sequence[Report]], list[Finding]], ...] = (_software, _gpus, _seen, _clocks, _rates)
ALONE: tuple[Callable[[Report], list[Finding]], ...] = (_problems, _disk, _memory, _processors, _devices, _names)
