"""What each kind of work learns from, what it scores, and what it cannot do with the keys of a config; no torch."""

from sft_dist.config import Config

SCORES = {
    "classify": ("val/loss", "val/top1", "val/top5", "val/precision_macro", "val/recall_macro", "val/f1_macro"),
    "detect": ("val/map", "val/map_50", "val/map_75"),
}
DATA = {"classify": ("folder", "torchvision", "digits"), "detect": ("voc", "coco")}  # task -> the data sets that it can learn from


def check(config: Config) -> list[str]:
    """What a config asks of its kind of work that this cannot do, a sentence each."""
    fits, known = DATA.get(config.task, ()), {name for names in DATA.values() for name in names}
    wrong = []
    if fits and config.data.name in known.difference(fits):
        wrong.append(f"task = {config.task} with data.name = {config.data.name}; {config.task} learns from {' or '.join(fits)}")
    return [*wrong, *(_detection(config) if config.task == "detect" else [])]


def _detection(config: Config) -> list[str]:
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
