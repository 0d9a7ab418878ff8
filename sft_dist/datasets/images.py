"""Image files: which there are, and how one becomes a tensor."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from sft_dist.errors import ConfigError, MachineError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")  # torchvision's ImageFolder, and gif
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # whatever the name says; of the others, EPS starts Ghostscript


def find(folder: Path) -> Iterator[Path]:
    """Every image below a folder, sorted; what is hidden is left out.

    Raises MachineError where a folder cannot be listed, and ConfigError for a link to a folder that it lies in.
    """
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # .ipynb_checkpoints, .thumbnails
        for link in (path for path in (Path(here) / name for name in folders) if path.is_symlink()):
            if Path(here).resolve().is_relative_to(link.resolve()):
                raise ConfigError(
                    f"{link} is a link to a folder that it lies in, so that its images would count again and again; remove it"
                )
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(here) / name


def read(path: Path) -> Any:
    """A file as uint8 tensor of 3 x height x width, turned upright by its EXIF tag. Raises ValueError naming the path."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(decode(path))


def decode(path: Path) -> Any:
    """A file as Pillow's image in colour, turned upright by its EXIF tag; without torch. Raises ValueError naming the path."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=FORMATS) as image:
            return _in_colour(ImageOps.exif_transpose(image))
    except Exception as error:  # for damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error and others
        raise ValueError(f"{path} cannot be decoded: {error}") from error


def size(path: Path) -> tuple[int, int]:
    """Width and height as the file's head tells them, before it is turned upright; nothing is unpacked. Raises ValueError naming the path."""
    from PIL import Image

    try:
        if not path.is_file():
            raise ValueError("it is no regular file")  # a pipe would be waited for
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:
        raise ValueError(f"{path} cannot be opened: {error}") from error
    return width, height


def _refuse(error: OSError) -> NoReturn:
    """Training without a part of the images must not pass for training with all."""
    raise MachineError(f"{error.filename}: {error.strerror}; a run needs to list every folder of its images") from error


def _in_colour(image: Any) -> Any:
    if image.mode.startswith(("I", "F")):  # more than 8 bits of grey, which Pillow's own conversion would clip at 255
        import numpy as np
        from PIL import Image

        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() >= 2**16:
            raise ValueError("its pixels are neither 8 nor 16 bits of grey; convert the file")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as Pillow asks for
    return image.convert("RGB")
