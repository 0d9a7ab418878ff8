"""Every refusal that needs neither data nor model: on the login node, without torch, all problems at once."""

import re
from collections.abc import Mapping
from pathlib import Path

from sft_dist import kinds
from sft_dist.config import Config
from sft_dist.errors import ConfigError, MachineError
from sft_dist.parse import flat
from sft_dist.plan import World
from sft_dist.redact import secrets
from sft_dist.units import Target

NOT_BUILT = {
    "task": ("segment", "text"),
    "data.name": ("masks", "csv"),
    "data.bad": ("skip",),
}

WITHOUT_BATCH_NORM = ("vit", "convnext", "swin")  # beginnings of names; these normalise each sample by itself
SLOW_FP16 = "precision = fp16 is for GPUs: on CPU torch computes it 7 to 27 times slower than fp32; use fp32, or train.allow_emulated: true"
ON = ("1", "true", "t", "yes", "y", "on")  # what Accelerate takes for true
OFF = ("0", "false", "f", "no", "n", "off")


def check(config: Config, world: World, env: Mapping[str, str], fresh: bool = True) -> None:
    """Every refusal that needs neither data nor model; no torch. Raises ConfigError, or MachineError if only the machine is at fault.

    fresh: the model will be filled from `model.weights`; not so where a checkpoint has taken their place.
    """
    wrong = [
        *_not_built(config),
        *kinds.check(config),
        *_contradictions(config),
        *_secrets(config, env),
        *_sharding(config, world),
        *(_weights(config) if fresh else []),
    ]
    if config.batch.total < world.size:
        wrong.append(
            f"batch.total = {config.batch.total} is fewer than the {world.size} ranks: {world.size - config.batch.total} would have "
            f"nothing to do; use batch.total >= {world.size}, or fewer processes"
        )
    machine = [*_world(config, world, env), *_environment(config, env), *_processor(config)]
    if wrong:
        raise ConfigError([*wrong, *machine])
    if machine:
        raise MachineError(machine)


def _not_built(config: Config) -> list[str]:
    values = flat(config)
    return [f"{key} = {values[key]!r} is not built yet" for key, missing in NOT_BUILT.items() if values[key] in missing]


def _contradictions(config: Config) -> list[str]:
    model, optim, wrong = config.model, config.optim, []
    if model.norm == "frozen" and model.weights == "none" and not model.name.startswith(WITHOUT_BATCH_NORM):
        wrong.append("model.norm = 'frozen' with model.weights = 'none' would leave every batch norm at identity; use model.norm: train")
    if model.weights == "none" and model.train != "all":
        wrong.append(f"model.train = {model.train!r} with model.weights = 'none' would freeze random features; use model.train: all")
    if model.norm == "sync" and config.device == "cpu":
        wrong.append("model.norm = 'sync' needs GPUs: torch's SyncBatchNorm does not run on CPU; use frozen or train")
    if optim.nesterov and not optim.momentum:
        wrong.append("optim.nesterov needs optim.momentum > 0")
    low, high = config.data.crop_scale
    if not 0 < low <= high <= 1:
        wrong.append(f"data.crop_scale = [{low}, {high}]; use 0 < smallest <= largest <= 1")
    if config.data.resize and config.data.resize < config.data.size:
        wrong.append(f"data.resize = {config.data.resize} is less than data.size = {config.data.size}: the crop would be padded with black")
    if min(config.data.std) <= 0:
        wrong.append(f"data.std = {list(config.data.std)}; every deviation must be above 0")
    if config.data.classes is not None and len(set(config.data.classes)) != len(config.data.classes):
        wrong.append("data.classes names a class twice")
    if config.stop.when and (metric := Target.parse(config.stop.when).metric) not in (known := kinds.SCORES.get(config.task, (metric,))):
        wrong.append(f"stop.when watches {metric}, which {config.task} does not score; use {', '.join(known)}")
    return wrong


def _sharding(config: Config, world: World) -> list[str]:
    shard, wrong = config.shard, []
    may_offload = {
        "none": ("ddp", "zero1", "zero2", "zero3", "fsdp"),
        "optimizer": ("zero1", "zero2", "zero3"),
        "params": ("fsdp",),
    }
    if shard.strategy not in (able := may_offload[shard.offload]):
        wrong.append(f"shard.offload = {shard.offload!r} with shard.strategy = {shard.strategy!r}; it is for {', '.join(able)}")
    if shard.offload != "none" and config.device == "cpu" and not config.train.allow_emulated:
        wrong.append(
            f"shard.offload = {shard.offload!r} moves from GPUs to host memory, but device = cpu; use shard.offload: none, or "
            "train.allow_emulated: true to try it out"
        )
    if shard.strategy != "fsdp" and not (shard.reshard_after_forward and shard.hybrid is None):
        wrong.append(f"shard.reshard_after_forward and shard.hybrid are for fsdp, but shard.strategy = {shard.strategy!r}; leave them out")
    if shard.hybrid and world.size % shard.hybrid:
        wrong.append(f"shard.hybrid = {shard.hybrid} ranks per group do not divide {world.size} ranks; use a divisor of {world.size}")
    if shard.strategy in ("zero3", "fsdp") and config.eval.where == "rank0":
        wrong.append(
            f"eval.where = 'rank0' with shard.strategy = {shard.strategy!r}: a forward pass needs every rank's part of the parameters; use all"
        )
    return wrong


def _weights(config: Config) -> list[str]:
    weights = config.model.weights
    if weights.startswith("run:"):
        run = Path(weights.removeprefix("run:"))
        if not (run / "config.yaml").is_file():
            return [f"model.weights = {weights!r}: {run} is not the folder of a run (no config.yaml in it)"]
        if not any((run / "checkpoints").glob("step-*/MANIFEST.json")):
            return [f"model.weights = {weights!r}: that run has no checkpoint yet"]
    elif weights.endswith((".safetensors", ".pth", ".pt")):
        if not Path(weights).is_file():
            return [f"model.weights = {weights!r}: there is no such file (from {Path.cwd()})"]
    elif weights != "none" and not re.fullmatch(r"[A-Z][A-Z0-9_]*|\w+_Weights\.\w+", weights):
        return [
            f"model.weights = {weights!r}; use DEFAULT, an enum name like IMAGENET1K_V2, a .safetensors or .pth file, run:<folder> or none"
        ]
    return []


def _secrets(config: Config, env: Mapping[str, str]) -> list[str]:
    """What sounds like a secret in the environment must not stand in the config, which is written into the run's folder."""
    return [
        f"{key} holds the value of the environment variable {name}; config.yaml would keep that; leave it out"
        for key, written in flat(config).items()
        for name, value in secrets(env).items()
        if isinstance(written, str) and value in written
    ]


def _world(config: Config, world: World, env: Mapping[str, str]) -> list[str]:
    wanted = {"run.expect_world": config.run.expect_world, "SFT_EXPECT_WORLD": env.get("SFT_EXPECT_WORLD")}
    return [
        f"{name} = {value}, but {world.size} process{'es' * (world.size > 1)} came. `accelerate launch --cpu --num_processes N` starts only "
        "one and says nothing; use torchrun --nproc-per-node N"
        for name, value in wanted.items()
        if value and str(value) != str(world.size)
    ]


def _environment(config: Config, env: Mapping[str, str]) -> list[str]:
    """What Accelerate would obey in silence although the config says otherwise."""
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


def _processor(config: Config) -> list[str]:
    if config.precision == "tf32" and config.device == "cpu":
        return ["precision = tf32 is an arithmetic of GPUs; on CPU use fp32"]
    if config.precision == "fp16" and config.device == "cpu" and not config.train.allow_emulated:
        return [SLOW_FP16]
    if config.precision != "bf16" or config.device != "cpu" or config.train.allow_emulated or native_bf16():
        return []
    return [
        "precision = bf16, but this processor only emulates it, 13 to 18 times slower than fp32; use fp32, or train.allow_emulated: true"
    ]


def native_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (avx512_bf16, amx_bf16, or Arm's bf16)."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            flags = {word for line in file if line.startswith(("flags", "Features")) for word in line.split()}
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
