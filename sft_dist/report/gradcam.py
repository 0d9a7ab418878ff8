"""Where a classifier looked: Grad-CAM, by two hooks, for convolutions and for transformers.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization". It shows which places of a
layer's output speak for a class, each channel weighed by its mean gradient; not why, and not what else the model would have taken.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SMALLEST = 4  # places on a side: a map of fewer says nothing of where

Arrange = Callable[[Tensor], Tensor]
"""What a layer gives out -> n x channels x height x width."""


@dataclass(frozen=True)
class Look:
    """Where to look in models of one kind. layers: the modules whose output is a map, from input to output, by the prefix of their names."""

    layers: Callable[[nn.Module], list[str]]
    arrange: Arrange


def _channels_first(output: Tensor) -> Tensor:
    return output


def _channels_last(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def _tokens(output: Tensor) -> Tensor:
    """The patches of a vision transformer, which come after its class token, row by row."""
    patches = output[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).reshape(len(output), -1, side, side)


def _children(path: str, below: str = "") -> Callable[[nn.Module], list[str]]:
    return lambda model: [f"{path}.{name}{below}" for name, _ in model.get_submodule(path).named_children()]


def _resnet(_: nn.Module) -> list[str]:
    return ["layer1", "layer2", "layer3", "layer4"]


LOOKS = {  # beginning of torchvision's name -> where to look, for every family of classifiers
    "resnet": Look(_resnet, _channels_first),
    "resnext": Look(_resnet, _channels_first),
    "wide_resnet": Look(_resnet, _channels_first),
    "mobilenet_v2": Look(_children("features"), _channels_first),
    "mobilenet_v3": Look(_children("features"), _channels_first),
    "vit": Look(_children("encoder.layers", ".ln_1"), _tokens),  # what the last attention sees: after it only the class token counts
    "convnext": Look(_children("features"), _channels_first),
    "swin": Look(_children("features"), _channels_last),
}


def layer(model: nn.Module, name: str, image: Tensor) -> str | None:
    """The last layer whose map has at least SMALLEST places on a side, for an image (1 x 3 x height x width); None if there is none."""
    look = _look(name)
    chosen = None
    for path in look.layers(model):
        with _kept(model, path) as kept, torch.no_grad():
            model(image)
        if min(look.arrange(kept[0]).shape[2:]) >= SMALLEST:
            chosen = path
    return chosen


def maps(model: nn.Module, name: str, path: str, images: Tensor, classes: Sequence[int]) -> Tensor:
    """For each image what speaks for a class: n x height x width, from 0 to 1; all zeros where nothing does. The model is in evaluation mode.
    Raises ValueError where it computes no finite numbers."""
    arrange = _look(name).arrange
    with _kept(model, path) as kept, torch.enable_grad():
        logits = model(images)
        [gradient] = torch.autograd.grad(logits[torch.arange(len(images)), list(classes)].sum(), kept[0])
    seen, wanted = arrange(kept[0].detach()), arrange(gradient)
    found = (seen * wanted.mean((2, 3), keepdim=True)).sum(1).relu()
    if not found.isfinite().all():
        raise ValueError("what the model computes is not finite")
    most = found.amax((1, 2), keepdim=True)
    return torch.where(most > 0, found / most.clamp(min=torch.finfo(found.dtype).tiny), found)


@contextmanager
def _kept(model: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """What a module gives out in the next pass. Gradients begin there, also where everything before is frozen."""
    kept: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:  # noqa: ARG001
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        yield kept
    finally:
        handle.remove()


def _look(name: str) -> Look:
    return next(LOOKS[start] for start in LOOKS if name.startswith(start))
