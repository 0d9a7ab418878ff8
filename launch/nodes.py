"""Which node this is, of which job: from the agent's arguments and Slurm's variables; nonsense is refused in a sentence."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sft_dist.errors import ConfigError, MachineError
from sft_dist.plan import processors

LEAKED = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("SFT_ATTEMPT", "SFT_PULSE", "SFT_AGENT", "SFT_CODE", "SFT_PYTHON", "SFT_PROCS_PER_NODE"),
)


@dataclass(frozen=True)
class Place:
    """One node of a job.

    index: from 0; node 0 holds rank 0 and is the head. procs: ranks on this node. head: the head's address. attempt: attempts/<k> of
    the run's folder.
    """

    index: int
    nodes: int
    procs: int
    head: str
    port: int
    attempt: Path

    @property
    def world(self) -> int:
        return self.nodes * self.procs

    @property
    def folder(self) -> Path:
        return self.attempt / f"node-{self.index}"

    @property
    def ranks(self) -> range:
        return range(self.index * self.procs, (self.index + 1) * self.procs)


def index_of(env: Mapping[str, str], nodes: int, given: int | None) -> int:
    """This node's number: given, or Slurm's. Raises MachineError where Slurm started the agents otherwise than one a node."""
    if given is not None:
        if not 0 <= given < nodes:
            raise ConfigError(f"--node {given} is outside the job: its nodes are 0 to {nodes - 1}")
        return given
    tasks, procid = env.get("SLURM_STEP_NUM_TASKS"), env.get("SLURM_PROCID")
    if nodes == 1 and tasks in (None, "1"):
        return 0
    if tasks is None or procid is None:
        raise MachineError(
            f"--nodes {nodes} without --node, and srun's variables are not here: say --node 0 on the head, --node 1 on the next, ..."
        )
    here = env.get("SLURM_STEP_NUM_NODES", "?")
    if (tasks, here) != (str(nodes), str(nodes)):
        raise MachineError(
            f"srun started {tasks} tasks on {here} nodes, but one agent a node makes {nodes}: use srun --nodes={nodes} --ntasks={nodes} "
            "--ntasks-per-node=1; the agent starts the processes of its node itself"
        )
    return int(env.get("SLURM_NODEID", procid))


def refuse_inside_a_rank(env: Mapping[str, str]) -> None:
    """Raises MachineError where another launcher has begun already: each of its processes would start a whole world of its own."""
    partly = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if env.get(name)]
    if partly:
        told = ", ".join(f"{name}={env[name]}" for name in partly)
        raise MachineError(
            f"the environment says that this is a rank already ({told}): start the agent by itself, not by another launcher; or unset them"
        )


def rank_environment(place: Place, env: Mapping[str, str], pulses: Path) -> dict[str, str]:
    """What the ranks of this node find in their environment, beside torchrun's variables; a choice of the user's stays."""
    share = int(env.get("SLURM_CPUS_PER_TASK") or processors())  # a cluster that does not bind tasks still has promised no more
    threads = max(1, min(share, processors()) // place.procs)
    chosen = {"OMP_NUM_THREADS": str(threads), "TORCH_FR_BUFFER_SIZE": "2000"}
    if wire := interface_towards(place.head):
        chosen |= {"GLOO_SOCKET_IFNAME": wire, "NCCL_SOCKET_IFNAME": wire}
    ours = {
        "SFT_EXPECT_WORLD": env.get("SFT_EXPECT_WORLD") or str(place.world),
        "SFT_PULSE": str(pulses),
        "SFT_ATTEMPT": str(place.folder.absolute()),
        "SFT_AGENT": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    return {**{name: value for name, value in chosen.items() if not env.get(name)}, **ours}


def interface_towards(address: str) -> str | None:
    """The network interface by which packets to the head leave: gloo would take that of the host's name, mostly a loopback address."""
    import fcntl
    import struct

    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing; the kernel chooses the way
            own = probe.getsockname()[0]
    except OSError:
        return None
    if own.startswith("127."):
        return "lo" if Path("/sys/class/net/lo").exists() else None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == own:
                return name
    return None


def cut_off(place: Place, within_s: float = 5.0) -> str | None:
    """Why the head's host does not answer this one, in a sentence; None where it does, be it by a refusal: then only its agent is gone."""
    try:
        socket.create_connection((place.head, place.port), timeout=within_s).close()
    except ConnectionRefusedError:
        return None
    except OSError as error:
        return unreached(place, error)
    return None


def unreached(place: Place, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"node {place.index} ({socket.gethostname()}) cannot reach the head at {place.head}:{place.port}: {reason}"


def without_leaks(env: Mapping[str, str]) -> dict[str, str]:
    """The environment less what a launcher around this one has left in it: a job that was submitted from inside another one inherits it."""
    return {name: value for name, value in env.items() if name not in LEAKED and not name.startswith(("TORCHELASTIC_", "PET_"))}


def pulse_folder() -> str:
    """Where the ranks' pulses lie: in this node's memory where there is a place for it."""
    shm = Path("/dev/shm")  # noqa: S108 (a folder of our own with a random name is made in it)
    return str(shm) if os.access(shm, os.W_OK) else "/tmp"  # noqa: S108
