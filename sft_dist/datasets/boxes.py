"""What data sets of objects in boxes share: what is written of an image, and the splits that come of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from sft_dist.config import Data
from sft_dist.datasets import images
from sft_dist.datasets.splits import Split, Splits, choose_classes, draw_splits
from sft_dist.errors import ConfigError

TOLD = 3  # how many of many mistakes are named


class Object(NamedTuple):
    """One box of an image, from its left and upper edge in pixels of the upright image: a box around all of it is 0, 0, width, height."""

    name: str
    left: float
    top: float
    right: float
    bottom: float
    crowd: bool = False
    """Whether it need not be found, and what is found in it counts neither for nor against."""
    learned: bool = True

    @property
    def has_area(self) -> bool:
        return self.right > self.left and self.bottom > self.top


@dataclass(frozen=True)
class Page:
    """What is written of one image.

    name: what the sample is called. path: the image. written: the file, for messages. size: width and height, where that is written.
    """

    name: str
    path: Path
    written: str
    size: tuple[int, int] | None
    objects: tuple[Object, ...]


class Boxes(NamedTuple):
    """The truth of a sample. boxes: left, top, right, bottom each. labels: class numbers. crowd, learned: as of `Object`. size: of `Page`."""

    boxes: Sequence[tuple[float, float, float, float]]
    labels: Sequence[int]
    crowd: Sequence[bool]
    learned: Sequence[bool]
    size: tuple[int, int] | None


def gather(train: Sequence[Page], val: Sequence[Page] | None, test: Sequence[Page] | None, data: Data) -> Splits:
    """The splits of a config: its classes, or all that are found in `train`, by name. An image without objects of them is kept.

    Boxes without area are left out, and told of in the splits' remarks. Raises ConfigError where there is nothing to find.
    """
    found = sorted({each.name for page in train for each in page.objects})
    if not found:
        raise ConfigError(f"data.root = {data.root!r}: there is not one object in the {len(train)} training images")
    classes = choose_classes(found, data)
    others = [(name, pages) for name, pages in (("val", val), ("test", test)) if pages is not None]
    problems = [problem for name, pages in others for problem in strangers(pages, classes, data, f"the {name} split")]
    if problems:
        raise ConfigError(problems)
    of_val, of_test = (None if pages is None else split(pages, classes) for pages in (val, test))
    splits = draw_splits(split(train, classes), of_val, of_test, classes, data)
    scored = (("val", splits.val), ("test", splits.test))
    if problems := [problem for name, each in scored if each is not None for problem in nothing_to_find(each, data, name)]:
        raise ConfigError(problems)
    return replace(splits, remarks=remarks([*train, *(val or ()), *(test or ())], classes))


def one(pages: Sequence[Page], classes: Sequence[str], data: Data, name: str, where: str) -> Split:
    """A split by itself, to score a model of these classes on it. Raises ConfigError for other classes, and where there is nothing to find."""
    found = split(pages, classes)
    if problems := strangers(pages, classes, data, where) or nothing_to_find(found, data, name):
        raise ConfigError(problems)
    return found


def split(pages: Sequence[Page], classes: Sequence[str]) -> Split:
    """Samples with the objects of these classes."""
    number = {name: label for label, name in enumerate(classes)}
    kept = [tuple(each for each in page.objects if each.name in number and each.has_area) for page in pages]

    def truth(i: int) -> Boxes:
        boxes = [(each.left, each.top, each.right, each.bottom) for each in kept[i]]
        labels, crowd, learned = (
            zip(*((number[each.name], each.crowd, each.learned) for each in kept[i]), strict=True) if kept[i] else ((),) * 3
        )
        return Boxes(boxes, labels, crowd, learned, pages[i].size)

    return Split([page.name for page in pages], (), lambda i: images.read(pages[i].path), truth, [tuple(map(tuple, each)) for each in kept])


def strangers(pages: Sequence[Page], classes: Sequence[str], data: Data, where: str) -> list[str]:
    """What there is against classes that training does not have, unless `data.classes` says that only these are looked for."""
    extra = sorted({each.name for page in pages for each in page.objects} - set(classes))
    if not extra or data.classes is not None:
        return []
    return [f"{where} has objects of classes that training does not have: {some(extra)}; choose with data.classes"]


def nothing_to_find(split: Split, data: Data, name: str) -> list[str]:
    """What there is against scoring a split that has images, but no object that need be found."""
    if not len(split) or any(not crowd for i in range(len(split)) for crowd in split.target(i).crowd):
        return []
    told = f"data.root = {data.root!r}: the {name} split has {len(split)} images, and not one object in them that need be found"
    return [f"{told} (crowds and difficult ones need not be), so that there is nothing to score; annotate it, or take it away"]


def remarks(pages: Sequence[Page], classes: Sequence[str]) -> tuple[str, ...]:
    """What is passed over, a sentence each."""
    boxes = [(page, each) for page in pages for each in page.objects if each.name in classes]
    empty = [page.written for page, each in boxes if not each.has_area]
    beyond = [page.written for page, each in boxes if each.has_area and page.size and _beyond(each, page.size)]
    told = ((empty, "without area, which are left out"), (beyond, "beyond the image's edge, which are clipped"))
    return tuple(f"{len(where)} boxes {what} (the first in {where[0]})" for where, what in told if where)


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:TOLD]) + (f" and {len(names) - TOLD} more" if len(names) > TOLD else "")


def _beyond(each: Object, size: tuple[int, int]) -> bool:
    """By more than the one pixel that those who count from 0 and those who count from 1 differ by."""
    return min(each.left, each.top) < -1 or each.right > size[0] + 1 or each.bottom > size[1] + 1
