"""The world that the environment tells of, the arithmetic of a run, and what may change on resume."""

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
from given import a_config

from sft_dist import parse, plan
from sft_dist.config import Config
from sft_dist.errors import ConfigError, MachineError
from sft_dist.plan import World, make_plan
from sft_dist.schedule import due

GOLDEN = Path(__file__).parent / "golden"
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_the_launchers_variables_make_the_world() -> None:
    assert World.from_env({**TORCHRUN, "OTHER": "x"}) == World(rank=3, size=4, local_rank=1, local_size=2)


@pytest.mark.parametrize(
    "env", [{}, {"RANK": ""}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {"SLURM_STEP_NUM_TASKS": "4"}, {"SLURM_PROCID": "0"}]
)
def test_without_a_launcher_the_world_is_one_process(env: dict[str, str]) -> None:
    assert World.from_env(env) == World(rank=0, size=1, local_rank=0, local_size=1)


@pytest.mark.parametrize("left_out", sorted(TORCHRUN))
def test_an_incomplete_environment_is_refused_with_what_it_holds(left_out: str) -> None:
    env = {name: value for name, value in TORCHRUN.items() if name != left_out}
    with pytest.raises(MachineError, match=rf"{left_out}=\(unset\).*start with torchrun"):
        World.from_env(env)


@pytest.mark.parametrize(
    "wrong",
    [{"RANK": "four"}, {"RANK": "4"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": "2"}, {"LOCAL_WORLD_SIZE": "5"}, {"RANK": "1.0"}],
)
def test_a_contradictory_environment_is_refused_with_what_it_holds(wrong: dict[str, str]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(MachineError, match=f"the launcher's variables are incomplete or contradictory: .*{name}={value}"):
        World.from_env({**TORCHRUN, **wrong})


def test_srun_without_a_launcher_is_refused_where_each_task_would_train_alone() -> None:
    env = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
    with pytest.raises(MachineError, match=r"srun started 4 tasks without a launcher: each would train alone; use slurm/finetune\.sh"):
        World.from_env(env)
    assert World.from_env({**env, **TORCHRUN}).size == 4


@pytest.mark.parametrize(
    ("duration", "samples", "total", "steps"),
    [
        ("25 epochs", 244, 32, 190),  # floor(190.625)
        ("1 epoch", 32, 32, 1),
        ("1 epoch", 63, 32, 1),
        ("1 epoch", 64, 32, 2),
        ("0.5 epochs", 244, 32, 3),
        ("0.29 epochs", 100, 1, 29),  # in floats 28: 0.29 * 100 is 28.999999999999996
        ("7 steps", 244, 32, 7),
        ("100 samples", 244, 32, 3),
        ("100 epochs", 50_000, 128, 39_062),
    ],
)
def test_a_duration_is_a_whole_number_of_steps_rounded_down(duration: str, samples: int, total: int, steps: int) -> None:
    config = a_config(train__duration=duration, batch__total=total)
    assert make_plan(config, World(), samples, 10).total_steps == steps


def test_the_plan_holds_what_the_config_says() -> None:
    config = a_config(
        schedule__name="step",
        schedule__warmup="1 epoch",
        schedule__step_every="2 epochs",
        schedule__gamma=0.5,
        train__seed=7,
        precision="fp64",
    )
    made = make_plan(config, World(size=3, local_size=3), 244, 60)
    assert (made.world, made.global_batch, made.micro_batch, made.samples, made.val_samples, made.seed) == (3, 32, 8, 244, 60, 7)
    assert (made.total_steps, made.warmup_steps, made.schedule, made.step_every, made.gamma) == (190, 7, "step", Fraction(61, 4), 0.5)
    assert (made.eval_every, made.save_every, made.track_every) == (Fraction(61, 8), Fraction(61, 8), Fraction(1))
    assert (made.strategy, made.precision, made.timeout_s) == ("ddp", "fp64", 1800)
    assert made.epochs == 190 * 32 / 244


def test_ranks_wait_longer_where_rank_0_or_its_disk_may_take_longer() -> None:
    assert make_plan(a_config(eval__where="rank0"), World(), 244, 60).timeout_s == 7200
    assert make_plan(a_config(save__limit_s=3000), World(), 244, 60).timeout_s == 3600
    assert make_plan(a_config(report__limit_s=3000, track__limit_s=60), World(), 244, 60).timeout_s == 3660


@pytest.mark.parametrize(
    ("total", "world", "micro", "samples", "passes"),
    [
        (33, 2, 7, [17, 16], [3, 3]),
        (32, 1, 8, [32], [4]),
        (32, 3, 8, [11, 11, 10], [2, 2, 2]),
        (4, 4, 64, [1] * 4, [1] * 4),
        (17, 2, 8, [9, 8], [2, 1]),
    ],
)
def test_a_step_is_cut_over_the_ranks_without_rest(total: int, world: int, micro: int, samples: list[int], passes: list[int]) -> None:
    made = make_plan(a_config(batch__total=total, batch__micro=micro), World(size=world, local_size=world), 244, 60)
    assert made.samples_per_rank == samples
    assert made.passes_per_rank == passes
    assert sum(made.samples_per_rank) == total


@pytest.mark.parametrize(("samples", "total"), [(244, 32), (1797, 64), (33, 32), (32, 32), (50_000, 128)])
def test_the_end_of_epoch_k_is_evaluated_at_step_floor_of_k_samples_over_total(samples: int, total: int) -> None:
    made = make_plan(a_config(batch__total=total, train__duration="9 epochs"), World(), samples, 10)
    ends = [step for step in range(1, made.total_steps + 1) if due(step, made.eval_every, made.total_steps)]
    assert ends == [k * samples // total for k in range(1, 10)]


def refused(config: Config, samples: int) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        make_plan(config, World(), samples, 10)
    return error.value.problems


def test_fewer_samples_than_a_step_takes_are_refused() -> None:
    assert refused(a_config(), 31) == ("batch.total = 32, but there are only 31 training samples; use batch.total <= 31",)
    assert make_plan(a_config(), World(), 32, 10).total_steps == 25


def test_a_duration_below_one_step_is_refused() -> None:
    assert refused(a_config(train__duration="0.1 epochs"), 244) == (
        "train.duration = 0.1 epochs of 244 samples is less than one step of batch.total = 32; train longer",
    )


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    assert refused(a_config(train__duration="5 steps", schedule__warmup="1 epoch"), 244) == (
        "schedule.warmup = 1 epoch is 7 steps, longer than the whole run of 5",
    )
    assert make_plan(a_config(train__duration="7 steps", schedule__warmup="1 epoch"), World(), 244, 10).warmup_steps == 7


def test_several_reasons_against_a_plan_are_told_together() -> None:
    assert len(refused(a_config(train__duration="0.1 epochs"), 20)) == 2


FREE = {  # may differ when a run is resumed; every other key shapes the curve
    "batch.micro", "shard.strategy", "shard.offload", "shard.reshard_after_forward", "shard.hybrid", "device", "data.workers", "data.root", "data.download", "eval.where", "eval.micro", "eval.test",
    "save.every", "save.keep", "save.background", "save.on_error", "save.limit_s", "stop.patience", "stop.when", "track.wandb", "track.project", "track.entity",
    "track.group", "track.job_type", "track.tags", "track.notes", "track.limit_s", "track.csv", "track.every", "track.predictions", "track.artifact", "track.tensorboard", "track.communication", "report.write", "report.limit_s",
    "watch.startup_s", "watch.step_s", "watch.evaluation_s", "watch.save_s", "run.dir", "run.name", "run.expect_world", "run.shared", "train.duration", "train.allow_emulated", "model.activation_checkpointing",
}  # fmt: skip


OTHER = {  # key -> a value that the small config does not have
    "task": "text", "report.write": "page", "track.artifact": "export", "precision": "fp64", "device": "cpu", "data.name": "folder", "data.classes": ["0", "1"], "data.void": [0], "data.augment": "none", "data.crop_scale": [0.5, 1.0],
    "data.mean": [0.0, 0.0, 0.0], "data.std": [1.0, 1.0, 1.0], "data.workers": 2, "data.bad": "skip", "model.head": "new", "model.train": "all", "model.norm": "train",
    "model.dropout": "none", "optim.name": "adamw", "optim.betas": [0.5, 0.5], "schedule.name": "step", "schedule.warmup": "1 step", "schedule.step_every": "1 step",
    "train.duration": "1 step", "eval.every": "1 step", "eval.where": "rank0", "save.every": "2 steps", "save.on_error": "continue", "shard.strategy": "fsdp", "shard.offload": "params", "ema.decay": 0.99, "stop.when": "val/top1 >= 1",
    "track.wandb": "offline", "track.tags": ["a"], "track.every": "2 steps",
}  # fmt: skip


def another(key: str, value: object) -> object:
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.125
    texts = ("data.root", "data.dataset", "model.name", "model.weights", "run.dir", "run.name")
    return "other" if key in texts or key.startswith("track.") else 9


@pytest.mark.parametrize("key", list(parse.flat(a_config())))
def test_every_key_either_may_change_on_resume_or_is_named(key: str) -> None:
    before = a_config()
    value = another(key, parse.flat(before)[key])
    after = a_config(**{key.replace(".", "__"): value})
    assert parse.flat(before)[key] != parse.flat(after)[key]
    expected = [] if key in FREE else [f"{key}: {parse.flat(before)[key]!r} -> {parse.flat(after)[key]!r}"]
    assert plan.changed_keys(before, after) == expected


def test_all_changed_keys_are_named() -> None:
    changed = plan.changed_keys(a_config(), a_config(optim__lr=0.1, batch__micro=4, train__seed=1))
    assert changed == ["optim.lr: 0.001 -> 0.1", "train.seed: 0 -> 1"]


def lines(made: list[tuple[str, str]]) -> str:
    return "".join(f"{what:>9}  {how_much}\n" for what, how_much in made)


def test_the_plan_reads_as_it_always_did() -> None:
    small = a_config()
    large = a_config(
        batch__total=256, batch__micro=64, schedule__name="cosine", schedule__warmup="1 epoch", optim__name="adamw", optim__lr=3e-4, eval__where="rank0",
        train__duration="10 epochs", precision="bf16",
    )  # fmt: skip
    counts = {"trained": 2_049_000, "parameters": 25_557_032, "model_bytes": 102_441_128, "optimizer_bytes": 16_392_000}
    one = plan.describe(make_plan(small, World(), 244, 60), small, "cpu")
    many = plan.describe(make_plan(large, World(size=6, local_size=6), 50_000, 10_000), large, "cuda", counts)
    assert lines(one) + "\n" + lines(many) == (GOLDEN / "plan.txt").read_text()


def test_the_plan_is_written_as_json_with_what_follows_from_it() -> None:
    written = json.loads(make_plan(a_config(batch__total=33, batch__micro=7), World(size=2, local_size=2), 244, 60).to_json())
    assert {
        name: written[name] for name in ("world", "global_batch", "total_steps", "samples_per_rank", "passes_per_rank", "eval_every")
    } == {
        "world": 2,
        "global_batch": 33,
        "total_steps": 184,
        "samples_per_rank": [17, 16],
        "passes_per_rank": [3, 3],
        "eval_every": "244/33",
    }


def test_loading_processes_are_those_that_were_asked_for() -> None:
    assert plan.loading_processes(a_config(data__workers=3), World()) == 3
    assert plan.loading_processes(a_config(data__workers=0), World()) == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity mask on this system")
def test_auto_counts_the_processors_of_this_process_and_not_of_the_machine() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert plan.processors() == 1
        assert plan.loading_processes(a_config(), World()) == 0
    finally:
        os.sched_setaffinity(0, before)
    assert plan.loading_processes(a_config(), World()) == min(8, len(before) - 1)
    assert plan.loading_processes(a_config(), World(size=1000, local_size=1000)) == 0
