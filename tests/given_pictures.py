"""Pictures for tests of what tells them apart."""

import io

import numpy as np
from PIL import Image


def scene(seed: int, side: int = 96) -> Image.Image:
    """A picture of its own: coarse random blobs, as the large shapes of photos are."""
    blobs = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize((side, side), Image.Resampling.BICUBIC)


def as_jpeg(picture: Image.Image) -> Image.Image:
    """A copy as a camera or a web page would store it again, at quality 40."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=40)
    return Image.open(file)
