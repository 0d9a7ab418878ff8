"""What the ways of sharding cannot do is refused on paper, with what to write instead."""

import pytest
from given import a_config

from sft_dist.errors import ConfigError, MachineError
from sft_dist.plan import World
from sft_dist.refuse import check

TWO = World(0, 2, 0, 2)


@pytest.mark.parametrize(("changes", "told"), [
    ({"shard__offload": "optimizer"}, "shard.offload = 'optimizer' with shard.strategy = 'ddp'; it is for zero1, zero2, zero3"),
    ({"shard__strategy": "zero2", "shard__offload": "params"}, "shard.offload = 'params' with shard.strategy = 'zero2'; it is for fsdp"),
    ({"shard__strategy": "fsdp", "shard__offload": "optimizer"}, "shard.offload = 'optimizer' with shard.strategy = 'fsdp'; it is for zero1, zero2, zero3"),
    (
        {"shard__strategy": "fsdp", "shard__offload": "params", "device": "cpu"},
        "shard.offload = 'params' moves from GPUs to host memory, but device = cpu; use shard.offload: none, or train.allow_emulated: true to try it out",
    ),
    ({"shard__hybrid": 2}, "shard.reshard_after_forward and shard.hybrid are for fsdp, but shard.strategy = 'ddp'; leave them out"),
    (
        {"shard__strategy": "zero3", "shard__reshard_after_forward": False},
        "shard.reshard_after_forward and shard.hybrid are for fsdp, but shard.strategy = 'zero3'; leave them out",
    ),
    ({"shard__strategy": "fsdp", "shard__hybrid": 4}, "shard.hybrid = 4 ranks per group do not divide 2 ranks; use a divisor of 2"),
    (
        {"shard__strategy": "fsdp", "eval__where": "rank0"},
        "eval.where = 'rank0' with shard.strategy = 'fsdp': a forward pass needs every rank's part of the parameters; use all",
    ),
])  # fmt: skip
def test_a_contradiction_is_told_with_a_way_out(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(a_config(**changes), TWO, {}, fresh=False)
    assert told in error.value.problems


@pytest.mark.parametrize("changes", [
    {"shard__strategy": "zero1", "shard__offload": "optimizer"},
    {"shard__strategy": "fsdp", "shard__offload": "params", "device": "cpu", "train__allow_emulated": True},
    {"shard__strategy": "fsdp", "shard__hybrid": 2},
    {"shard__strategy": "fsdp", "shard__reshard_after_forward": False},
    {"shard__strategy": "zero2", "eval__where": "rank0"},
])  # fmt: skip
def test_what_goes_together_passes(changes: dict[str, object]) -> None:
    check(a_config(**changes), TWO, {}, fresh=False)


@pytest.mark.parametrize(("changes", "env", "told"), [
    ({"shard__strategy": "zero1"}, {"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP = true, but shard.strategy = zero1; unset it, or write shard.strategy: fsdp"),
    ({"shard__strategy": "fsdp"}, {"ACCELERATE_USE_DEEPSPEED": "1"}, "ACCELERATE_USE_DEEPSPEED = 1, but shard.strategy = fsdp; unset it, or write shard.strategy: zero1, zero2 or zero3"),
    ({"shard__strategy": "zero1"}, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ACCELERATE_DEEPSPEED_ZERO_STAGE = 3, but shard.strategy = zero1; unset it"),
    ({"shard__strategy": "zero1"}, {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "ACCELERATE_DEEPSPEED_CONFIG_FILE = ds.json, but all settings of DeepSpeed = made from this config; unset it"),
    ({"shard__strategy": "zero3"}, {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE = cpu, but shard.offload = none; unset it"),
    ({"shard__strategy": "zero3", "train__clip": 1.0}, {"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "ACCELERATE_GRADIENT_CLIPPING = 0.5, but train.clip = 1.0; unset it"),
    ({"shard__strategy": "zero3"}, {"ACCELERATE_GRADIENT_CLIPPING": "1"}, "ACCELERATE_GRADIENT_CLIPPING = 1, but train.clip = None; unset it"),
    ({"shard__strategy": "fsdp"}, {"FSDP_OFFLOAD_PARAMS": "true"}, "FSDP_OFFLOAD_PARAMS = true, but shard.offload = none; unset it"),
    ({"shard__strategy": "fsdp", "shard__offload": "params"}, {"FSDP_OFFLOAD_PARAMS": "0"}, "FSDP_OFFLOAD_PARAMS = 0, but shard.offload = params; unset it"),
    ({"shard__strategy": "fsdp"}, {"FSDP_RESHARD_AFTER_FORWARD": "false"}, "FSDP_RESHARD_AFTER_FORWARD = false, but shard.reshard_after_forward = true; unset it"),
    ({"shard__strategy": "fsdp"}, {"FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}, "FSDP_SHARDING_STRATEGY = SHARD_GRAD_OP, but shard.reshard_after_forward = true, and shard.hybrid = None; unset it"),
    ({"shard__strategy": "fsdp", "shard__hybrid": 2}, {"FSDP_SHARDING_STRATEGY": "1"}, "FSDP_SHARDING_STRATEGY = 1, but shard.reshard_after_forward = true, and shard.hybrid = 2; unset it"),
    ({"shard__strategy": "fsdp"}, {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "FSDP_ACTIVATION_CHECKPOINTING = true, but model.activation_checkpointing = false; unset it"),
])  # fmt: skip
def test_an_environment_that_disagrees_is_refused_with_both_values(changes: dict[str, object], env: dict[str, str], told: str) -> None:
    with pytest.raises(MachineError) as error:
        check(a_config(**changes), TWO, env, fresh=False)
    assert error.value.problems == (told,)


@pytest.mark.parametrize(("changes", "env"), [
    ({"shard__strategy": "zero3", "train__clip": 1.0}, {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_GRADIENT_CLIPPING": "1.0",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none",
    }),
    ({"shard__strategy": "zero3", "train__clip": 1.0}, {"ACCELERATE_GRADIENT_CLIPPING": "1"}),
    ({"shard__strategy": "zero3", "train__clip": 1.0}, {"ACCELERATE_GRADIENT_CLIPPING": "none"}),  # accelerate launch always sets it
    ({"shard__strategy": "zero3"}, {"ACCELERATE_GRADIENT_CLIPPING": "0.0"}),
    ({"shard__strategy": "fsdp"}, {  # what accelerate launch --use_fsdp sets by itself
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "1",
        "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_MIN_NUM_PARAMS": "100000000",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",
    }),
    ({"shard__strategy": "fsdp", "shard__reshard_after_forward": False}, {
        "FSDP_VERSION": "2", "FSDP_SHARDING_STRATEGY": "FULL_SHARD", "FSDP_RESHARD_AFTER_FORWARD": "False",
    }),
    ({"shard__strategy": "fsdp", "shard__hybrid": 2}, {"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}),
    ({"shard__strategy": "zero1"}, {"FSDP_OFFLOAD_PARAMS": "true"}),  # of an FSDP that nobody asked for
])  # fmt: skip
def test_an_environment_that_agrees_passes(changes: dict[str, object], env: dict[str, str]) -> None:
    check(a_config(**changes), TWO, env, fresh=False)
