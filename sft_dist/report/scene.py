"""A run's data and models as they are looked at for its report, and how what is seen becomes small pictures in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from sft_dist.config import Config
from sft_dist.datasets import Split, Splits
from sft_dist.loading import Samples
from sft_dist.report import exhibits
from sft_dist.report.study import Study
from sft_dist.rundir import writing
from sft_dist.tasks import TASKS

SIDE = 128  # pixels of a picture's side
RED = np.array([220.0, 30.0, 30.0])


@dataclass(frozen=True)
class Scene:
    """What is looked at. before: the model as it was at the start, None where that cannot be had again; after: the checkpoint's."""

    config: Config
    folder: Path
    classes: tuple[str, ...]
    splits: Splits
    looked: Study
    before: nn.Module | None
    after: nn.Module
    fresh: frozenset[str]


def samples_of(scene: Scene, split: Split, training: bool = False) -> Samples:
    data = scene.config.data
    return Samples(split, TASKS[scene.config.task].prepare(data, training), data.size, scene.config.train.seed)


def spread(there: int, wanted: int) -> list[int]:
    """At most so many places among those that there are, evenly."""
    return [i * there // min(there, wanted) for i in range(min(there, wanted))]


def picture_of(image: Tensor, heat: Tensor | None = None) -> Any:
    """A uint8 image as Pillow's, with a map from 0 to 1 laid over it in red."""
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    few, longer = picture.width < SIDE, max(picture.size)
    picture = picture.resize(
        (SIDE * picture.width // longer, SIDE * picture.height // longer), Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
    )
    if heat is None:
        return picture
    grown = Image.fromarray(heat.float().numpy()).resize(picture.size, Image.Resampling.BILINEAR)
    share = 0.6 * np.asarray(grown, float).clip(0, 1)[..., None]
    return Image.fromarray(((1 - share) * np.asarray(picture, float) + share * RED).round().astype(np.uint8))


def save(folder: Path, name: str, picture: Any) -> str:
    file = f"{name}.jpg"
    path = folder / exhibits.FOLDER / file
    with writing(path):
        picture.save(path, "JPEG", quality=88)
    return file
