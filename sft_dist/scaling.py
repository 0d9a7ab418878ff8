"""The factor that keeps small gradients above the smallest number of fp16: one rule, decided from the gradient's norm alone."""

from dataclasses import dataclass

FIRST, GROWTH, BACKOFF, PATIENCE = 2.0**16, 2.0, 0.5, 2000
"""As `torch.amp.GradScaler` has them (init_scale, growth_factor, backoff_factor, growth_interval)."""
SMALLEST = 1.0
"""Below it gradients would be scaled down, and what is small in them lost; DeepSpeed's fp16 ends there too (`min_loss_scale`)."""


@dataclass(frozen=True)
class LossScale:
    """The scale of the coming step. What decides on it is the same number on all ranks, so they never need to tell each other."""

    scale: float = FIRST
    good: int = 0
    """Steps in a row whose gradient was finite, since the scale last changed."""

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
