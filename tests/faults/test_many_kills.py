"""By hand, many minutes: every kill point twenty times at random steps, and two hundred kills over one small run. SFT_SWEEPS sets the twenty."""

import os

import pytest
from harness import KILLED, STEPS, resume
from injections import SAVE_POINTS, STEP_POINTS, Fault
from test_kills import killed_in_saves, soak

pytestmark = [pytest.mark.dist, pytest.mark.bench]

SWEEPS = int(os.environ.get("SFT_SWEEPS", "20"))
KILLS = int(os.environ.get("SFT_KILLS", "200"))


@pytest.mark.parametrize("sweep", range(SWEEPS))
@pytest.mark.parametrize("background", ["true", "false"])
def test_killed_at_every_point_of_a_save(shop, sweep, background):
    assert len(killed_in_saves(shop, f"sweep-{background}-{sweep}", f"save.background={background}", seed=100 + sweep)) == len(SAVE_POINTS)


@pytest.mark.parametrize("sweep", range(SWEEPS))
@pytest.mark.parametrize("point", STEP_POINTS)
def test_killed_at_every_point_of_a_step(shop, sweep, point):
    name, rank, step = f"{point.replace(' ', '-')}-{sweep}", sweep % 2, 1 + (7 * sweep + len(point)) % STEPS
    codes, said = shop.run(name, fault=Fault(point, rank, step))
    assert (codes[rank], codes[1 - rank]) == (KILLED, 75), said
    resume(shop, name)


def test_soak(shop):
    steps = 2 * KILLS + STEPS
    ranks = shop.start("whole-soak", f"train.duration={steps} steps")
    assert ranks.wait(limit_s=900) == [0, 0], ranks.said()  # minutes of training; what else runs here takes seconds
    soak(shop, "soak-long", KILLS, seed=1, steps=steps, whole="whole-soak")
