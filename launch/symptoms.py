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
NAMED = 3  # nodes in one line
SLOW = 1 / 3
"""Of the median: a node below this makes all the others wait."""


@dataclass(frozen=True)
class Report:
    """What one node tells. Every field has a default: a node with other code may tell less, or more.

    host: the name by which the scheduler leaves it out; name: its own for itself. came: False for a node that never did. silent: since when
    it does not answer any more, in words. software: empty where it could not even look at itself. gpus: those that CUDA_VISIBLE_DEVICES
    leaves; usable_gpu: torch can use them; wanted_gpu: the config asks for some. free_inodes: None where the file system counts none.
    wrote: it left a file in the run's folder; unseen: nodes whose file there it does not see; starter_unseen: nor that of the machine
    where the examination was started. unresolved: hosts whose name it cannot turn into an address; loopback: its own name leads to
    itself only. processors: of its affinity mask; promised: by Slurm. workers: of each process, None for auto. offset_s: its clock less
    the head's, known to within_s; None if not measured. rates: backend -> bytes/s of an all-reduce. problems: `what: how it failed`.
    """

    node: int
    host: str = "?"
    name: str = ""
    came: bool = True
    silent: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    driver: str = ""
    usable_gpu: bool = False
    wanted_gpu: bool = False
    folder: str = ""
    free_bytes: int = 0
    free_inodes: int | None = None
    wrote: bool = False
    unseen: Sequence[int] = ()
    starter_unseen: bool = False
    unresolved: Sequence[str] = ()
    loopback: bool = False
    shm_bytes: int = 0
    processors: int = 1
    promised: int | None = None
    procs: int = 1
    workers: int | None = None
    offset_s: float | None = None
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
    mend = dict.fromkeys(names, "use one environment that all nodes see") | {"code": "use one repository that all nodes see"}
    return [finding for name in names for finding in _odd(here, name, [report.software.get(name, "absent") for report in here], mend[name])]


def _gpus(here: Sequence[Report]) -> list[Finding]:
    counts, drivers = [str(report.gpus) for report in here], [report.driver or "absent" for report in here]
    look = "look there with nvidia-smi"
    return [*_odd(here, "GPUs", counts, f"{look}, and at CUDA_VISIBLE_DEVICES"), *_odd(here, "GPU driver", drivers, look)]


def _odd(here: Sequence[Report], check: str, values: Sequence[str], mend: str) -> list[Finding]:
    """Nodes that have another value than most; where two values are as common, than the first node's. mend: what to do about it."""
    usual = max(values, key=Counter(values).__getitem__, default="")
    return [
        Finding(
            check,
            report.node,
            f"{check} {value}, but {usual} on node {(first := here[values.index(usual)]).node} ({first.host}): {mend}",
            compared=True,
        )
        for report, value in zip(here, values, strict=True)
        if value != usual
    ]


def _seen(here: Sequence[Report]) -> list[Finding]:
    """Nodes outside of the largest group that see each other's files. Of two such groups it is the one that sees what the starter of the
    examination left, then the head's; where no group has half of the nodes, the folder is shared by none, and no node is at fault.
    """
    writers = [report for report in here if report.wrote]
    groups = {one.node: [other for other in writers if other.node not in one.unseen and one.node not in other.unseen] for one in writers}
    if all(len(group) == len(writers) for group in groups.values()):
        return []
    usual = max(writers, key=lambda report: (len(groups[report.node]), not report.starter_unseen, -report.node))
    shared = {report.node for report in groups[usual.node]}
    nobody = len(shared) * 2 < len(writers)
    found = []
    for report in writers:
        apart = [other for other in writers if other.node != report.node and other not in groups[report.node]]
        if apart and (nobody or report.node not in shared):
            told = f"does not share {report.folder} with {nodes(apart)}: mount the same file system there, or choose another run.dir"
            found.append(Finding("shared folder", report.node, told, compared=nobody))
    return found


def _started(here: Sequence[Report]) -> list[Finding]:
    """Where all share a folder, but not with the machine on which the run is prepared."""
    writers = [report for report in here if report.wrote]
    if not all(report.starter_unseen for report in writers):
        return []
    told = "does not see in {} what the machine has written there on which you typed this: run.dir must be on a file system that both see"
    return [Finding("starter's folder", report.node, told.format(report.folder)) for report in writers]


def _clocks(here: Sequence[Report]) -> list[Finding]:
    offsets = [report.offset_s for report in here if report.offset_s is not None]
    found, usual = [], statistics.median(offsets) if len(offsets) > 2 else 0.0
    for report in here:
        off = (report.offset_s or 0.0) - usual
        if report.offset_s is not None and abs(off) - report.within_s > CLOCKS_S:
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
                told = f"{backend} all-reduce at {rate(each)}, the median is {rate(usual)}: all others would wait for its network link"
                found.append(Finding(f"{backend} speed", node, told, compared=True))
    return found


def _disk(report: Report) -> list[Finding]:
    found = []
    if report.free_bytes < LITTLE_DISK:
        told = f"{size(report.free_bytes)} free in {report.folder}; a run needs {size(LITTLE_DISK)} at least: make room, or choose another run.dir"
        found.append(Finding("disk", report.node, told))
    if report.free_inodes is not None and report.free_inodes < FEW_INODES:
        told = f"{report.free_inodes} inodes free in {report.folder}: no more files can be made, whatever space there is: delete some, or choose another run.dir"
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
        return [Finding("driver", report.node, f"{report.gpus} GPUs in /dev, but no driver in /proc/driver/nvidia: load it")]
    told = "device: cuda, but this node has no GPU, or none for this job (--gpus-per-node, CUDA_VISIBLE_DEVICES)"
    return [Finding("no GPU", report.node, told)] if report.wanted_gpu and not report.gpus else []


def _names(report: Report) -> list[Finding]:
    found = []
    if report.unresolved:
        told = f"cannot resolve {', '.join(report.unresolved)}; this launcher uses addresses, others use names"
        found.append(Finding("names", report.node, told, wrong=False))
    if report.loopback:
        told = "its own name is a loopback address (/etc/hosts): gloo needs GLOO_SOCKET_IFNAME, which the agent sets"
        found.append(Finding("own name", report.node, told, wrong=False))
    return found


def nodes(reports: Sequence[Report]) -> str:
    named = [f"{report.node} ({report.host})" for report in reports[:NAMED]]
    more = [f"{len(reports) - NAMED} more"] if len(reports) > NAMED else []
    return f"node{'s' * (len(reports) != 1)} {', '.join([*named, *more])}"


def size(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB / 10 else f"{amount / 2**20:.0f} MiB"


def rate(amount: float) -> str:
    return f"{amount / 1e9:.2f} GB/s" if amount >= 1e8 else f"{amount / 1e6:.1f} MB/s"


TOGETHER: tuple[Callable[[Sequence[Report]], list[Finding]], ...] = (_software, _gpus, _seen, _started, _clocks, _rates)
ALONE: tuple[Callable[[Report], list[Finding]], ...] = (_disk, _memory, _processors, _devices, _names)
