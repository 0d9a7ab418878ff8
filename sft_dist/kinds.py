"""What each kind of work learns from, what it scores, and what it cannot do with the keys of a config; no torch."""

from collections.abc import Callable

from sft_dist.config import Config
from sft_dist.plan import World

SCORES = {
    "classify": ("val/loss", "val/top1", "val/top5", "val/precision_macro", "val/recall_macro", "val/f1_macro"),
    "segment": ("val/loss", "val/miou", "val/pixel_accuracy", "val/recall_macro"),
    "detect": ("val/map", "val/map_50", "val/map_75"),
}
DATA = {  # task -> the data sets that it can learn from
    "classify": ("folder", "torchvision", "digits"),
    "segment": ("masks",),
    "detect": ("voc", "coco"),
}


def check(config: Config, world: World) -> list[str]:
    """What a config asks of its kind of work that this cannot do, a sentence each."""
    data, wrong = config.data, []
    fits, known = DATA.get(config.task, ()), {name for names in DATA.values() for name in names}
    if fits and data.name in known.difference(fits):
        wrong.append(f"task = {config.task} with data.name = {data.name}; {config.task} learns from {' or '.join(fits)}")
    if config.task != "segment" and data.void != (255,):
        wrong.append(f"data.void = {list(data.void)} is for masks, and task = {config.task}; leave it out")
    return [*wrong, *(CHECKS[config.task](config, world) if config.task in CHECKS else [])]


def _classification(config: Config, _: World) -> list[str]:
    data = config.data
    small = bool(data.resize and data.resize < data.size)
    return [f"data.resize = {data.resize} is less than data.size = {data.size}: the crop would be padded with black"] if small else []


def _segmentation(config: Config, world: World) -> list[str]:
    wrong, batch = [], config.batch
    if config.eval.micro not in (None, 1):
        wrong.append(
            f"eval.micro = {config.eval.micro}, but segment evaluates one image at a time, since images differ in size; leave it out"
        )
    shares = {len(range(rank, batch.total, world.size)) for rank in range(world.size)}
    if (
        config.model.norm != "frozen"
        and config.model.name.startswith("deeplabv3")
        and any(1 in (share % batch.micro, batch.micro) for share in shares if share)
    ):
        wrong.append(
            f"model.norm = {config.model.norm!r} with a micro-batch of one image: the pooling of {config.model.name} normalises one value a channel, "
            "which has no variance; use model.norm: frozen, or batch.total and batch.micro that leave no single image"
        )
    return wrong


def _detection(config: Config, _: World) -> list[str]:
    data, wrong = config.data, []
    if data.size % 32:
        near = max(32, round(data.size / 32) * 32)
        wrong.append(f"data.size = {data.size}; detectors halve the image five times, so use a multiple of 32, like {near}")
    if data.augment == "padded_crop":
        wrong.append(
            "data.augment = 'padded_crop' is for small images of one object; detect knows resized_crop, and none, which only flips"
        )
    if data.resize is not None:
        wrong.append(f"data.resize = {data.resize}: detect resizes the longer side to data.size, in evaluation as well; leave it out")
    if data.per_class is not None:
        wrong.append(f"data.per_class = {data.per_class}: an image has objects of many classes; leave it out")
    return wrong


CHECKS: dict[str, Callable[[Config, World], list[str]]] = {
    "classify": _classification,
    "segment": _segmentation,
    "detect": _detection,
}
