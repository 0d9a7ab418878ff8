"""Starting a run on this machine: refuse early, begin an attempt, then become the node's agent, or watch over several."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from launch import node_agent, plans
from launch.plans import Launch
from launch.software import REPOSITORY
from sft_dist import attempts, locks, notice, parse, preflight, rundir
from sft_dist.config import Config
from sft_dist.plan import World
from sft_dist.rundir import RunDir, write_json

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
WARNING_S = 600.0
"""What slurm/finetune.sh asks for before the time limit (--signal=B:USR1@600); a flag of sbatch may say otherwise, which no job can see."""


def checked(
    config: Path, overrides: tuple[str, ...], env: Mapping[str, str], procs: int | None, nodes: int = 1, expected: str = ""
) -> tuple[Config, int]:
    """The config and the processes of a node, after every refusal that needs no torch.

    procs: None for one process a GPU of this machine. expected: SFT_EXPECT_WORLD as the ranks will find it, where this start does not set it.
    """
    plans.plain([str(config), *overrides])
    settings = parse.load(config, overrides)
    each = procs or plans.processes_here(settings, env)
    preflight.check(settings, World(size=nodes * each, local_size=each), {**env, "SFT_EXPECT_WORLD": expected})
    return settings, each


def begin(config: Config, nodes: int, procs: int, launcher: str, command: list[str], job: Mapping[str, str] | None = None) -> Path:
    """Open the run's folder for a new attempt: attempts/<k>. Raises MachineError, naming the holder, if the run is going on already.

    launcher: who starts it, for people; command: what a person types to start it again; job: what tells Slurm's job, besides its number.
    """
    run = rundir.create(config)
    with locks.hold(run, locks.LEASE_S):
        number = attempts.begin(run)
    folder = attempts.folder(run, number)
    about = {"nodes": nodes, "procs": procs, "launcher": launcher, "started_ns": time.time_ns(), "from_step": run.saved_step}
    about |= {"command": command, **({"slurm": dict(job)} if job else {})}
    write_json(folder / "attempt.json", about)
    return folder


def little_notice(run: RunDir, env: Mapping[str, str]) -> list[str]:
    """What to warn of where a save of this run takes longer than the Slurm that this runs under may wait for it."""
    save_s = notice.longest_save_s(run)
    if not save_s or "SLURM_JOB_ID" not in env:
        return []
    with suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=30, check=True).stdout
        if told := re.search(r"(?m)^KillWait\s*=\s*(\d+)", shown):
            return notice.too_short_for_slurm(save_s, float(told[1]), WARNING_S)
    return []


def would_begin(config: Config) -> Path:
    """The folder that `begin` would make."""
    run = RunDir.of(config)
    return attempts.folder(run, max(attempts.numbers(run), default=0) + 1)


def start(launch: Launch, env: Mapping[str, str]) -> int:
    """Run the launch on this machine and return its exit code. On one node this process is the agent, as a second Python would
    only read the same files once more; what it runs is what `plans.agent` prints."""
    whole = plans.environment(launch, env)
    if launch.nodes == 1:
        return _become_agent(plans.agent(launch, 0), whole)
    agents: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        for each in agents:
            if each.poll() is None:
                each.send_signal(number)

    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, forward)
    agents += [subprocess.Popen(plans.agent(launch, node), env=whole, start_new_session=True) for node in range(launch.nodes)]
    codes = [each.wait() for each in agents]
    for node, code in enumerate(codes):
        if code < 0:
            print(f"sft-launch: the agent of node {node} was killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    return next((code if code > 0 else 75 for code in codes if code), 0)


def _become_agent(command: list[str], env: Mapping[str, str]) -> int:
    """What `python -P -m launch.node_agent ...` does, in this process."""
    os.environ.clear()
    os.environ.update(env)
    if not sys.flags.safe_path:
        sys.path[0] = str(REPOSITORY)  # the folder that this was started in must not hide a library
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the shell has closed it: >&-
        stream.reconfigure(line_buffering=True)
    return node_agent.become(command[command.index("launch.node_agent") + 1 :])
