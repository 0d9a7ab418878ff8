"""What a run that is done shows elsewhere beside its curves: how it mixes up classes, the samples it is most wrong about, and its model."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sft_dist import redact
from sft_dist.errors import InfrastructureError
from sft_dist.rundir import RunDir

if TYPE_CHECKING:
    from sft_dist.history.records import Box, Boxes, Masks, Predictions

WEIGHTS = ".safetensors"
SURE = 0.5  # the score from which a detection counts in a table
LONGEST_NAME = 128  # that W&B takes for an artifact
OF_A_RANK = ("SFT_PULSE", "SFT_ATTEMPT", "SFT_AGENT", "TORCHELASTIC_ERROR_FILE")  # where it tells what it does, and what it dies of

Row = tuple[str, tuple[float, ...]]
"""A sample's id, and the numbers of its other columns."""


@dataclass(frozen=True)
class Finale:
    """The best evaluation, from the files of the run.

    classes: their names, by number. truths, guesses: a number for each sample, where it has one. columns, samples: a table of samples, the
    worst first: of classes those that are wrong, of them the surest, then of those that are right the least sure; of masks those of the
    lowest IoU; of boxes those of the lowest F1, of which those with the most mistakes.
    """

    classes: Sequence[str] = ()
    truths: Sequence[int] = ()
    guesses: Sequence[int] = ()
    samples: Sequence[tuple[object, ...]] = ()
    columns: Sequence[str] = ("id", "truth", "guess", "confidence", "truth_probability")


def look(run: RunDir, most: int, secrets: Collection[str]) -> Finale:
    """What the run's predictions say, with `most` samples; empty where there are none that can be read. secrets: what no text may hold."""
    from sft_dist.history import reading  # not on top: every start of a run reads this file, and only the end of one its history
    from sft_dist.history.records import Masks, Predictions, printable

    def clean(text: str) -> str:
        return printable(str(redact.without(secrets, text)))

    record = reading.read(run.path)
    step = record.step("best")
    if step is None:
        return Finale()
    said = record.predictions(step)
    if isinstance(said, Predictions):
        return _of_labels(said, record.classes, most, clean)
    columns, rows = _of_masks(said) if isinstance(said, Masks) else _of_boxes(said)
    return Finale(columns=columns, samples=[(clean(name), *row) for name, row in rows[:most]])


def _of_labels(said: "Predictions", named: Sequence[str], most: int, clean: Callable[[str], str]) -> Finale:
    known = dict(enumerate(named))
    classes = [clean(known.get(number, str(number))) for number in range(1 + max([-1, *known, *said.truths, *said.guesses]))]
    columns = zip(said.ids, said.truths, said.guesses, said.confidence, said.certainty, strict=True)
    worst = sorted(columns, key=lambda row: (True, row[3]) if row[1] == row[2] else (False, -row[3]))[:most]
    samples = [(clean(name), classes[truth], classes[guess], sure, true) for name, truth, guess, sure, true in worst]
    return Finale(classes, said.truths, said.guesses, samples=samples)


def _of_masks(said: "Masks") -> tuple[Sequence[str], list[Row]]:
    """The mean IoU over the classes that are in an image, and the share of its pixels that are said rightly; an image without a class has neither."""
    rows: list[Row] = []
    for sample, right, guessed, there in zip(said.ids, said.right, said.said, said.there, strict=True):
        if shares := [r / (g + t - r) for r, g, t in zip(right, guessed, there, strict=True) if t]:
            rows.append((sample, (sum(shares) / len(shares), sum(right) / sum(there))))
    return ("id", "iou", "pixel_accuracy"), sorted(rows, key=lambda row: row[1])


def _of_boxes(said: "Boxes") -> tuple[Sequence[str], list[Row]]:
    """F1 of the detections with a score of a half or more, at an overlap of a half; the objects that they find and miss, and those that are none."""
    import numpy as np

    from sft_dist import overlaps

    def boxes(named: Sequence["Box"]) -> overlaps.Numbers:
        return np.array(named, dtype=float).reshape(-1, 4)

    there, those = [], []
    for one in said.images:
        there.append(overlaps.Objects(boxes(one.truth_boxes), np.array(one.truth_labels, int), np.array(one.crowd, bool)))
        sure = np.array(one.scores, float) >= SURE  # a detection never depends on those with less
        those.append(overlaps.Found(boxes(one.boxes)[sure], np.array(one.labels, int)[sure], np.array(one.scores, float)[sure]))
    classes = np.array(sorted({label for one in said.images for label in (*one.labels, *one.truth_labels)}), int)
    judged = overlaps.judge(there, those, classes)
    right, wrong = (
        np.bincount(judged.images[judged.verdicts[:, 0] == verdict], minlength=len(there)).tolist()
        for verdict in (overlaps.RIGHT, overlaps.WRONG)
    )
    rows: list[Row] = []
    for sample, each, found, false in zip(said.ids, there, right, wrong, strict=True):
        objects = int(each.single.sum())
        share = 2 * found / (found + false + objects) if found + false + objects else 1.0
        rows.append((sample, (share, objects, found, objects - found, false)))
    return ("id", "f1", "objects", "found", "missed", "false"), sorted(rows, key=lambda row: (row[1][0], -row[1][3] - row[1][4]))


def export(run: RunDir, to: Path, limit_s: float) -> None:
    """Write the best checkpoint into a folder, as `sft-dist ckpt export` does. Raises InfrastructureError where that does not come about.

    In a process of its own, which sees no GPU: this one has no torch, and the training's memory may still be taken.
    """
    command = [sys.executable, "-P", "-m", "sft_dist", "ckpt", "export", str(run.path.absolute()), "--to", str(to.absolute())]
    environment = {**with_this_package(), "CUDA_VISIBLE_DEVICES": ""}
    shutil.rmtree(to, ignore_errors=True)
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise InfrastructureError(f"its export took longer than {limit_s:.0f} s") from None
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InfrastructureError(f"it is not exported: {told[-1].strip(' -')}")


def artifact_name(name: str) -> str:
    """A run's name, in what W&B takes for its model's. One that it does not take as it is ends in a digest, so that no two runs share theirs."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    if plain == name and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain[: LONGEST_NAME - 1 - len(digest)]}-{digest}"


def free_of(secrets: Collection[str], folder: Path) -> list[Path]:
    """The files of an export in whose text no secret stands, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [path for path in files if path.suffix == WEIGHTS or (text := path.read_text(encoding="utf-8")) == redact.without(secrets, text)]


def with_this_package() -> dict[str, str]:
    """This process's environment, for one that is to run the same code beside it, and must not be taken for a rank."""
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}
