"""Which of torchvision's networks there are, and what each calls its head and its stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torchvision
from torch import nn

from sft_dist.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """What networks of one kind have in common.

    head: the module that answers, which `model.train: head` lets learn; of a classifier its last layer. stages: what `last:N` counts, from
    input to output, each as the prefixes of its parameters' names. beside: modules that learn with the head. last: the layers in
    these whose size goes with the classes, so that they are made anew for other ones; none named is the head itself. background: classes
    that it has besides those asked for. options: what torchvision's builder is told. body: what the names of a classifier's weights begin
    with, and what the same weights' names begin with here, where it can start from them.
    """

    head: str
    stages: Callable[[nn.Module], list[tuple[str, ...]]]
    beside: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    background: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    body: tuple[str, str] | None = None

    @property
    def heads(self) -> tuple[str, ...]:
        return (self.head, *self.beside)

    @property
    def renewed(self) -> tuple[str, ...]:
        return self.last or (self.head,)


def _resnet_stages(_: nn.Module) -> list[tuple[str, ...]]:
    return [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]


def _mobilenet_stages(model: nn.Module) -> list[tuple[str, ...]]:
    *features, last = [(f"features.{name}.",) for name, _ in model.get_submodule("features").named_children()]
    return [*features, (*last, "classifier.")]


def _vit_stages(model: nn.Module) -> list[tuple[str, ...]]:
    *layers, last = [(f"encoder.layers.{name}.",) for name, _ in model.get_submodule("encoder.layers").named_children()]
    return [("class_token", "conv_proj.", "encoder.pos_embedding"), *layers, (*last, "encoder.ln.")]


def _hierarchy(norm: str) -> Callable[[nn.Module], list[tuple[str, ...]]]:
    """Stem and four stages, each with the downsampling before it as a resnet's have it; the norm before the head goes with the last."""
    later = [("features.2.", "features.3."), ("features.4.", "features.5."), ("features.6.", "features.7.", norm)]
    return lambda _: [("features.0.",), ("features.1.",), *later]


CLASSIFIERS = {  # beginning of torchvision's name -> family; another one is another line
    "resnet": Family("fc", _resnet_stages),
    "resnext": Family("fc", _resnet_stages),
    "wide_resnet": Family("fc", _resnet_stages),
    "mobilenet_v2": Family("classifier.1", _mobilenet_stages),
    "mobilenet_v3": Family("classifier.3", _mobilenet_stages),
    "vit": Family("heads.head", _vit_stages),
    "convnext": Family("classifier.2", _hierarchy("classifier.0.")),
    "swin": Family("head", _hierarchy("norm.")),
}


def _resnet_body_stages(_: nn.Module) -> list[tuple[str, ...]]:
    return [tuple(f"backbone.body.{name}" for name in stage) for stage in _resnet_stages(_)]


def _mobilenet_body_stages(model: nn.Module) -> list[tuple[str, ...]]:
    return [(f"backbone.body.{name}.",) for name, _ in model.get_submodule("backbone.body").named_children()]


def _faster_rcnn(stages: Callable[[nn.Module], list[tuple[str, ...]]], classifiers: str) -> Family:
    """Both stages of the head, and the pyramid between it and the body, learn together: torchvision's `trainable_backbone_layers=0`."""
    last, body = ("roi_heads.box_predictor",), (classifiers, "backbone.body.")
    return Family("roi_heads", stages, ("rpn", "backbone.fpn"), last, background=1, options={"weights_backbone": None}, body=body)


DETECTORS = {
    "fasterrcnn_resnet50": _faster_rcnn(_resnet_body_stages, ""),
    "fasterrcnn_mobilenet_v3": _faster_rcnn(_mobilenet_body_stages, "features."),
}

ZOOS = {
    "classify": (torchvision.models, CLASSIFIERS),
    "detect": (torchvision.models.detection, DETECTORS),
}  # task -> where torchvision lists its networks, and their families


def family(name: str, task: str | None = None) -> Family:
    """The family of a network; where a task is named, one of that task. Raises ConfigError with the names that there are."""
    known: list[str] = []
    for zoo, families in (ZOOS[kind] for kind in ([task] if task else ZOOS)):
        found = [families[start] for start in families if name.startswith(start)]
        there = torchvision.models.list_models(zoo)
        if found and name in there:
            return found[0]
        known += [one for one in there if one.startswith(tuple(families)) and not one.startswith("quantized")]
    raise ConfigError(f"model.name = {name!r}; use one of {', '.join(known)}")
