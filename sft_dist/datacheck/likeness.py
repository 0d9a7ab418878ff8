"""Which pictures are the same, and which are nearly: re-encoded, scaled, brightened, mirrored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

from sft_dist.datacheck.census import SIDE, Look

ALIKE = 0.96  # correlation of the thumbnails' grey
FAINTEST = 2.0  # deviation of a thumbnail's grey, of 255: below it, noise would be compared
SMALLEST = 32  # shorter side of pictures that can be told apart by a thumbnail: digits of 28 pixels look all alike
BLOCK = 2**24  # pairs at once: 64 MiB


@dataclass(frozen=True)
class Alike:
    """Two pictures, by their places, and the correlation of their thumbnails, up to 1."""

    one: int
    other: int
    correlation: float
    mirrored: bool
    """Left and right of one of them are exchanged."""


def same(looks: Sequence[Look]) -> list[tuple[int, ...]]:
    """The places of pictures with the same pixels, as groups of two or more, in the order of their first."""
    groups: dict[bytes, list[int]] = {}
    for place, look in enumerate(looks):
        if look.pixels:
            groups.setdefault(look.pixels, []).append(place)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def alike(looks: Sequence[Look], parts: Sequence[range]) -> list[Alike]:
    """Pairs that are nearly the same but not quite: for each picture of each part, the one most like it in its own and in each earlier part,
    and the one whose mirrored picture is most like it.

    Every pair of pictures is compared, so that the time grows with the square of their number: some two minutes for 100,000 on one core.
    """
    firsts: dict[bytes, int] = {}
    for place, look in enumerate(looks):
        if look.pixels and min(look.width, look.height) >= SMALLEST:
            firsts.setdefault(look.pixels, place)
    drawn = _vectors([looks[place].thumb for place in firsts.values()])
    places = [place for place, clear in zip(firsts.values(), drawn.any(axis=1), strict=True) if clear]
    vectors = drawn[drawn.any(axis=1)]
    found: dict[tuple[int, int], Alike] = {}
    rows = [[i for i, place in enumerate(places) if place in part] for part in parts]
    for mirrored, others in ((False, vectors), (True, _mirrored(vectors))):
        for earlier, later in combinations_with_replacement(rows, 2):
            for i, j, correlation in _nearest(vectors[later], later, others[earlier], earlier):
                one, other = sorted((places[i], places[j]))
                if (one, other) not in found or found[one, other].correlation < correlation:
                    found[one, other] = Alike(one, other, correlation, mirrored)
    return [pair for _, pair in sorted(found.items())]


def _vectors(thumbs: Sequence[bytes]) -> Any:
    """A row for each thumbnail, of mean 0 and length 1; zeros for one that shows next to nothing."""
    import numpy as np

    grey = np.frombuffer(b"".join(thumbs), np.uint8).reshape(len(thumbs), SIDE * SIDE).astype(np.float32)
    grey -= grey.mean(axis=1, keepdims=True)
    length = np.linalg.norm(grey, axis=1, keepdims=True)
    clear = length >= FAINTEST * SIDE
    return np.where(clear, grey / np.where(clear, length, 1), 0)


def _mirrored(vectors: Any) -> Any:
    return vectors.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(vectors.shape)


def _nearest(vectors: Any, rows: Sequence[int], others: Any, columns: Sequence[int]) -> Iterator[tuple[int, int, float]]:
    """For each row the column most like it that is another, if they are alike. rows, columns: which picture each vector and each other is of."""
    import numpy as np

    if not rows or not columns:
        return
    step = max(1, BLOCK // len(columns))
    own = {place: i for i, place in enumerate(columns)}
    for start in range(0, len(rows), step):
        here = rows[start : start + step]
        likeness = vectors[start : start + step] @ others.T
        for i, place in enumerate(here):
            if place in own:
                likeness[i, own[place]] = -1
        best = likeness.argmax(axis=1)
        for row in np.flatnonzero(likeness[np.arange(len(here)), best] >= ALIKE).tolist():
            yield here[row], columns[best[row]], float(likeness[row, best[row]])
