"""What a run said of each validation sample, from the file of its predictions, by kind of work; without torch.

A row that is not what a run of that kind writes is left out, and told.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from sft_dist.history import files
from sft_dist.history.records import Boxes, Found, Masks, Predictions, is_number

Row = Mapping[str, Any]
Made = TypeVar("Made")

MOST_CLASSES, MOST_PIXELS, MOST_BOXES = 10_000, 1 << 40, 10_000
"""Class numbers of boxes lie below the first; at most the others are pixels of a class, and boxes, in an image: what reads them has a place for
each class, adds the pixels of all images as 64-bit numbers, and holds the boxes of an image against each other."""


def read(task: object, path: Path) -> Predictions | Masks | Boxes:
    """One evaluation of a run of this task; of a task that is not known, as if it named classes."""
    return READERS.get(str(task), _named)(path)


def _named(path: Path) -> Predictions:
    def row(found: Row) -> tuple[int, int, float, float] | None:
        label, probs = found.get("label"), found.get("probs")
        if not isinstance(probs, list) or not all(map(is_number, probs)) or not _is_count(label, len(probs) - 1):
            return None
        return label, probs.index(most := max(probs)), probs[label], most

    samples, problems = _rows(path, row, "label and probabilities", files.MOST_PREDICTIONS)
    truths, guesses, certainty, confidence = zip(*samples.values(), strict=True) if samples else ((), (), (), ())
    return Predictions(list(samples), truths, guesses, certainty, tuple(problems), confidence)


def _masked(path: Path) -> Masks:
    """Of as many classes as most of the rows count."""

    def row(found: Row) -> tuple[list[int], list[int], list[int]] | None:
        right, said, there = (found.get(name) for name in ("right", "said", "there"))
        if not _are_counts(right) or not _are_counts(said) or not _are_counts(there):
            return None
        possible = len(right) == len(said) == len(there) and all(r <= min(s, t) for r, s, t in zip(right, said, there, strict=True))
        return (right, said, there) if possible else None

    samples, problems = _rows(path, row, "counts of pixels by class")
    widths = Counter(len(there) for _, _, there in samples.values())
    if len(widths) > 1:
        [(usual, count)] = widths.most_common(1)
        problems.append(f"{path.name}: {len(samples) - count} row(s) left out (not of {usual} classes, as the others are)")
        samples = {sample: columns for sample, columns in samples.items() if len(columns[2]) == usual}
    right, said, there = zip(*samples.values(), strict=True) if samples else ((), (), ())
    return Masks(list(samples), right, said, there, tuple(problems))


def _boxed(path: Path) -> Boxes:
    def row(found: Row) -> Found | None:
        columns: list[Any] = [found.get(name) for name in Found.__dataclass_fields__]
        if not all(isinstance(column, list) for column in columns):
            return None
        boxes, labels, scores, truth_boxes, truth_labels, crowd = columns
        whole = len(boxes) == len(labels) == len(scores) and len(truth_boxes) == len(truth_labels) == len(crowd)
        plain = all(map(is_number, scores)) and all(_is_count(each, MOST_CLASSES - 1) for each in chain(labels, truth_labels))
        there = all(map(_is_box, chain(boxes, truth_boxes))) and all(isinstance(each, bool) for each in crowd)
        return Found(*columns) if whole and plain and there else None

    samples, problems = _rows(path, row, "boxes with classes and scores")
    kept = {sample: one for sample, one in samples.items() if max(len(one.boxes), len(one.truth_boxes)) <= MOST_BOXES}
    if len(kept) < len(samples):
        problems.append(f"{path.name}: {len(samples) - len(kept)} row(s) left out (more than {MOST_BOXES:,} boxes in an image)")
    return Boxes(list(kept), list(kept.values()), tuple(problems))


def _rows(path: Path, make: Callable[[Row], Made | None], wanted: str, most: int = files.MOST_IMAGES) -> tuple[dict[str, Made], list[str]]:
    """Id -> what `make` makes of its row; the first of each id counts."""
    problems: list[str] = []
    samples: dict[str, Made] = {}
    bad = 0
    for row in files.lines(path, problems, most):
        sample = row.get("id")
        if isinstance(sample, str) and sample not in samples and (made := make(row)) is not None:
            samples[sample] = made
        else:
            bad += 1
    if bad:
        problems.append(f"{path.name}: {bad} row(s) left out (no id, {wanted}, or an id that was there before)")
    return samples, problems


def _is_count(value: object, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _are_counts(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(_is_count(each, MOST_PIXELS) for each in values)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value)) and value[0] <= value[2] and value[1] <= value[3]


READERS: dict[str, Callable[[Path], Predictions | Masks | Boxes]] = {"classify": _named, "segment": _masked, "detect": _boxed}
