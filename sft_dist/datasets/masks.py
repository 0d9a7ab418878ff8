"""`masks`: photos in `train/images/`, and of each a PNG in `train/masks/` whose pixels are class ids; `val/` and `test/` alike where they exist."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sft_dist.config import Data
from sft_dist.datasets import images
from sft_dist.datasets.splits import Split, Splits, choose_split, draw_splits
from sft_dist.errors import ConfigError

NAMES = "classes.txt"
VOID = -1  # what a pixel of no class is called in a mask that was read
UNKNOWN = -2
MODES = ("1", "L", "P", "I;16")  # of Pillow: one channel of whole numbers; of a palette it is the numbers that count
SPREAD = {"L;2": 85, "L;4": 17}  # Pillow spreads greys of 2 and 4 bits over 0 to 255: what is stored -> the factor
SHOWN = 6


def check(data: Data) -> None:
    """Missing folders, images without a mask, masks without an image, classes without names: told all at once."""
    if data.root is None:
        raise ConfigError("data.root is missing; name the folder that holds train/images and train/masks")
    root = Path(data.root)
    if not root.is_dir():
        raise ConfigError(f"data.root = {data.root!r}: there is no such folder (from {Path.cwd()})")
    problems: list[str] = []
    for look in (_check_classes, _check_keys):
        try:
            look(data)
        except ConfigError as error:
            problems += error.problems
    for split in ("train", "val", "test"):
        if split == "train" or (root / split).is_dir():
            problems += _unpaired(root / split)
    if problems:
        raise ConfigError(problems)


def load(data: Data) -> Splits:
    check(data)
    root, classes = Path(str(data.root)), classes_of(data)
    whole, val, test = (_split(root, name, data) if (root / name).is_dir() else None for name in ("train", "val", "test"))
    assert whole is not None
    return draw_splits(whole, val, test, classes, data)


def load_split(data: Data, name: str, classes: tuple[str, ...]) -> Split:
    """A folder of that name is enough; without one, `val` is what a run over this data holds out of train/."""
    folder = Path(str(data.root)) / name
    if name == "val" and not folder.is_dir():
        return choose_split(load(data), name, classes)
    if not folder.is_dir():
        raise ConfigError(f"data.root = {data.root!r} has no {name}/ (from {Path.cwd()})")
    if problems := _unpaired(folder):
        raise ConfigError(problems)
    split = _split(folder.parent, name, data)
    return choose_split(Splits(split, split, split, classes_of(data)), name, classes)


def classes_of(data: Data) -> tuple[str, ...]:
    """The names of the ids 0, 1, 2...: `data.classes`, or the lines of classes.txt. Raises ConfigError where there are none, or two different lists."""
    path = Path(str(data.root)) / NAMES
    if not path.is_file():
        if data.classes is None:
            raise ConfigError(
                f"nothing names the classes of the masks; write data.classes: [name of id 0, name of id 1, ...], or {path} with a name a line"
            )
        return data.classes
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    if not names or not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"{path} has an empty line or a name twice; it needs the name of id 0, of id 1, ..., one a line")
    if data.classes is not None and data.classes != names:
        raise ConfigError(
            f"data.classes names other classes than {path}, or in another order; the ids of masks have one meaning: leave data.classes out"
        )
    return names


def decode(path: Path) -> Any:
    """A mask's ids as an array of height x width, turned upright by its own EXIF tag as images are; without torch. Raises ValueError naming the path."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in MODES:
                raise ValueError(f"a mask has one channel of class ids, this file has {image.mode}")
            factor = SPREAD.get(str(image.tile[0][3]), 1) if image.tile else 1
            ids = np.asarray(ImageOps.exif_transpose(image))
    except Exception as error:  # for damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error and others
        raise ValueError(f"{path} cannot be read as a mask: {error}") from error
    return ids.astype(np.uint16) // factor


def _check_classes(data: Data) -> None:
    classes = classes_of(data)
    if len(classes) < 2:
        raise ConfigError(f"only the class {classes[0]!r}; masks tell at least two apart, of which one may be the background")
    _void_of(data, len(classes))


def _check_keys(data: Data) -> None:
    if data.per_class is not None:
        raise ConfigError("data.per_class is for data with one label an image, and a mask has many; leave it out")


def _void_of(data: Data, classes: int) -> tuple[int, ...]:
    """`data.void`. Raises ConfigError where it holds the id of a class."""
    if taken := [number for number in data.void if number < classes]:
        raise ConfigError(
            f"data.void = {list(data.void)}, but {', '.join(map(str, taken))} is the id of a class: {classes} classes have the ids "
            f"0 to {classes - 1}; use ids above, or leave the class out of the names"
        )
    return data.void


def _unpaired(folder: Path) -> list[str]:
    """What keeps the images of a split from having a mask each."""
    if missing := [name for name in ("images", "masks") if not (folder / name).is_dir()]:
        return [f"{folder} has no {'/ and no '.join(missing)}/; it needs images/ and masks/ with files of the same names"]
    photos, masks = list(images.find(folder / "images")), list(images.find(folder / "masks"))
    if not photos:
        return [f"{folder / 'images'} has no image in it; add some, or remove {folder}"]
    keys, mask_keys = ([_key(path, folder) for path in paths] for paths in (photos, masks))
    known, masked = set(keys), set(mask_keys)
    twice = [path for path, key, before in zip(photos[1:], keys[1:], keys, strict=False) if key == before]
    found = {
        "have no mask of their name in masks/": [path for path, key in zip(photos, keys, strict=True) if key not in masked],
        "have no image of their name in images/": [path for path, key in zip(masks, mask_keys, strict=True) if key not in known],
        "have the name of another image, so that both would have one mask": twice,
        "are no PNG files; convert the masks without loss (JPEG changes ids)": [path for path in masks if path.suffix.lower() != ".png"],
    }
    return [f"{_some(paths)} {what}" for what, paths in found.items() if paths]


def _split(root: Path, name: str, data: Data) -> Split:
    folder = root / name
    paths = list(images.find(folder / "images"))
    by_key = {_key(path, folder): path for path in images.find(folder / "masks")}
    masks = [by_key[_key(path, folder)] for path in paths]
    to_classes = _numbering(len(classes_of(data)), data)

    def truth(i: int) -> Any:
        import torch

        return torch.from_numpy(to_classes(decode(masks[i]), masks[i]))

    return Split(
        names=[str(path.relative_to(root)) for path in paths],
        labels=(),
        read=lambda i: images.read(paths[i]),
        truth=truth,
        marks=[mask.stat().st_size for mask in masks],  # the size of the file: what a fingerprint can ask for without reading all of them
    )


def _numbering(classes: int, data: Data) -> Callable[[Any, Path], Any]:
    """(ids, their file) -> int16 class numbers, VOID where a pixel has none. Raises ValueError for other ids."""
    import numpy as np

    void = _void_of(data, classes)
    table = np.full(2**16, UNKNOWN, np.int16)
    table[:classes] = range(classes)
    table[list(void)] = VOID

    def numbered(ids: Any, path: Path) -> Any:
        numbers = table[ids]
        if (unknown := numbers == UNKNOWN).any():
            raise ValueError(
                f"{path} holds the id {', '.join(map(str, np.unique(ids[unknown])[:SHOWN]))}, but there are {classes} classes "
                f"(0 to {classes - 1}), and data.void is {list(void)}; name the class, or add the id to data.void"
            )
        return numbers

    return numbered


def _key(path: Path, folder: Path) -> str:
    """Where a file lies below images/ or masks/, without its ending."""
    below = path.relative_to(folder)
    return str(Path(*below.parts[1:]).with_suffix(""))


def _some(paths: Sequence[Path] | Iterable[Path]) -> str:
    paths = list(paths)
    return ", ".join(map(str, paths[:SHOWN])) + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
