"""Runs in the midst of their training, for tests of what watches them."""

import json
import os
from pathlib import Path
from typing import Any

from given_runs import a_run, guesses

from sft_dist.watch import sight
from sft_dist.watch.rows import Rows
from sft_dist.watch.sight import Sight

NOON = 1_767_268_800.0


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (seconds, seconds))


def looked(folder: Path, now: float = NOON, rows: Rows | None = None) -> Sight:
    return sight.look(folder, rows or Rows(folder / "metrics.jsonl"), now)


def training(folder: Path, steps: int, total: int = 100, every: str = "10", **more: Any) -> Path:
    """A run in the midst of its training: 32 samples a step at 16 a second, 2 s each, evaluated every 10 steps; last written at noon."""
    run = a_run(folder, guesses([0]), outcome=None)
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"total_steps": total, "eval_every": every, "val_samples": 80, "epochs": 25.0} | more))
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        rows.append(
            {"step": step, "kind": "train", "samples": 32 * step, "epoch": step / 4, "train/loss": 1 / step, "speed/samples_per_s": 16.0}
        )
        rows += [{"step": step, "kind": "eval", "samples": 32 * step, "val/top1": step / 100}] if step % 10 == 0 else []
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("metrics.jsonl", "config.yaml"):
        aged(run / name, NOON - 1)
    aged(run / "env.json", NOON - 200)
    return run
