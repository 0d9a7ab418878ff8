"""P1 and P3 for masks: one curve on any number of ranks, with any strategy, over a kill, and the one that a bare PyTorch loop draws."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from given_masks import CLASSES, a_folder
from PIL import Image
from ranks import Job, largest_difference, output, rows, run_ranks
from torch import nn
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

pytestmark = pytest.mark.dist

SMALL, WITH_AUX = "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"
STEPS, TOTAL, SIZE, LEARNING = 6, 7, 32, "last:2"
RUNS = {  # of the small network: name -> world, micro-batch, strategy
    "alone-3": (1, 3, "ddp"),
    "ddp-2": (2, 2, "ddp"),
    "zero2-2": (2, 3, "zero2"),
    "ddp-3": (3, 2, "ddp"),
    "fsdp-3": (3, 2, "fsdp"),
}
RULER = {"ddp": 1e-9, "fsdp": 1e-9, "zero2": 1e-5}  # DeepSpeed keeps and reduces in fp32


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    """All runs, of the small network and one of the other: windows of 7 images, whose voids differ, that no layout cuts evenly; images of three sizes; and one killed on two ranks
    inside the save of step 3, which goes on with three."""
    a_folder(folder / "coast", train=10, val=5)
    for network in (SMALL, WITH_AUX):
        _warm(network, folder)
    jobs = {name: _job(folder, name, *layout) for name, layout in RUNS.items()}
    killed = _job(folder, "killed", 2, 2, "ddp", die_at="before pointer", die_step=3)
    _start(folder, 1, [jobs["alone-3"]])
    _start(folder, 2, [jobs["ddp-2"], jobs["zero2-2"], _job(folder, "aux-2", 2, 2, "ddp", WITH_AUX)])
    assert run_ranks(2, [killed], folder / "killed")[0] == -9, output(folder / "killed", 2)[-4000:]
    _start(folder, 3, [jobs["ddp-3"], jobs["fsdp-3"], _job(folder, "killed", 3, 2, "fsdp")])
    return folder / "runs"


def _network(name: str) -> nn.Module:
    torch.manual_seed(1)
    options = {"aux_loss": True} if name == WITH_AUX else {}
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=len(CLASSES), **options)


def _warm(name: str, folder: Path) -> None:
    """A file of weights whose batch norms have the statistics of what they see, so that the features do not vanish on the way."""
    warmed = _network(name).train()
    for norm in (module for module in warmed.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        warmed(torch.randn(16, 3, SIZE, SIZE))
    torch.save(warmed.state_dict(), folder / f"{name}.pth")


def _start(folder: Path, world: int, jobs: list[Job]) -> None:
    log = folder / f"world{world}"
    assert run_ranks(world, jobs, log) == [0] * world, output(log, world)[-4000:]


def _job(folder: Path, name: str, world: int, micro: int, strategy: str, network: str = SMALL, **fault: object) -> Job:
    content = {
        "task": "segment",
        "data": {"name": "masks", "root": str(folder / "coast"), "size": SIZE, "crop_scale": [0.3, 1.0], "workers": 0},
        "model": {
            "name": network,
            "weights": str(folder / f"{network}.pth"),
            "head": "keep",
            "train": LEARNING,
            "norm": "frozen",
            "dropout": "none",
        },
        "batch": {"total": TOTAL, "micro": micro},
        "optim": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
        "train": {"duration": f"{STEPS} steps", "clip": 1.0, "seed": 5},
        "eval": {"every": "3 steps"},
        "save": {"every": "3 steps", "keep": 1},
        "shard": {"strategy": strategy},
        "precision": "fp64",
        "device": "cpu",
        "report": {"write": "none"},
        "run": {"dir": str(folder / "runs"), "name": name, "expect_world": world},
    }
    path = folder / f"{name}-{world}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return Job(str(path), **fault)


@pytest.mark.parametrize("name", list(RUNS)[1:])
def test_every_layout_and_strategy_logs_the_same_numbers(runs: Path, name: str) -> None:
    assert len(rows(runs / "alone-3")) == STEPS + 2
    assert largest_difference(rows(runs / "alone-3"), rows(runs / name)) < RULER[RUNS[name][2]]


@pytest.mark.parametrize("name", [*list(RUNS)[1:], "killed"])
def test_every_pixel_is_scored_once_on_any_number_of_ranks(runs: Path, name: str) -> None:
    alone, other = (json.loads((runs / one / "scores.json").read_text())["last"] for one in ("alone-3", name))
    assert other["confusion"] == alone["confusion"]
    masks = [np.asarray(Image.open(path)) for path in sorted((runs.parent / "coast" / "val" / "masks").iterdir())]
    assert np.array(alone["confusion"]).sum(1).tolist() == [sum(int((mask == number).sum()) for mask in masks) for number in range(3)]
    lines = [json.loads(line) for line in (runs / name / "predictions" / f"step-{STEPS:08d}.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"val/images/{i:02d}.png" for i in range(5)]
    assert [sum(line["there"]) for line in lines] == [int((mask != 255).sum()) for mask in masks]


def test_killed_in_a_save_on_two_ranks_and_resumed_on_three_the_curve_is_the_uninterrupted_one(runs: Path) -> None:
    assert "resumed at step" in output(runs.parent / "world3", 1)
    assert largest_difference(rows(runs / "alone-3"), rows(runs / "killed")) < 1e-9


def test_speed_and_progress_count_images_and_not_pixels(runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "alone-3" / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines if line["kind"] == "train"] == [TOTAL * step for step in range(1, STEPS + 1)]
    for line in (line for line in lines if line["kind"] == "train"):
        seconds = sum(line.get(f"time/{phase}_s", 0.0) for phase in ("data", "forward", "backward", "update", "exchange"))
        assert line["speed/samples_per_s"] * seconds == pytest.approx(TOTAL, rel=1e-3)
        assert "train/counted" not in line


def test_a_bare_pytorch_loop_with_an_auxiliary_head_draws_the_same_curve_and_finds_the_same_pixels(runs: Path) -> None:
    curve, confusion = _bare_loop(runs.parent)
    ours = rows(runs / "aux-2")
    for step, (loss, norm) in enumerate(curve, 1):
        row = ours[step, "train"]
        assert abs(row["train/loss"] - loss) < 1e-9, step
        assert abs(row["train/grad_norm"] - norm) < 1e-9 * max(1, norm), step
    assert json.loads((runs / "aux-2" / "scores.json").read_text())["last"]["confusion"] == confusion
    assert curve[-1][0] < 0.9 * curve[0][0]


def _bare_loop(folder: Path) -> tuple[list[tuple[float, float]], list[list[int]]]:
    """Loss and gradient norm of each step, and the last confusion matrix, with torch and torchvision alone: the whole batch in one pass, in double."""

    def seed(*parts: object) -> int:  # as docs/concepts/randomness.md says it
        return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big") >> 1

    def read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        mask = np.asarray(Image.open(folder / "coast" / path.parent.parent.name / "masks" / path.name)).astype(np.int64)
        return pil_to_tensor(Image.open(path).convert("RGB")), torch.from_numpy(mask)

    model = _network(WITH_AUX)
    model.load_state_dict(torch.load(folder / f"{WITH_AUX}.pth", weights_only=True))
    model.double().eval()  # frozen statistics, no dropout
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("classifier.", "aux_classifier.", "backbone.15.", "backbone.16.")))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.02, momentum=0.9)
    crop = v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.3, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    to_double = v2.Compose([v2.ToDtype(torch.float64, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    photos = sorted((folder / "coast" / "train" / "images").iterdir())
    stream: list[tuple[int, int]] = []
    for epoch in range(-(-STEPS * TOTAL // len(photos))):
        order = list(range(len(photos)))
        random.Random(seed("order", 5, epoch)).shuffle(order)
        stream += [(epoch, i) for i in order]
    curve = []
    for step in range(STEPS):
        images, masks = [], []
        for epoch, i in stream[step * TOTAL : (step + 1) * TOTAL]:
            image, mask = read(photos[i])
            torch.manual_seed(seed("augment", 5, epoch, i))
            image, mask = crop(tv_tensors.Image(image), tv_tensors.Mask(mask))
            images.append(to_double(image.as_subclass(torch.Tensor)))
            masks.append(mask.as_subclass(torch.Tensor))
        outputs, target = model(torch.stack(images)), torch.stack(masks)
        loss = sum(
            weight * functional.cross_entropy(outputs[name], target, ignore_index=255) for name, weight in (("out", 1), ("aux", 0.5))
        )
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        curve.append((loss.item(), norm.item()))
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for path in sorted((folder / "coast" / "val" / "images").iterdir()):
        image, mask = read(path)
        with torch.no_grad():
            logits = model(to_double(v2.functional.resize(image, [SIZE], antialias=True))[None])["out"]
        said = functional.interpolate(logits, size=mask.shape, mode="bilinear", align_corners=False)[0].argmax(0)
        confusion += torch.bincount(mask[mask != 255] * 3 + said[mask != 255], minlength=9).view(3, 3)
    return curve, confusion.tolist()


def test_a_window_without_a_labelled_pixel_has_loss_zero_and_the_run_goes_on(folder: Path) -> None:
    place = folder / "blank"
    place.mkdir()
    a_folder(place / "coast", train=4)
    _warm(SMALL, place)
    for path in (place / "coast" / "train" / "masks").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    job = _job(place, "blank", 2, 1, "ddp")
    overrides = ("batch.total=4", "train.duration=2 steps", "eval.every=2 steps", "save.every=2 steps")
    _start(place, 2, [Job(job.config, overrides)])
    table = rows(place / "runs" / "blank")
    assert [table[step, "train"]["train/loss"] for step in (1, 2)] == [0.0, 0.0]
    assert [table[step, "train"]["train/grad_norm"] for step in (1, 2)] == [0.0, 0.0]
    assert table[2, "eval"]["train/mean_loss"] == 0.0
    assert table[2, "eval"]["val/loss"] > 0
