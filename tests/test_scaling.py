"""The loss scale follows torch's rule, is decided by one number, and survives in a run's progress."""

import json
import math
import random

import pytest
import torch

from sft_dist.errors import DivergedError
from sft_dist.progress import Progress
from sft_dist.scaling import LossScale, begin, coming


def test_it_starts_at_65536() -> None:
    assert LossScale() == LossScale(65536.0, 0)


def test_an_overflow_halves_it_and_starts_the_count_anew() -> None:
    assert LossScale(1024.0, 1999).after(finite=False) == LossScale(512.0, 0)


def test_the_2000th_good_step_in_a_row_doubles_it() -> None:
    assert LossScale(1024.0, 1998).after(finite=True) == LossScale(1024.0, 1999)
    assert LossScale(1024.0, 1999).after(finite=True) == LossScale(2048.0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_rule_of_torchs_grad_scaler(seed: int) -> None:
    """`torch._amp_update_scale_` is all that `GradScaler.update` does; its arguments here are GradScaler's defaults."""
    ours, draw = LossScale(), random.Random(seed)
    scale, good = torch.tensor(65536.0), torch.tensor(0, dtype=torch.int32)
    seen = set()
    for _ in range(20_000):
        overflow = draw.random() < 1 / 2500
        ours = ours.after(finite=not overflow)
        torch._amp_update_scale_(scale, good, torch.tensor(float(overflow)), 2.0, 0.5, 2000)
        assert (ours.scale, ours.good) == (scale.item(), good.item())
        seen.add(ours.scale)
    assert len(seen) > 3


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_an_overflow(norm: float) -> None:
    assert coming(LossScale(64.0, 5), norm, step=9) == LossScale(32.0, 0)
    assert coming(LossScale(64.0, 5), 1e30, step=9) == LossScale(64.0, 6)
    assert coming(None, norm, step=9) is None


def test_an_overflow_that_no_scale_helps_ends_the_run_with_the_remedy() -> None:
    assert coming(LossScale(2.0), math.inf, step=17) == LossScale(1.0)
    with pytest.raises(DivergedError) as told:
        coming(LossScale(1.0), math.inf, step=18)
    assert str(told.value) == (
        "step 18: the gradient overflows fp16 at every loss scale from 65536 down to 1; use precision: bf16 or fp32, or a lower optim.lr"
    )
    assert told.value.everywhere


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp64"])
def test_nothing_but_fp16_is_scaled(precision: str) -> None:
    assert begin(precision, None, 0) is None


def test_a_run_starts_with_the_first_scale_and_goes_on_with_the_saved_one() -> None:
    assert begin("fp16", None, 0) == LossScale(65536.0, 0)
    fresh = Progress().after_step({"samples": 8}, LossScale(4096.0, 7))
    again = Progress(**json.loads(json.dumps(fresh.to_json())))
    assert again == fresh
    assert begin("fp16", again.loss_scale, again.good_steps) == LossScale(4096.0, 7)


def test_the_progress_of_a_checkpoint_from_before_there_was_a_scale_is_read() -> None:
    saved = Progress(step=3).to_json()
    del saved["loss_scale"], saved["good_steps"]
    assert Progress(**saved) == Progress(step=3, loss_scale=None, good_steps=0)
