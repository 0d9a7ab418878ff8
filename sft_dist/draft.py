"""A first config for a folder of images that it has looked at, with the reasons for its values: `sft-dist init`; without torch."""

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

from sft_dist import datasets, parse, preflight
from sft_dist.config import Data
from sft_dist.datacheck import strays
from sft_dist.datasets import Splits, images
from sft_dist.errors import ConfigError
from sft_dist.history.records import printable
from sft_dist.plan import World, make_plan
from sft_dist.schema import LINE
from sft_dist.units import plain_name

LOOKED_AT = 400  # images whose size is read, evenly over the training set
NATIVE = 224  # pixels that torchvision's weights learned from
NEARLY = 160  # shorter side from which an image is shown to the model at that size
SMALLEST = 96  # side that smaller images are enlarged to
LARGE_SET = 10_000  # images from which the crop may be as hard, and the model as large, as for ImageNet
SEEN_AS_ONE = 3  # times as many images of one class as of another, from which top1 says little of the small one
FEW = 10  # validation images of a class


@dataclass(frozen=True)
class Photos:
    """What a folder holds.

    sides: the shorter side of each image that was looked at, in pixels. unreadable: how many could not be opened. outside: images that no run reads.
    """

    root: str
    splits: Splits
    sides: Sequence[int]
    unreadable: int
    outside: Sequence[str] = ()

    @property
    def samples(self) -> int:
        return len(self.splits.train)

    @property
    def side(self) -> int:
        return round(median(self.sides))


def write(folder: Path, out: Path | None) -> list[str]:
    """Write the config, which `sft-dist plan` lets through. Returns what was seen. Raises ConfigError where it cannot, or would overwrite."""
    photos = look(folder)
    name = folder.resolve().name
    plain = _plain(name)
    why = "" if out or plain == name else f" (the file's name is the run's, and {printable(name)!r} cannot name a run)"
    out = out or Path(f"{plain}.yaml")
    if out.exists():
        raise ConfigError(f"{out} exists; init overwrites nothing: choose another file with --out")
    try:
        plain_name(out.stem)
    except ValueError as error:
        raise ConfigError(f"{error}; the file's name is the run's: choose one with --out") from None
    text = "".join(f"{line}\n" for line in lines(photos, out))
    config = parse.from_tree(yaml.safe_load(text), default_name=out.stem)
    preflight.check(config, World(), {})
    make_plan(config, World(), photos.samples, len(photos.splits.val))
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror or error}; choose another file with --out") from None
    return [*seen(photos), f"wrote {out}{why}; now: sft-dist plan {out}"]


def look(folder: Path) -> Photos:
    """Find the samples, and open some to see how large they are. Raises ConfigError where the folder is no data set, saying how to make one."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{printable(str(folder))}: a config cannot hold this name; rename the folder") from None
    if folder.is_dir() and not (folder / "train").is_dir():
        _refuse_layout(folder)
    splits = datasets.load(Data(name="folder", root=str(folder)))
    names = splits.train.names[:: -(-len(splits.train) // LOOKED_AT)]
    sides = [side for side in map(_shorter_side, (folder / name for name in names)) if side]
    if not sides:
        raise ConfigError(f"none of the {len(names)} images of {folder / 'train'} that were looked at can be opened, {names[0]} among them")
    return Photos(str(folder), splits, sides, len(names) - len(sides), strays.find(folder))


def seen(photos: Photos) -> Iterator[str]:
    """Sentences of what the folder holds, and what to mind of it."""
    classes = photos.splits.classes
    trained, validated = (Counter(split.labels) for split in (photos.splits.train, photos.splits.val))
    least, most = min(trained.values()), max(trained.values())
    shown = ", ".join(map(printable, classes[:8])) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
    yield f"{len(classes)} classes: {shown}"
    each = f"{least}" if least == most else f"{least} to {most}"
    tests = "no test images" if photos.splits.test is None else f"{len(photos.splits.test)} test images"
    yield f"{photos.samples} training images, {each} of each class; {len(photos.splits.val)} validation images; {tests}"
    yield f"shorter side of {len(photos.sides)} images that were looked at: {min(photos.sides)} to {max(photos.sides)} pixels, median {photos.side}"
    if most >= SEEN_AS_ONE * least:
        [(rare, _)] = Counter(trained).most_common()[-1:]
        yield f"classes differ in size ({printable(classes[rare])} has {least}): look at val/f1_macro, and at each class, not at val/top1 alone"
    fewest = min(range(len(classes)), key=lambda label: validated[label])
    if validated[fewest] < FEW:
        yield f"{printable(classes[fewest])} has {validated[fewest]} validation image(s): expect its score, and the whole, to jump about"
    if photos.unreadable:
        yield f"{photos.unreadable} image(s) could not be opened, and one ends a run: `sft-dist data check` names them"
    if photos.outside:
        yield f"{len(photos.outside)} image(s) lie where no run reads them, like {printable(photos.outside[0])}: `sft-dist data check` names them"


def lines(photos: Photos, out: Path) -> Iterator[str]:
    """The config with its reasons, in the order of the config's keys."""
    yield f"# sft-dist train {printable(str(out))}"
    yield "# Written by sft-dist init, which saw in the folder:"
    yield from (f"#   {line}" for line in seen(photos))
    yield f"# A place to begin. To complete and check keys in an editor: sft-dist config schema > schema.json, and here `{LINE}schema.json`."
    yield from ("task: classify", "data:", "  name: folder")
    yield f"  root: {json.dumps(photos.root, ensure_ascii=False)}  # from the folder that runs are started in"
    yield from _data(photos)
    yield from ("model:", *_model(photos))
    total = _batch(photos.samples)
    epochs = min(50, max(5, math.ceil(500 * total / photos.samples)))
    yield from (
        f"# total: samples of one step over all processes, for {photos.samples // total} steps an epoch",
        f"batch: {{total: {total}, micro: {min(total, 16)}}}  # micro: what goes through the model at once; more where memory allows",
        *_optim(photos),
        'schedule: {name: cosine, warmup: "1 epoch"}  # the new head is random at first: begin slowly',
        f'train: {{duration: "{epochs} epochs"{_clip(photos)}}}  # {epochs * photos.samples // total} steps: enough to see whether it learns',
    )


def _plain(name: str) -> str:
    """A folder's name without what `plain_name` refuses, as far as something is left: `my photos (2)` is my-photos-2."""
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-").lstrip("._+=-")


def _data(photos: Photos) -> Iterator[str]:
    size = _size(photos)
    if size == NATIVE:
        yield f"  size: {NATIVE}  # pixels: what torchvision's weights learned from"
    else:
        yield f"  size: {size}  # pixels: the images are small, and enlarged a little, for weights that learned from {NATIVE}"
        yield f"  resize: {size}  # nothing is cut off in evaluation"
    if photos.samples < LARGE_SET:
        yield "  crop_scale: [0.6, 1.0]  # of an image's area; the default, from 0.08, is hard on fewer than some ten thousand images"
    signs = all(len(name) == 1 or name.isdecimal() for name in photos.splits.classes)
    told = (
        "the classes look like digits or letters, which are others in a mirror"
        if signs
        else "0 where left and right mean something, as in text"
    )
    yield f"  flip: {0 if signs else 0.5}  # {told}"
    if not (Path(photos.root) / "val").is_dir():
        yield "  val_fraction: 0.2  # there is no val/: a fifth of each class is held out of train/, the same in all runs"


def _model(photos: Photos) -> Iterator[str]:
    large = photos.samples >= LARGE_SET
    yield f"  name: {'resnet50' if large else 'resnet18'}  # {'a good middle' if large else 'small and quick'}; try larger ones against it"
    yield "  weights: DEFAULT  # ImageNet's, downloaded once; without a network a .safetensors or .pth file"
    yield f"  train: {_part(photos)}  # for {photos.samples} images; head below 1,000, last:2 below 5,000, all above"


def _optim(photos: Photos) -> Iterator[str]:
    match _part(photos):
        case "head":
            yield "optim: {name: adamw, lr: 0.003, weight_decay: 0.01}  # a head alone bears a high rate"
        case "last:2":
            yield "optim: {name: adamw, lr: 0.0005, head_lr_factor: 6, weight_decay: 0.01}  # the new head learns faster than the rest"
        case _:
            yield "optim: {name: adamw, lr: 0.0002, head_lr_factor: 10, weight_decay: 0.01}  # a higher rate unlearns what the weights know"


def _part(photos: Photos) -> str:
    return "head" if photos.samples < 1000 else "last:2" if photos.samples < 5000 else "all"


def _clip(photos: Photos) -> str:
    return ", clip: 5" if _part(photos) == "all" else ""


def _size(photos: Photos) -> int:
    return NATIVE if photos.side >= NEARLY else max(SMALLEST, 32 * math.ceil(photos.side / 32))


def _batch(samples: int) -> int:
    """The largest power of two of which there are at least ten in an epoch, between 2 and 64."""
    return max(2, min(64, 1 << int(math.log2(max(2, samples / 10)))))


def _shorter_side(path: Path) -> int | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of large images: `sft-dist data check` tells them
            return min(images.size(path))
    except ValueError:
        return None


def _refuse_layout(folder: Path) -> None:
    below = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = [name for name in below if next(images.find(folder / name), None)]
    if not named:
        raise ConfigError(f"{folder} has no images in folders; it needs one folder for each class: {folder}/train/<class>/")
    if called := [name for name in named if name.lower().startswith("train")]:
        raise ConfigError(
            f"{folder} has no train/, but {printable(called[0])}/; rename it (and likewise val/ and test/, which need these names)"
        )
    raise ConfigError(
        f"{folder} has no train/, but {', '.join(map(printable, named[:8]))}; if these are the classes, move them into {folder}/train/ "
        "(val/ and test/ likewise where you have them; without val/ a fifth of each class is held out)"
    )
