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
        "shard.offload = 'params' moves from GPUs to host memory, but device = cpu; use shard.offload: none",
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
])  # fmt: skip
def test_an_environment_that_disagrees_is_refused_with_both_values(changes: dict[str, object], env: dict[str, str], told: str) -> None:
    with pytest.raises(MachineError) as error:
        check(a_config(**changes), TWO, env, fresh=False)
    assert error.value.problems == (told,)


def test_an_environment_that_agrees_passes() -> None:
    env = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_GRADIENT_CLIPPING": "1.0",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none",
    }
    check(a_config(shard__strategy="zero3", train__clip=1.0), TWO, env, fresh=False)
