"""`coco`: objects in boxes as COCO has them: annotations/instances_train*.json, instances_val*.json, and a folder of images for each."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sft_dist.config import Data
from sft_dist.datasets import boxes
from sft_dist.datasets.boxes import Object, Page, some
from sft_dist.datasets.splits import Split, Splits, choose_split
from sft_dist.errors import ConfigError


def check(data: Data) -> None:
    """A missing training file, several for one split, and a missing folder of images: all at once."""
    if data.root is None:
        raise ConfigError("data.root is missing; name the folder that holds annotations/instances_train2017.json, or the like")
    root = Path(data.root)
    if not root.is_dir():
        raise ConfigError(f"data.root = {data.root!r}: there is no such folder (from {Path.cwd()})")
    files = {name: _written(root, name) for name in ("train", "val", "test")}
    problems = [] if files["train"] else [f"data.root = {data.root!r} has no annotations/instances_train*.json"]
    for name, found in files.items():
        problems += _several(name, found)
        problems += [f"{path}: its images should be in {_folder(path)}, which is no folder" for path in found if not _folder(path).is_dir()]
    if problems:
        raise ConfigError(problems)


def load(data: Data) -> Splits:
    """instances_train*.json with its folder of the same name (train2017/), and val and test alike; without val it is held out of training.

    COCO's boxes are edges already: left, top, width, height. What is a crowd is not learned, as in torchvision's references, and need not be found.
    """
    check(data)
    train, val, test = (_pages(found[0]) if (found := _written(Path(str(data.root)), name)) else None for name in ("train", "val", "test"))
    assert train is not None
    return boxes.gather(train, val, test, data)


def load_split(data: Data, name: str, classes: tuple[str, ...]) -> Split:
    """A file of that name is enough; without one, `val` is what a run over this data holds out of training."""
    found = _written(Path(str(data.root)), name)
    if not found and name == "test":
        raise ConfigError(f"data.root = {data.root!r} has no annotations/instances_test*.json (from {Path.cwd()})")
    if not found:
        return choose_split(load(data), name, classes)
    if problems := _several(name, found):
        raise ConfigError(problems)
    return boxes.one(_pages(found[0]), classes, data, name, str(found[0]))


def _written(root: Path, split: str) -> list[Path]:
    return sorted((root / "annotations").glob(f"instances_{split}*.json"))


def _several(split: str, found: Sequence[Path]) -> list[str]:
    if len(found) < 2:
        return []
    return [f"{found[0].parent} has {len(found)} files for {split}: {', '.join(path.name for path in found)}; leave one there"]


def _folder(written: Path) -> Path:
    return written.parent.parent / written.stem.removeprefix("instances_")


def _pages(written: Path) -> list[Page]:
    """What is written of each image, in the order of the file. Raises ConfigError naming what does not fit together."""
    content, folder = _read(written), _folder(written)
    try:
        names = {each["id"]: str(each["name"]) for each in content["categories"]}
        photos = {each["id"]: each for each in content["images"]}
        objects: dict[Any, list[Object]] = {each: [] for each in photos}
        for each in content["annotations"]:
            objects[each["image_id"]].append(_object(each, names))
        pages = [_page(written, folder, each, objects[number]) for number, each in photos.items()]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"{written} is not as COCO has it ({told}); it needs images, annotations and categories that name each other"
        ) from error
    if missing := [str(page.path) for page in pages if not page.path.is_file()]:
        raise ConfigError(f"{written} names images that are not there: {some(missing)}")
    if len(photos) != len(content["images"]) or len(set(names.values())) != len(names):
        raise ConfigError(f"{written} has two images of one id, or two categories of one name")
    return pages


def _read(written: Path) -> Mapping[str, Sequence[Any]]:
    try:
        content: Any = json.loads(written.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{written} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{written} is not as COCO has it; it needs images, annotations and categories")
    return content


def _object(each: Mapping[str, Any], names: Mapping[Any, str]) -> Object:
    left, top, width, height = (float(number) for number in each["bbox"])
    if not all(map(math.isfinite, (left, top, width, height))):
        raise ValueError(f"bbox {each['bbox']} of annotation {each.get('id')}")
    crowd = bool(each.get("iscrowd", 0))
    return Object(names[each["category_id"]], left, top, left + max(width, 0.0), top + max(height, 0.0), crowd, learned=not crowd)


def _page(written: Path, folder: Path, photo: Mapping[str, Any], objects: Sequence[Object]) -> Page:
    name = PurePosixPath(photo["file_name"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"file_name {str(name)!r} leads out of {folder}")
    size = (int(photo["width"]), int(photo["height"])) if photo.get("width") and photo.get("height") else None
    return Page(f"{folder.name}/{name}", folder / name, f"{written}, {name}", size, tuple(objects))
