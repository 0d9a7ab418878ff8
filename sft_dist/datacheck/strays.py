"""Image files that lie where the data does and that no run reads: beside the class folders, or of a format that is not read."""

import os
from collections.abc import Iterator
from pathlib import Path

from sft_dist.datasets import images

READ = ("train", "val", "test")
CLASS = 2  # how deep a class folder lies; all below it is read
UNREAD = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".svg", ".tga")  # endings of images that images.find passes over


def find(root: Path) -> list[str]:
    """Their paths from the root, folder by folder, each file once, whatever links to folders lead to it.

    What is hidden is left out; so are whole classes, which data.classes may leave out.
    """
    read: set[str] = set()
    found: dict[tuple[str, str], Path] = {}
    for place, real, names in _folders(root):
        if is_read := _depth(place) == CLASS:
            read.add(real)
        for name in names:
            if name.lower().endswith(UNREAD if is_read else (*images.EXTENSIONS, *UNREAD)):
                found.setdefault((real, name), place / name)
    return [str(path) for (real, name), path in found.items() if real not in read or name.lower().endswith(UNREAD)]


def _folders(root: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """Every folder: its path from the root, the real one, and its files. Links are followed as `images.find` does, and those that lead up are not."""
    seen = set()
    for here, folders, files in os.walk(root, followlinks=True):
        real, place = os.path.realpath(here), Path(here).relative_to(root)
        if (real, _depth(place)) in seen:
            folders.clear()
            continue
        seen.add((real, _depth(place)))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _leads_up(Path(here, name)))
        yield place, real, sorted(name for name in files if not name.startswith("."))


def _leads_up(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return folder.is_symlink() and Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder))


def _depth(place: Path) -> int:
    """How deep a folder lies in one of those that a run reads, CLASS at most; 0 outside of them."""
    return min(len(place.parts), CLASS) if place.parts and place.parts[0] in READ else 0
