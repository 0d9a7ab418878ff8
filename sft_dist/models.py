"""Torchvision's networks: built by name, filled with weights, given a new head, and frozen where they shall not learn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.ops import StochasticDepth

from sft_dist.blocks import recompute
from sft_dist.config import Config, Model, Optim
from sft_dist.errors import ConfigError
from sft_dist.families import Family, family
from sft_dist.schedule import draw_seed
from sft_dist.weights import State, read

CLASSIFIER_HEADS = ("fc", "classifier")  # of those that a body can start from: there is no use for them in it


def build(config: Config, classes: Sequence[str], weights: bool = True) -> tuple[nn.Module, list[str]]:
    """The model of a config with a head for `classes`, frozen as asked for, and what there is to say of its weights.

    It takes uint8 images (n x 3 x height x width) and normalises them itself. What is new is drawn from `train.seed`.
    With `weights=False` nothing is loaded: for a model that is about to be restored from a checkpoint.
    """
    kind = family(config.model.name, "classify")
    torch.manual_seed(draw_seed("model", config.train.seed))
    model = network(config, len(classes))
    _check_size(model, config)
    _replace(model, kind.head, nn.Linear(_linear(model, kind.head).in_features, len(classes)))
    model, told = furnish(model, config, classes, weights)
    model.register_forward_pre_hook(normalise(config.data.mean, config.data.std))
    return model, told


def network(config: Config, classes: int) -> nn.Module:
    """Torchvision's network of a config for so many classes, with random weights. Raises ConfigError for a name that its task does not have."""
    kind = family(config.model.name, config.task)
    made: nn.Module = torchvision.models.get_model(config.model.name, weights=None, num_classes=classes + kind.background, **kind.options)
    return made


def furnish(model: nn.Module, config: Config, classes: Sequence[str], weights: bool) -> tuple[nn.Module, list[str]]:
    """A network fresh from torchvision with its pretrained weights, frozen as asked for; and what there is to say of the weights."""
    told = []
    if weights and config.model.weights != "none":
        state, source_classes = read(config.model)
        kind = family(config.model.name)
        if body := of_classifier(state, kind):
            _check_new_norms(model, kind, config.model)
            state, kind, source_classes = body, replace(kind, last=(*kind.heads, *CLASSIFIER_HEADS)), None
        keep = config.model.head == "keep" or (config.model.head == "auto" and source_classes == tuple(classes))
        told = fill(model, state, kind, keep, config.model.weights)
    if config.model.dropout == "none":
        _turn_off_draws(model)
    if config.model.norm == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    freeze(model, config.model)
    if config.model.activation_checkpointing:
        recompute(model)
    return model, told


def of_classifier(state: State, kind: Family) -> State:
    """A classifier's state under the names of a body that it can start, for a network whose every other part is then new; else nothing."""
    if kind.body is None or any(name.startswith(kind.body[1]) for name in state):
        return {}
    theirs, ours = kind.body
    head = tuple(f"{name}." for name in CLASSIFIER_HEADS)
    return {name if name.startswith(head) else ours + name.removeprefix(theirs): tensor for name, tensor in state.items()}


def fill(model: nn.Module, state: State, kind: Family, keep_head: bool, source: str) -> list[str]:
    """Copy a state into the model; returns what was left out, in words. Raises ConfigError if that is more than the head."""
    own = model.state_dict()
    is_head = tuple(f"{layer}." for layer in kind.renewed)
    usable = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    if not keep_head:
        usable = {name: tensor for name, tensor in usable.items() if not name.startswith(is_head)}
    missing = [name for name in own if name not in usable and not name.endswith("num_batches_tracked")]
    needed = [name for name in missing if keep_head or not name.startswith(is_head)]
    unused = [name for name in state if name not in own]
    foreign = [name for name in unused if _is_foreign(name, kind)]
    if needed or foreign:
        raise ConfigError(
            f"model.weights = {source!r} does not fit the model: {len(own) - len(missing)} of {len(own)} tensors match; "
            f"not in the file or of another shape: {_some(needed) or 'none'}; only in the file: {_some(foreign) or 'none'}"
        )
    model.load_state_dict({**own, **usable})
    return [
        f"{len(usable)} of {len(own)} tensors from {source}",
        f"new: {_some(missing) or 'nothing'}",
        f"not used: {_some(unused) or 'nothing'}",
    ]


def _is_foreign(name: str, kind: Family) -> bool:
    """Whether a tensor that the model does not have is of another model: one of the body, or far from all that is made anew."""
    if name.startswith(tuple(f"{layer}." for layer in kind.renewed)):
        return False
    in_body = kind.body is not None and name.startswith(kind.body[1])
    return in_body or not name.startswith(tuple(layer.split(".")[0] + "." for layer in kind.renewed))


def freeze(model: nn.Module, config: Model) -> None:
    """Let only `model.train`'s part require a gradient, and set every module to the mode that goes with it."""
    learning = trained_prefixes(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(learning))
    if config.norm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.stays_frozen = True  # type: ignore[assignment]
    train_mode(model)


def trained_prefixes(model: nn.Module, config: Model) -> tuple[str, ...]:
    """Beginnings of the names of all parameters that learn."""
    kind = family(config.name)
    if config.train == "all":
        return ("",)
    heads = tuple(f"{head}." for head in kind.heads)
    if config.train == "head":
        return heads
    stages = kind.stages(model)
    count = int(config.train.removeprefix("last:"))
    if count > len(stages):
        raise ConfigError(
            f"model.train = {config.train!r}, but {config.name} has {len(stages)} stages; use all, or last:N with N <= {len(stages)}"
        )
    return (*heads, *(prefix for stage in stages[-count:] for prefix in stage))


def train_mode(model: nn.Module) -> None:
    """Training mode for what learns; evaluation mode for what is frozen, or its batch norms and dropout would go on moving."""
    parameters = list(model.parameters())
    if getattr(model, "stays_frozen", False) or (parameters and not any(p.requires_grad for p in parameters)):
        model.eval()
        return
    model.training = True
    for child in model.children():
        train_mode(child)


def normalise(mean: Sequence[float], std: Sequence[float]) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """A forward pre-hook: uint8 images become the model's floats, (image / 255 - mean) / std, on the model's device."""

    @lru_cache
    def constants(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        return [torch.tensor(values, dtype=torch.float64).view(3, 1, 1).to(device, dtype) for values in (mean, std)]

    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        dtype = next(module.parameters()).dtype
        centre, spread = constants(args[0].device, dtype)
        return (args[0].to(dtype).div_(255).sub_(centre).div_(spread),)

    return hook


def counts(model: nn.Module, optim: Optim, bytes_each: int = 4) -> dict[str, int]:
    """How many parameters there are and learn, and what model and optimizer state take on a rank that holds all of it."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = 2 if optim.name == "adamw" else int(optim.momentum > 0)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": trained,
        "model_bytes": sum(t.numel() * (bytes_each if t.is_floating_point() else t.element_size()) for t in model.state_dict().values()),
        "optimizer_bytes": trained * moments * bytes_each,
    }


def on_paper(config: Config, classes: int) -> dict[str, int]:
    """`counts` of a config's model without memory or weights."""
    with torch.device("meta"):
        model = network(config, classes)
    _check_size(model, config)
    freeze(model, config.model)
    return counts(model, config.optim, bytes_each=8 if config.precision == "fp64" else 4)


def _check_size(model: nn.Module, config: Config) -> None:
    """A ViT has a position for each patch: it takes images of one size, which torchvision asserts in the first forward pass only."""
    size = getattr(model, "image_size", config.data.size)
    if size != config.data.size:
        raise ConfigError(
            f"data.size = {config.data.size}, but {config.model.name} takes images of {size} pixels only; write data.size: {size}"
        )


def _check_new_norms(model: nn.Module, kind: Family, config: Model) -> None:
    """A classifier's weights have no statistics for the batch norms of a new head: frozen, these would stay as they were made."""
    heads = tuple(f"{head}." for head in kind.heads)
    new = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and name.startswith(heads)]
    if new and config.norm == "frozen":
        raise ConfigError(
            f"model.norm = 'frozen' with a classifier's weights ({config.weights}) would leave the batch norms of the new head "
            f"({_some(new)}) at identity; use model.norm: train"
        )


def _turn_off_draws(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif isinstance(module, ShiftedWindowAttention):
            module.dropout = module.attention_dropout = 0.0


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    above, _, name = path.rpartition(".")
    setattr(model.get_submodule(above), name, module)


def _linear(model: nn.Module, path: str) -> nn.Linear:
    head = model.get_submodule(path)
    assert isinstance(head, nn.Linear)
    return head


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
