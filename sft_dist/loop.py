"""The training loop: two nested loops, a step over its micro-batches; it knows no file and no logger."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sft_dist import optim, scaling, tally
from sft_dist.config import Config
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError, DivergedError
from sft_dist.models import train_mode
from sft_dist.plan import Plan
from sft_dist.progress import Progress
from sft_dist.scaling import LossScale
from sft_dist.schedule import draw_seed, lr_factor, window
from sft_dist.signals import StopRequest
from sft_dist.tasks import Batch, Task

SHOWN = 64  # samples of a step that an error names


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, over all ranks.

    step: steps made. sums: loss and training scores summed over the window, `samples`, and `counted` where the task counts something else
    (tally.per_count divides). grad_norm: before clipping; None where it
    overflowed in fp16, and the update was left out. lr: the rate of this update. spent: seconds of this rank by phase (`pulse.PHASES`)
    since the step before; all that came between them is in it. scale, next_scale: in fp16, the loss scale of this step and of the coming
    one. measures: what else was measured of this step, by column.
    """

    step: int
    sums: dict[str, float]
    grad_norm: float | None
    lr: float
    spent: Mapping[str, float]
    stop_asked: bool
    scale: LossScale | None = None
    next_scale: LossScale | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


def train(
    task: Task, batches: Iterable[Batch], engine: Engine, plan: Plan, config: Config, so_far: Progress, request: StopRequest
) -> Iterator[StepResult]:
    """Make the steps that are left, one a turn. Raises DivergedError, and ConfigError for unreadable data, on all ranks alike."""
    micros = iter(batches)
    scale = scaling.begin(config.precision, so_far.loss_scale, so_far.good_steps)
    for done in range(so_far.step, plan.total_steps):
        if not engine.module.training:  # after an evaluation
            train_mode(engine.module)
        rate = config.optim.lr * lr_factor(done, plan)
        optim.set_lr(engine.optimizer, rate)
        engine.pulse.step = done + 1
        engine.usage.begin()
        mine = _awaited(itertools.islice(micros, plan.passes_per_rank[engine.rank]), engine)
        with _said_where(engine, plan, done):
            sums, norm, stop_asked = train_step(task, mine, engine, plan, done, request, scale)
        engine.pulse.at("bookkeeping")
        used, scale = scale, scaling.coming(scale, norm, done + 1)
        spent = engine.pulse.timeline.spent()
        yield StepResult(done + 1, sums, norm if math.isfinite(norm) else None, rate, spent, stop_asked, used, scale)


def train_step(
    task: Task, micros: Iterable[Batch], engine: Engine, plan: Plan, step: int, request: StopRequest, scale: LossScale | None = None
) -> tuple[dict[str, float], float, bool]:
    """One optimizer step over one window. The loss is summed, and divided once by what all ranks hold in the whole window.

    step: steps made before this one. scale: what fp16 multiplies the loss by. Returns the window's sums over all ranks, the norm of
    its gradient, not finite where that overflowed in fp16, and whether any rank was asked to stop.
    """
    # A loss times scale / total has the same gradient in fp16 on any number of ranks; what averages over them makes 1 / world of it.
    scaled = scale.scale / engine.world if scale else None
    passes = plan.passes_per_rank[engine.rank]
    idle = max(plan.passes_per_rank) - passes if engine.strategy.equal_passes else 0
    micros, counted = _counted(task, micros, engine)
    total = max(counted.get("counted", plan.global_batch), 1.0)  # with nothing to learn from, loss and gradient are 0
    sums: dict[str, Any] = {}
    problems: list[str] = []
    for i, batch in enumerate(micros):
        problems += batch.problems
        engine.draw(draw_seed("dropout", plan.seed, step, engine.rank, i))
        with engine.backward_pass(last=i == passes + idle - 1) as backward:
            losses = task.loss(engine.wrapped, batch.to(engine.device))
            engine.pulse.at("backward")
            backward(losses.total * ((scaled or 1.0) * engine.world / total))  # data parallelism averages over ranks; undo it
        sums = tally.add(sums, {"loss": losses.total.detach().double(), **losses.sums})
    for i in range(idle):
        _pass_idly(task, batch, engine, last=i == idle - 1)
    engine.pulse.at("update")
    norm = engine.update(scaled)
    engine.pulse.at("exchange")
    # The one wait for the device, and the one message, of a step. What stops a run is found out by all ranks at once.
    *summed, bad, asked = engine.exchange([*sums.values(), float(len(problems)), float(request.made)])
    if bad:
        raise ConfigError(engine.agree(problems), everywhere=True)
    result = {"samples": float(plan.global_batch), **counted, **dict(zip(sums, summed, strict=True))}
    if not (math.isfinite(result["loss"]) and (scale or math.isfinite(norm))):
        _refuse(result["loss"], float(norm), engine, plan, step, float(sums["loss"]))
    return result, float(norm), asked > 0


def _counted(task: Task, micros: Iterable[Batch], engine: Engine) -> tuple[Iterable[Batch], dict[str, float]]:
    """The micro-batches, and how many of what the task counts all ranks hold in them; nothing where that is samples, which are known."""
    if task.count is None:
        return micros, {}
    micros = list(micros)
    engine.pulse.at("exchange")
    [held] = engine.sum([sum(task.count(batch) for batch in micros)])
    return micros, {"counted": held}


def _awaited(batches: Iterator[Batch], engine: Engine) -> Iterator[Batch]:
    """Pass batches on, and tell of each wait for one."""
    while True:
        engine.pulse.at("data")
        with engine.usage.waiting():
            batch = next(batches, None)
        engine.pulse.at("forward")
        if batch is None:
            return
        yield batch


def _pass_idly(task: Task, batch: Batch, engine: Engine, last: bool) -> None:
    """A pass that keeps the other ranks company where they exchange something in each: its loss counts nothing, no statistic moves."""
    engine.module.eval()
    with engine.backward_pass(last) as backward:
        backward(task.loss(engine.wrapped, batch.to(engine.device)).total * 0.0)
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
    """This rank's part of a window, by position in the training split; of many the first ones."""
    mine = [str(pick.position) for micro in window(step, engine.rank, plan) for pick in micro]
    more = f" and {len(mine) - SHOWN} more" if len(mine) > SHOWN else ""
    return f"the training samples {', '.join(mine[:SHOWN])}{more}"
