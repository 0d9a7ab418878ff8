"""The training loop: two nested loops, a step over its micro-batches; it knows no file and no logger."""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sft_dist import optim, scaling, tally
from sft_dist.config import Config
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError, DivergedError
from sft_dist.loading import to_device
from sft_dist.models import train_mode
from sft_dist.plan import Plan
from sft_dist.progress import Progress
from sft_dist.pulse import Pulse
from sft_dist.scaling import LossScale
from sft_dist.schedule import draw_seed, lr_factor, window
from sft_dist.signals import StopRequest
from sft_dist.tasks import Batch, Task
from sft_dist.usage import Usage


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, over all ranks.

    step: steps made. sums: loss and training scores summed over the window, and `samples`. grad_norm: before clipping; None where it
    overflowed in fp16, and the update was left out. lr: the rate of this update. seconds: wall time of the step; waited: the part of
    it spent waiting for data on this rank. ranks: what `Usage.told` says of each. scale, next_scale: in fp16, the loss scale of this step and of the coming one.
    """

    step: int
    sums: dict[str, float]
    grad_norm: float | None
    lr: float
    seconds: float
    waited: float
    stop_asked: bool
    scale: LossScale | None = None
    next_scale: LossScale | None = None
    ranks: Sequence[Sequence[float]] = ()


def train(
    task: Task, batches: Iterable[Batch], engine: Engine, plan: Plan, config: Config, so_far: Progress, request: StopRequest
) -> Iterator[StepResult]:
    """Make the steps that are left, one a turn. Raises DivergedError, and ConfigError for unreadable data, on all ranks alike."""
    clock = Stopwatch(engine.usage)
    micros = iter(batches)
    scale = scaling.begin(config.precision, so_far.loss_scale, so_far.good_steps)
    for done in range(so_far.step, plan.total_steps):
        clock.lap()  # the evaluation and the checkpoint after the last step are not this step's time
        if not engine.module.training:  # after an evaluation
            train_mode(engine.module)
        rate = config.optim.lr * lr_factor(done, plan)
        optim.set_lr(engine.optimizer, rate)
        engine.pulse.step = done + 1
        mine = clock.timed(itertools.islice(micros, plan.passes_per_rank[engine.rank]), engine.pulse)
        with _said_where(engine, plan, done):
            sums, norm, stop_asked, ranks = train_step(task, mine, engine, plan, done, request, scale)
        used, scale = scale, scaling.coming(scale, norm, done + 1)
        yield StepResult(done + 1, sums, norm if math.isfinite(norm) else None, rate, *clock.lap(), stop_asked, used, scale, ranks)


def train_step(
    task: Task, micros: Iterable[Batch], engine: Engine, plan: Plan, step: int, request: StopRequest, scale: LossScale | None = None
) -> tuple[dict[str, float], float, bool, list[list[float]]]:
    """One optimizer step over one window. The loss is summed, and divided once by what all ranks hold in the whole window.

    step: steps made before this one. scale: what fp16 multiplies the loss by. Returns the window's sums over all ranks, the norm of
    its gradient, not finite where that overflowed in fp16, whether any rank was asked to stop, and what each rank used.
    """
    # A loss times scale / total has the same gradient in fp16 on any number of ranks; what averages over them makes 1 / world of it.
    scaled = scale.scale / engine.world if scale else None
    passes = plan.passes_per_rank[engine.rank]
    idle = max(plan.passes_per_rank) - passes if engine.strategy.equal_passes else 0
    if task.count is None:
        total = float(plan.global_batch)
    else:
        micros = list(micros)
        [total] = engine.sum([sum(task.count(batch) for batch in micros)])
    sums: dict[str, Any] = {}
    problems: list[str] = []
    for i, batch in enumerate(micros):
        problems += batch.problems
        engine.draw(draw_seed("dropout", plan.seed, step, engine.rank, i))
        with engine.backward_pass(last=i == passes + idle - 1) as backward:
            losses = task.loss(engine.wrapped, to_device(batch, engine.device))
            engine.pulse.at("backward")
            backward(losses.total * ((scaled or 1.0) * engine.world / total))  # data parallelism averages over ranks; undo it
        sums = tally.add(sums, {"loss": losses.total.detach().double(), **losses.sums})
    for i in range(idle):
        _pass_idly(task, batch, engine, last=i == idle - 1)
    engine.pulse.at("update")
    norm = engine.update(scaled)
    engine.pulse.at("exchange")
    # The one wait for the device, and the one message, of a step. What stops a run is found out by all ranks at once.
    (*summed, bad, asked), ranks = engine.exchange([*sums.values(), float(len(problems)), float(request.made)], engine.usage.told())
    if bad:
        raise ConfigError(engine.agree(problems), everywhere=True)
    result = {"samples": total, **dict(zip(sums, summed, strict=True))}
    if not (math.isfinite(result["loss"]) and (scale or math.isfinite(norm))):
        _refuse(result["loss"], float(norm), engine, plan, step, float(sums["loss"]))
    return result, float(norm), asked > 0, ranks


def _pass_idly(task: Task, batch: Batch, engine: Engine, last: bool) -> None:
    """A pass that keeps the other ranks company where they exchange something in each: its loss counts nothing, no statistic moves."""
    engine.module.eval()
    with engine.backward_pass(last) as backward:
        backward(task.loss(engine.wrapped, to_device(batch, engine.device)).total * 0.0)
    train_mode(engine.module)


def _refuse(loss: float, norm: float, engine: Engine, plan: Plan, step: int, own_loss: float) -> None:
    rate, clip = engine.optimizer.param_groups[0]["lr"], engine.config.train.clip or "null"
    odd = f"rank {engine.rank}: its share of the loss is {own_loss}, over {_samples(engine, plan, step)}"
    own = [] if math.isfinite(own_loss) else [odd]
    where = engine.agree(own) or ["the loss is finite, the gradient is not"]
    raise DivergedError(
        [
            f"step {step + 1}: loss {loss}, gradient norm {norm} (train.clip: {clip}) at learning rate {rate:g}; "
            "use a lower optim.lr, a warm-up, or train.clip" + (", or precision: bf16 or fp32" if engine.precision == "fp16" else ""),
            *where,
        ],
        everywhere=True,
    )


@contextmanager
def _said_where(engine: Engine, plan: Plan, step: int) -> Iterator[None]:
    """What goes wrong on this rank alone tells the step, and what was in it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"step {step + 1}, rank {engine.rank}: micro-batches of {plan.micro_batch} over {_samples(engine, plan, step)}")
        raise


def _samples(engine: Engine, plan: Plan, step: int) -> str:
    """This rank's part of a window, by position in the training split."""
    return f"the training samples {', '.join(str(pick.position) for micro in window(step, engine.rank, plan) for pick in micro)}"


class Stopwatch:
    """Wall time between laps, and the part of it that went into waiting for data."""

    def __init__(self, usage: Usage) -> None:
        self.started, self.usage = time.perf_counter(), usage

    def timed(self, batches: Iterator[Batch], pulse: Pulse) -> Iterator[Batch]:
        """Pass batches on, counting the time that each took to come."""
        while True:
            pulse.at("data")
            before = time.perf_counter()
            batch = next(batches, None)
            self.usage.waited_s += time.perf_counter() - before
            pulse.at("forward")
            if batch is None:
                return
            yield batch

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap, and seconds waited for data in them."""
        now = time.perf_counter()
        lap = (now - self.started, self.usage.waited_s)
        self.started = now
        self.usage.begin()
        return lap
