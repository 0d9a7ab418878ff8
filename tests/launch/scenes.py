"""Run folders as agents and ranks leave them, written with the same functions; each ends at the same second."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_dist import attempts, manifest
from sft_dist.attempts import Failure
from sft_dist.pulse import Beat
from sft_dist.rundir import RunDir, write_json

SECOND = 10**9
END = 1_767_330_751 * SECOND  # 2026-01-02 05:12:31 UTC
PEER = "another rank was lost or did not answer: Connection closed by peer [10.0.0.2]:40123"
HOSTS = ("node-a", "node-b")


def at(seconds: float) -> int:
    """A moment, by its distance from the end."""
    return END + round(seconds * SECOND)


def failure(rank: int, kind: str, message: str, code: int = 1, seconds: float = 0.0, **more: Any) -> Failure:
    """A record of one of two ranks a node."""
    told = {"step": 13, "phase": "backward", "node": rank // 2, "host": HOSTS[rank // 2], **more}
    return Failure(time_ns=at(seconds), rank=rank, code=code, type=kind, message=message, **told)


def consequence(rank: int, seconds: float = 0.4) -> Failure:
    return failure(rank, "InfrastructureError", PEER, 75, seconds)


def begin(path: Path, steps: Sequence[int] = (10,), logged: int = 12) -> RunDir:
    """A run with whole checkpoints, the last of which was written two minutes before the end."""
    run = RunDir(path)
    run.checkpoints.mkdir(parents=True)
    run.config.write_text("task: classify\n")
    write_json(run.path / "env.json", {"argv": ["sft_dist/train.py", "configs/pets.yaml", "optim.lr=0.01"]})
    write_json(run.path / "plan.json", {"micro_batch": 16})
    run.metrics.write_text("".join(f'{{"step": {step}, "kind": "train"}}\n' for step in range(1, logged + 1)))
    for step in steps:
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        manifest.write(folder, step, {"model.safetensors": manifest.entry(folder / "model.safetensors")})
        os.utime(folder / manifest.NAME, ns=(at(-120), at(-120)))
        (run.checkpoints / "latest").write_text(folder.name)
    return run


def attempt(
    run: RunDir,
    failures: Sequence[Failure] = (),
    ends: Mapping[int, Mapping[str, Any] | None] | None = None,
    beats: Mapping[int, tuple[str, float]] | None = None,
    beaten: Mapping[int, float] | None = None,
    number: int = 1,
    **about: Any,
) -> Path:
    """An attempt of two nodes with two ranks each. ends: what exit.json of a node says; beats: rank -> phase, and since when.

    beaten: when a node's agent wrote its last heartbeats; all in seconds from the end.
    """
    path = attempts.folder(run, number)
    told = {"nodes": 2, "procs": 2, "launcher": "sft-launch run", "started_ns": at(-600), "from_step": 0, **about}
    write_json_into(path / "attempt.json", told)
    for index in range(told["nodes"]):
        node = attempts.node_folder(path, index)
        write_json_into(node / "agent.json", {"host": HOSTS[index], "pid": 100 + index})
        ranks = range(told["procs"] * index, told["procs"] * (index + 1))
        last = {rank: Beat(200 + rank, 13, *_beat((beats or {}).get(rank, ("backward", -1.0))), 77) for rank in ranks}
        written = {str(rank): vars(beat) for rank, beat in last.items()}
        write_json_into(node / "heartbeats.json", {"time_ns": at((beaten or {}).get(index, 0.5)), "ranks": written})
        end = (ends or {}).get(index, {"code": 1})
        if end is not None:
            write_json_into(node / "exit.json", {"code": 1, "time_ns": at(1.0), "asked": None, "step": 10, **end})
    for record in failures:
        place = attempts.node_folder(path, record.node)
        place.mkdir(parents=True, exist_ok=True)
        attempts.write_failure(place, record)
    return path


def write_json_into(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _beat(told: tuple[str, float]) -> tuple[str, int]:
    return told[0], at(told[1])


TRACEBACK = (
    "Traceback (most recent call last):",
    '  File "sft_dist/loop.py", line 75, in train_step',
    "    losses = task.loss(engine.wrapped, to_device(batch, engine.device))",
    '  File "my_task.py", line 12, in loss',
    "    return table[label]",
    "KeyError: 'beagle'",
)
STACK = """Thread 0x00007f10 (most recent call first):
  File "threading.py", line 324 in wait
  File "threading.py", line 1002 in _bootstrap

Current thread 0x00007f00 (most recent call first):
  File "PIL/Image.py", line 3469 in open
  File "sft_dist/loading.py", line 60 in __getitem__
  File "sft_dist/loop.py", line 70 in train_step
"""
SILENT = "in data since 05:07:31, 300 s without a sign"


def user_error(run: RunDir) -> None:
    mistake = failure(2, "ConfigError", "data.root = 'data/pets': beagle_7.jpg cannot be read\nrepair it, or use data.bad: skip", 2)
    attempt(run, [mistake, consequence(0), consequence(1), consequence(3)], {0: {"code": 2}, 1: {"code": 2}})


def bug(run: RunDir) -> None:
    mistake = failure(1, "KeyError", "'beagle'", 1, phase="forward", traceback=TRACEBACK)
    attempt(run, [mistake, consequence(0, 0.2), consequence(2), consequence(3)])


def killed(run: RunDir) -> None:
    death = failure(3, "Killed", "killed by SIGKILL", 75, signal="SIGKILL", told_by="agent")
    ended = failure(2, "Killed", "killed by SIGTERM", 75, 1.5, signal="SIGTERM", told_by="agent")
    attempt(run, [consequence(0, -0.1), consequence(1, 0.3), ended, death], {0: {"code": 75}, 1: {"code": 75}})


def kernel_memory(run: RunDir) -> None:
    words = "killed by the kernel: out of memory (cgroup oom_kill went from 0 to 1)"
    death = failure(1, "Killed", words, 75, signal="SIGKILL", told_by="agent", phase="data")
    attempt(run, [death, consequence(0)], {0: {"code": 75}}, nodes=1, launcher="Slurm job 123, start 1")


def gpu_memory(run: RunDir) -> None:
    words = "out of GPU memory: CUDA out of memory. Tried to allocate 2.00 GiB; use a smaller batch.micro (more passes add up to a step, and the curve stays the same)"
    attempt(run, [failure(1, "MachineError", words, 78, phase="forward"), consequence(0)], {0: {"code": 78}}, nodes=1)


def hang(run: RunDir) -> None:
    waits = "in backward since 05:07:32, 299 s without a sign"
    silent = [failure(rank, "Silent", waits, 75, told_by="watchdog") for rank in (0, 2, 3)]
    culprit = failure(1, "Silent", SILENT, 75, 0.2, told_by="watchdog", phase="data")
    beats = dict.fromkeys((0, 2, 3), ("backward", -299.0))
    path = attempt(run, [*silent, culprit], {0: {"code": 75}, 1: {"code": 75}}, {**beats, 1: ("data", -300.0)})
    (path / "node-0" / "rank-1.stack").write_text(STACK)


def stopped(run: RunDir) -> None:
    silent = failure(0, "Silent", "in backward since 05:07:31, 300 s without a sign; stopped (state T)", 75, told_by="watchdog")
    waits = failure(1, "Silent", "in backward since 05:07:31, 300 s without a sign", 75, told_by="watchdog")
    attempt(run, [waits, silent], {0: {"code": 75}}, {0: ("backward", -300.0), 1: ("backward", -300.0)}, nodes=1)


def network_hang(run: RunDir) -> None:
    words = "in backward since 05:07:31, 300 s without a sign"
    silent = [failure(rank, "Silent", words, 75, told_by="watchdog") for rank in range(4)]
    attempt(run, silent, {0: {"code": 75}, 1: {"code": 75}}, dict.fromkeys(range(4), ("backward", -300.0)))


def diverged(run: RunDir) -> None:
    words = (
        "step 13: loss nan, gradient norm nan (train.clip: 1.0) at learning rate 3; use a lower optim.lr, a warm-up, or train.clip\n"
        "rank 1: its share of the loss is nan, over the training samples 4, 9\nlast good checkpoint: step-00000010"
    )
    attempt(run, [failure(rank, "DivergedError", words, 1, 0.01 * (3 - rank), phase="exchange") for rank in range(4)])


def lost_node(run: RunDir) -> None:
    attempt(run, [consequence(0, 1.0), consequence(1, 1.1)], {0: {"code": 75, "time_ns": at(15)}, 1: None}, beaten={0: 14.5, 1: 0.0})


def cut_off(run: RunDir) -> None:
    silent = [failure(rank, "Silent", "in backward since 05:12:31, 300 s without a sign", 75, told_by="watchdog") for rank in range(4)]
    words = "node 1 (node-b) cannot reach the head at node-a:20417: timed out"
    ends = {0: {"code": 75, "time_ns": at(303), "cut_off": None}, 1: {"code": 75, "time_ns": at(308), "cut_off": words}}
    attempt(run, silent, ends, dict.fromkeys(range(4), ("backward", 0.0)), {0: 302, 1: 302})


def all_lost(run: RunDir) -> None:
    attempt(run, ends={0: None, 1: None}, beaten={0: 0.0, 1: 0.4})


def no_progress(run: RunDir) -> None:
    death = failure(3, "Killed", "killed by SIGKILL", 75, signal="SIGKILL", told_by="agent", phase="data")
    for number in (1, 2, 3):
        later = failure(3, death.type, death.message, 75, signal=death.signal, told_by="agent", step=11 + number, phase="data")
        attempt(run, [later, consequence(0)], {0: {"code": 75}, 1: {"code": 75}}, number=number, from_step=10)


def saved(run: RunDir) -> None:
    end = {"code": 0, "asked": "SIGUSR1", "step": 10}
    attempt(run, ends={0: end, 1: end}, launcher="Slurm job 123, start 2")
    write_json(run.outcome, {"outcome": "saved", "step": 10, "attempt": 1, "reason": "asked to stop by SIGUSR1"})


def slow_start(run: RunDir) -> None:
    end = {"code": 0, "asked": "SIGUSR1", "step": 10}
    for number in (1, 2, 3):
        attempt(run, ends={0: end, 1: end}, number=number, from_step=10, launcher=f"Slurm job 123, start {number}")


def done(run: RunDir) -> None:
    torn = failure(3, "RuntimeError", "Error waiting on exit barrier: Connection reset by peer", 1, 0.9)
    attempt(run, [torn], {0: {"code": 0}, 1: {"code": 0}})
    write_json(run.outcome, {"outcome": "done", "step": 10, "attempt": 1, "reason": "all 10 steps are made"})


def only_consequences(run: RunDir) -> None:
    attempt(run, [consequence(rank, rank / 10) for rank in (1, 0, 2)], {0: {"code": 75}, 1: {"code": 75}})


def hostile(run: RunDir) -> None:
    words = "\x1b]0;owned\x07\x1b[2J\r first\u202e line\n\x9b31msecond \N{SNOWMAN}\n" + "x" * 5000
    attempt(
        run,
        [failure(0, "Value\x1bError", words, 1, host="node\x1b[5m", traceback=("\x1b[1A", "\tboom()", *words.splitlines()))],
        {0: {"code": 1}},
        nodes=1,
    )


def running(run: RunDir) -> None:
    attempt(run, ends={0: None, 1: None}, beats={0: ("save", -2.0)} | dict.fromkeys((1, 2, 3), ("waiting for rank 0", -2.0)))


def no_agent(run: RunDir) -> None:
    path = attempts.folder(run, 1)
    path.mkdir(parents=True)
    attempts.write_failure(path, failure(1, "KeyError", "'beagle'", 1, phase="forward", traceback=TRACEBACK))
    attempts.write_failure(path, consequence(0))


def no_word(run: RunDir) -> None:
    attempts.folder(run, 1).mkdir(parents=True)
    os.utime(attempts.folder(run, 1), ns=(at(-600), at(-600)))
    os.utime(run.metrics, ns=(at(0), at(0)))


def torn_node(run: RunDir) -> None:
    attempt(run, [failure(3, "AttributeError", "'NoneType' object has no attribute 'close'")], {0: {"code": 0}, 1: None}, beaten={1: 0})
    write_json(run.outcome, {"outcome": "done", "step": 10, "attempt": 1, "reason": "all 10 steps are made"})


def older(run: RunDir) -> None:
    path = attempts.folder(run, 1)
    path.mkdir(parents=True)
    for rank, kind, words in ((0, "MachineError", "cannot write runs/pets: No space left on device"), (1, "InfrastructureError", PEER)):
        file = path / f"error-rank{rank}.json"
        write_json(file, {"type": kind, "message": words, "rank": rank, "host": "node-a"})
        os.utime(file, ns=(at(rank), at(rank)))


SCENES: dict[str, Callable[[RunDir], None]] = {
    scene.__name__: scene
    for scene in (
        user_error, bug, killed, kernel_memory, gpu_memory, hang, stopped, network_hang, diverged, lost_node, cut_off, all_lost, no_progress,
        saved, slow_start, done, only_consequences, hostile, running, no_agent, no_word, torn_node, older,
    )
}  # fmt: skip
