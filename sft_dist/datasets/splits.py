"""What every data set comes down to: named, labelled samples in up to three splits, and how a split is drawn."""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sft_dist.config import Data
from sft_dist.errors import ConfigError
from sft_dist.schedule import draw_seed


@dataclass(frozen=True)
class Split:
    """Samples that can be read one by one.

    names: what each sample is called in messages and predictions, the same on every machine. labels: class numbers; none where the truth
    of a sample is more than one, a mask or boxes. read: position -> uint8 image of 3 x height x width. truth: position -> that mask or
    those boxes. Both raise OSError or ValueError where they are unreadable. marks: what changes when a sample's truth does.
    """

    names: Sequence[str]
    labels: Sequence[int]
    read: Callable[[int], Any]
    truth: Callable[[int], Any] | None = None
    marks: Sequence[object] = ()

    def __len__(self) -> int:
        return len(self.names)

    def target(self, position: int) -> Any:
        """What is to be learned of a sample."""
        return self.truth(position) if self.truth else self.labels[position]

    def subset(self, positions: Sequence[int]) -> "Split":
        truth = self.truth
        return Split(
            [self.names[i] for i in positions],
            [self.labels[i] for i in positions] if self.labels else (),
            lambda i: self.read(positions[i]),
            (lambda i: truth(positions[i])) if truth else None,
            [self.marks[i] for i in positions] if self.marks else (),
        )


@dataclass(frozen=True)
class Splits:
    """A data set: what is learned from, what is validated on, what is tested once, and the classes by number."""

    train: Split
    val: Split
    test: Split | None
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """What of the data is passed over, a sentence each: told once at the start."""

    @property
    def fingerprint(self) -> str:
        """Changes when a sample is added, removed, renamed, relabelled or moved between training and validation."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split in (self.train, self.val):
            for name, mark in zip(split.names, split.marks or split.labels, strict=True):
                digest.update(f"{name}\0{mark}\n".encode(errors="surrogateescape"))  # a file's name is bytes, of any kind
            digest.update(b"\0")
        return digest.hexdigest()[:16]


def draw_splits(whole: Split, val: Split | None, test: Split | None, classes: Sequence[str], data: Data) -> Splits:
    """Keep the classes asked for, hold validation out of training where there is none, and thin training to `data.per_class`.

    Samples without class numbers (masks, boxes) are all kept, and held out as if they were of one class.
    """
    kept = choose_classes(classes, data)
    number = {list(classes).index(name): new for new, name in enumerate(kept)}

    def of_kept(split: Split) -> Split:
        if kept == tuple(classes) or not split.labels:
            return split
        chosen = split.subset([i for i, label in enumerate(split.labels) if label in number])
        return replace(chosen, labels=[number[label] for label in chosen.labels])

    whole = of_kept(whole)
    val, test = (None if split is None else of_kept(split) for split in (val, test))
    if val is None:
        if not data.val_fraction:
            raise ConfigError("data.val_fraction = 0, but the set has no validation split of its own; use 0.2, say")
        held = hold_out(whole.labels or [0] * len(whole), data.val_fraction, data.split_seed)
        val = whole.subset(held)
        held_set = set(held)
        whole = whole.subset([i for i in range(len(whole)) if i not in held_set])
    if data.per_class is not None:
        whole = whole.subset(thin(whole.labels, data.per_class, data.split_seed))
    return Splits(whole, val, test, kept)


def choose_split(splits: Splits, name: str, classes: tuple[str, ...]) -> Split:
    """One split of a whole data set, for a model of these classes. Raises ConfigError where there is none, or the classes are others."""
    if splits.classes != classes:
        raise ConfigError(
            f"the model tells apart {len(classes)} classes ({_some(classes)}), the data has {len(splits.classes)}: {_some(splits.classes)}"
        )
    split: Split | None = getattr(splits, name)
    if split is None:
        raise ConfigError(f"the data has no {name} split; use --split val")
    return split


def choose_classes(found: Sequence[str], data: Data) -> tuple[str, ...]:
    """`data.classes`, or all that were found. Raises ConfigError for names that are not there."""
    if data.classes is None:
        return tuple(found)
    missing = [name for name in data.classes if name not in found]
    if missing:
        raise ConfigError(f"data.classes: no {', '.join(map(repr, missing))} in the data; it has {_some(found)}")
    return data.classes


def hold_out(labels: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Positions of a share of every class, drawn by the seed; at least one sample of a class stays on either side if it has two."""
    held = []
    for label, members in sorted(_by_class(labels).items()):
        shuffled = random.Random(draw_seed("split", seed, label)).sample(members, len(members))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held += shuffled[:count]
    return sorted(held)


def thin(labels: Sequence[int], per_class: int, seed: int) -> list[int]:
    """Positions of at most `per_class` samples of every class, drawn by the seed; a smaller draw is part of a larger one."""
    kept = []
    for label, members in sorted(_by_class(labels).items()):
        kept += random.Random(draw_seed("thin", seed, label)).sample(members, len(members))[:per_class]
    return sorted(kept)


def _by_class(labels: Iterable[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    return members


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
