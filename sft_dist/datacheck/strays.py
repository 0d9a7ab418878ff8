"""Image files that lie where the data does and that no run reads: beside the class folders, or of a format that is not read."""

import os
from pathlib import Path

from sft_dist.datasets import images

READ = ("train", "val", "test")
UNREAD = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".svg", ".tga")  # endings of images that images.find passes over


def find(root: Path) -> list[str]:
    """Their paths from the root, folder by folder.

    What is hidden is left out, and what lies behind a link to a folder; so are whole classes, which data.classes may leave out.
    """
    found = []
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(here, name).relative_to(root) for name in sorted(files) if not name.startswith(".")]
        found += [str(path) for path in paths if _is_image(path) and not _is_read(path)]
    return found


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith((*images.EXTENSIONS, *UNREAD))


def _is_read(path: Path) -> bool:
    return len(path.parts) > 2 and path.parts[0] in READ and path.name.lower().endswith(images.EXTENSIONS)
