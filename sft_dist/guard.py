"""What a rank does for its node's agent besides training: it shows its stacks when asked, and leaves when the agent is gone."""

import faulthandler
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from sft_dist.errors import InfrastructureError
from sft_dist.pulse import Pulse

STACKS = signal.SIGRTMIN
"""An agent asks for the Python stacks by this signal; they can be written even while the main thread waits inside a collective."""
LOOK_S = 1.0
PATIENCE_S = 60
"""Seconds in which a rank without an agent may still save, before it ends whatever it does."""


def start(pulse: Pulse, rank: int) -> None:
    """Stand guard from now to the end of the process; nothing to do where no agent started it.

    Raises InfrastructureError where the agent is gone already: this rank has nothing to save yet.
    """
    if pulse.attempt is None or pulse.agent is None:
        return
    if os.getppid() != pulse.agent:
        raise InfrastructureError(f"the agent that started this rank (process {pulse.agent}) is gone")
    with suppress(OSError):  # a full or forbidden disk is told by those who need it
        stacks = (pulse.attempt / f"rank-{rank}.stack").open("w")  # open to the end: it is written when Python itself may be stuck
        faulthandler.register(STACKS, stacks, all_threads=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {STACKS})  # the agent holds it back until somebody can answer
    arguments = (pulse, pulse.attempt / f"rank-{rank}.flight.json", pulse.agent)
    threading.Thread(target=_look, args=arguments, name="guard", daemon=True).start()


def _look(pulse: Pulse, flight: Path, agent: int) -> None:
    orphaned: float | None = None
    while True:
        time.sleep(LOOK_S)
        if pulse.wanted:
            pulse.wanted = False
            _dump_flight(flight)
        if os.getppid() != agent and orphaned is None:
            orphaned = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)  # the ranks agree, save and leave
        if orphaned is not None and time.monotonic() > orphaned + PATIENCE_S:
            os._exit(75)


def _dump_flight(path: Path) -> None:
    """The last collectives of this rank, by torch's flight recorder; it holds some where TORCH_FR_BUFFER_SIZE is set."""
    try:
        from torch._C import _distributed_c10d as c10d

        path.write_bytes(c10d._dump_fr_trace_json())  # type: ignore[attr-defined]
    except (ImportError, AttributeError, OSError, RuntimeError):  # a build of torch without it, a full disk: the stacks are there still
        return
