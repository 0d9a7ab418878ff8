"""What the ranks' messages take of a step, and how much of that the step waits for: torch's profiler over a few early steps of an attempt."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]

from sft_dist import machine
from sft_dist.config import Config
from sft_dist.engine import Engine
from sft_dist.loop import StepResult
from sft_dist.pulse import STEP

STEPS = range(2, 5)  # of an attempt, from 0: in the first ones memory is taken and the ranks find together
KERNELS = ("ncclDev", "ncclKernel")

Span = tuple[int, int]
"""From one time to another, in nanoseconds."""


def measured(steps: Iterator[StepResult], engine: Engine, config: Config) -> Iterator[StepResult]:
    """Pass the steps on, some of them with what was measured. Rank 0 looks at its own; there is nothing to see where it is alone."""
    wanted = STEPS if config.track.communication and engine.world > 1 and engine.is_main else range(0)
    for number in itertools.count():
        if number not in wanted:
            step = next(steps, None)
        else:
            with machine.profiler(engine.device.type) as profiler:
                step = next(steps, None)
            if step:
                messages, work = spans(profiler.profiler.kineto_results.events(), engine.device.type)
                step = dataclasses.replace(step, measures=shares(messages, work, sum(step.spent.get(phase, 0.0) for phase in STEP)))
        if step is None:
            return
        yield step


def shares(messages: Sequence[Span], work: Sequence[Span], seconds: float) -> dict[str, float]:
    """Percent of a step in which messages were under way, and in which they were and nothing was computed."""
    exposed = _covered([*messages, *work]) - _covered(work)
    return {
        "speed/communication_pct": 100 * _covered(messages) / seconds,
        "speed/exposed_communication_pct": 100 * exposed / seconds,
    }


def spans(events: Iterable[Any], kind: str) -> tuple[list[Span], list[Span]]:
    """When messages were under way and when something was computed, from the profiler's events: on a GPU by its kernels, on a CPU by
    torch's operators; gloo's messages run on threads of their own, NCCL's are kernels."""
    messages, work = [], []
    for event in events:
        name, on_gpu = event.name(), event.device_type() == DeviceType.CUDA
        span = (event.start_ns(), event.start_ns() + event.duration_ns())
        if name.startswith("gloo:") or (on_gpu and name.startswith(KERNELS)):
            messages.append(span)
        elif (on_gpu and not event.is_user_annotation()) if kind == "cuda" else name.startswith("aten::"):
            work.append(span)
    return messages, work


def _covered(spans: Iterable[Span]) -> float:
    """Seconds that lie in any of the spans."""
    covered, until = 0, 0
    for start, end in sorted(spans):
        covered += max(0, end - max(start, until))
        until = max(until, end)
    return covered / 1e9
