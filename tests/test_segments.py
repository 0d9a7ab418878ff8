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
from sft_dist.report.scene import Scene
from sft_dist.report.study import study


class Half(nn.Module):
    """Says class 1 of the left half of every image, and class 0 of the right one."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.zeros(len(images), 2, 4, 8)
        logits[:, 1, :, :4] = logits[:, 0, :, 4:] = 9.0
        return {"out": logits}


def test_the_true_and_the_predicted_mask_are_drawn_over_the_image(tmp_path: Path) -> None:
    truth = np.zeros((40, 80), dtype=np.int16)
    truth[20:, :] = 1
    truth[:, :4] = -1
    said = np.zeros((40, 80), dtype=np.int16)
    said[:, :40] = 1
    run = a_masked_run(tmp_path / "run", [truth], [said], ("road", "tree"))
    (run / "report").mkdir()
    split = Split(["val/images/0.png"], (), lambda _: torch.full((3, 40, 80), 200, dtype=torch.uint8), lambda _: torch.from_numpy(truth))
    config: Any = type("C", (), {"data": Data(name="masks", size=16), "task": "segment", "train": type("T", (), {"seed": 0})})
    record = reading.read(run)
    scene = Scene(
        config, run, ("road", "tree"), Splits(split, split, None, ("road", "tree")), study(record, "best"), None, Half(), frozenset()
    )
    [mask] = segments.drawn(scene)["masks"]
    assert [(patch.name, patch.colour) for patch in mask.patches] == [("road", "#009ffa"), ("tree", "#ffdc3d")]
    shares = [(patch.there, patch.said, patch.iou) for patch in mask.patches]
    assert np.array(shares) == pytest.approx(np.array([(20 / 40, 20 / 38, 20 / 58), (20 / 40, 18 / 38, 18 / 56)]), abs=1e-12)
    seen = {
        which: np.asarray(Image.open(run / "report" / name)).astype(int) for which, name in (("truth", mask.truth), ("said", mask.said))
    }
    road, tree, void = ([0.6 * part + 0.4 * 200 for part in colour] for colour in ((0, 159, 250), (255, 220, 61), (128, 128, 128)))
    for which, place, colour in (
        ("truth", (5, 60), road), ("truth", (30, 60), tree), ("said", (5, 60), road), ("said", (5, 20), tree), ("truth", (10, 1), void),
    ):  # fmt: skip
        assert np.abs(seen[which][place] - colour).max() < 16, (which, place)
