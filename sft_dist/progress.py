"""What a run knows of itself between two steps: how far it is, its best and last scores, and whether to go on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sft_dist import tally
from sft_dist.config import Stop
from sft_dist.plan import Plan
from sft_dist.scaling import LossScale
from sft_dist.units import Target

HEADLINES = {"classify": ("val/top1", True), "segment": ("val/miou", True), "detect": ("val/map", True)}
"""Task -> the score that decides which checkpoint is best, and which run, and whether more of it is better; the task says the same."""


@dataclass(frozen=True)
class Progress:
    """Saved with every checkpoint as JSON, so that a resumed run decides as the uninterrupted one does."""

    step: int = 0
    """Optimizer steps made."""
    evaluated: int = 0
    """Last step whose evaluation is counted here."""
    best: Mapping[str, Any] | None = None
    """The best evaluation so far: its step, scores and details."""
    last: Mapping[str, Any] | None = None
    """The latest evaluation, likewise."""
    worse_in_a_row: int = 0
    """Evaluations since the best one."""
    since_evaluation: Mapping[str, float] = field(default_factory=dict)
    """Sums over the steps since the last evaluation: samples, loss, ..."""
    loss_scale: float | None = None
    """Of the coming step, in fp16; None where nothing is scaled."""
    good_steps: int = 0
    """Steps without an overflow since the loss scale last changed."""

    def after_step(self, sums: Mapping[str, float], scale: LossScale | None = None) -> "Progress":
        """One step further; `sums` are the step's, over all ranks, `scale` is the coming step's."""
        further = dataclasses.replace(self, step=self.step + 1, since_evaluation=tally.add(self.since_evaluation, sums))
        return dataclasses.replace(further, loss_scale=scale.scale, good_steps=scale.good) if scale else further

    def after_evaluation(self, entry: Mapping[str, Any], improved: bool) -> "Progress":
        """The evaluation of this step counted in; `entry` holds its step, scores and details."""
        return dataclasses.replace(
            self,
            evaluated=self.step,
            best=entry if improved else self.best,
            last=entry,
            worse_in_a_row=0 if improved else self.worse_in_a_row + 1,
            since_evaluation={},
        )

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def reason_to_end(progress: Progress, plan: Plan, stop: Stop) -> str | None:
    """Why the run is at its end, in words, or None while it is not. The same on every rank and after every resume."""
    if progress.step >= plan.total_steps:
        return f"all {plan.total_steps} steps are made"
    if stop.when and progress.last and progress.evaluated == progress.step:
        target = Target.parse(stop.when)
        if target.reached(progress.last[target.metric]):
            return f"{stop.when} is reached ({progress.last[target.metric]:.4f})"
    if stop.patience and progress.worse_in_a_row >= stop.patience:
        return f"no better score in {progress.worse_in_a_row} evaluations (stop.patience)"
    return None
