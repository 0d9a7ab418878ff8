"""How the doctor comes to the nodes: the command lines, on this machine or by srun inside an allocation."""

import contextlib
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch import examine, plans
from launch.nodes import without_leaks
from launch.patience import COME_S, STEP_S, LateError, within
from launch.software import REPOSITORY
from sft_dist.errors import ConfigError, MachineError

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PARTING_S = 5.0
ALONE_S = COME_S + STEP_S + 20.0
"""How long a head may go on when others have ended, as one without torch does at once: it may still wait for them to come."""


@dataclass(frozen=True)
class Visit:
    """What to examine: nodes, and what a run on them would use; procs: 0 until `prepare` knows better; workers: None for auto.

    token: what files are called by that are left in the folder, to see whether all see them.
    """

    nodes: int
    folder: Path
    procs: int = 0
    workers: int | None = None
    gpu: bool = False
    as_json: bool = False
    head: str = "127.0.0.1"
    port: int = 0
    token: str = ""


def prepare(visit: Visit, config: Path | None, overrides: tuple[str, ...], env: Mapping[str, str]) -> Visit:
    """The visit with what a config says: its run.dir, data.workers, device, and the processes of a node."""
    from sft_dist import parse

    visit = replace(visit, token=secrets.token_hex(8))
    if config is None:
        return replace(visit, procs=visit.procs or max(1, examine.gpus(env)))
    plans.plain([str(config), *overrides])
    settings = parse.load(config, overrides)
    workers = None if settings.data.workers == "auto" else int(settings.data.workers)
    procs = visit.procs or plans.processes_here(settings, env)
    return replace(visit, folder=Path(settings.run.dir), workers=workers, procs=procs, gpu=settings.device == "cuda")


def commands(visit: Visit, simulate: bool, env: Mapping[str, str]) -> list[list[str]]:
    """One command a node, or srun's one for all of them. Raises ConfigError where several nodes cannot be reached from here."""
    if simulate or "SLURM_JOB_ID" not in env:
        if visit.nodes > 1 and not simulate:
            line = shlex.join(node_command(replace(visit, head="ADDRESS_OF_NODE_0", port=visit.port or 23456, token="")))
            raise ConfigError(
                [
                    f"--nodes {visit.nodes} needs --simulate, or an allocation of Slurm (salloc --nodes={visit.nodes}); by hand, on each node k:"
                ]
                + [f"{line} --node k"]
            )
        return [[*node_command(visit), "--node", str(node)] for node in range(visit.nodes)]
    number = str(visit.nodes)
    share = env.get("SLURM_CPUS_PER_TASK", "1")
    # --wait: a node that hangs must not keep srun for ever; nor may one that ended at once, when the head waits for it, end the others
    srun = [
        "srun",
        "--overlap",
        f"--wait={ALONE_S:.0f}",
        "--kill-on-bad-exit=0",
        f"--nodes={number}",
        f"--ntasks={number}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={share}",
    ]
    return [[*srun, "--gpu-bind=none", *node_command(_of_the_job(visit, env))]]


def node_command(visit: Visit) -> list[str]:
    """What runs on every node; without --node it is Slurm that says which one it is."""
    where = ["--nodes", str(visit.nodes), "--head", visit.head, "--port", str(visit.port), "--folder", str(visit.folder.absolute())]
    token = ["--token", visit.token] if visit.token else []
    workers = [] if visit.workers is None else ["--workers", str(visit.workers)]
    flags = [*(["--gpu"] if visit.gpu else []), *(["--json"] if visit.as_json else [])]
    return [sys.executable, "-P", "-m", "launch.doctor_node", *where, "--procs", str(visit.procs), *workers, *flags, *token]


def start(visit: Visit, lines: list[list[str]], env: Mapping[str, str]) -> int:
    """Run them side by side; 0 where all end so, else 78. Whatever ends this, an interrupt too, nothing is left of it."""
    paths = [str(REPOSITORY), *filter(None, env.get("PYTHONPATH", "").split(":"))]
    whole = {**without_leaks(env), "PYTHONPATH": ":".join(dict.fromkeys(paths))}
    started: list[subprocess.Popen[bytes]] = []
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        _leave_note(visit)
        with _interrupts_later():
            for line in lines:
                started.append(subprocess.Popen(line, env=whole))
        _wait(started)
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # the second ctrl-C must not stop the end of the first
        _end(started)
        _take_note(visit)
        for number, handler in before.items():
            signal.signal(number, handler)
    return MachineError.exit_code if any(each.returncode for each in started) else 0


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """An interrupt waits for the end of this: between the start of a process and the return of its Popen it would leave it to nobody."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until the first has ended, which is the head and has had the last word, or all others have; what is still there later hangs."""
    head, others = started[0], started[1:]
    while head.poll() is None and (not others or any(each.poll() is None for each in others)):
        time.sleep(0.1)
    deadline = time.monotonic() + (ALONE_S if head.poll() is None else PARTING_S)
    while any(each.poll() is None for each in started) and time.monotonic() < deadline:
        time.sleep(0.1)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask first: srun tells its nodes. What hangs in the kernel cannot be ended, nor waited for."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for each in started:
            if each.poll() is None:
                each.send_signal(number)
        deadline = time.monotonic() + PARTING_S
        while any(each.poll() is None for each in started) and time.monotonic() < deadline:
            time.sleep(0.05)


def _leave_note(visit: Visit) -> None:
    try:
        within(PARTING_S, lambda: examine.leave_note(visit.folder, visit.token, examine.STARTER))
    except (OSError, LateError) as error:
        told = getattr(error, "strerror", None) or str(error)
        print(f"sft-launch doctor: cannot write in {visit.folder} from here: {told}", file=sys.stderr, flush=True)


def _take_note(visit: Visit) -> None:
    with contextlib.suppress(LateError):
        within(PARTING_S, lambda: examine.remove_notes(visit.folder, visit.token, [examine.STARTER]))


def _of_the_job(visit: Visit, env: Mapping[str, str]) -> Visit:
    """Head and port as slurm/finetune.sh will have them."""
    names = examine.hosts({"SLURM_JOB_NODELIST": env.get("SLURM_JOB_NODELIST", "")})
    if not names:
        raise MachineError("SLURM_JOB_ID is set, but `scontrol show hostnames` names no nodes: is scontrol here?")
    try:
        shown = subprocess.run(["scontrol", "show", "node", names[0]], capture_output=True, text=True, timeout=30).stdout
    except subprocess.TimeoutExpired as error:
        raise MachineError("scontrol has not answered for 30 s: the cluster's controller is down or very busy") from error
    address = next((word.partition("=")[2] for word in shown.split() if word.startswith("NodeAddr=")), names[0])
    return replace(visit, head=address, port=20000 + int(env["SLURM_JOB_ID"]) % 12000)
