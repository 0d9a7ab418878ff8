"""Environment variables that Accelerate, DeepSpeed and FSDP would obey, or pass over, in silence although the config says otherwise."""

from collections.abc import Mapping

from sft_dist.config import Config

ON = ("1", "true", "t", "yes", "y", "on")  # what Accelerate takes for true
OFF = ("0", "false", "f", "no", "n", "off")


def contradictions(config: Config, env: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that says otherwise than the config."""
    wrong = []
    asked = {"fp32": "no", "tf32": "no", "fp64": "no"}.get(config.precision, config.precision)
    if (told := env.get("ACCELERATE_MIXED_PRECISION") or "no") not in ("no", asked):
        instead = f", or write precision: {told}" if told in ("bf16", "fp16") else ""
        wrong.append(f"ACCELERATE_MIXED_PRECISION = {told}, but precision = {config.precision}; unset it{instead}")
    wrong += _deepspeed(config, env)
    wrong += _fsdp(config, env)
    for variable, off in (
        ("ACCELERATE_DYNAMO_BACKEND", ("", "no")),
        ("ACCELERATE_USE_MEGATRON_LM", ("", "false", "0")),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", ("", "false", "0")),
    ):
        if env.get(variable, "").lower() not in off:
            wrong.append(f"{variable} = {env[variable]}, which no key of a config asks for; unset it")
    if (steps := env.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or "1") != "1":
        wrong.append(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS = {steps}, but accumulation follows from batch.total and batch.micro; unset it"
        )
    if env.get("ACCELERATE_USE_CPU", "").lower() in ON and config.device == "cuda":
        wrong.append(f"ACCELERATE_USE_CPU = {env['ACCELERATE_USE_CPU']}, but device = cuda; unset it, or write device: cpu")
    return wrong


def _deepspeed(config: Config, env: Mapping[str, str]) -> list[str]:
    """DeepSpeed's settings come from the config alone; variables that say otherwise would be passed over in silence."""
    stage = config.shard.strategy.removeprefix("zero") if config.shard.strategy.startswith("zero") else ""
    if env.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ON and not stage:
        return [
            f"ACCELERATE_USE_DEEPSPEED = {env['ACCELERATE_USE_DEEPSPEED']}, but shard.strategy = {config.shard.strategy}; unset it, or write "
            "shard.strategy: zero1, zero2 or zero3"
        ]
    offload, clip = config.shard.offload, config.train.clip
    ours = {
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("shard.strategy", config.shard.strategy, (stage,)),
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("all settings of DeepSpeed", "made from this config", ("none",)),
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("shard.offload", offload, ("none" if offload == "none" else "cpu",)),
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("shard.offload", offload, ("none",)),
        "ACCELERATE_GRADIENT_CLIPPING": ("train.clip", clip, ("none", "auto", _number(clip or 0))),  # none: the launcher's way of unset
    }
    return _disagreeing(ours, env) if stage else []


def _fsdp(config: Config, env: Mapping[str, str]) -> list[str]:
    """As for DeepSpeed, what a key of ours decides. The other FSDP_* variables say how Accelerate's own FSDP finds its units, prefetches and
    saves; ours comes without Accelerate, and no number and no rank's share hangs on them."""
    shard, again = config.shard, config.model.activation_checkpointing
    if shard.strategy != "fsdp":
        told = env.get("ACCELERATE_USE_FSDP", "")
        instead = f"but shard.strategy = {shard.strategy}; unset it, or write shard.strategy: fsdp"
        return [f"ACCELERATE_USE_FSDP = {told}, {instead}"] if told.lower() in ON else []
    full, hybrid = shard.reshard_after_forward, shard.hybrid is not None
    ways = {(True, False): "FULL_SHARD", (False, False): "SHARD_GRAD_OP", (True, True): "HYBRID_SHARD", (False, True): "HYBRID_SHARD_ZERO2"}
    numbers = {"FULL_SHARD": "1", "SHARD_GRAD_OP": "2", "HYBRID_SHARD": "4", "HYBRID_SHARD_ZERO2": "5"}  # torch's ShardingStrategy
    way, spread = ways[full, hybrid], f"{str(full).lower()}, and shard.hybrid = {shard.hybrid}"
    ours: dict[str, tuple[str, object, tuple[str, ...]]] = {
        "FSDP_OFFLOAD_PARAMS": ("shard.offload", shard.offload, ON if shard.offload == "params" else OFF),
        "FSDP_ACTIVATION_CHECKPOINTING": ("model.activation_checkpointing", str(again).lower(), ON if again else OFF),
    }
    if env.get("FSDP_VERSION") == "2" or not env.get("FSDP_SHARDING_STRATEGY"):  # as Accelerate chooses between the two
        ours["FSDP_RESHARD_AFTER_FORWARD"] = ("shard.reshard_after_forward", str(full).lower(), ON if full else OFF)
    else:
        ours["FSDP_SHARDING_STRATEGY"] = ("shard.reshard_after_forward", spread, (way.lower(), numbers[way]))
    return _disagreeing(ours, env)


def _disagreeing(ours: Mapping[str, tuple[str, object, tuple[str, ...]]], env: Mapping[str, str]) -> list[str]:
    """variable -> (our key, its value, what the variable may say) -> the refusals."""
    return [
        f"{variable} = {env[variable]}, but {key} = {value}; unset it"
        for variable, (key, value, fits) in ours.items()
        if env.get(variable) and _number(env[variable]) not in fits
    ]


def _number(told: object) -> str:
    """1, "1" and "1.0" alike; anything else in small letters."""
    try:
        return f"{float(str(told)):g}"
    except ValueError:
        return str(told).lower()
