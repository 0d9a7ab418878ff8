"""Masks over images have the colours of their classes in the places of their pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given_tasks import a_masked_run
from PIL import Image
from torch import nn

from sft_dist.config import Data
from sft_dist.datasets import Split, Splits
from sft_dist.history import reading
from sft_dist.report import segments
from sft_dist.report.exhibits import Mask
from sft_dist.report.scene import Scene
from sft_dist.report.study import study


class Half(nn.Module):
    """Says one class of the left half of every image, and class 0 of the right one."""

    def __init__(self, left: int, classes: int) -> None:
        super().__init__()
        self.left, self.classes = left, classes

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.zeros(len(images), self.classes, 4, 8)
        logits[:, self.left, :, :4] = logits[:, 0, :, 4:] = 9.0
        return {"out": logits}


def scene_of(run: Path, truth: np.ndarray[Any, Any], classes: tuple[str, ...], model: nn.Module) -> Scene:
    """One light image of 40 x 80 pixels."""
    (run / "report").mkdir()

    def read(_: int) -> torch.Tensor:
        if truth.size == 0:
            raise ValueError("it is cut short")
        return torch.full((3, 40, 80), 200, dtype=torch.uint8)

    split = Split(["val/images/0.png"], (), read, lambda _: torch.from_numpy(truth))
    config: Any = type("C", (), {"data": Data(name="masks", size=16), "task": "segment", "train": type("T", (), {"seed": 0})})
    looked = study(reading.read(run), "best")
    return Scene(config, run, classes, Splits(split, split, None, classes), looked, None, model, frozenset())


def drawn(run: Path, truth: np.ndarray[Any, Any], classes: tuple[str, ...], model: nn.Module) -> tuple[Mask, dict[str, Any]]:
    """What is shown of the image, and its pictures."""
    [mask] = segments.drawn(scene_of(run, truth, classes, model))["masks"]
    pictures = {"truth": mask.truth, "said": mask.said}
    return mask, {which: np.asarray(Image.open(run / "report" / name)).astype(int) for which, name in pictures.items()}


def test_the_true_and_the_predicted_mask_are_drawn_over_the_image(tmp_path: Path) -> None:
    truth = np.zeros((40, 80), dtype=np.int16)
    truth[20:, :] = 1
    truth[:, :4] = -1
    said = np.zeros((40, 80), dtype=np.int16)
    said[:, :40] = 1
    run = a_masked_run(tmp_path / "run", [truth], [said], ("road", "tree"))
    mask, seen = drawn(run, truth, ("road", "tree"), Half(1, 2))
    assert [(patch.name, patch.colour) for patch in mask.patches] == [("road", "#009ffa"), ("tree", "#ffdc3d")]
    shares = [(patch.there, patch.said, patch.iou) for patch in mask.patches]
    assert np.array(shares) == pytest.approx(np.array([(20 / 40, 20 / 38, 20 / 58), (20 / 40, 18 / 38, 18 / 56)]), abs=1e-12)
    road, tree, void = ([0.6 * part + 0.4 * 200 for part in colour] for colour in ((0, 159, 250), (255, 220, 61), (128, 128, 128)))
    for which, place, colour in (
        ("truth", (5, 60), road), ("truth", (30, 60), tree), ("said", (5, 60), road), ("said", (5, 20), tree), ("truth", (10, 1), void),
    ):  # fmt: skip
        assert np.abs(seen[which][place] - colour).max() < 16, (which, place)


def test_of_more_classes_than_colours_those_of_an_image_have_colours_of_their_own(tmp_path: Path) -> None:
    """As Pascal VOC's, where class 0 is the background and class 15 a person."""
    truth = np.zeros((40, 80), dtype=np.int16)
    truth[:10, :40] = 15
    said = np.where(np.arange(80) < 40, 15, 0) * np.ones((40, 1), dtype=np.int16)
    classes = tuple(f"class {number}" for number in range(21))
    run = a_masked_run(tmp_path / "run", [truth], [said], classes)
    mask, seen = drawn(run, truth, classes, Half(15, 21))
    assert [(patch.name, patch.colour) for patch in mask.patches] == [("class 0", "#009ffa"), ("class 15", "#ffdc3d")]
    first, second = ([0.6 * part + 0.4 * 200 for part in colour] for colour in ((0, 159, 250), (255, 220, 61)))
    for which, place, colour in (
        ("truth", (5, 20), second),
        ("truth", (30, 20), first),
        ("said", (30, 20), second),
        ("said", (5, 60), first),
    ):
        assert np.abs(seen[which][place] - colour).max() < 16, (which, place)


def test_an_image_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    run = a_masked_run(tmp_path / "run", [np.zeros((40, 80), dtype=np.int16)], [np.zeros((40, 80), dtype=np.int16)], ("road", "tree"))
    shown = segments.drawn(scene_of(run, np.empty((0, 0), dtype=np.int16), ("road", "tree"), Half(1, 2)))
    assert shown == {
        "masks": (), "told": ("no masks of an image: data: unreadable sample val/images/0.png: it is cut short",),
    }  # fmt: skip
