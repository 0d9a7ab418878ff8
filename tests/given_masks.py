"""Small images with masks, drawn from a seed: what a class looks like can be learned."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("sky", "sea", "sand")
COLOURS = np.array([[90, 160, 230], [20, 60, 120], [220, 200, 140]])


def a_scene(seed: int, width: int = 48, height: int = 36) -> tuple[Image.Image, Image.Image]:
    """An image and its mask: three bands of noisy colours with edges of their own, and a few pixels of no class (255)."""
    random = np.random.default_rng(seed)
    edges = np.sort(random.integers(4, height - 4, (2, 1)), axis=0) + random.integers(-3, 4, (2, width))
    rows = np.arange(height)[:, None]
    ids = (rows >= edges[0]).astype(np.uint8) + (rows >= edges.max(0))
    photo = np.clip(COLOURS[ids] + random.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
    ids[random.random(ids.shape) < 0.02] = 255
    return Image.fromarray(photo), Image.fromarray(ids)


def a_folder(root: Path, train: int = 8, val: int = 3, sizes: tuple[tuple[int, int], ...] = ((48, 36), (40, 50), (48, 36))) -> Path:
    """train/ and val/ with images/ and masks/, in sizes that take turns, and classes.txt."""
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for i in range(count):
            photo, mask = a_scene(first + i, *sizes[i % len(sizes)])
            put(root, split, f"{i:02d}", photo, mask)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def put(root: Path, split: str, name: str, photo: Image.Image, mask: Image.Image) -> None:
    for kind, image in (("images", photo), ("masks", mask)):
        (root / split / kind).mkdir(parents=True, exist_ok=True)
        image.save(root / split / kind / f"{name}.png")
