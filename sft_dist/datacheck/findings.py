"""What is wrong with a data set, and what is worth knowing of it, from a look at each of its images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from sft_dist.datacheck import likeness, strays
from sft_dist.datacheck.census import Look
from sft_dist.datasets import Splits, images

UNBALANCED = 10  # times as many images of one class as of another
LONG = 3  # times as wide as high, or the other way round
PARTS = strays.READ


@dataclass(frozen=True)
class Item:
    """What a finding is about: one image, or several that belong together."""

    names: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found. wrong: it spoils training or its scores, and the check fails."""

    kind: str
    wrong: bool
    title: str
    advice: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Part:
    """A split: how many images each class has, in the order of the classes, and the sizes of those that can be read."""

    name: str
    counts: tuple[int, ...]
    sides: tuple[int, int, int] | None
    """Smallest, median and largest shorter side, in pixels."""


@dataclass(frozen=True)
class Report:
    """The whole check."""

    classes: tuple[str, ...]
    parts: Sequence[Part]
    findings: Sequence[Finding]

    @property
    def images(self) -> int:
        return sum(sum(part.counts) for part in self.parts)

    @property
    def wrong(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.wrong]

    @property
    def remarks(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.wrong]


@dataclass(frozen=True)
class Census:
    """All images, a place for each: training, validation, test, in that order."""

    splits: Splits
    looks: Sequence[Look]
    names: Sequence[str]
    labels: Sequence[int]
    parts: Sequence[range]

    @classmethod
    def of(cls, splits: Splits, looks: Sequence[Look]) -> "Census":
        found = [split for split in (splits.train, splits.val, splits.test) if split]
        ends = [sum(len(split) for split in found[: i + 1]) for i in range(len(found))]
        return cls(
            splits,
            looks,
            [name for split in found for name in split.names],
            [label for split in found for label in split.labels],
            [range(end - len(split), end) for split, end in zip(found, ends, strict=True)],
        )

    def part(self, place: int) -> int:
        return next(number for number, part in enumerate(self.parts) if place in part)

    def item(self, places: Sequence[int], note: str = "") -> Item:
        return Item(tuple(self.names[place] for place in places), note)

    def said(self, place: int) -> str:
        return f"{self.splits.classes[self.labels[place]]} in {PARTS[self.part(place)]}"


def judge(splits: Splits, looks: Sequence[Look], size: int, near: bool = True, outside: Sequence[str] = ()) -> Report:
    """What a look at each image says.

    size: what the model will see, in pixels. near: compare every picture with every other. outside: images that no run reads.
    """
    census = Census.of(splits, looks)
    found = [
        *_unreadable(census),
        *_same(census),
        *(_alike(census) if near else ()),
        *_balance(census),
        *_sizes(census, size),
        *_odd(census),
        *_outside(outside),
    ]
    parts = [_part(census, number) for number in range(len(census.parts))]
    return Report(splits.classes, parts, sorted((each for each in found if each.items), key=lambda each: not each.wrong))


def _part(census: Census, number: int) -> Part:
    counts = Counter(census.labels[place] for place in census.parts[number])
    sides = [min(look.width, look.height) for place in census.parts[number] if (look := census.looks[place]).pixels]
    spread = (min(sides), round(median(sides)), max(sides)) if sides else None
    return Part(PARTS[number], tuple(counts[label] for label in range(len(census.splits.classes))), spread)


def _unreadable(census: Census) -> Iterator[Finding]:
    items = [census.item([place], look.problem) for place, look in enumerate(census.looks) if look.problem]
    yield Finding("unreadable", True, "an image that cannot be read", "One of them ends a run; mend them, or take them out.", items)


def _same(census: Census) -> Iterator[Finding]:
    leaks, contradictions, twice = [], [], []
    for group in likeness.same(census.looks):
        item = census.item(group, ", ".join(dict.fromkeys(census.said(place) for place in group)))
        parts, labels = ({of(place) for place in group} for of in (census.part, census.labels.__getitem__))
        leaks += [item] if len(parts) > 1 else []
        contradictions += [item] if len(labels) > 1 else []
        twice += [item] if len(parts) == len(labels) == 1 else []
    yield Finding("leak", True, "the same picture in several splits", "Scores on what was learned by heart are too good; keep one.", leaks)
    yield Finding("contradiction", True, "the same picture in several classes", "At most one of them is right; keep that.", contradictions)
    yield Finding(
        "double", False, "the same picture several times in one split", "It counts that many times; keep one if that is not meant.", twice
    )


def _alike(census: Census) -> Iterator[Finding]:
    leaks: list[Item] = []
    torn: list[Item] = []
    within: list[Item] = []
    for pair in likeness.alike(census.looks, census.parts):
        places = (pair.one, pair.other)
        mirrored = ", mirrored" if pair.mirrored else ""
        item = census.item(places, f"{' and '.join(map(census.said, places))}; likeness {pair.correlation:.3f}{mirrored}")
        leak, tear = (len(set(map(of, places))) > 1 for of in (census.part, census.labels.__getitem__))
        (leaks if leak else torn if tear else within).append(item)
    told = "Look at them: re-encoded or scaled copies, bursts and video frames belong into one split."
    yield Finding("near-leak", True, "nearly the same picture in two splits", told, leaks)
    yield Finding("near-contradiction", False, "nearly the same picture in two classes", "Look at them: one label may be wrong.", torn)
    yield Finding(
        "near-double", False, "nearly the same picture in one split", "Copies, bursts and video frames weigh more than they show.", within
    )


def _balance(census: Census) -> Iterator[Finding]:
    classes = census.splits.classes
    counts = [_part(census, number).counts for number in range(len(census.parts))]
    most = max(counts[0])
    rare = [Item((classes[label],), f"{count} of at most {most}") for label, count in enumerate(counts[0]) if count * UNBALANCED <= most]
    told = "Look at val/f1_macro and at each class: val/top1 hardly sees them."
    yield Finding("rare-class", False, f"a class with {UNBALANCED} times fewer training images than another", told, rare)
    missing = [
        Item((classes[label],), f"none in {PARTS[number]}")
        for number, part in enumerate(counts)
        for label, count in enumerate(part)
        if not count
    ]
    yield Finding("missing-class", False, "a class that a split does not have", "Its score there says nothing.", missing)


def _sizes(census: Census, size: int) -> Iterator[Finding]:
    small, long = [], []
    for place, look in enumerate(census.looks):
        if look.pixels:
            item = census.item([place], f"{look.width} x {look.height}")
            small += [item] if 2 * min(look.width, look.height) < size else []
            long += [item] if max(look.width, look.height) > LONG * min(look.width, look.height) else []
    told = "They are blurred when they are enlarged that much; a smaller data.size trains faster."
    yield Finding("small", False, f"shorter side less than half of data.size = {size}", told, small)
    yield Finding("long", False, f"more than {LONG} times as long as wide", "Evaluation sees only the middle of them.", long)


def _odd(census: Census) -> Iterator[Finding]:
    kinds: dict[str, list[Item]] = {}
    for place, look in enumerate(census.looks):
        for odd in look.odd:
            kinds.setdefault(odd, []).append(census.item([place]))
    for odd, items in sorted(kinds.items()):
        yield Finding("odd", False, odd, "", items)


def _outside(names: Sequence[str]) -> Iterator[Finding]:
    """One item a folder: a set that lies beside the one that is read may be large."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    told = f"Runs read {', '.join(f'{part}/<class>/' for part in PARTS)} and the formats {' '.join(images.EXTENSIONS)}; move or convert what is meant."
    yield Finding("outside", False, "a folder with images that no run reads", told, [Item(tuple(found)) for found in folders.values()])
