"""`voc`: objects in boxes as Pascal VOC has them: JPEGImages/, Annotations/*.xml, and ImageSets/Main/train.txt, val.txt, test.txt where they are."""

import math
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from sft_dist.config import Data
from sft_dist.datasets import boxes, images
from sft_dist.datasets.boxes import Object, Page, some
from sft_dist.datasets.splits import Split, Splits, choose_split
from sft_dist.errors import ConfigError

LARGEST = 2**24  # bytes of an annotation
SIDES = ("xmin", "ymin", "xmax", "ymax")


def check(data: Data) -> None:
    """Missing folders and empty lists, all at once."""
    if data.root is None:
        raise ConfigError("data.root is missing; name the folder that holds JPEGImages/ and Annotations/")
    root = Path(data.root)
    if not root.is_dir():
        raise ConfigError(f"data.root = {data.root!r}: there is no such folder (from {Path.cwd()})")
    if missing := [
        f"data.root = {data.root!r} has no {name}/ in it" for name in ("JPEGImages", "Annotations") if not (root / name).is_dir()
    ]:
        raise ConfigError(missing)
    if empty := [f"{_list(root, name)} names no image" for name in ("train", "trainval", "val", "test") if _listed(root, name) == []]:
        raise ConfigError(empty)


def load(data: Data) -> Splits:
    """train.txt, else trainval.txt, else every annotation, without what val.txt and test.txt name. Without val.txt it is held out of that.

    VOC's pixels are counted from 1, and a box's last ones are in it: `xmin` to `xmax` are the edges xmin - 1 and xmax here, as in
    Detectron2. What is `difficult` is learned, and is a crowd in the scores, as MMDetection hands VOC to COCO's code. A box whose xmax is
    its xmin or less has no area.
    """
    check(data)
    root = Path(str(data.root))
    named = {name: _listed(root, name) for name in ("train", "trainval", "val", "test")}
    asked = {name for split in ("val", "test") for name in named[split] or ()}
    if named["train"] is not None and (both := [name for name in named["train"] if name in asked]):
        raise ConfigError(
            f"{_list(root, 'train')} names {some(both)}, and so does val.txt or test.txt: they would be scored as they were learned"
        )
    everything = named["trainval"] or sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
    train = named["train"] or [name for name in everything if name not in asked]
    photos = _photos(root)
    of_val, of_test = (None if (names := named[split]) is None else _pages(root, names, photos) for split in ("val", "test"))
    return boxes.gather(_pages(root, train, photos), of_val, of_test, data)


def load_split(data: Data, name: str, classes: tuple[str, ...]) -> Split:
    """A list of that name is enough; without one, `val` is what a run over this data holds out of training."""
    check(data)
    root = Path(str(data.root))
    names = _listed(root, name)
    if names is None and name == "test":
        raise ConfigError(f"data.root = {data.root!r} has no {_list(root, name).relative_to(root)} (from {Path.cwd()})")
    if names is None:
        return choose_split(load(data), name, classes)
    return boxes.one(_pages(root, names, _photos(root)), classes, data, name, str(_list(root, name)))


def read(path: Path) -> tuple[tuple[int, int] | None, tuple[Object, ...]]:
    """Width and height, where they are written, and the objects of an annotation. Raises ValueError naming the path.

    Files come from anybody. One that declares a document type is refused: only there can entities be defined, whose few letters
    unfold to gigabytes, or name other files.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST // 2**20} MiB")
        text = path.read_bytes().decode("utf-8-sig")  # as text, so that no other encoding can hide what is looked for;
        if "\0" in text:  # UTF-16 alone passes for UTF-8, and expat finds it out
            raise ValueError("it is not UTF-8")
        if "<!DOCTYPE" in text:
            raise ValueError("it declares a document type (<!DOCTYPE), which annotations have no use for; remove that")
        tree = ElementTree.fromstring(text)  # noqa: S314, without document type there are no entities
        return _size(tree), tuple(_object(each) for each in tree.findall("object"))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"{path} cannot be read as an annotation: {error}") from error


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    width, height = (int(_number(tree.findtext(f"size/{side}") or "0", side)) for side in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None


def _object(element: ElementTree.Element) -> Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    left, top, right, bottom = (_number(element.findtext(f"bndbox/{side}"), f"the {side} of {name}") for side in SIDES)
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    if right <= left or bottom <= top:
        return Object(name, left, top, left, top, difficult)
    return Object(name, left - 1, top - 1, right, bottom, difficult)


def _number(text: str | None, what: str) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {text!r}, not a number")
    return number


def _list(root: Path, name: str) -> Path:
    return root / "ImageSets" / "Main" / f"{name}.txt"


def _listed(root: Path, name: str) -> list[str] | None:
    """The names in a list; None where there is no such list. Raises ConfigError for one that is named twice."""
    path = _list(root, name)
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    if twice := [each for each, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"{path} names {some(twice)} twice")
    return names


def _photos(root: Path) -> dict[str, list[Path]]:
    """Name -> the images of that name; VOC has .jpg only, others have others."""
    found: dict[str, list[Path]] = {}
    for path in images.find(root / "JPEGImages"):
        found.setdefault(path.relative_to(root / "JPEGImages").with_suffix("").as_posix(), []).append(path)
    return found


def _pages(root: Path, names: list[str], photos: dict[str, list[Path]]) -> list[Page]:
    """What is written of each image. Raises ConfigError naming those without image or annotation, and annotations that are damaged."""
    pages, problems, missing = [], [], []
    for name in names:
        written, there = root / "Annotations" / f"{name}.xml", photos.get(name, [])
        if len(there) != 1 or not written.is_file():
            missing.append(name)
            continue
        try:
            size, objects = read(written)
        except ValueError as error:
            problems.append(str(error))
            continue
        pages.append(Page(str(there[0].relative_to(root)), there[0], str(written), size, objects))
    if missing:
        problems.insert(0, f"{root} does not have one image in JPEGImages/ and one .xml in Annotations/ for {some(missing)}")
    if problems:
        raise ConfigError([*problems[:4], *([f"and {len(problems) - 4} more"] if len(problems) > 4 else [])])
    return pages
