"""`folder`: one sub-folder a class under `train/`, and under `val/` and `test/` where they exist, as ImageFolder reads them."""

from pathlib import Path

from sft_dist.config import Data
from sft_dist.datasets import images
from sft_dist.datasets.splits import Split, Splits, choose_classes, choose_split, draw_splits
from sft_dist.errors import ConfigError, MachineError


def check(data: Data) -> None:
    """Missing folders, classes without an image, classes that only validation or test have: named, all at once."""
    if data.root is None:
        raise ConfigError("data.root is missing; name the folder that holds train/")
    root = Path(data.root)
    if not root.is_dir():
        raise ConfigError(f"data.root = {data.root!r}: there is no such folder (from {Path.cwd()})")
    if not (root / "train").is_dir():
        raise ConfigError(f"data.root = {data.root!r} has no train/ with a folder for each class in it")
    found = _classes(root / "train")
    if not found:
        raise ConfigError(f"{root / 'train'} has no folders in it; it needs one for each class")
    classes = choose_classes(found, data)
    problems = [
        f"{root / 'train' / name} has no image in it; add some, or leave the class out with data.classes"
        for name in classes
        if next(images.find(root / "train" / name), None) is None
    ]
    for split in ("val", "test"):
        if (root / split).is_dir():
            extra = [name for name in _classes(root / split) if name not in found and data.classes is None]
            problems += [f"{root / split / name} is a class that train/ does not have" for name in extra]
    if problems:
        raise ConfigError(problems)


def load(data: Data) -> Splits:
    check(data)
    root = Path(str(data.root))
    classes = choose_classes(_classes(root / "train"), data)
    whole = _split(root, "train", classes)
    val, test = (_split(root, name, classes) if (root / name).is_dir() else None for name in ("val", "test"))
    return draw_splits(whole, val, test, classes, data)


def load_split(data: Data, name: str, classes: tuple[str, ...]) -> Split:
    """A folder of that name is enough; without one, `val` is what a run over this data holds out of train/."""
    root = Path(str(data.root))
    if name == "val" and not (root / name).is_dir():
        return choose_split(load(data), name, classes)
    if not (root / name).is_dir():
        raise ConfigError(f"data.root = {data.root!r} has no {name}/ (from {Path.cwd()})")
    extra = [found for found in _classes(root / name) if found not in classes]
    if extra and data.classes is None:
        raise ConfigError(f"{root / name} has classes that the model does not tell apart: {', '.join(extra)}; choose with data.classes")
    return _split(root, name, classes)


def _classes(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise MachineError(f"{folder}: {error.strerror}; a run needs to list every folder of its images") from error


def _split(root: Path, name: str, classes: tuple[str, ...]) -> Split:
    paths, labels = [], []
    for label, class_name in enumerate(classes):
        if (root / name / class_name).is_dir():
            found = list(images.find(root / name / class_name))
            paths += found
            labels += [label] * len(found)
    return Split([str(path.relative_to(root)) for path in paths], labels, lambda i: images.read(paths[i]))
