"""A run as a record: what listing and comparing need to know of it, wherever it was read."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from sft_dist.progress import HEADLINES

LARGEST = sys.float_info.max  # a whole number in JSON or YAML may be larger, and is none that could be computed with


@dataclass(frozen=True)
class Curves:
    """The rows of a run, in order; for each time that steps were made and lost again, the rows of those; what could not be read."""

    rows: Sequence[Mapping[str, Any]] = ()
    rewound: Sequence[Sequence[Mapping[str, Any]]] = ()
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Predictions:
    """One evaluation, a place for each sample: its id, true class, predicted class, and the probabilities of both."""

    ids: Sequence[str] = ()
    truths: Sequence[int] = ()
    guesses: Sequence[int] = ()
    certainty: Sequence[float] = ()
    problems: Sequence[str] = ()
    confidence: Sequence[float] = ()


@dataclass(frozen=True)
class Masks:
    """One evaluation of segmentation, a place for each image: its id, and how many pixels of each class are said rightly, are said to be
    of it, and are of it, as far as the truth knows their class."""

    ids: Sequence[str] = ()
    right: Sequence[Sequence[int]] = ()
    said: Sequence[Sequence[int]] = ()
    there: Sequence[Sequence[int]] = ()
    problems: Sequence[str] = ()


Box = Sequence[float]
"""Left, top, right, bottom, in pixels of the upright image."""


@dataclass(frozen=True)
class Found:
    """What is said of an image by boxes, and what is there; a class number and a score for each box, and whether it is around many objects."""

    boxes: Sequence[Box]
    labels: Sequence[int]
    scores: Sequence[float]
    truth_boxes: Sequence[Box]
    truth_labels: Sequence[int]
    crowd: Sequence[bool]


@dataclass(frozen=True)
class Boxes:
    """One evaluation of detection, a place for each image."""

    ids: Sequence[str] = ()
    images: Sequence[Found] = ()
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Turn:
    """One attempt at a run, as its launcher recorded it; None where there is no such record."""

    processes: int | None
    seconds: float | None


@dataclass(frozen=True)
class Record:
    """One run, wherever its record lies. Another source of runs makes the same record, and all that compares them stays as it is.

    config: dotted key -> value. scores: `best`, `last`, `test` -> that entry. when: seconds since 1970 of the last sign of life.
    curves, predictions(step): what is long, read when it is asked for.
    """

    name: str
    place: str
    config: Mapping[str, Any]
    plan: Mapping[str, Any]
    env: Mapping[str, Any]
    outcome: Mapping[str, Any]
    scores: Mapping[str, Any]
    fingerprint: str | None
    turns: Sequence[Turn]
    when: float
    problems: Sequence[str]
    curves: Callable[[], Curves]
    predictions: Callable[[int], Predictions | Masks | Boxes]

    @property
    def task(self) -> str:
        """The kind of work; a run that does not say counts as the oldest of them."""
        return task if (task := str(self.config.get("task"))) in HEADLINES else "classify"

    @property
    def headline(self) -> str:
        return HEADLINES[self.task][0]

    @property
    def done(self) -> bool:
        return self.outcome.get("outcome") == "done"

    @property
    def classes(self) -> list[str]:
        """The names of the classes in the order of their numbers; empty where no evaluation tells them."""
        entries = [entry.get("per_class") for entry in self.scores.values() if isinstance(entry, dict)]
        return next((list(classes) for classes in entries if isinstance(classes, dict)), [])

    def numbers(self, at: str) -> dict[str, float]:
        """The scores of the `best`, the `last` or the `test` evaluation."""
        return numbers(self.scores.get(at))

    def step(self, at: str) -> int | None:
        entry = self.scores.get(at)
        step = entry.get("step") if isinstance(entry, dict) else None
        return step if isinstance(step, int) else None


def told_apart(records: Sequence[Record]) -> list[Record]:
    """The records with as much of their places before their names as it takes to tell them apart. Places differ."""
    names, depth = [record.name for record in records], 1
    while twice := {name for name, count in Counter(names).items() if count > 1}:
        depth += 1
        names = ["/".join(record.place.split("/")[-depth:]) if name in twice else name for name, record in zip(names, records, strict=True)]
    return [replace(record, name=name) for record, name in zip(records, names, strict=True)]


def numbers(entry: object) -> dict[str, float]:
    """What is a finite number among the scores of an entry or a row; names of scores have a slash."""
    pairs = entry.items() if isinstance(entry, Mapping) else ()
    return {name: float(value) for name, value in pairs if isinstance(name, str) and "/" in name and is_number(value)}


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def printable(text: str) -> str:
    """The text without what a terminal or an editor would obey: control characters, and those that turn the direction of writing."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names as people do: run-2 before run-10."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in re.split(r"(\d+)", name)]
