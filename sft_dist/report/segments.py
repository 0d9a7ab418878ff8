"""Masks over the images that they are of: what is there and what a model says, each class in a colour of its own."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from sft_dist import overlaps
from sft_dist.compare import masks
from sft_dist.report import overlay
from sft_dist.report.exhibits import Mask, Patch
from sft_dist.report.scene import Scene, samples_of, save
from sft_dist.schedule import Pick

SIDE = 384  # pixels of a picture's longer side
COVER = 0.6  # how much of the image a mask hides
SEEN = 0.005  # of the pixels of an image: a class with less is not named
# Martin Krzywinski's 15 colours that are told apart with all common kinds of colour blindness; neighbours in the list differ in lightness
COLOURS = (
    "#009ffa", "#ffdc3d", "#9400e6", "#00e307", "#f60239", "#7cfffa", "#008607", "#ff71fd",
    "#003c86", "#ffcfe2", "#008169", "#ef0096", "#00dcb5", "#68023f", "#6a0213",
)  # fmt: skip
NO_CLASS = (128, 128, 128)

Numbers = NDArray[np.int64]


def drawn(scene: Scene) -> dict[str, Any]:
    """The images that the page shows, with both masks over them at the size of the file."""
    split, found, told = scene.splits.val, [], []
    places = {name: i for i, name in enumerate(split.names)}
    samples = samples_of(scene, split)
    for number, one in enumerate(one for one in overlay.chosen(scene.looked) if one.id in places):
        sample = samples[Pick(0, places[one.id])]
        if sample.problem:
            told.append(f"no masks of an image: {sample.problem}")
            continue
        with torch.no_grad():
            logits = scene.after(sample.image[None])["out"]
        full = functional.interpolate(logits, size=sample.target.shape, mode="bilinear", align_corners=False)
        truth, said = sample.target.numpy().astype(np.int64), full[0].argmax(0).numpy()
        table = overlaps.confusion(truth, said, len(scene.classes))
        shades = _shades(table)
        image = split.read(places[one.id]).permute(1, 2, 0).contiguous().numpy()
        pictures = [
            save(scene.folder, f"mask-{number}-{which}", _covered(image, mask, shades))
            for which, mask in (("plain", None), ("truth", truth), ("said", said))
        ]
        patches = _patches(table, scene.classes, shades)
        found.append(Mask(id=one.id, iou=one.share, plain=pictures[0], truth=pictures[1], said=pictures[2], patches=patches))
    return {"masks": tuple(found), "told": tuple(told)}


def _shades(table: Numbers) -> Numbers:
    """The colour of each class, as its place in COLOURS: its number where there are enough for all; else its rank in this image, the largest
    first, so that two classes share one only where more occur in the image than there are colours."""
    ranks = np.arange(len(table)) if len(table) <= len(COLOURS) else np.argsort(_largest_first(table))
    return np.asarray(ranks % len(COLOURS), dtype=np.int64)


def _largest_first(table: Numbers) -> Numbers:
    """The classes of an image, by the more of what is there and what is said."""
    return np.argsort(-np.maximum(table.sum(0), table.sum(1)), kind="stable")


def _covered(image: NDArray[np.uint8], mask: Numbers | None, shades: Numbers) -> Any:
    """A small picture of an image, under the colours of a mask where there is one."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    if mask is None:
        return picture
    table = np.array([*(tuple(bytes.fromhex(one[1:])) for one in COLOURS), NO_CLASS], dtype=np.uint8)
    rows = (np.arange(picture.height) + 0.5) * mask.shape[0] // picture.height
    columns = (np.arange(picture.width) + 0.5) * mask.shape[1] // picture.width
    small = mask[rows.astype(int)][:, columns.astype(int)]
    colours = table[np.where(small < 0, len(COLOURS), shades[small])]
    return Image.fromarray((COVER * colours + (1 - COVER) * np.asarray(picture, float)).round().astype(np.uint8))


def _patches(table: Numbers, classes: tuple[str, ...], shades: Numbers) -> tuple[Patch, ...]:
    """The classes that are in an image or said to be, the largest first; a share is of the pixels that have a class."""
    counts = np.stack([table.diagonal(), table.sum(0), table.sum(1)])
    shares, ious = counts / max(1, table.sum()), masks.by_class(counts)
    return tuple(
        Patch(name=classes[i], colour=COLOURS[shades[i]], there=float(shares[2, i]), said=float(shares[1, i]), iou=float(ious[i]))
        for i in _largest_first(table).tolist()
        if max(shares[1, i], shares[2, i]) >= SEEN
    )
