"""What a rank is doing right now, in a few bytes that its node's agent reads: at no cost to the step, and after the rank's death too."""

import mmap
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sft_dist.timeline import Timeline

PHASES = (
    "start-up", "data", "forward", "backward", "update", "exchange", "bookkeeping", "evaluation", "waiting for rank 0", "save", "end",
)  # fmt: skip
"""In the order of a step: `update` clips and moves the weights, `exchange` is the one message of a step, `bookkeeping` follows it."""
STEP = PHASES[1:6]
"""The phases of which a training step consists."""
LAYOUT = struct.Struct("<qqqqq")  # process, step, phase, when it began (ns since 1970), how often a phase began
WANTED = LAYOUT.size  # one byte behind it, written by the agent
SIZE = LAYOUT.size + 1


def column(phase: str) -> str:
    """The name of a phase's seconds in a row of metrics."""
    return f"time/{phase.replace('-', '_').replace(' ', '_')}_s"


@dataclass(frozen=True)
class Beat:
    """The phase of one rank, and since when (ns since 1970)."""

    pid: int
    step: int
    phase: str
    since_ns: int
    count: int


class Pulse:
    """A rank's own side: `at` whenever a phase begins. The memory is shared with the agent, so that nothing is written to a disk."""

    def __init__(self, file: Path | None = None) -> None:
        """file: on this machine's memory or disk, never on a shared file system; None keeps the beat to the process itself."""
        self.memory: mmap.mmap | bytearray = bytearray(SIZE)
        if file is not None:
            with file.open("w+b") as opened:
                opened.truncate(SIZE)
                self.memory = mmap.mmap(opened.fileno(), SIZE)
        self.timeline = Timeline("start-up")
        self.count = self.step = 0
        self.attempt: Path | None = None
        """Where this rank's failure is recorded, once that is known."""
        self.agent: int | None = None
        """The process that started this rank as its node's agent; None where there is none."""
        self.at("start-up")

    @classmethod
    def of(cls, env: Mapping[str, str]) -> "Pulse":
        """The pulse that a node's agent asked for (SFT_PULSE: a folder on the node, SFT_ATTEMPT: one in the run, SFT_AGENT: its process),
        or one that nobody reads."""
        folder, place, agent = env.get("SFT_PULSE"), env.get("SFT_ATTEMPT"), env.get("SFT_AGENT")
        pulse = cls(Path(folder) / env.get("RANK", "0") if folder else None)
        pulse.attempt = Path(place) if place else None
        pulse.agent = int(agent) if agent else None
        return pulse

    def at(self, phase: str, step: int | None = None) -> None:
        """A phase begins, in the making of update number `step`; without a number in that of the one before."""
        self.count += 1
        self.step = self.step if step is None else step
        self.timeline.at(phase)
        LAYOUT.pack_into(self.memory, 0, os.getpid(), self.step, PHASES.index(phase), time.time_ns(), self.count)

    @property
    def wanted(self) -> bool:
        """Whether the agent wants to see what this rank's collectives were."""
        return self.memory[WANTED] != 0

    @wanted.setter
    def wanted(self, value: bool) -> None:
        self.memory[WANTED] = int(value)

    @property
    def beat(self) -> Beat:
        return _unpack(self.memory)


def read(file: Path) -> Beat | None:
    """The last beat of a rank; None while it has not begun."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return _unpack(content) if len(content) == SIZE and any(content) else None


def want(file: Path) -> None:
    """Ask the rank behind a pulse for its collectives."""
    with file.open("r+b") as opened:
        opened.seek(WANTED)
        opened.write(b"\x01")


def _unpack(content: bytes | bytearray | mmap.mmap) -> Beat:
    pid, step, phase, since_ns, count = LAYOUT.unpack_from(content)
    return Beat(pid, step, PHASES[phase], since_ns, count)
