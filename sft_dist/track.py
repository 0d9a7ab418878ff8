"""What a run writes about itself: metrics.jsonl, which is the truth, scores and predictions, and lines or a bar for people. Rank 0 only."""

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sft_dist import attempts, machine, notice, pulse, revision, tally
from sft_dist.datasets import Split
from sft_dist.events import Events
from sft_dist.loop import StepResult
from sft_dist.plan import Plan
from sft_dist.progress import Progress as RunProgress
from sft_dist.redact import redact, secrets
from sft_dist.rundir import STEP, RunDir, step_name, write_atomically, write_json, writing
from sft_dist.schedule import due
from sft_dist.tally import Evidence
from sft_dist.usage import Ranks, Usage

SECONDS_BETWEEN_LINES = 5.0
NOT_ON_SCREEN = ("val/top5", "val/precision_macro", "val/recall_macro")
PACKAGES = ("sft-dist", "torch", "torchvision", "accelerate", "safetensors", "pydantic", "numpy", "wandb")


class Tracker:
    """The open metrics file and the bar on the screen, from the first step to the last."""

    def __init__(self, run: RunDir, plan: Plan, console: Console, tensorboard: bool = False) -> None:
        self.run, self.plan, self.console = run, plan, console
        known = secrets(os.environ).values()
        self.events = Events(run, known, lambda sentence: say(console, sentence)) if tensorboard else None
        self.file: IO[str] = run.metrics.open("a")
        self.lap: dict[str, float] = {}
        """Samples, and seconds by phase, since the last training row."""
        self.measures: dict[str, float] = {}
        """The latest since then."""
        self.ranks = Ranks()
        self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.line = self.bar.add_task("training", total=plan.total_steps, speed="")
        self.bar.start()

    def close(self) -> None:
        self.bar.stop()
        try:
            self.flush()
        finally:
            self.file.close()
            if self.events:
                self.events.close()

    def step(self, result: StepResult, usage: Usage) -> None:
        """One training row, if one is due, and a sign of life."""
        self.lap = tally.add(self.lap, {"samples": result.sums["samples"], **result.spent})
        self.measures |= result.measures
        self.ranks.add(usage.ranks, sum(result.spent.get(phase, 0.0) for phase in pulse.STEP))
        if result.scale and result.grad_norm is None:
            told = f"the gradient overflowed fp16 at loss scale {result.scale.scale:g}; no update was made, and the scale is halved"
            say(self.console, f"step {result.step:>6}  {told}")
        if not due(result.step, self.plan.track_every, self.plan.total_steps):
            return
        row: dict[str, float | None] = {f"train/{name}": value for name, value in tally.per_count(result.sums).items()}
        scale = {"train/loss_scale": result.scale.scale} if result.scale else {}
        row |= {"train/lr": result.lr, "train/grad_norm": result.grad_norm, **scale}
        samples, seconds = self.lap.pop("samples"), sum(self.lap.get(phase, 0.0) for phase in pulse.STEP)
        speed = {"speed/samples_per_s": samples / seconds, "speed/data_wait_pct": 100 * self.lap.get("data", 0.0) / seconds}
        memory = {} if (peak_gib := usage.peak_gib()) is None else {"memory/peak_gib": peak_gib}
        self._row(result.step, "train", row | speed | self.measures | _times(self.lap) | memory | self.ranks.row())
        self._show(result, row, speed)
        self.lap, self.measures = {}, {}

    def evaluation(self, progress: RunProgress, training: Mapping[str, float], values: Mapping[str, float], improved: bool) -> None:
        """One evaluation row; `training` are the mean training figures since the evaluation before."""
        means = {f"train/mean_{name}": value for name, value in training.items()}
        self._row(progress.step, "eval", means | dict(values))
        figures = "  ".join(f"{name} {value:.4f}" for name, value in (means | dict(values)).items() if name not in NOT_ON_SCREEN)
        say(self.console, f"step {progress.step:>6}  {figures}{'  (best)' if improved else ''}")

    def tail(self, attempt: int, spent: Mapping[str, float]) -> None:
        """The time after the last training row of an attempt, in its folder."""
        self.lap.pop("samples", None)
        write_json(attempts.folder(self.run, attempt) / attempts.TAIL, _times(tally.add(self.lap, spent)))

    def flush(self) -> None:
        """Everything written so far is on the disk when this returns: a checkpoint must not be ahead of its metrics."""
        with writing(self.run.metrics):
            self.file.flush()
            os.fsync(self.file.fileno())
        if self.events:
            self.events.flush()

    def _row(self, step: int, kind: str, values: Mapping[str, float | None]) -> None:
        samples = step * self.plan.global_batch
        row = {"step": step, "kind": kind, "samples": samples, "epoch": samples / self.plan.samples, **values}
        with writing(self.run.metrics):
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        if self.events:
            self.events.add(row)

    def _show(self, result: StepResult, row: Mapping[str, float | None], speed: Mapping[str, float]) -> None:
        pace = f"{speed['speed/samples_per_s']:.0f} samples/s, {speed['speed/data_wait_pct']:.0f} % waiting for data"
        self.bar.update(self.line, completed=result.step, description=f"loss {row['train/loss']:.4f}", speed=pace)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (self.plan.total_steps - result.step) * self.plan.global_batch / speed["speed/samples_per_s"]
            say(
                self.console,
                f"step {result.step:>6}/{self.plan.total_steps}  loss {row['train/loss']:.4f}  lr {result.lr:.3g}  {pace}  {left:.0f} s left",
            )


def say(console: Console, *lines: str) -> None:
    """Print lines as they are: no wrapping, no colouring of numbers, no markup."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _times(spent: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase, as a row names them, to the microsecond."""
    return {pulse.column(phase): round(seconds, 6) for phase, seconds in spent.items()}


def write_predictions(run: RunDir, step: int, split: Split, evidence: Evidence) -> None:
    """predictions/<step>.jsonl, one object a sample in the order of the split; probabilities, and other lists of numbers, to six digits."""
    places = sorted((int(sample), table, place) for table, rows in enumerate(evidence.rows) for place, sample in enumerate(rows["id"]))
    assert [sample for sample, _, _ in places] == list(range(len(split))), "every sample is evaluated exactly once"

    def lines() -> Iterator[str]:
        for sample, table, place in places:
            row = {name: _short(column[place].tolist()) for name, column in evidence.rows[table].items()}
            yield json.dumps({**row, "id": split.names[sample]}) + "\n"

    write_atomically(run.predictions / f"{step_name(step)}.jsonl", lines())


def _short(value: Any) -> Any:
    """The numbers of a list to six digits."""
    if isinstance(value, list):
        return [float(f"{each:.6g}") if isinstance(each, float) else _short(each) for each in value]
    return value


def keep_predictions(run: RunDir, steps: Sequence[int]) -> None:
    """Delete the predictions of all other steps up to the last of these; later ones belong to a checkpoint that is yet to come."""
    kept = {step_name(step) for step in steps}
    for path in run.predictions.glob("step-*.jsonl"):
        if STEP.fullmatch(path.stem) and path.stem not in kept and path.stem < max(kept, default=""):
            path.unlink()


def tidy(run: RunDir, attempt: int, landed: RunProgress, seconds: float) -> None:
    """After a commit: its scores, how long it took, and no predictions but those of the best and the last; the old best's go only now."""
    notice.note_save(run, attempt, landed.step, seconds)
    write_scores(run, landed)
    keep_predictions(run, [entry["step"] for entry in (landed.best, landed.last) if entry])


def little_notice(run: RunDir) -> list[str]:
    """What to warn of where the launcher, as this process sees it, would not wait for a save of this run."""
    return notice.too_short(notice.longest_save_s(run), os.environ)


def write_scores(run: RunDir, progress: RunProgress, test: Mapping[str, Any] | None = None) -> None:
    """scores.json: the best, the last and the test scores, as far as they are known."""
    entries = {"best": progress.best, "last": progress.last, "test": test}
    write_json(run.scores, {name: entry for name, entry in entries.items() if entry})


def environment(device: torch.device, fingerprint: str) -> dict[str, Any]:
    """What this attempt runs on: versions, commit, data, host, device, command line. No environment variable's value, no secret."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        **revision.of(Path(__file__).parent.parent),
        "data_fingerprint": fingerprint,
        "host": socket.gethostname(),
        "device": machine.title(device),
        "argv": redact(sys.argv),
        "launcher": "accelerate"
        if "ACCELERATE_MIXED_PRECISION" in os.environ
        else "torchrun"
        if "TORCHELASTIC_RUN_ID" in os.environ
        else "python",
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
