"""Image files: which there are, and how one becomes a tensor."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DECODED_BY_TORCHVISION = (".jpg", ".jpeg", ".png", ".webp", ".gif")
EXTENSIONS = (*DECODED_BY_TORCHVISION, ".bmp", ".ppm", ".pgm", ".tif", ".tiff")  # as in torchvision's ImageFolder, and gif


def find(folder: Path) -> Iterator[Path]:
    """Every image below a folder, sorted; hidden files are left out."""
    for here, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(here) / name


def read(path: Path) -> Any:
    """A file as uint8 tensor of 3 x height x width, turned upright by its EXIF tag. Raises OSError or ValueError, path included."""
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

    if path.suffix.lower() not in DECODED_BY_TORCHVISION:
        return pil_to_tensor(_open(path))
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path} is empty")
    try:
        image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be decoded: {str(error).splitlines()[0].split(': ')[-1]}") from error
    if image.ndim == 4:
        image = image[0]  # an animation: its first frame
    return to_dtype(image, torch.uint8, scale=True) if image.dtype != torch.uint8 else image


def _open(path: Path) -> Any:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error
