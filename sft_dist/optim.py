"""Which parameter learns how: groups without decay, with the head's own rate, and the optimizer over them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from sft_dist.config import Config
from sft_dist.families import family

# Tables of positions and factors on a whole channel or attention head, which torchvision may store with more than one axis. The recipes of
# ViT, Swin, Swin V2 (microsoft/Swin-Transformer: no_weight_decay_keywords, with the network that computes its table) and ConvNeXt (its
# layer scale is one-dimensional there) leave them alone. torchvision's reference decays layer_scale, logit_scale and cpb_mlp.
UNDECAYED = (
    "class_token",
    "pos_embedding",
    "relative_position_bias_table",
    "cpb_mlp.0.weight",
    "cpb_mlp.2.weight",
    "logit_scale",
    "layer_scale",
)


def build(model: nn.Module, config: Config) -> Optimizer:
    """The optimizer over the parameters that learn; every group carries `lr_scale`, the factor on the config's rate."""
    groups, optim = param_groups(model, config), config.optim
    if optim.name == "adamw":
        return AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
    return SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=True)


def param_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Up to four groups: body and head, each with decay (matrices, filters) and without (biases, norms, `UNDECAYED`)."""
    heads = tuple(f"{head}." for head in family(config.model.name).heads)
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(UNDECAYED)
            members.setdefault((name.startswith(heads), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.optim.weight_decay if decays else 0.0,
            "lr_scale": config.optim.head_lr_factor if in_head else 1.0,
        }
        for (in_head, decays), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Write the rate of the coming update into every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def state_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state under canonical names: `<parameter>/<moment>`."""
    return {
        f"{name}/{moment}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def load_state_tensors(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """The way back of `state_tensors`, copied, in each parameter's own precision. Raises KeyError for one that the model does not train.

    A tensor of a checkpoint is a view of its mapped file, which would stay on the disk with it when the checkpoint is deleted.
    """
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        parameter = learning[name]
        optimizer.state[parameter][moment] = value.to(parameter.device, parameter.dtype if value.ndim else value.dtype, copy=True)
