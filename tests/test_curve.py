"""P1: the curve does not depend on world size, micro-batch or accumulation, and a bare PyTorch loop draws the same one."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from ranks import Job, largest_difference, output, rows, run_ranks

pytestmark = [pytest.mark.dist, pytest.mark.real]

STEPS, TOTAL, SIZE = 20, 33, 64
CLASSES = ["cat", "ship", "truck"]
LAYOUTS = [(1, 7), (2, 7), (2, 2), (3, 7), (4, 2)]  # world, micro-batch; none of them cuts 33 samples evenly
WHOLE = {"train": "all", "precision": "fp64", "lr": 0.01}
HEAD = {"train": "head", "precision": "fp32", "lr": 0.05}
FIRST = {"train": "all", "precision": "fp32", "lr": 0.01, "steps": 3}  # later steps amplify the rounding of fp32


@pytest.fixture(scope="module")
def curves(folder, real_data, real_weights):
    """Every layout's runs: whole model in fp64, head only in fp32, and the first steps of the whole model in fp32."""
    jobs: dict[int, list[Job]] = {}
    for world, micro in LAYOUTS:
        for part, settings in (("whole", WHOLE), ("head", HEAD), ("first", FIRST)):
            config = write_config(folder, real_data, real_weights, f"{part}-{world}x{micro}", micro, **settings)
            jobs.setdefault(world, []).append(Job(str(config)))
    for world, its_jobs in jobs.items():
        assert run_ranks(world, its_jobs, folder / f"world{world}") == [0] * world, output(folder / f"world{world}", world)
    return folder / "runs"


def write_config(folder: Path, data: Path, weights: Path, name: str, micro: int, **settings) -> Path:
    content = {
        "task": "classify",
        "data": {
            "name": "folder",
            "root": str(data / "cifar10"),
            "size": SIZE,
            "crop_scale": [0.3, 1.0],
            "classes": CLASSES,
            "per_class": 40,
            "workers": 0,
        },
        "model": {"name": "mobilenet_v2", "weights": str(weights), "train": settings["train"], "norm": "frozen", "dropout": "none"},
        "batch": {"total": TOTAL, "micro": micro},
        "optim": {"name": "sgd", "lr": settings["lr"], "momentum": 0.9, "weight_decay": 1e-4},
        "schedule": {"name": "cosine", "warmup": "3 steps"},
        "train": {"duration": f"{settings.get('steps', STEPS)} steps", "clip": 1.0, "seed": 5},
        "eval": {"every": "10 steps", "micro": 50},
        "save": {"every": "1000 steps", "keep": 1},
        "precision": settings["precision"],
        "device": settings.get("device", "cpu"),
        "report": {"write": "none"},
        "run": {"dir": str(folder / "runs"), "name": name},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


@pytest.mark.parametrize(("world", "micro"), LAYOUTS[1:])
def test_whole_model_in_fp64_logs_the_same_numbers_on_every_layout(curves, world, micro):
    assert largest_difference(rows(curves / "whole-1x7"), rows(curves / f"whole-{world}x{micro}")) < 1e-9


@pytest.mark.parametrize(("world", "micro"), LAYOUTS[1:])
def test_head_in_fp32_logs_the_same_numbers_on_every_layout(curves, world, micro):
    assert largest_difference(rows(curves / "head-1x7"), rows(curves / f"head-{world}x{micro}")) < 1e-5


@pytest.mark.parametrize(("world", "micro"), LAYOUTS[1:])
def test_the_first_losses_of_the_whole_model_in_fp32_agree(curves, world, micro):
    """Two losses only: rounding alone, on one process with another micro-batch, moves the second gradient norm by 1e-4 and the third loss by 1e-5."""
    alone, together = rows(curves / "first-1x7"), rows(curves / f"first-{world}x{micro}")
    for step in (1, 2):
        assert abs(alone[step, "train"]["train/loss"] - together[step, "train"]["train/loss"]) < 1e-5, step


def test_the_curve_falls_and_is_complete(curves):
    table = rows(curves / "whole-1x7")
    assert [step for step, kind in table if kind == "train"] == list(range(1, STEPS + 1))
    assert [step for step, kind in table if kind == "eval"] == [10, 20]
    assert table[20, "train"]["train/loss"] < 0.8 * table[1, "train"]["train/loss"]


def test_a_bare_pytorch_loop_draws_the_same_curve(curves, real_data, real_weights):
    bare = bare_loop(real_data / "cifar10" / "train", real_weights)
    ours = rows(curves / "whole-2x7")
    for step, (loss, norm) in enumerate(bare, 1):
        row = ours[step, "train"]
        assert abs(row["train/loss"] - loss) < 1e-9, step
        assert abs(row["train/grad_norm"] - norm) < 1e-9 * max(1, norm), step


def bare_loop(folder: Path, weights: Path, device: str = "cpu") -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, with torch and torchvision alone: the whole batch in one pass, in double precision."""
    import math

    import torch
    import torchvision
    from PIL import Image
    from safetensors.torch import load_file
    from torchvision.transforms import v2
    from torchvision.transforms.v2.functional import pil_to_tensor

    def seed(*parts):  # as docs/concepts/randomness.md says it
        return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big") >> 1

    samples = []
    for label, name in enumerate(CLASSES):
        paths = sorted((folder / name).iterdir())
        kept = sorted(random.Random(seed("thin", 0, label)).sample(range(len(paths)), len(paths))[:40])
        samples += [(paths[i], label) for i in kept]

    torch.manual_seed(seed("model", 5))
    model = torchvision.models.mobilenet_v2(num_classes=3, dropout=0.0)
    model.classifier[1] = torch.nn.Linear(1280, 3)
    missing = model.load_state_dict(load_file(weights), strict=False).missing_keys
    assert missing == ["classifier.1.weight", "classifier.1.bias"]
    model.double().to(device).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()

    augment = v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.3, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    to_double = v2.Compose([v2.ToDtype(torch.float64, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD([{"params": decay, "weight_decay": 1e-4}, {"params": rest}], lr=0.01, momentum=0.9)

    stream = []
    epoch = 0
    while len(stream) < STEPS * TOTAL:
        order = list(range(len(samples)))
        random.Random(seed("order", 5, epoch)).shuffle(order)
        stream += [(epoch, i) for i in order]
        epoch += 1

    curve = []
    for step in range(STEPS):
        images, labels = [], []
        for epoch, i in stream[step * TOTAL : (step + 1) * TOTAL]:
            torch.manual_seed(seed("augment", 5, epoch, i))
            images.append(to_double(augment(pil_to_tensor(Image.open(samples[i][0]).convert("RGB")))))
            labels.append(samples[i][1])
        rate = 0.01 * ((step + 1) / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / (STEPS - 3))))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = torch.nn.functional.cross_entropy(model(torch.stack(images).to(device)), torch.tensor(labels, device=device))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append((loss.item(), norm.item()))
    return curve
