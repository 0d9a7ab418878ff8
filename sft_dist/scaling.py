"""What fp16 multiplies the loss by, so that small gradients do not vanish: one rule, decided from the gradient's norm alone."""

import math
from dataclasses import dataclass

from sft_dist.errors import DivergedError

# torch.amp.GradScaler's init_scale, growth_factor, backoff_factor, growth_interval
FIRST = 2.0**16
GROWTH = 2.0
BACKOFF = 0.5
PATIENCE = 2000
SMALLEST = 1.0  # below it gradients would be made smaller, which is not what it is for; DeepSpeed ends there too (fp16.min_loss_scale)


@dataclass(frozen=True)
class LossScale:
    """The scale of a step. What decides on the next one is the same number on all ranks, so that they need not tell each other."""

    scale: float = FIRST
    good: int = 0
    """Steps without an overflow since the scale last changed."""

    def after(self, finite: bool) -> "LossScale":
        """The scale after a step whose gradient was finite, or not; the rule of `torch.amp.GradScaler.update`."""
        if not finite:
            return LossScale(self.scale * BACKOFF)
        return LossScale(self.scale * GROWTH) if self.good + 1 == PATIENCE else LossScale(self.scale, self.good + 1)


def begin(precision: str, scale: float | None, good: int) -> LossScale | None:
    """What a run starts or goes on with: the scale that was saved, if one was. None where nothing is scaled."""
    if precision != "fp16":
        return None
    return LossScale() if scale is None else LossScale(scale, good)


def coming(scale: LossScale | None, norm: float, step: int) -> LossScale | None:
    """The scale of the step after this one, whose gradient had this norm. Raises DivergedError where no scale is left that fits."""
    if scale is None:
        return None
    after = scale.after(finite=math.isfinite(norm))
    if after.scale < SMALLEST:
        raise DivergedError(
            f"step {step}: the gradient overflows fp16 at every loss scale from {FIRST:g} down to {SMALLEST:g}; "
            "use precision: bf16 or fp32, or a lower optim.lr",
            everywhere=True,
        )
    return after
