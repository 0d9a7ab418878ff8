"""Which parts of a network are its blocks, and that computing them twice changes no number."""

import copy
import itertools
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
import torchvision
from given import a_config
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from sft_dist import families, models
from sft_dist.blocks import blocks, recompute
from sft_dist.config import Config
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError
from sft_dist.plan import World

CLASSES = ("a", "b", "c")
FOUND = [  # name, how many, the first, the last, their classes
    ("resnet18", 8, "layer1.0", "layer4.1", {"BasicBlock"}),
    ("resnet50", 16, "layer1.0", "layer4.2", {"Bottleneck"}),
    ("vit_b_16", 12, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11", {"EncoderBlock"}),
    ("convnext_tiny", 19, "features.0", "features.7.2", {"Conv2dNormActivation", "CNBlock"}),
    ("swin_t", 15, "features.1.0", "features.7.1", {"SwinTransformerBlock", "PatchMerging"}),
    ("swin_v2_t", 15, "features.1.0", "features.7.1", {"SwinTransformerBlockV2", "PatchMergingV2"}),
    ("mobilenet_v2", 19, "features.0", "features.18", {"Conv2dNormActivation", "InvertedResidual"}),
]


@lru_cache
def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = torchvision.models.get_model(name)
    return model


def a_built_model(name: str, recomputed: bool, **keys: object) -> nn.Module:
    config: Config = a_config(
        **{"model__name": name, "model__weights": "none", "model__train": "all", "model__activation_checkpointing": recomputed, **keys}
    )
    return models.build(config, CLASSES)[0].double()


def a_step(model: nn.Module) -> dict[str, Tensor]:
    """Loss, gradients, buffers, and what the generator draws next, after one forward and backward pass."""
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2]))
    loss.backward()
    gradients = {f"{name}'s gradient": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "next": torch.rand(1), **gradients, **dict(model.named_buffers())}


def count_calls(module: nn.Module) -> list[bool]:
    calls: list[bool] = []
    module.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    return calls


@pytest.mark.parametrize(("name", "count", "first", "last", "kinds"), FOUND)
def test_the_repeated_parts_are_found_from_input_to_output(name: str, count: int, first: str, last: str, kinds: set[str]) -> None:
    found = blocks(on_meta(name))
    assert (len(found), found[0][0], found[-1][0]) == (count, first, last)
    assert {type(block).__name__ for _, block in found} == kinds
    assert all(on_meta(name).get_submodule(path) is block for path, block in found)


@pytest.mark.parametrize("name", [name for name, *_ in FOUND])
def test_no_block_holds_another_and_none_is_the_head(name: str) -> None:
    paths = [path for path, _ in blocks(on_meta(name))]
    assert not [pair for pair in itertools.permutations(paths, 2) if pair[0].startswith(f"{pair[1]}.")]
    assert not [path for path in paths if families.family(name).head.startswith(path)]


def test_plain_containers_are_entered_and_leaves_left_out() -> None:
    def part() -> nn.Module:
        part = nn.Module()
        part.inner = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
        return part

    model = nn.Module()
    model.stem = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.alone = part()  # not repeated: it stands in no container
    model.body = nn.Sequential(part(), nn.ModuleList([part(), nn.Sequential(nn.Linear(2, 2), part())]), nn.Linear(2, 2))
    model.empty = nn.ModuleList([nn.TransformerEncoderLayer(2, 1, 2).self_attn, nn.Module()])
    assert [name for name, _ in blocks(model)] == ["body.0", "body.1.0", "body.1.1.1", "empty.0"]


SMALL: dict[str, Callable[[], nn.Module]] = {  # with much more drawing than torchvision's own
    "vit": lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16, dropout=0.5, attention_dropout=0.5, num_classes=3),
    "swin": lambda: SwinTransformer([4, 4], 8, [2, 2], [2, 4], [4, 4], dropout=0.2, attention_dropout=0.2, num_classes=3),
    "swin_v2": lambda: SwinTransformer(
        [4, 4], 8, [2, 2], [2, 4], [4, 4], 2.0, 0.1, 0.1, 0.5, 3, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
    ),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], 0.3, layer_scale=0.5, num_classes=3),
}


def a_small_model(name: str, recomputed: bool) -> nn.Module:
    torch.manual_seed(0)
    model = SMALL[name]().double()
    if name == "vit":
        nn.init.normal_(model.heads.head.weight)  # torchvision begins with zeros, which hide all gradients but their own
    model.register_forward_pre_hook(models.normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    if recomputed:
        recompute(model)
    return model


EQUAL: list[tuple[str, dict[str, object]]] = [
    ("resnet18", {"model__norm": "train"}),
    ("resnet18", {"model__norm": "train", "model__train": "last:2"}),
    ("mobilenet_v2", {"model__norm": "train"}),  # dropout before the head
    ("mobilenet_v3_small", {"model__norm": "frozen"}),
]


@pytest.mark.parametrize(("name", "keys"), EQUAL, ids=["resnet18", "last two", "mobilenet_v2", "frozen norms"])
def test_computing_blocks_again_changes_no_bit_of_a_step(name: str, keys: dict[str, object]) -> None:
    plain, again = (a_step(a_built_model(name, recomputed, **keys)) for recomputed in (False, True))
    assert plain.keys() == again.keys()
    assert [key for key in plain if not torch.equal(plain[key], again[key])] == []


@pytest.mark.parametrize("name", SMALL)
def test_dropout_and_stochastic_depth_inside_a_block_draw_the_same_again(name: str) -> None:
    plain, again, calm = (a_small_model(name, recomputed) for recomputed in (False, True, True))
    models._turn_off_draws(calm)
    once, twice, still = a_step(plain), a_step(again), a_step(calm)
    assert [key for key in once if not torch.equal(once[key], twice[key])] == []
    assert once["loss"] != still["loss"]  # it was drawn indeed
    assert all(tensor.abs().max() > 0 for key, tensor in once.items() if key.endswith("weight's gradient"))


def test_batch_norms_learn_their_statistics_once_a_pass() -> None:
    model = a_built_model("resnet18", True, model__norm="train")
    norm = model.get_submodule("layer1.0.bn1")
    mean = norm.running_mean
    for passes in (1, 2):
        a_step(model)
        assert norm.num_batches_tracked == passes
        assert norm.running_mean is mean  # the same tensor: the optimizer's and the strategy's hold on it stays good
    assert mean.abs().max() > 0


@pytest.mark.parametrize(("recomputed", "calls"), [(False, 1), (True, 2)])
def test_a_block_that_learns_is_computed_twice_a_step(recomputed: bool, calls: int) -> None:
    model = a_built_model("resnet18", recomputed, model__norm="train")
    inside = [count_calls(block.get_submodule("conv1")) for _, block in blocks(model)]
    a_step(model)
    assert [len(counted) for counted in inside] == [calls] * 8


def test_frozen_blocks_and_evaluation_are_computed_once() -> None:
    model = a_built_model("resnet18", True, model__norm="train", model__train="last:1")
    inside = [count_calls(block.get_submodule("conv1")) for _, block in blocks(model)]
    a_step(model)
    assert [len(counted) for counted in inside] == [1] * 6 + [2] * 2
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert [len(counted) for counted in inside] == [2] * 6 + [3] * 2


def kept_bytes(model: nn.Module) -> int:
    """What a forward pass leaves for the backward pass, parameters and buffers apart."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert output.requires_grad  # what it needs is alive, so no place in memory was used twice
    own = {tensor.untyped_storage().data_ptr() for tensor in itertools.chain(model.parameters(), model.buffers())}
    return sum(size for place, size in storages.items() if place not in own)


def test_between_the_passes_less_is_kept() -> None:
    for name, share in (("resnet18", 0.6), ("mobilenet_v2", 0.15)):
        plain, again = (kept_bytes(a_built_model(name, recomputed, model__norm="train")) for recomputed in (False, True))
        assert again < share * plain, name
    for name in ("convnext", "swin"):
        assert kept_bytes(a_small_model(name, True)) < 0.3 * kept_bytes(a_small_model(name, False)), name


def test_names_stay_and_a_copy_computes_with_its_own_weights() -> None:
    plain, again = (a_built_model("mobilenet_v2", recomputed, model__norm="train") for recomputed in (False, True))
    assert list(plain.state_dict()) == list(again.state_dict())
    another = copy.deepcopy(again)
    for parameter in again.parameters():
        parameter.data.zero_()
    expected, found = a_step(plain), a_step(another)
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_a_second_backward_pass_through_one_graph_computes_again() -> None:
    model = a_built_model("resnet18", True, model__norm="train")
    calls = count_calls(model.get_submodule("layer4.1.conv1"))
    loss = model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).sum()
    loss.backward(retain_graph=True)
    first = model.get_submodule("layer1.0.conv1").weight.grad.clone()
    loss.backward()
    assert len(calls) == 3
    assert torch.equal(model.get_submodule("layer1.0.conv1").weight.grad, 2 * first)
    assert model.get_submodule("layer1.0.bn1").num_batches_tracked == 1


def test_a_block_that_ends_in_a_view_is_sharded_without_a_warning_and_learns_the_same() -> None:
    """ConvNeXt's stem; the warning would be an error here."""
    plain, sharded = (a_small_model("convnext", False) for _ in range(2))
    config = a_config(shard__strategy="fsdp", model__name="convnext_tiny", precision="fp64", device="cpu")
    with Engine(config, World()) as engine:
        engine.prepare(sharded, lambda model: SGD(model.parameters()))
        expected, found = a_step(plain), a_step(sharded)
        assert expected.keys() == found.keys()
        whole = {key: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for key, tensor in found.items()}
    assert [key for key in expected if not torch.allclose(expected[key], whole[key], rtol=1e-12, atol=1e-15)] == []


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model.activation_checkpointing = True, but AlexNet has no blocks to recompute; use false$"):
        recompute(on_meta("alexnet"))
