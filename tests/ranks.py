"""Starts the ranks of runs, and is itself what each of them executes. They are forked from a server that has imported torch once."""

import atexit
import functools
import importlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import waits

LIMIT_S = 400
PRELOADED = ["torch", "torchvision", "accelerate", "sft_dist.run", "sft_dist.cli"]


@dataclass(frozen=True)
class Job:
    """One run: a config file with overrides; `die_at` kills every rank's process at a point inside the save of `die_step`.

    wait_in: the step in which the last rank waits, and the others for it, until it is asked to stop; 0 for none.
    """

    config: str
    overrides: tuple[str, ...] = ()
    die_at: str = ""
    die_step: int = 0
    wait_in: int = 0
    port: int = field(default_factory=lambda: free_port())


def free_port() -> int:
    """One that nobody has, below those that the kernel gives away, and those of `sft-launch`: it shall be free seconds later too."""
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@functools.cache
def forks() -> ForkServerContext:
    """Makes processes that have imported torch already, which saves each of them seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # is read at the import
        forkserver.ensure_running()
    return context


def start(
    world: int, jobs: Sequence[Job], log: Path, call: str = "ranks:make_runs", only: int | None = None, **env: str
) -> list[ForkServerProcess]:
    """One process a rank, or `only` one rank's; each gives all jobs to `call` (module:function). What it prints goes to <log>-<rank>."""
    processes = []
    for rank in range(world) if only is None else [only]:
        places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in places.items()}, **env}
        if world == 1:
            variables = {name: value for name, value in variables.items() if name not in places}
        processes.append(forks().Process(target=_rank, args=(call, list(jobs), variables, f"{log}-{rank}")))
        processes[-1].start()
        atexit.register(processes[-1].kill)  # one whose test failed would be waited for
    return processes


def wait(processes: Sequence[ForkServerProcess], limit_s: float = LIMIT_S) -> list[int | None]:
    """The exit codes; whatever is still running after the limit is killed and counts as a failure of the test."""
    end = time.monotonic() + limit_s
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{len(late)} of {len(processes)} ranks did not end in {limit_s} s"
    return [process.exitcode for process in processes]


def run_ranks(world: int, jobs: Sequence[Job], log: Path, call: str = "ranks:make_runs", **env: str) -> list[int | None]:
    return wait(start(world, jobs, log, call, None, **env))


def output(log: Path, world: int) -> str:
    return "\n".join(Path(f"{log}-{rank}").read_text(errors="replace") for rank in range(world))


def rows(run: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """metrics.jsonl by (step, kind), without the columns that tell of speed and of machines; every (step, kind) must appear once."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    table = {
        (row["step"], row["kind"]): {k: v for k, v in row.items() if not k.startswith(("speed/", "time/", "memory/", "system/"))}
        for row in lines
    }
    assert len(table) == len(lines), "a (step, kind) appears twice"
    return table


def largest_difference(one: dict[tuple[int, str], dict[str, Any]], other: dict[tuple[int, str], dict[str, Any]]) -> float:
    """P1's ruler over every number of two curves: absolute, and relative above 1."""
    assert one.keys() == other.keys()
    worst = 0.0
    for place, row in one.items():
        assert row.keys() == other[place].keys(), place
        for name, value in row.items():
            if isinstance(value, int | float):
                worst = max(worst, abs(value - other[place][name]) / max(1.0, abs(value)))
    return worst


def logged(run: Path, step: int) -> bool:
    """Whether metrics.jsonl has a row of that step."""
    return (run / "metrics.jsonl").exists() and f'"step": {step},' in (run / "metrics.jsonl").read_text()


def wait_for_step(run: Path, step: int, limit_s: float = LIMIT_S) -> None:
    """Until metrics.jsonl has a row of that step. The run goes on meanwhile, to its end if nothing makes it wait."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if logged(run, step):
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} did not reach step {step} in {limit_s} s")


def wait_for_checkpoint(run: Path, limit_s: float = LIMIT_S) -> None:
    """Until a save has been committed, which is some steps after it began."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if any(run.glob("checkpoints/step-*/MANIFEST.json")):
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} has no checkpoint after {limit_s} s")


def _die(job: Job) -> None:
    """Put a SIGKILL at a named point of the save of a step: a fault in the process, not in what is tested."""
    from sft_dist import archive, checkpoint

    def deadly(function: Any, before: bool, relevant: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            if before and relevant(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments)
            if relevant(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    def this_step(*arguments: Any) -> bool:
        names = [str(argument) for argument in arguments if isinstance(argument, Path)]
        return any(f"step-{job.die_step:08d}" in name for name in names) or any(
            argument == job.die_step for argument in arguments if isinstance(argument, int)
        )

    def cut_in_half(path: Path, tensors: Any) -> Any:
        entry = write(path, tensors)
        os.truncate(path, entry.bytes // 2)
        return entry

    match job.die_at:
        case "before manifest":
            checkpoint.manifest.write = deadly(checkpoint.manifest.write, True, this_step)
        case "before rename":
            checkpoint.manifest.write = deadly(checkpoint.manifest.write, False, this_step)
        case "before pointer":
            checkpoint._move_over = deadly(checkpoint._move_over, False, this_step)
        case "before retention":
            checkpoint.point = deadly(checkpoint.point, False, lambda _, progress: progress.step == job.die_step)
        case "asked in evaluation":
            _ask_before_evaluation_of(job.die_step)
        case "half a file":
            write = archive.write
            archive.write = deadly(cut_in_half, False, this_step)


def _ask_before_evaluation_of(step: int) -> None:
    """Send rank 1 a SIGTERM between its training step, where no rank was asked to stop, and the evaluation of that step."""
    from sft_dist import run

    evaluate = run._evaluate

    def asked(parts: Any, progress: Any) -> Any:
        if progress.step == step and parts.engine.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(parts, progress)

    run._evaluate = asked


def note_exits(jobs: Sequence[Job]) -> None:
    """Every job as a run, whatever comes of it; exit codes and error texts go to the file that SFT_TEST_EXITS names, with the rank."""
    import contextlib
    import io

    from sft_dist import cli

    exits = []
    for job in jobs:
        os.environ["MASTER_PORT"] = str(job.port)
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            try:
                cli.main(["train", job.config, *job.overrides])
                code: Any = 0
            except SystemExit as end:
                code = end.code
        exits.append([code, told.getvalue()])
    Path(f"{os.environ['SFT_TEST_EXITS']}-{os.environ.get('RANK', '0')}").write_text(json.dumps(exits))


def make_runs(jobs: Sequence[Job]) -> None:
    """What a rank does by default: every job as a run, through the command line's own door."""
    from sft_dist import cli

    for job in jobs:
        os.environ["MASTER_PORT"] = str(job.port)
        _die(job)
        if job.wait_in and int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
            waits.wait_in(job.wait_in)
        try:
            cli.main(["train", job.config, *job.overrides])
        except SystemExit as end:
            if end.code:
                raise


def become(environment: dict[str, str], log: str) -> None:
    """Makes a forked process one of its own: with a session, an environment, and a file for what it prints."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    os.environ.clear()
    os.environ.update(environment)


def _rank(call: str, jobs: list[Job], environment: dict[str, str], log: str) -> None:
    become(environment, log)
    module, _, function = call.partition(":")
    getattr(importlib.import_module(module), function)(jobs)
