"""What decays, at which rate it learns, and that a step is torch's own."""

import re
from collections.abc import Callable

import pytest
import torch
import torchvision
from given import a_config
from torch import nn

from sft_dist import models, optim
from sft_dist.config import Config


class Small(nn.Module):
    """A little of everything, with its head where resnet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))


def config_of(**keys: object) -> Config:
    return a_config(**{"model__name": "resnet18", "model__weights": "none", **keys})


def a_model() -> nn.Module:
    torch.manual_seed(0)
    return Small().double()


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64)
    model.zero_grad()
    nn.functional.cross_entropy(model(images), torch.arange(5) % 3).backward()


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def groups_by_name(model: nn.Module, config: Config) -> dict[str, tuple[float, float]]:
    """Parameter -> (weight decay, factor on the rate)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["weight_decay"], group["lr_scale"])
        for group in optim.param_groups(model, config)
        for parameter in group["params"]
    }


def test_matrices_and_filters_decay_and_nothing_else() -> None:
    found = groups_by_name(a_model(), config_of(optim__weight_decay=0.1, optim__head_lr_factor=10))
    assert found == {
        "conv.weight": (0.1, 1.0),
        "conv.bias": (0.0, 1.0),
        "norm.weight": (0.0, 1.0),
        "norm.bias": (0.0, 1.0),
        "fc.weight": (0.1, 10.0),
        "fc.bias": (0.0, 10.0),
    }


def test_of_a_vit_token_and_positions_do_not_decay() -> None:
    config = config_of(model__name="vit_b_32", model__train="all", data__size=224, optim__weight_decay=0.1)
    with torch.device("meta"):
        model = torchvision.models.vit_b_32(num_classes=3)
    decay = {name: decay for name, (decay, _) in groups_by_name(model, config).items()}
    assert decay["class_token"] == decay["encoder.pos_embedding"] == decay["encoder.layers.encoder_layer_0.ln_1.weight"] == 0
    assert decay["conv_proj.weight"] == decay["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"] == 0.1


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("resnet18", set()),
        ("convnext_tiny", {"features.*.*.layer_scale"}),
        ("swin_t", {"features.*.*.attn.relative_position_bias_table"}),
        ("swin_v2_t", {"features.*.*.attn.logit_scale", "features.*.*.attn.cpb_mlp.*.weight"}),
    ],
)
def test_of_what_has_more_than_one_axis_only_scales_and_positions_do_not_decay(name: str, spared: set[str]) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=3)
    decays = groups_by_name(model, config_of(model__name=name, model__train="all", optim__weight_decay=0.1))
    assert {re.sub(r"\d+", "*", name) for name, p in model.named_parameters() if p.ndim > 1 and decays[name][0] == 0} == spared


def test_what_is_frozen_has_no_group() -> None:
    config = config_of(model__train="head", optim__weight_decay=0.1)
    model, _ = models.build(config, ("a", "b"))
    assert set(groups_by_name(model, config)) == {"fc.weight", "fc.bias"}


def test_the_rate_of_the_head_is_its_factor_times_the_rate() -> None:
    config = config_of(optim__head_lr_factor=10)
    optimizer = optim.build(a_model(), config)
    optim.set_lr(optimizer, 0.02)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.02, 0.2]


KINDS: dict[str, tuple[dict[str, object], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ({"optim__momentum": 0.9}, lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=False, foreach=False)),
    "plain sgd": ({"optim__momentum": 0.0}, lambda groups: torch.optim.SGD(groups, lr=0.1, fused=False, foreach=False)),
    "nesterov": (
        {"optim__momentum": 0.9, "optim__nesterov": True},
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=False, foreach=False),
    ),
    "adamw": (
        {"optim__name": "adamw", "optim__betas": [0.8, 0.95], "optim__eps": 1e-6},
        lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-6, fused=False, foreach=False),
    ),
}


def config_for(kind: str) -> Config:
    return config_of(optim__lr=0.1, optim__weight_decay=0.05, optim__head_lr_factor=3, **KINDS[kind][0])


@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_are_those_of_torchs_plain_optimizer(kind: str) -> None:
    ours, theirs = a_model(), a_model()
    optimizer = optim.build(ours, config_for(kind))
    body = [theirs.conv.bias, theirs.norm.weight, theirs.norm.bias]
    plain = KINDS[kind][1](
        [
            {"params": [theirs.conv.weight], "weight_decay": 0.05},
            {"params": body, "weight_decay": 0.0},
            {"params": [theirs.fc.weight], "weight_decay": 0.05, "lr": 0.3},
            {"params": [theirs.fc.bias], "weight_decay": 0.0, "lr": 0.3},
        ]
    )
    for step in range(3):
        optim.set_lr(optimizer, 0.1)
        for model, stepped in ((ours, optimizer), (theirs, plain)):
            gradients(model, step)
            stepped.step()
    assert (parameters(ours) - parameters(theirs)).abs().max() < 1e-12
    assert (parameters(ours) - parameters(a_model())).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_optimizer_goes_on_as_if_nothing_had_been(kind: str) -> None:
    config = config_for(kind)
    whole = a_model()
    uninterrupted = optim.build(whole, config)
    for step in range(5):
        if step == 3:
            taken = {name: tensor.clone() for name, tensor in optim.state_tensors(uninterrupted, whole).items()}
            state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
        gradients(whole, step)
        uninterrupted.step()
    resumed = a_model()
    resumed.load_state_dict(state)
    restored = optim.build(resumed, config)
    optim.load_state_tensors(restored, resumed, taken)
    for step in (3, 4):
        gradients(resumed, step)
        restored.step()
    assert torch.equal(parameters(whole), parameters(resumed))


def test_what_was_restored_is_a_copy_of_what_was_given() -> None:
    """A checkpoint's tensors are views of its files, which must be free to go."""
    model = a_model()
    optimizer = optim.build(model, config_for("adamw"))
    given = {"conv.weight/step": torch.tensor(3.0), "conv.weight/exp_avg": torch.ones(4, 3, 3, 3)}
    optim.load_state_tensors(optimizer, model, given)
    for tensor in given.values():
        tensor.zero_()
    assert optimizer.state[model.conv.weight]["step"] == 3
    assert torch.equal(optimizer.state[model.conv.weight]["exp_avg"], torch.ones(4, 3, 3, 3))


@pytest.mark.parametrize(
    ("kind", "moments"),
    [("sgd", {"momentum_buffer"}), ("plain sgd", set()), ("adamw", {"step", "exp_avg", "exp_avg_sq"})],
)
def test_state_is_named_after_parameter_and_moment(kind: str, moments: set[str]) -> None:
    model = a_model()
    optimizer = optim.build(model, config_for(kind))
    assert optim.state_tensors(optimizer, model) == {}
    gradients(model, 0)
    optimizer.step()
    assert set(optim.state_tensors(optimizer, model)) == {f"{name}/{moment}" for name, _ in model.named_parameters() for moment in moments}


def test_state_of_a_parameter_that_does_not_learn_is_an_error() -> None:
    model = a_model()
    model.conv.weight.requires_grad_(False)
    with pytest.raises(KeyError, match=r"conv\.weight"):
        optim.load_state_tensors(optim.build(model, config_for("sgd")), model, {"conv.weight/momentum_buffer": torch.zeros(4, 3, 3, 3)})
