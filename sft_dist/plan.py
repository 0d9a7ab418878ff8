"""What will be done, decided with values alone: the world, the arithmetic of a run, and what may change when it is resumed."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sft_dist.config import Config
from sft_dist.errors import ConfigError, MachineError
from sft_dist.parse import flat
from sft_dist.units import Span

MAY_CHANGE = (  # on resume: these do not shape the curve; of the data, the fingerprint is compared instead of the place
    "batch.micro", "shard.", "device", "data.workers", "data.root", "data.download", "eval.where", "eval.micro", "eval.test",
    "save.", "stop.", "track.", "report.", "watch.", "run.", "train.duration", "train.allow_emulated", "model.activation_checkpointing",
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
            if env.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in env:
                raise MachineError(
                    f"srun started {env['SLURM_STEP_NUM_TASKS']} tasks without a launcher: each would train alone; use slurm/finetune.sh"
                )
            return cls()
        try:
            world = cls(*(int(found[name]) for name in names))
            if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size):
                raise ValueError("a rank outside its world")
        except (KeyError, ValueError):
            told = ", ".join(f"{name}={env.get(name, '(unset)')}" for name in names)
            raise MachineError(f"the launcher's variables are incomplete or contradictory: {told}; start with torchrun") from None
        return world


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
        timeout_s=timeout_s(config),
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
    if config.model.norm == "sync" and len(set(plan.passes_per_rank)) > 1:
        problems.append(
            f"model.norm = sync needs as many micro-batches on each rank, these make {_either(plan.passes_per_rank)}; "
            f"use a batch.total that {world.size} ranks share evenly"
        )
    if problems:
        raise ConfigError(problems)
    return plan


def timeout_s(config: Config) -> int:
    """How long a rank waits for the others; longer where rank 0 evaluates alone, and longer than a checkpoint, or the end of rank 0, may take."""
    end_s = config.report.limit_s + config.track.limit_s  # rank 0 waits there for the report and for W&B, the others for it
    return max(7200 if config.eval.where == "rank0" else 1800, config.save.limit_s + 600, end_s + 600)


def changed_keys(old: Config, new: Config) -> list[str]:
    """The keys in which two configs differ and that shape the curve, as `key: old -> new`."""
    before, after = flat(old), flat(new)
    differing = [key for key in after if before.get(key) != after[key] and not key.startswith(MAY_CHANGE)]
    return [f"{key}: {before.get(key)!r} -> {after[key]!r}" for key in differing]


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
        (
            "batch",
            f"{plan.global_batch} a step = {_either(shares)} a rank in {_either(passes)} micro-batch(es) of up to {plan.micro_batch}",
        ),
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
