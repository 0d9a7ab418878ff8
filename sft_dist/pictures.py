"""Pictures of validation samples for a page, by id, where the data set can be reached from here; without torch."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist.datasets import arrays, digits, images

SIDE = 128  # pixels of the longer side
LARGEST = 50_000_000  # bytes of a file that is opened for a picture

Read = Callable[[str], Any]
"""A sample's id -> Pillow's image, or None where there is none; raises ValueError or OSError where it cannot be read."""


@dataclass(frozen=True)
class Photo:
    """A small copy of an image: its data URI, and the width and height in pixels of the whole one."""

    uri: str
    width: int
    height: int


def of(config: Mapping[str, Any], ids: Iterable[str]) -> dict[str, str]:
    """Sample id -> data URI, for those of a run's samples that can be read; for other kinds of data sets none."""
    return {sample: photo.uri for sample, photo in photos(config, ids, SIDE).items()}


def photos(config: Mapping[str, Any], ids: Iterable[str], side: int) -> dict[str, Photo]:
    """The same with their sizes, the longer side of the copies at most this many pixels."""
    source = SOURCES.get(str(config.get("data.name")))
    read = source(config) if source else None
    found = {sample: _small(read, sample, side) for sample in ids} if read else {}
    return {sample: photo for sample, photo in found.items() if photo}


def _folder(config: Mapping[str, Any]) -> Read | None:
    """The file of that name below data.root, and nowhere else: an id comes from a file that anybody may have written."""
    root = Path(str(config.get("data.root"))).resolve()

    def read(sample: str) -> Any:
        path = (root / sample).resolve()
        inside = path.is_relative_to(root) and path.is_file() and path.stat().st_size <= LARGEST
        return images.decode(path) if inside else None

    return read if config.get("data.root") and root.is_dir() else None


def _digits(config: Mapping[str, Any]) -> Read:  # noqa: ARG001 (they travel with the package)
    from PIL import Image

    pixels = digits.grey()

    def read(sample: str) -> Any:
        number = sample.removeprefix("digits/")
        known = number.isascii() and number.isdecimal() and int(number) < len(pixels)
        return Image.fromarray(pixels[int(number)]) if known else None

    return read


def _torchvision(config: Mapping[str, Any]) -> Read | None:
    """Of the data sets that lie in a few arrays; the others' numbers mean files that only torchvision knows."""
    from PIL import Image

    dataset = str(config.get("data.dataset"))
    pixels = arrays.of(dataset, Path(str(config.get("data.root"))))

    def read(sample: str) -> Any:
        _, split, number = sample.split("/") if sample.count("/") == 2 else ("", "", "")
        known = sample.startswith(f"{dataset}/") and number.isascii() and number.isdecimal() and len(number) < 10
        found = pixels(split, int(number)) if pixels and known else None
        return None if found is None else Image.fromarray(found)

    return read if pixels and config.get("data.root") else None


def _small(read: Read, sample: str, side: int) -> Photo | None:
    file = io.BytesIO()
    try:
        if (image := read(sample)) is None:
            return None
        width, height = image.size
        image.thumbnail((side, side))
        kind = "PNG" if max(image.size) < SIDE else "JPEG"
        image.convert("RGB").save(file, kind)
    except (OSError, ValueError):  # the page goes without
        return None
    return Photo(f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode(), width, height)


SOURCES: dict[str, Callable[[Mapping[str, Any]], Read | None]] = {
    **dict.fromkeys(("folder", "masks", "voc", "coco"), _folder),
    "digits": _digits,
    "torchvision": _torchvision,
}
