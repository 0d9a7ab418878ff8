"""What to do about a verdict, and what to type next."""

import shlex
from pathlib import Path

from launch.verdict import Verdict
from sft_dist.rundir import RunDir, read_json


def advice(run: RunDir, verdict: Verdict) -> list[str]:
    """What to change or to look at first, a sentence a line."""
    if verdict.kind == "no progress":
        return _no_progress(run, verdict)
    if verdict.kind == "memory":
        return _memory(verdict)
    if verdict.kind == "hang":
        return _hang(verdict)
    if verdict.kind == "killed" and verdict.asked not in (None, "SIGINT"):  # a second interrupt means it
        return [f"it was killed while it saved after {verdict.asked}; ask earlier (sbatch --signal=B:USR1@1800)"]
    host = f" ({_without(verdict, verdict.root.host)})" if verdict.root else ""
    if verdict.root and verdict.root.type == "NodeLost":
        return [f"if that host does not come back, leave it out{host}; the same command goes on:"]
    if verdict.root and verdict.root.type == "LinkLost":
        return [f"look at that host's network (sft-launch doctor), or leave it out{host}; the same command goes on:"]
    return {
        "done": ["its checkpoints:"],
        "user": ["mend what it says, then start the same command again"],
        "machine": [f"mend what it says, or leave that host out{host}, then start the same command again"],
        "diverged": ["a lower optim.lr, a warm-up or train.clip makes another curve, and needs another run.name"],
        "bug": ["mend the code, then start the same command again"],
    }.get(verdict.kind, ["the same command goes on:"])


def command(run: RunDir, verdict: Verdict) -> str:
    """The command line that goes on from here, as far as it is known how the run was started."""
    if verdict.kind == "done":
        return shlex.join(["sft-dist", "ckpt", "ls", str(run.path)])
    if verdict.kind == "running":
        return shlex.join(["sft-launch", "why", str(run.path)])
    changes = _changes(run, verdict)
    keys = tuple(f"{change.partition('=')[0]}=" for change in changes)
    return shlex.join([*(word for word in _started_by(run, verdict) if not (keys and word.startswith(keys))), *changes])


def _started_by(run: RunDir, verdict: Verdict) -> list[str]:
    told = verdict.attempt.about.get("command")
    if isinstance(told, list) and told and all(isinstance(word, str) for word in told):
        return told
    launcher = str(verdict.attempt.about.get("launcher", ""))
    first = ["sbatch", "slurm/finetune.sh"] if launcher.startswith("Slurm") else ["sft-launch", "run"]
    argv = read_json(run.path / "env.json").get("argv")
    words = [str(word) for word in argv[1:]] if isinstance(argv, list) else []
    words = words[1:] if words[:1] == ["train"] else words
    return [*first, *(words or [str(run.config)])]


def _changes(run: RunDir, verdict: Verdict) -> list[str]:
    if verdict.kind == "diverged":
        return [f"run.name={run.path.name}-2", "optim.lr=LOWER"]
    if verdict.kind == "memory" and _on_host(verdict):
        return ["data.workers=1"]
    if verdict.kind == "memory":
        micro = read_json(run.path / "plan.json").get("micro_batch")
        return [f"batch.micro={micro // 2}"] if isinstance(micro, int) and micro > 1 else ["batch.micro=1"]
    return []


def _on_host(verdict: Verdict) -> bool:
    """Whether it was the host's memory that did not suffice, not a GPU's."""
    return verdict.root is not None and not ("GPU" in verdict.root.message or "CUDA" in verdict.root.message)


def _memory(verdict: Verdict) -> list[str]:
    smaller = "a smaller batch.micro makes more passes a step, and the curve stays the same"
    if _on_host(verdict):
        return ["host memory: use fewer data.workers, or ask for more (sbatch --mem=...);", smaller]
    return [f"GPU memory: {smaller}"]


def _hang(verdict: Verdict) -> list[str]:
    causes = verdict.causes
    stopped = verdict.root is not None and "(state T" in verdict.root.message
    if stopped:
        return ["somebody stopped that process (SIGSTOP, a debugger); nothing else is known to be wrong"]
    if causes.behind and {beat.phase for beat in causes.behind.values()} == {"data"}:
        return ["look at the storage that the data lies on, and at what data.workers do there"]
    if causes.behind and not causes.waiting and len(causes.behind) > 1:
        return ["all ranks wait for each other: look at the network between the hosts (sft-launch doctor)"]
    return ["look at the stack above, and at the host itself (sft-launch doctor)"]


def _without(verdict: Verdict, host: str) -> str:
    """How a host is left out."""
    return "-H without it" if verdict.attempt.about.get("launcher") == "sft-launch ssh" else f"sbatch --exclude={host}"


def _no_progress(run: RunDir, verdict: Verdict) -> list[str]:
    if verdict.cause == "saved":
        return ["give it more time (sbatch --time=...), or look at what takes so long before the first step"]
    before = [shlex.join(["sft-launch", "why", str(run.path), "--attempt", str(verdict.attempt.number - 1)])]
    return [f"look at the first cause above, and whether it was the same before: {before[0]}", *_cause_advice(verdict)]


def _cause_advice(verdict: Verdict) -> list[str]:
    if verdict.cause == "memory":
        return _memory(verdict)
    if verdict.cause == "hang":
        return _hang(verdict)
    host = verdict.root.host if verdict.root else None
    return [f"if it is always {host}, leave it out ({_without(verdict, host)}); sft-launch doctor tests the machines"] if host else []


def stack_of(verdict: Verdict, rank: int) -> Path | None:
    """The file with the Python stacks of a rank, if the watchdog could get them: one that is stopped writes none."""
    return next(iter(verdict.attempt.path.glob(f"node-*/rank-{rank}.stack")), None)
