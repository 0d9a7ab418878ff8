"""Labelled data by kind: each entry of the table finds its samples and refuses what cannot be trained on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sft_dist.config import Data
from sft_dist.datasets import coco, digits, folder, torchvision_sets, voc
from sft_dist.datasets.splits import Split, Splits
from sft_dist.errors import ConfigError, MachineError


@dataclass(frozen=True)
class Source:
    """A kind of data set.

    check: refuse in milliseconds what can be seen without reading the data; no torch.
    load: find every sample. Raises ConfigError naming what is missing, empty or contradictory.
    load_split: one split alone (data, `train` | `val` | `test`, classes), to score a model of these classes on it.
    """

    check: Callable[[Data], None]
    load: Callable[[Data], Splits]
    load_split: Callable[[Data, str, tuple[str, ...]], Split]


SOURCES = {
    "folder": Source(folder.check, folder.load, folder.load_split),
    "torchvision": Source(torchvision_sets.check, torchvision_sets.load, torchvision_sets.load_split),
    "digits": Source(digits.check, digits.load, digits.load_split),
    "voc": Source(voc.check, voc.load, voc.load_split),
    "coco": Source(coco.check, coco.load, coco.load_split),
}


def check(data: Data) -> None:
    """Refuse early what the data set's kind can see without reading it."""
    if data.name in SOURCES:  # the rest is refused by refuse.check as not built
        with _looking():
            SOURCES[data.name].check(data)


def load(data: Data) -> Splits:
    """The splits of a config. Raises ConfigError where there is nothing to train or to validate on."""
    with _looking():
        splits = SOURCES[data.name].load(data)
    if not len(splits.train):
        raise ConfigError(f"data.name = {data.name}: there are no training samples")
    if not len(splits.val):
        raise ConfigError(
            f"data.name = {data.name}: there are no validation samples; without a val split (an empty val/ is one) "
            "they are held out of training, where a class needs two samples for it"
        )
    if splits.test is not None and not len(splits.test):
        raise ConfigError("data: test/ has no image in a folder of one of the classes; sort its images into class folders, or remove it")
    if splits.train.labels and len(splits.classes) < 2:
        raise ConfigError(f"data: only the class {splits.classes[0]!r}; a classifier needs at least two")
    return splits


def load_split(data: Data, name: str, classes: tuple[str, ...]) -> Split:
    """One split, to score a model of these classes on it. Raises ConfigError where it is missing, empty, or of other classes."""
    with _looking():
        split = SOURCES[data.name].load_split(data, name, classes)
    if not len(split):
        raise ConfigError(f"data.name = {data.name}: there are no samples in the {name} split")
    return split


@contextmanager
def _looking() -> Iterator[None]:
    """What the system does not let us look at, like a folder in somebody else's home, as a MachineError."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"cannot look at {error.filename}: {error.strerror}") from error


__all__ = ["SOURCES", "Source", "Split", "Splits", "check", "load", "load_split"]
