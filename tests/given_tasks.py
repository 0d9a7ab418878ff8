"""Run folders of segmentation and detection as their tasks leave them, small and written at once."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from given_runs import a_run, guesses, write
from numpy.typing import NDArray

from sft_dist import overlaps
from sft_dist.overlaps import Found, Objects

CLASSES = ("road", "tree", "car", "sky")
CELLS = ("red", "white", "plate")
FILE = "predictions/step-00000004.jsonl"
Masks = NDArray[np.int64]


def a_masked_run(folder: Path, truths: Sequence[Masks], said: Sequence[Masks], classes: Sequence[str] = CLASSES, **keys: Any) -> Path:
    """Of images val/images/0.png, ...; what is no class number is void."""
    tables = np.array([overlaps.confusion(there, guess, len(classes)) for there, guess in zip(truths, said, strict=True)])
    rows = [
        {
            "id": f"val/images/{i}.png",
            "loss": 0.5,
            "right": one.diagonal().tolist(),
            "said": one.sum(0).tolist(),
            "there": one.sum(1).tolist(),
        }
        for i, one in enumerate(tables)
    ]
    whole = tables.sum(0)
    right, guessed, there = whole.diagonal(), whole.sum(0), whole.sum(1)
    iou, precision, recall = (right / np.maximum(of, 1) for of in (guessed + there - right, guessed, there))
    scores = {"val/loss": 0.5, "val/miou": iou.mean(), "val/pixel_accuracy": right.sum() / there.sum(), "val/recall_macro": recall.mean()}
    columns = {"iou": iou, "precision": precision, "recall": recall, "support": there}
    return _a_run(folder, rows, scores, {**_by_class(classes, columns), "confusion": whole.tolist()}, task="segment", **keys)


def a_boxed_run(folder: Path, scene: Sequence[Objects], found: Sequence[Found], classes: Sequence[str] = CELLS, **keys: Any) -> Path:
    """Of images JPEGImages/0.jpg, ..."""
    rows = []
    for i, (there, those) in enumerate(zip(scene, found, strict=True)):
        said = {"boxes": those.boxes.tolist(), "labels": those.labels.tolist(), "scores": those.scores.tolist()}
        truth = {"truth_boxes": there.boxes.tolist(), "truth_labels": there.labels.tolist(), "crowd": (~there.single).tolist()}
        rows.append({"id": f"JPEGImages/{i}.jpg", **said, **truth})
    numbers = np.arange(len(classes))
    support = overlaps.support(scene, numbers).sum(0)
    precision, recall = overlaps.precision_and_recall(overlaps.judge(scene, found, numbers), support)
    known = precision[support > 0].mean(0)
    scores = {"val/map": known.mean(), "val/map_50": known[0], "val/map_75": known[5]}
    columns = {"ap": precision.mean(1), "ap_50": precision[:, 0], "recall": recall.mean(1), "support": support}
    return _a_run(folder, rows, scores, _by_class(classes, columns), task="detect", **keys)


def _by_class(classes: Sequence[str], columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {"per_class": {name: {key: column[i].item() for key, column in columns.items()} for i, name in enumerate(classes)}}


def _a_run(folder: Path, rows: Sequence[dict[str, Any]], scores: Mapping[str, Any], details: Mapping[str, Any], **keys: Any) -> Path:
    a_run(folder, guesses([]), **keys)
    entry = {"step": 4, **{name: float(value) for name, value in scores.items()}, "samples": len(rows), **details}
    write(folder / "scores.json", {"best": entry, "last": entry})
    write(folder / FILE, *rows)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = {name: value for name, value in entry.items() if "/" in name}
    write(folder / "metrics.jsonl", *(row for row in lines if row["kind"] == "train"), {"step": 4, "kind": "eval", "samples": 128, **kept})
    return folder
