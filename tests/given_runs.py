"""Run folders as a run leaves them, small and written at once, for tests of what reads them back."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from given import a_config
from sklearn.metrics import f1_score

from sft_dist import parse, rundir
from sft_dist.plan import World, make_plan

CLASSES = ("cat", "dog", "eel")
TRUTHS = [i % 3 for i in range(60)]


def guesses(wrong: Sequence[int], truths: Sequence[int] = TRUTHS) -> list[int]:
    """What a model says that takes the next class for the samples at these places."""
    return [(truth + 1) % 3 if i in set(wrong) else truth for i, truth in enumerate(truths)]


def a_run(folder: Path, said: Sequence[int], truths: Sequence[int] = TRUTHS, outcome: str | None = "done", **keys: Any) -> Path:
    """A run of 4 steps, evaluated at steps 2 and 4, with the predictions of the last: `said` of samples 0.png, 1.png, ..."""
    config = a_config(run__dir=str(folder.parent), run__name=folder.name, train__duration="4 steps", **keys)
    run = rundir.create(config)
    run.config.write_text(parse.to_yaml(config))
    (folder / "plan.json").write_text(make_plan(config, World(), samples=128, val_samples=len(truths)).to_json())
    write(folder / "env.json", {"commit": "c0ffee" * 6, "dirty": False, "packages": {"sft-dist": "0.1.0", "torch": "2.14.1"}})
    entry = {"step": 4, **scores(said, truths), "samples": len(truths), "per_class": {name: {"support": 1} for name in CLASSES}}
    write(run.scores, {"best": entry, "last": entry})
    write(run.metrics, *rows(entry))
    probs = [[0.8 if place == one else 0.1 for place in range(3)] for one in said]
    predictions = [{"id": f"{i}.png", "label": truth, "probs": probs[i]} for i, truth in enumerate(truths)]
    write(run.predictions / "step-00000004.jsonl", *predictions)
    checkpoint = run.checkpoints / "step-00000004"
    checkpoint.mkdir()
    write(checkpoint / "state.json", {"fingerprint": "f1"})
    (run.checkpoints / "latest").write_text("step-00000004\n")
    if outcome:
        write(run.outcome, {"outcome": outcome, "step": 4, "attempt": 1})
    return folder


def write(path: Path, *rows: dict[str, Any]) -> None:
    """A line for each object; not forced to the disk, as a run would do it, because that takes most of a test's time."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def scores(said: Sequence[int], truths: Sequence[int]) -> dict[str, float]:
    right = float(np.mean([one == truth for one, truth in zip(said, truths, strict=True)]))
    return {"val/loss": 1 - right, "val/top1": right, "val/f1_macro": float(f1_score(truths, said, average="macro"))}


def rows(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Four training rows at 16 samples a second, 2 s each, and two evaluations, the second with the scores of `entry`."""
    train = [
        {"step": step, "kind": "train", "samples": 32 * step, "train/loss": 1 / step, "speed/samples_per_s": 16.0} for step in range(1, 5)
    ]
    last = {name: value for name, value in entry.items() if "/" in name}
    return [
        *train[:2],
        {"step": 2, "kind": "eval", "samples": 64, "val/top1": 0.25},
        *train[2:],
        {"step": 4, "kind": "eval", "samples": 128, **last},
    ]


def aged(folder: Path, seconds: float) -> Path:
    """The same folder, last touched at this time."""
    for path in folder.rglob("*"):
        os.utime(path, (seconds, seconds))
    return folder
