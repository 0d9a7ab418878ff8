"""A network learns real street scenes: better than calling everything the commonest class."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from ranks import Job, output, run_ranks
from torch import nn
from torchvision.transforms.v2.functional import normalize, resize, to_dtype

from sft_dist.datasets import images

pytestmark = [pytest.mark.dist, pytest.mark.real]

NAME, SIZE = "lraspp_mobilenet_v3_large", 64
CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]


def _calibrated(folder: Path) -> nn.Module:
    """A drawn network whose batch norms know what they will see: mobilenets learn statistics at 1 % a step, too slowly for a test."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(NAME, weights=None, weights_backbone=None, num_classes=len(CLASSES)).train()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
    seen = torch.stack([resize(images.read(path), [SIZE, SIZE], antialias=True) for path in sorted(folder.iterdir())[::10]])
    with torch.no_grad():
        model(normalize(to_dtype(seen, torch.float32, scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return model


def test_street_scenes_are_learned_from_scratch(folder: Path, real_data: Path) -> None:
    weights = folder / "start.pth"
    torch.save(_calibrated(real_data / "camvid" / "train" / "images").state_dict(), weights)
    config = {
        "task": "segment",
        "data": {
            "name": "masks",
            "root": str(real_data / "camvid"),
            "size": SIZE,
            "crop_scale": [0.4, 1.0],
            "classes": CLASSES,
            "void": [11],
            "workers": 0,
        },
        "model": {"name": NAME, "weights": str(weights), "head": "keep", "train": "all", "norm": "frozen"},
        "batch": {"total": 8, "micro": 8},
        "optim": {"name": "adamw", "lr": 0.002},
        "schedule": {"name": "cosine", "warmup": "5 steps"},
        "train": {"duration": "100 steps"},
        "eval": {"every": "100 steps"},
        "device": "cpu",
        "report": {"write": "none"},
        "run": {"dir": str(folder), "name": "streets"},
    }
    (folder / "streets.yaml").write_text(json.dumps(config))
    assert run_ranks(1, [Job(str(folder / "streets.yaml"))], folder / "log") == [0], output(folder / "log", 1)[-4000:]
    best = json.loads((folder / "streets" / "scores.json").read_text())["best"]
    support = [each["support"] for each in best["per_class"].values()]
    commonest = max(support) / sum(support)
    assert 0.29 < commonest < 0.31  # the road
    assert best["val/pixel_accuracy"] > commonest + 0.15
    assert best["val/miou"] > 2 * commonest / len(CLASSES)
