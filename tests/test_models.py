"""Which parameters learn, what stays still, and what the head is made of."""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
import torchvision
from given import a_config
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformer
from torchvision.ops import StochasticDepth
from torchvision.transforms.v2.functional import normalize

from sft_dist import families, models
from sft_dist.blocks import blocks
from sft_dist.config import Config
from sft_dist.errors import ConfigError

CLASSES = tuple("0123456789")
CHOOSABLE = [
    name
    for name in torchvision.models.list_models(torchvision.models)
    if name.startswith(("resnet", "resnext", "wide_resnet", "mobilenet_v2", "mobilenet_v3", "vit_", "convnext_", "swin_"))
]


def config_of(name: str = "resnet18", **keys: object) -> Config:
    return a_config(**{"model__name": name, "model__weights": "none", "data__size": 224, **keys})


@lru_cache
def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, num_classes=10)


def learning(model: nn.Module) -> set[str]:
    """The parts with a parameter that learns, by the first two parts of its name."""
    return {".".join(name.split(".")[:2]) for name, parameter in model.named_parameters() if parameter.requires_grad}


def modes(model: nn.Module) -> Iterator[tuple[str, bool, bool]]:
    """(name, training, holds a parameter that learns) of every module that holds any."""
    for name, module in model.named_modules():
        if held := list(module.parameters()):
            yield name, module.training, any(parameter.requires_grad for parameter in held)


LAYER4 = {"layer4.0", "layer4.1", "fc.weight", "fc.bias"}
LEARNING = [
    ("resnet18", "head", {"fc.weight", "fc.bias"}),
    ("resnet18", "last:1", LAYER4),
    ("resnet18", "last:2", {"layer3.0", "layer3.1"} | LAYER4),
    ("resnet18", "last:5", {f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)} | {"conv1.weight", "bn1.weight", "bn1.bias"} | LAYER4),
    ("mobilenet_v2", "head", {"classifier.1"}),
    ("mobilenet_v2", "last:2", {"features.17", "features.18", "classifier.1"}),
    ("mobilenet_v3_small", "head", {"classifier.3"}),
    ("mobilenet_v3_small", "last:1", {"features.12", "classifier.0", "classifier.3"}),
    ("vit_b_16", "head", {"heads.head"}),
    ("vit_b_16", "last:1", {"encoder.layers", "encoder.ln", "heads.head"}),
    (
        "vit_b_16",
        "last:13",
        {"class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding", "encoder.layers", "encoder.ln", "heads.head"},
    ),
    ("convnext_tiny", "head", {"classifier.2"}),
    ("convnext_tiny", "last:1", {"features.6", "features.7", "classifier.0", "classifier.2"}),
    ("convnext_tiny", "last:4", {*(f"features.{i}" for i in range(1, 8)), "classifier.0", "classifier.2"}),
    ("swin_t", "head", {"head.weight", "head.bias"}),
    ("swin_v2_t", "last:2", {*(f"features.{i}" for i in (4, 5, 6, 7)), "norm.weight", "norm.bias", "head.weight", "head.bias"}),
]


@pytest.mark.parametrize(("name", "train", "wanted"), LEARNING)
def test_the_part_that_is_asked_for_learns(name: str, train: str, wanted: set[str]) -> None:
    model = on_meta(name)
    models.freeze(model, config_of(name, model__train=train).model)
    assert learning(model) == wanted


def test_of_a_vit_the_last_layers_learn_and_not_the_first() -> None:
    models.freeze(model := on_meta("vit_b_16"), config_of("vit_b_16", model__train="last:2").model)
    layers = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and name.startswith("encoder.layers.")}
    assert layers == {"encoder_layer_10", "encoder_layer_11"}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "vit_b_16", "convnext_tiny", "swin_t", "swin_v2_t"])
def test_all_means_every_parameter_and_so_does_the_largest_last_n(name: str) -> None:
    model = on_meta(name)
    for train in ("all", f"last:{len(families.family(name).stages(model))}"):
        models.freeze(model, config_of(name, model__train=train).model)
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "stages"),
    [("resnet18", 5), ("mobilenet_v2", 19), ("mobilenet_v3_small", 13), ("vit_b_16", 13), ("convnext_tiny", 5), ("swin_t", 5)],
)
def test_more_stages_than_there_are_is_refused(name: str, stages: int) -> None:
    told = f"^model.train = 'last:{stages + 1}', but {name} has {stages} stages; use all, or last:N with N <= {stages}$"
    with pytest.raises(ConfigError, match=told):
        models.freeze(on_meta(name), config_of(name, model__train=f"last:{stages + 1}").model)


@pytest.mark.parametrize("norm", ["frozen", "train"])
@pytest.mark.parametrize("train", ["head", "last:2", "all"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16", "convnext_tiny", "swin_t"])
def test_what_is_frozen_is_in_evaluation_mode_also_after_an_evaluation(name: str, train: str, norm: str) -> None:
    model = on_meta(name)
    for module in model.modules():
        vars(module).pop("stays_frozen", None)
    models.freeze(model, config_of(name, model__train=train, model__norm=norm).model)
    for _ in range(2):
        for module_name, training, learns in modes(model):
            is_norm = isinstance(model.get_submodule(module_name), nn.BatchNorm2d)
            assert training == (learns and not (is_norm and norm == "frozen")), module_name
        assert model.training
        model.eval()
        models.train_mode(model)


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
def test_stochastic_depth_is_off_in_frozen_stages_and_on_in_those_that_learn(name: str) -> None:
    models.freeze(model := on_meta(name), config_of(name, model__train="last:2").model)
    drawing = {path.split(".")[1] for path, module in model.named_modules() if isinstance(module, StochasticDepth) and module.training}
    assert drawing == {"5", "7"}


def train_once(model: nn.Module) -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()


@pytest.mark.parametrize(("norm", "wanted"), [("frozen", set()), ("train", {"layer4"})])
def test_a_step_moves_what_learns_and_nothing_else(norm: str, wanted: set[str]) -> None:
    model, _ = models.build(config_of(model__train="last:1", model__norm=norm), CLASSES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_once(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved if "running_" in name or "num_batches" in name} == wanted
    assert {name for name in moved if name in dict(model.named_parameters())} <= {n for n, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in moved} == {"layer4", "fc"}


@pytest.mark.parametrize(
    ("name", "train", "first"),
    [
        ("resnet18", "head", "fc"),
        ("resnet18", "last:1", "layer4"),
        ("mobilenet_v2", "head", "classifier"),
        ("convnext_tiny", "head", "classifier.2"),
        ("swin_t", "last:1", "features.6"),
    ],
)
def test_no_gradient_graph_runs_through_the_frozen_part(name: str, train: str, first: str) -> None:
    model, _ = models.build(config_of(name, model__train=train), CLASSES)
    entered: list[bool] = []
    model.get_submodule(first).register_forward_pre_hook(lambda _, args: entered.append(args[0].requires_grad))
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).requires_grad
    assert entered == [False]


def test_without_dropout_no_module_of_a_vit_draws() -> None:
    with torch.device("meta"):
        model = torchvision.models.vit_b_32(dropout=0.1, attention_dropout=0.1)
    models._turn_off_draws(model)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0}
    assert {module.dropout for module in model.modules() if isinstance(module, nn.MultiheadAttention)} == {0}


def test_without_dropout_no_module_of_a_swin_draws() -> None:
    with torch.device("meta"):
        model = SwinTransformer([4, 4], 8, [2, 2], [2, 4], [4, 4], dropout=0.1, attention_dropout=0.1, stochastic_depth_prob=0.1)
    models._turn_off_draws(model)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout | StochasticDepth)} == {0}
    attentions = [module for module in model.modules() if isinstance(module, ShiftedWindowAttention)]
    assert {(module.dropout, module.attention_dropout) for module in attentions} == {(0, 0)}


@pytest.mark.parametrize(("dropout", "repeats"), [("none", True), ("keep", False)])
def test_two_passes_in_training_are_equal_only_without_dropout(dropout: str, repeats: bool) -> None:
    model, _ = models.build(config_of("mobilenet_v2", model__train="all", model__dropout=dropout), CLASSES)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert model.training
    assert torch.equal(model(images), model(images)) is repeats


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_model_normalises_as_torchvision_does(dtype: torch.dtype) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.randint(0, 256, (3, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    [ours] = models.normalise(mean, std)(nn.Linear(1, 1, dtype=dtype), (images,))
    theirs = normalize(images.to(dtype) / 255, list(mean), list(std))
    assert ours.dtype == dtype
    assert (ours - theirs).abs().max() <= (1e-6 if dtype == torch.float32 else 1e-15)


def test_what_is_new_depends_on_the_seed_alone() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        torch.rand(seed + 3)  # the state of the generator before does not count
        return models.build(config_of("mobilenet_v3_small", train__seed=seed, model__train="all"), CLASSES)[0].state_dict()

    one, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["classifier.3.weight"], other["classifier.3.weight"])
    assert not torch.equal(one["features.0.0.weight"], other["features.0.0.weight"])


def test_the_counts_of_resnet18_for_ten_classes() -> None:
    assert models.on_paper(config_of(model__train="head", optim__name="sgd"), 10) == {
        "parameters": 11_181_642,
        "trained": 5_130,
        "model_bytes": 4 * (11_181_642 + 9_600) + 8 * 20,
        "optimizer_bytes": 4 * 5_130,
    }
    frozen = models.on_paper(config_of(model__train="all", optim__name="adamw", precision="fp64"), 10)
    assert (frozen["trained"], frozen["optimizer_bytes"]) == (11_181_642, 2 * 8 * 11_181_642)
    assert models.on_paper(config_of(optim__name="sgd", optim__momentum=0), 10)["optimizer_bytes"] == 0


@pytest.mark.parametrize("train", ["head", "last:3", "all"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small"])
def test_the_counts_on_paper_are_those_of_the_real_model(name: str, train: str) -> None:
    config = config_of(name, model__train=train, optim__name="adamw")
    model, _ = models.build(config, CLASSES)
    assert models.on_paper(config, 10) == models.counts(model, config.optim)
    assert models.counts(model, config.optim)["model_bytes"] == sum(t.numel() * t.element_size() for t in model.state_dict().values())


@pytest.mark.parametrize("name", CHOOSABLE)
def test_every_model_that_can_be_chosen_has_its_head_and_its_stages(name: str) -> None:
    kind, model = families.family(name), on_meta(name)
    head = model.get_submodule(kind.head)
    assert isinstance(head, nn.Linear)
    assert head.out_features == 10
    names = [parameter for parameter, _ in model.named_parameters() if not parameter.startswith(kind.head + ".")]
    covered = [[parameter for parameter in names if parameter.startswith(stage)] for stage in kind.stages(model)]
    assert all(covered)
    assert sorted(itertools.chain(*covered)) == sorted(names)


@pytest.mark.parametrize("name", CHOOSABLE)
def test_nearly_all_weights_of_every_model_are_in_parts_that_can_be_sharded_and_recomputed(name: str) -> None:
    def size(*modules: nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    model = on_meta(name)
    head = size(model.get_submodule(families.family(name).head.split(".")[0]))
    assert size(*(block for _, block in blocks(model))) >= 0.9 * (size(model) - head)


def test_a_model_that_cannot_be_chosen_is_refused_with_those_that_can() -> None:
    for name in ("resnet19", "alexnet", "fcn_resnet50", "mobilenet", "quantized_resnet18"):
        with pytest.raises(ConfigError) as caught:
            families.family(name, "classify")
        assert caught.value.problems == (f"model.name = {name!r}; use one of {', '.join(CHOOSABLE)}",)


def test_a_vit_refuses_images_of_another_size_than_its_own() -> None:
    config = config_of("vit_b_32", data__size=32)
    for make in (lambda: models.on_paper(config, 10), lambda: models.build(config, CLASSES)):
        with pytest.raises(ConfigError, match=r"^data.size = 32, but vit_b_32 takes images of 224 pixels only; write data.size: 224$"):
            make()
