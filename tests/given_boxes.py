"""A small set of drawn objects in boxes, as Pascal VOC and COCO write them, and detectors that fit it."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

Box = tuple[str, int, int, int, int]
"""Name, and the edges: left, top, right, bottom, where a box around all of an image is 0, 0, width, height."""
COLOURS = {"disc": (220, 60, 50), "bar": (50, 90, 220)}


def drawn(number: int, side: int = 96) -> tuple[Image.Image, list[Box]]:
    """A grey image of side x 3/4 side with up to three objects in it, the same each time; every fifth has none."""
    chance = random.Random(number)
    image = Image.new("RGB", (side, 3 * side // 4), (chance.randrange(90, 140),) * 3)
    boxes: list[Box] = []
    for _ in range(0 if number % 5 == 4 else chance.randint(1, 3)):
        name = chance.choice(sorted(COLOURS))
        width, height = (24, 24) if name == "disc" else (36, 12)
        left, top = chance.randrange(image.width - width), chance.randrange(image.height - height)
        shape = ImageDraw.Draw(image).ellipse if name == "disc" else ImageDraw.Draw(image).rectangle
        shape((left, top, left + width - 1, top + height - 1), fill=COLOURS[name])
        boxes.append((name, left, top, left + width, top + height))
    return image, boxes


def xml(size: tuple[int, int] | None, boxes: Sequence[Box], difficult: Sequence[int] = ()) -> str:
    """An annotation: VOC's pixels count from 1, and the last one of a box is in it."""
    objects = [
        f"<object><name>{name}</name><difficult>{int(place in difficult)}</difficult><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for place, (name, left, top, right, bottom) in enumerate(boxes)
    ]
    there = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation>{there}{''.join(objects)}</annotation>"


def voc(root: Path, splits: Mapping[str, Sequence[int]]) -> Path:
    """A folder as Pascal VOC has it; lists only for the splits that are named, and none for one that is called ''."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, numbers in splits.items():
        for number in numbers:
            image, boxes = drawn(number)
            image.save(root / "JPEGImages" / f"{number:03d}.png")
            (root / "Annotations" / f"{number:03d}.xml").write_text(xml(image.size, boxes))
        if name:
            (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{number:03d}\n" for number in numbers))
    return root


def coco(root: Path, splits: Mapping[str, Sequence[int]], crowds: Sequence[int] = ()) -> Path:
    """A folder as COCO has it: train2017/ and annotations/instances_train2017.json, and so on. crowds: annotations that are crowds."""
    (root / "annotations").mkdir(parents=True)
    names = ["bar", "disc"]
    for name, numbers in splits.items():
        (root / f"{name}2017").mkdir()
        content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": 10 * (number + 1), "name": known} for number, known in enumerate(names)]
        for number in numbers:
            image, boxes = drawn(number)
            image.save(root / f"{name}2017" / f"{number:03d}.png")
            content["images"].append({"id": number, "file_name": f"{number:03d}.png", "width": image.width, "height": image.height})
            for known, left, top, right, bottom in boxes:
                place = len(content["annotations"])
                content["annotations"].append(
                    {
                        "id": place,
                        "image_id": number,
                        "category_id": 10 * (names.index(known) + 1),
                        "bbox": [left, top, right - left, bottom - top],
                    }
                    | {"area": (right - left) * (bottom - top), "iscrowd": int(place in crowds)}
                )
        (root / "annotations" / f"instances_{name}2017.json").write_text(json.dumps(content))
    return root


def detector(name: str = "fasterrcnn_mobilenet_v3_large_320_fpn", classes: int = 2, **options: Any) -> Any:
    """A random one of torchvision whose batch norms know how large its features are, so that it can be trained with them frozen."""
    import torch
    import torchvision

    torch.manual_seed(3)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes + 1, **options)
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.backbone(torch.rand(4, 3, 96, 96) * 2 - 1)
    for norm in norms:
        norm.momentum = 0.1
    return model


def saved(path: Path, name: str = "fasterrcnn_mobilenet_v3_large_320_fpn", classes: int = 2) -> Path:
    """The weights of `detector` as a file."""
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in detector(name, classes).state_dict().items()}, path)
    return path
