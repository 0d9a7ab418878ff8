"""Image files that lie where the data does and that no run reads: beside the class folders, or of a format that is not read."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sft_dist.datasets import images
from sft_dist.errors import SftError

READ = ("train", "val", "test")
UNREAD = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".svg", ".tga")  # endings of images that images.find passes over


def find(root: Path) -> list[str]:
    """Their paths from the root, in order. What is hidden is left out, and so are whole classes that data.classes leaves out."""
    return [str(path) for path in (found.relative_to(root) for found in _all(root)) if not _is_read(path)]


def _all(root: Path) -> Iterator[Path]:
    for place in sorted(path for path in root.iterdir() if not path.name.startswith(".")):
        if place.is_dir():
            with suppress(SftError):  # what cannot be listed beside the data does a run no harm
                yield from images.find(place, (*images.EXTENSIONS, *UNREAD))
        elif place.name.lower().endswith((*images.EXTENSIONS, *UNREAD)):
            yield place


def _is_read(path: Path) -> bool:
    return len(path.parts) > 2 and path.parts[0] in READ and path.name.lower().endswith(images.EXTENSIONS)
