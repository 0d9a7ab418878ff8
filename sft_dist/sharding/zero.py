"""`zero1`, `zero2`, `zero3`: optimizer state (1), gradients too (2), parameters too (3) in flat pieces over the ranks, by DeepSpeed."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sft_dist.config import Config
from sft_dist.plan import World
from sft_dist.sharding import alone, flat
from sft_dist.sharding.contract import Held, Piece, Prepared, Strategy, Tensors, owners


@contextmanager
def start(stage: int, config: Config, world: World, kind: str) -> Iterator[dict[str, Any]]:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with _switches(world, kind), alone.group(world, kind, {"deepspeed_plugin": _plugin(stage, config)}) as arguments:
        yield arguments


def prepare(
    accelerator: Accelerator, world: World, module: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer], config: Config
) -> Prepared:
    optimizer = make_optimizer(module)
    if config.shard.offload != "none" and isinstance(optimizer, AdamW):
        optimizer = _host_adam(optimizer)
    with _switches(world, accelerator.device.type):
        wrapped, _ = accelerator.prepare(module, optimizer)
    return Prepared(accelerator, world, module, wrapped, wrapped.optimizer.optimizer, config.train.clip)


@contextmanager
def one_pass(prepared: Prepared, last: bool) -> Iterator[Callable[[Tensor], None]]:
    engine: Any = prepared.wrapped
    engine.set_gradient_accumulation_boundary(last)
    yield engine.backward


def update(prepared: Prepared, scale: float | None) -> Tensor:
    """DeepSpeed divides by the scale, clips with the limit that it was started with, makes the step, and leaves it out where the norm
    is not finite. It is told the scale for the step only: its backward pass would multiply by it, and the loop has done that."""
    engine: Any = prepared.wrapped
    engine.optimizer.loss_scale = scale or 1.0
    engine.step()
    engine.optimizer.loss_scale = 1.0
    return torch.as_tensor(engine.get_global_grad_norm())


@torch.no_grad()
def publish(prepared: Prepared) -> None:
    inner: Any = prepared.wrapped.optimizer
    if flat.stage(prepared) < 3:
        inner.update_lp_params()
        return
    _let_go_of_gathered(prepared)
    for live, master in zip(inner.fp16_partitioned_groups_flat, flat.masters(prepared), strict=True):
        live.copy_(master)


def take(prepared: Prepared) -> Iterator[Piece]:
    """Every sharded tensor is gathered on all ranks, one at a time, and taken by its owner."""
    _let_go_of_gathered(prepared)
    rank, named = prepared.world.rank, dict(prepared.module.named_parameters())
    tensors = {**named, **{name: buffer for name, buffer in prepared.module.state_dict().items() if name not in named}}
    owner = owners({name: getattr(tensor, "ds_numel", tensor.numel()) for name, tensor in tensors.items()}, prepared.world.size)
    for name, tensor in tensors.items():
        with _gathered(tensor):
            if owner[name] == rank:
                yield Piece("model", name, tensor.detach())
    fragments = flat.fragments(prepared)
    for name, parameter, master in flat.learning(prepared):
        for moment, values in prepared.optimizer.state.get(master, {}).items():
            values = torch.as_tensor(
                values, dtype=None if isinstance(values, Tensor) else torch.float32
            )  # DeepSpeed's CPU Adam counts in ints
            whole = values if values.ndim == 0 else flat.whole(values, fragments.get(id(parameter)), parameter, prepared)
            if owner[name] == rank:
                yield Piece("optim", f"{name}/{moment}", whole)


@torch.no_grad()
def put(prepared: Prepared, tensors: Tensors) -> None:
    _let_go_of_gathered(prepared)
    inner: Any = prepared.wrapped.optimizer
    named, rank = dict(prepared.module.named_parameters()), prepared.world.rank
    everything: dict[str, Any] = {**prepared.module.state_dict(), **named}
    for name, own in everything.items():
        whole = tensors.model[name]
        if hasattr(own, "ds_tensor"):
            part = whole.reshape(-1)[own.ds_tensor.numel() * rank :][: own.ds_tensor.numel()]
            own.ds_tensor.view(-1)[: part.numel()].copy_(part)
        else:
            own.copy_(whole)
    inner.refresh_fp32_params()
    if tensors.optimizer:
        _put_moments(prepared, tensors.optimizer)


def held(prepared: Prepared) -> Held:
    stored = [getattr(parameter, "ds_tensor", parameter) for parameter in prepared.module.parameters()]
    return Held(sum(master.numel() for master in flat.masters(prepared)), sum(tensor.numel() for tensor in stored))


def end() -> None:
    """DeepSpeed keeps handles of the group: with them, a second run in this process would talk to the dead one."""
    import deepspeed

    if dist.get_world_size() == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
    deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None


def _host_adam(optimizer: AdamW) -> Optimizer:
    """DeepSpeed's AdamW for host memory, vectorised, where its operator can be built; else torch's own, and a warning that says so."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # no compiler, no ninja: whatever the build raises
        warnings.warn(f"DeepSpeed's CPU Adam cannot be built here; torch's AdamW does the same, slower: {error}", stacklevel=2)
        return optimizer
    given = optimizer.defaults
    fast: Optimizer = DeepSpeedCPUAdam(
        optimizer.param_groups, lr=given["lr"], betas=given["betas"], eps=given["eps"], weight_decay=0.0, adamw_mode=True
    )
    return fast


@contextmanager
def _switches(world: World, kind: str) -> Iterator[None]:
    """Accelerate takes up DeepSpeed only with these variables set, and with `cpu=True` it would ignore the plugin without a word."""
    if world.size == 1:  # DeepSpeed asks for the launcher's variables all along, also where there was no launcher
        os.environ.update(dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1"))
    wanted = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": kind, "ACCELERATE_USE_CPU": "false"}
    if kind == "cpu":
        wanted["ACCELERATE_TORCH_DEVICE"] = kind  # or it would take a GPU where there is one
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _plugin(stage: int, config: Config) -> DeepSpeedPlugin:
    """DeepSpeed's whole configuration, from ours; accumulation is ours, so it is told 1. Every argument is given, or
    Accelerate would look for it in the environment."""
    plugin = DeepSpeedPlugin(
        zero_stage=stage,
        gradient_accumulation_steps=1,
        gradient_clipping=config.train.clip or 0.0,
        offload_optimizer_device="none" if config.shard.offload == "none" else "cpu",
        offload_param_device="none",
        offload_optimizer_nvme_path="none",
        offload_param_nvme_path="none",
        zero3_init_flag=False,  # it would import transformers
        zero3_save_16bit_model=False,
        enable_msamp=False,
    )
    # Accelerate 1.15 hands the settings to transformers as well, and fails where that is not installed; it can go when
    # `DeepSpeedPlugin.set_deepspeed_weakref` asks `is_transformers_available()` first.
    plugin.set_deepspeed_weakref = lambda: None
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": config.batch.micro,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    plugin.deepspeed_config["zero_optimization"] |= {
        "stage3_param_persistence_threshold": 0,  # or small parameters would stay whole on every rank, and stale after a restore
        "overlap_comm": False,
    }
    return plugin


def _let_go_of_gathered(prepared: Prepared) -> None:
    """ZeRO-3 keeps parameters whole that it will soon need again; what is read from or written into their pieces must not pass those by."""
    if flat.stage(prepared) == 3:
        prepared.wrapped.optimizer._partition_all_parameters()  # type: ignore[union-attr, operator]


def _gathered(tensor: Tensor) -> AbstractContextManager[Any]:
    """A parameter that is spread over the ranks, whole for as long as the context lasts."""
    if not hasattr(tensor, "ds_id"):
        return nullcontext()
    import deepspeed  # seconds of import that runs without it should not pay

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([tensor])
    return context


def _put_moments(prepared: Prepared, moments: Mapping[str, Tensor]) -> None:
    state, fragments = prepared.optimizer.state, flat.fragments(prepared)
    kinds: dict[str, list[str]] = {}
    for key in moments:
        name, _, moment = key.rpartition("/")
        kinds.setdefault(name, []).append(moment)
    state.clear()
    for name, parameter, master in flat.learning(prepared):
        for moment in kinds.get(name, []):
            whole = moments[f"{name}/{moment}"]
            if whole.ndim == 0:
                state[master][moment] = whole.to(master.device, copy=True) if isinstance(prepared.optimizer, AdamW) else int(whole)
                continue
            if moment not in state[master]:
                state[master][moment] = torch.zeros_like(master, requires_grad=False)
            if fragment := fragments.get(id(parameter)):
                fragment.of(state[master][moment]).copy_(fragment.of_whole(whole))


def _strategy(stage: int) -> Strategy:
    return Strategy(
        f"zero{stage}",
        params_sharded=stage == 3,
        equal_passes=stage > 1,
        fills_meta=False,
        start=partial(start, stage),
        prepare=prepare,
        one_pass=one_pass,
        update=update,
        masters=flat.masters,
        publish=publish,
        take=take,
        put=put,
        held=held,
        end=end,
    )


ZERO1, ZERO2, ZERO3 = (_strategy(stage) for stage in (1, 2, 3))
