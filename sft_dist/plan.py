"""What will be done, decided with values alone: the world, every early refusal, and the arithmetic of a run."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from sft_dist.config import Config, Span, Target
from sft_dist.errors import ConfigError, MachineError
from sft_dist.parse import flat

SCORES = {"classify": ("val/loss", "val/top1", "val/top5", "val/precision_macro", "val/recall_macro", "val/f1_macro")}

NOT_BUILT = {
    "task": ("detect", "segment", "text"),
    "data.name": ("voc", "coco", "masks", "csv"),
    "data.bad": ("skip",),
    "save.background": (True,),
    "shard.strategy": ("zero1", "zero2", "zero3", "fsdp"),
    "precision": ("fp16",),
    "track.wandb": ("online", "offline"),
}

MAY_CHANGE = (  # on resume: these do not shape the curve; of the data, the fingerprint is compared instead of the place
    "batch.micro", "shard.", "device", "data.workers", "data.root", "data.download", "eval.where", "eval.micro", "eval.test",
    "save.", "stop.", "track.", "run.", "train.duration", "train.allow_emulated",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """The processes of this run, as the launcher's environment tells it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "World":
        """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE: all of them (torchrun, accelerate launch) or none (one process)."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        found = {name: env[name] for name in names if env.get(name)}
        if not found:
            if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
                raise MachineError(
                    f"srun started {env['SLURM_STEP_NUM_TASKS']} tasks without a launcher: each would train alone; use slurm/finetune.sh"
                )
            return cls()
        try:
            values = [int(found[name]) for name in names]
        except (KeyError, ValueError):
            told = ", ".join(f"{name}={env.get(name, '(unset)')}" for name in names)
            raise MachineError(f"the launcher's variables are incomplete or not numbers: {told}; start with torchrun") from None
        return cls(*values)


@dataclass(frozen=True)
class Plan:
    """A run in numbers. Steps are optimizer steps; the periods may be fractions of a step and are rounded where they are used."""

    world: int
    global_batch: int
    micro_batch: int
    samples: int
    val_samples: int
    seed: int
    total_steps: int
    warmup_steps: int
    eval_every: Fraction
    save_every: Fraction
    track_every: Fraction
    schedule: str
    step_every: Fraction
    gamma: float
    final: float
    strategy: str
    precision: str
    timeout_s: int

    @property
    def samples_per_rank(self) -> list[int]:
        return [len(range(rank, self.global_batch, self.world)) for rank in range(self.world)]

    @property
    def passes_per_rank(self) -> list[int]:
        return [-(-share // self.micro_batch) for share in self.samples_per_rank]

    @property
    def epochs(self) -> float:
        return self.total_steps * self.global_batch / self.samples

    def to_json(self) -> str:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        derived = {"samples_per_rank": self.samples_per_rank, "passes_per_rank": self.passes_per_rank, "epochs": self.epochs}
        return json.dumps({**fields, **derived}, indent=1, default=str) + "\n"


def make_plan(config: Config, world: World, samples: int, val_samples: int) -> Plan:
    """The arithmetic of a run over `samples` training samples. Raises ConfigError where it leaves nothing to do."""
    total = config.batch.total

    def steps(length: str) -> Fraction:
        return Span.parse(length).steps(samples, total)

    plan = Plan(
        world=world.size,
        global_batch=total,
        micro_batch=config.batch.micro,
        samples=samples,
        val_samples=val_samples,
        seed=config.train.seed,
        total_steps=int(steps(config.train.duration)),
        warmup_steps=int(steps(config.schedule.warmup)),
        eval_every=steps(config.eval.every),
        save_every=steps(config.save.every),
        track_every=steps(config.track.every),
        schedule=config.schedule.name,
        step_every=steps(config.schedule.step_every),
        gamma=config.schedule.gamma,
        final=config.schedule.final,
        strategy=config.shard.strategy,
        precision=config.precision,
        timeout_s=7200 if config.eval.where == "rank0" else 1800,
    )
    problems = []
    if samples < total:
        problems.append(f"batch.total = {total}, but there are only {samples} training samples; use batch.total <= {samples}")
    if plan.total_steps < 1:
        problems.append(
            f"train.duration = {config.train.duration} of {samples} samples is less than one step of batch.total = {total}; train longer"
        )
    elif plan.warmup_steps > plan.total_steps:
        problems.append(
            f"schedule.warmup = {config.schedule.warmup} is {plan.warmup_steps} steps, longer than the whole run of {plan.total_steps}"
        )
    if problems:
        raise ConfigError(problems)
    return plan


def check(config: Config, world: World, env: Mapping[str, str]) -> None:
    """Every refusal that needs neither data nor model; no torch. Raises ConfigError, or MachineError if only the machine is at fault."""
    wrong = [*_not_built(config), *_contradictions(config), *_weights(config)]
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


def changed_keys(old: Config, new: Config) -> list[str]:
    """The keys in which two configs differ and that shape the curve, as `key: old -> new`."""
    before, after = flat(old), flat(new)
    differing = [key for key in after if before.get(key) != after[key] and not key.startswith(MAY_CHANGE)]
    return [f"{key}: {before.get(key)!r} -> {after[key]!r}" for key in differing]


def _not_built(config: Config) -> list[str]:
    values = flat(config)
    return [f"{key} = {values[key]!r} is not built yet" for key, missing in NOT_BUILT.items() if values[key] in missing]


def _contradictions(config: Config) -> list[str]:
    model, optim, wrong = config.model, config.optim, []
    if model.norm == "frozen" and model.weights == "none" and not model.name.startswith("vit"):
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
    if min(config.data.std) <= 0:
        wrong.append(f"data.std = {list(config.data.std)}; every deviation must be above 0")
    if config.data.classes is not None and len(set(config.data.classes)) != len(config.data.classes):
        wrong.append("data.classes names a class twice")
    if config.stop.when and (metric := Target.parse(config.stop.when).metric) not in (known := SCORES.get(config.task, (metric,))):
        wrong.append(f"stop.when watches {metric}, which {config.task} does not score; use {', '.join(known)}")
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
        return [f"model.weights = {weights!r}; use DEFAULT, an enum name like IMAGENET1K_V2, a .safetensors or .pth file, run:<folder> or none"]
    return []


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
    if (told := env.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("no", asked):
        wrong.append(f"ACCELERATE_MIXED_PRECISION = {told}, but precision = {config.precision}; unset it, or write precision: {told}")
    for variable, strategy in (("ACCELERATE_USE_DEEPSPEED", "zero1, zero2 or zero3"), ("ACCELERATE_USE_FSDP", "fsdp")):
        if env.get(variable, "").lower() in ("1", "true", "yes") and config.shard.strategy == "ddp":
            wrong.append(f"{variable} = {env[variable]}, but shard.strategy = ddp; unset it, or write shard.strategy: {strategy}")
    if (steps := env.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        wrong.append(f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS = {steps}, but accumulation follows from batch.total and batch.micro; unset it")
    if env.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") and config.device == "cuda":
        wrong.append(f"ACCELERATE_USE_CPU = {env['ACCELERATE_USE_CPU']}, but device = cuda; unset it, or write device: cpu")
    return wrong


def _processor(config: Config) -> list[str]:
    if config.precision != "bf16" or config.device != "cpu" or config.train.allow_emulated or native_bf16():
        return []
    return ["precision = bf16, but this processor only emulates it, 13 to 18 times slower than fp32; use fp32, or train.allow_emulated: true"]


def native_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (avx512_bf16, amx_bf16, or Arm's bf16)."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = {word for line in file if line.startswith(("flags", "Features")) for word in line.split()}
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def processors() -> int:
    """How many processors this process may use: the affinity mask, which knows of Slurm's share; os.cpu_count() does not."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_processes(config: Config, world: World) -> int:
    """`data.workers`, with `auto` worked out: the processors of this rank less the one that trains, at most 8."""
    if config.data.workers != "auto":
        return int(config.data.workers)
    return max(0, min(8, processors() // world.local_size - 1))


def describe(plan: Plan, config: Config, device: str, counts: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """The plan as (what, how much) lines for people, the world first; `counts` are the model's, where it was built."""
    seen = plan.total_steps * plan.global_batch
    remaining = -seen % plan.samples
    shares, passes = sorted(set(plan.samples_per_rank)), sorted(set(plan.passes_per_rank))
    lines = [
        ("world", f"{plan.world} rank{'s' * (plan.world > 1)}, {plan.strategy}, {plan.precision}, {device}"),
        ("data", f"{config.data.name}: {plan.samples} training and {plan.val_samples} validation samples"),
        ("batch", f"{plan.global_batch} a step = {_either(shares)} a rank in {_either(passes)} micro-batch(es) of up to {plan.micro_batch}"),
        ("length", f"{plan.total_steps} steps = {plan.epochs:.4g} epochs; {remaining} samples of the last epoch stay unseen"),
        ("schedule", f"{plan.schedule}, {plan.warmup_steps} steps of warm-up, peak rate {config.optim.lr:g}"),
        ("evaluate", f"every {config.eval.every} ({float(plan.eval_every):.4g} steps), by {config.eval.where}"),
        ("save", f"every {config.save.every} ({float(plan.save_every):.4g} steps), the newest {config.save.keep} and the best stay"),
    ]
    if counts:
        whole = counts["model_bytes"] + counts["optimizer_bytes"]
        lines += [
            ("model", f"{config.model.name}: {counts['trained']:,} of {counts['parameters']:,} parameters learn"),
            ("optimizer", f"{config.optim.name}: {counts['optimizer_bytes'] / 2**20:.1f} MiB of state a rank"),
            ("disk", f"{whole / 2**20:.1f} MiB a checkpoint, at most {(config.save.keep + 2) * whole / 2**20:.0f} MiB at once"),
        ]
    return lines


def _either(values: list[int]) -> str:
    return " or ".join(map(str, values))
