"""Grad-CAM is what its paper says, in every family of models, and leaves no trace."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from sft_dist.families import CLASSIFIERS
from sft_dist.report import gradcam


def small_vit() -> nn.Module:
    return VisionTransformer(image_size=64, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = small_vit() if name == "vit_b_16" else torchvision.models.get_model(name, weights=None, num_classes=3)
    head = model.get_submodule(next(family.head for start, family in CLASSIFIERS.items() if name.startswith(start)))
    nn.init.uniform_(head.weight)  # else, untrained, nothing may speak for anything
    return model.eval()


def images(count: int, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_every_family_of_models_has_a_place_to_look_at() -> None:
    assert set(gradcam.LOOKS) == set(CLASSIFIERS)


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        ("resnet18", "layer3", 4),
        ("mobilenet_v2", "features.13", 4),
        ("mobilenet_v3_small", "features.8", 4),
        ("vit_b_16", "encoder.layers.encoder_layer_1.ln_1", 8),
        ("convnext_tiny", "features.5", 4),
        ("swin_t", "features.5", 4),
    ],
)
def test_the_last_layer_with_a_map_is_looked_at(name: str, layer: str, side: int) -> None:
    model = built(name)
    model.requires_grad_(False)  # as where only the head learned
    assert gradcam.layer(model, name, images(1)) == layer
    found = gradcam.maps(model, name, layer, images(3), [0, 1, 2])
    assert found.shape == (3, side, side)
    assert found.min() >= 0 and all(most == pytest.approx(1) or most == 0 for most in found.amax((1, 2)).tolist())
    assert found.any()


def test_before_an_average_and_a_linear_layer_it_is_the_class_activation_map() -> None:
    """Selvaraju et al., section 3.1: there the gradient is the weight of the channel, over the number of places."""
    model, batch = built("resnet18"), images(2, 128)
    model.fc.weight.data[2] *= -1  # now nothing speaks for the last class
    kept: list[torch.Tensor] = []
    handle = model.layer4.register_forward_hook(lambda _module, _args, output: kept.append(output.detach()))
    found = gradcam.maps(model, "resnet18", "layer4", batch, [1, 2])
    handle.remove()
    speaks = torch.stack([torch.einsum("c,chw->hw", model.fc.weight[of], seen) for of, seen in zip((1, 2), kept[0], strict=True)]).relu()
    assert speaks[0].any() and not speaks[1].any()
    assert torch.allclose(found, speaks / speaks.amax((1, 2), keepdim=True).clamp(min=1e-9), atol=1e-5)


def test_patches_lie_row_by_row_behind_the_class_token() -> None:
    tokens = torch.arange(10.0)[None, :, None].expand(1, 10, 2)
    assert gradcam.LOOKS["vit"].arrange(tokens)[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_images_that_are_too_small_have_no_map() -> None:
    assert gradcam.layer(built("mobilenet_v2"), "mobilenet_v2", images(1, 2)) is None


def test_looking_changes_no_answer_and_leaves_no_gradient() -> None:
    model = built("mobilenet_v2")
    before = model(images(2))
    gradcam.maps(model, "mobilenet_v2", "features.13", images(2), [0, 1])
    assert torch.equal(model(images(2)), before)
    assert all(parameter.grad is None for parameter in model.parameters())
