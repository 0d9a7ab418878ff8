"""A private Slurm of two nodes on this machine: own ports, folders, munge key and socket. No configuration of the system is read or touched."""

import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

LIMIT_S = 300
"""For whatever must come: machines that test many things at once are ten times slower."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NODES = ("n1", "n2")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
Found = TypeVar("Found")
# cred_expire: how long a requeued job waits before it may start again (Slurm's own 120 s make "about two minutes").
# MinJobAge: jobs are looked at long after their end; scontrol would forget them after five minutes.
CONFIG = """
ClusterName=sft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
FirstJobId={first_job}
JobRequeue=1
MinJobAge=36000
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=15
KillWait=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={logs}/slurmctld.log
SlurmdLogFile={logs}/%n.log
NodeName=DEFAULT CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=2000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=patient Nodes=ALL PriorityTier=1 GraceTime=25 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=2 MaxTime=INFINITE State=UP
"""


def obstacle() -> str | None:
    """Why no cluster can be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "a Slurm daemon starts jobs as their users, and must itself be root's"


class Cluster:
    """Up inside its `with`; afterwards no process of it is left, neither a daemon nor a job's."""

    def __init__(self, logs: Path, env: dict[str, str]) -> None:
        """logs: a folder for the daemons' logs. env: what sbatch hands to jobs, beyond this process's own environment."""
        self.folder = Path(tempfile.mkdtemp(prefix="sft-", dir="/tmp"))  # a socket's path has at most 108 bytes
        self.logs = logs
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN", "WANDB_"))}
        self.env = {**own, **env, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        try:
            self._write_config()
            files = [
                f"--{name}={self.folder}/munge.{name.removesuffix('-file')}" for name in ("key-file", "pid-file", "seed-file", "socket")
            ]
            self._start("munged", "munged", "--foreground", "--force", *files)
            until(lambda: (self.folder / "munge.socket").exists(), "munged has no socket")
            self._start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            until(self._is_up, f"no two idle nodes; see {self.logs}")
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.down()

    def down(self) -> None:
        """End every daemon, then every process that has our configuration in its environment: what the daemons started."""
        for daemon in reversed(self.daemons.values()):
            daemon.kill()
            daemon.wait()
        for _ in range(50):
            if not self._kill():
                break
            time.sleep(0.1)
        shutil.rmtree(self.folder)
        assert not self._kill(), "processes of the cluster outlive it"

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_daemon(self, node: str) -> None:
        """SIGKILL to the node's slurmd alone: its jobs go on, and the controller must miss it (SlurmdTimeout)."""
        self.daemons[node].kill()
        self.daemons[node].wait()

    def kill_processes(self, node: str, job: str) -> None:
        """SIGKILL to all that a job has on a node, slurmstepd included: as if its power had failed."""
        tasks = self._kill(f"SLURMD_NODENAME={node}", f"SLURM_JOB_ID={job}")
        assert tasks, f"job {job} has nothing on {node}"

    def signal_rank(self, job: str, rank: int, number: signal.Signals) -> None:
        """A signal to one rank of a job alone: not to its agent, nor to what it has started itself."""
        found = self._processes(f"SLURM_JOB_ID={job}", f"RANK={rank}")
        assert found, f"job {job} has no rank {rank}"
        os.kill(min(found), number)

    def sbatch(self, folder: Path, *arguments: str, **env: str) -> str:
        """Submit from a folder; the job's number. env: what this job finds in its environment besides."""
        command = ["sbatch", "--parsable", *arguments]
        done = subprocess.run(command, cwd=folder, env={**self.env, **env}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def release(self, job: str) -> None:
        """Let a job begin that was submitted with --hold."""
        self._ask("scontrol", "release", job)

    def scancel(self, *arguments: str) -> None:
        self._ask("scancel", *arguments)

    def state(self, job: str) -> dict[str, str]:
        """What `scontrol show job` knows: JobState, Restarts, ExitCode, StdOut..."""
        shown = until(lambda: self._ask("scontrol", "show", "job", "--oneliner", job), f"Slurm tells nothing of job {job}")
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def log(self, job: str) -> str:
        path = Path(self.state(job)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else "(no log)"

    def wait(self, job: str, *states: str, limit_s: float = LIMIT_S) -> dict[str, str]:
        """Until the job is in one of the states. That it ends in another one, or not in time, fails the test and shows its log."""
        end = time.monotonic() + limit_s
        while (found := self.state(job))["JobState"] not in states:
            over = found["JobState"] in ENDED or time.monotonic() > end
            assert not over, f"job {job} is {found['JobState']} ({found['Reason']}), not {' or '.join(states)}\n{self.log(job)[-6000:]}"
            time.sleep(0.2)
        return found

    def wait_for_restart(self, job: str) -> None:
        """Until Slurm has put the job back into its queue: once is meant."""
        until(lambda: self.state(job)["Restarts"] == "1", f"job {job} was not requeued\n{self.log(job)[-6000:]}")

    def assert_nothing_is_left(self, job: str) -> None:
        """No process that the job started, on any node, outlives it by more than some seconds."""
        number = self.state(job)["JobId"]
        until(lambda: not self._processes(f"SLURM_JOB_ID={number}"), f"processes of job {job} outlive it", limit_s=20)

    def _processes(self, *variables: str) -> list[int]:
        return processes(f"SLURM_CONF={self.env['SLURM_CONF']}", *variables)

    def _kill(self, *variables: str) -> list[int]:
        """SIGKILL to all processes of the cluster, or to those with these variables; returns which they were."""
        found = self._processes(*variables)
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return found

    def _is_up(self) -> bool:
        dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
        assert not dead, "".join((self.logs / f"{name}.out").read_text() for name in dead)
        return self._ask("sinfo", "--noheader", "--format=%T %D").split() == ["idle", "2"]

    def _write_config(self) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        host = socket.gethostname().partition(".")[0]
        first = random.SystemRandom().randrange(
            1, 1_000_000
        )  # a job's number gives its port: two clusters on a machine shall not share them
        text = CONFIG.format(host=host, ports=_free_ports(3), folder=self.folder, logs=self.logs, first_job=first)
        (self.folder / "slurm.conf").write_text(text)

    def _start(self, name: str, *command: str) -> None:
        """A daemon as a child in the foreground; the system ends it should this process die without a word."""
        with (self.logs / f"{name}.out").open("ab") as out:
            command = ("setpriv", "--pdeathsig", "KILL", *command)
            self.daemons[name] = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def _ask(self, *command: str) -> str:
        """One of Slurm's commands; empty if it failed, as it does while the controller starts."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""


def processes(*variables: str) -> list[int]:
    """The processes that were started with all these variables (NAME=value) in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if set(variables) <= set(path.read_bytes().decode(errors="replace").split("\0")):
                found.append(int(path.parent.name))
    return found


def until(true: Callable[[], Found], otherwise: str, limit_s: float = LIMIT_S) -> Found:
    """What it returns, once that is something."""
    end = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < end, f"{otherwise} (after {limit_s} s)"
        time.sleep(0.2)
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
