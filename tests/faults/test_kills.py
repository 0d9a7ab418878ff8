"""Ranks that are killed: in a step, at every point of a save, again and again; and restores that are broken on purpose."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import KILLED, LIMIT_S, STEPS, differences, first_line, litter, resume, wait_until, whole_steps
from injections import BROKEN_RESTORES, SAVE_POINTS, STEP_POINTS, Fault
from ranks import free_port, logged

pytestmark = pytest.mark.dist

DRAW = random.Random(11)


@pytest.mark.parametrize("point", STEP_POINTS)
def test_the_rank_that_lost_its_peer_ends_by_itself_and_the_resume_is_exact(shop, saw, point):
    rank, step, name = DRAW.randrange(2), DRAW.randint(3, STEPS), point.replace(" ", "-")
    codes, said = shop.run(name, fault=Fault(point, rank, step))
    assert (codes[rank], codes[1 - rank]) == (KILLED, 75), said
    saw(first_line(said, having="another rank was lost"))
    told = resume(shop, name)
    assert "resumed at step" in told


def test_the_launcher_names_the_rank_and_the_signal(shop, saw):
    """torchrun over plain processes: its agent sees what no rank can tell of itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    code = "import sys; sys.path[:0] = {!r}; import injections as i; i.inject(i.Fault('killed in backward', 1, 5)); from sft_dist.cli import main; main()"
    script = shop.folder / "killed.py"
    script.write_text(code.format([str(folder) for folder in Path(__file__).parents[:2]]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), "train", str(shop.config), "run.name=launched"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert "rank      : 1 (local_rank: 1)" in done.stderr
    saw(f"torchrun: rank 1, {first_line(done.stderr, having='Signal 9')}")
    resume(shop, "launched")


def killed_in_saves(shop, name: str, *overrides: str, points=SAVE_POINTS, seed: int = 0, first: int = 2) -> list[str]:
    """One run that is killed at each point in turn, in saves of growing steps, and then brought to its end; what was found after each."""
    draw, found = random.Random(seed), []
    run, step = shop.path(name), first - 1
    for left, point in zip(range(len(points), 0, -1), points, strict=True):
        step = draw.randint(step + 1, STEPS - left)
        ranks = shop.start(name, "save.every=1 steps", *overrides, fault=Fault(point, step=step))
        codes = ranks.wait_for_the_dead()
        assert KILLED in codes, (point, step, codes, ranks.said())
        steps = whole_steps(run)
        assert steps, f"no verified checkpoint after: {point} in the save of step {step}"
        assert max(steps) in (step - 1, step), (point, step, steps)
        found.append(f"{point.removeprefix('killed ')}: step {step - 1 if max(steps) < step else step} of {step}")
    resume(shop, name, "save.every=1 steps", *overrides)
    return found


def test_a_kill_at_any_point_of_a_save_leaves_the_previous_checkpoint_or_the_new_one(shop, saw):
    saw("last whole checkpoint after a kill " + "; ".join(killed_in_saves(shop, "saves", "save.background=false")))


def test_a_kill_at_any_point_of_a_save_in_the_background_leaves_the_previous_checkpoint_or_the_new_one(shop, saw):
    saw("last whole checkpoint after a kill " + "; ".join(killed_in_saves(shop, "behind", seed=1)))


def test_weights_after_many_kills_at_random_moments_are_those_of_the_undisturbed_run(shop, saw):
    saw(soak(shop, "soak", kills=4, seed=3))


def soak(shop, name: str, kills: int, seed: int, steps: int = STEPS, whole: str = "whole") -> str:
    """Kill a random rank after a random step, go on, and again: some steps are lost and made again, and the end is the same."""
    draw, run = random.Random(seed), shop.path(name)
    overrides = ("save.every=1 steps", f"train.duration={steps} steps")
    for left in range(kills, 0, -1):
        here = max(whole_steps(run), default=0)
        target = draw.randint(here + 1, max(here + 1, min(here + 3, steps - left)))
        ranks = shop.start(name, *overrides, fault=Fault("waits", step=target + 1))
        wait_until(lambda: logged(run, target))  # noqa: B023
        os.kill(ranks.pid(draw.randrange(2)), signal.SIGKILL)
        assert KILLED in ranks.wait_for_the_dead()
    resume(shop, name, *overrides, whole=whole)
    return f"{kills} kills; every bit of the last model and optimizer tensors is equal"


@pytest.mark.parametrize("broken", BROKEN_RESTORES)
def test_a_restore_that_is_broken_on_purpose_is_caught(shop, saw, broken):
    name = broken.replace(" ", "-")
    shop.copy("stopped", name)
    codes, said = shop.run(name, fault=Fault(broken, step=7))
    assert codes == [0, 0], said
    found = differences(shop.path("whole"), shop.path(name))
    assert any(problem.startswith("the curve differs") for problem in found), broken
    saw(f"{broken}: {found[0]}")
    assert litter(shop.path(name)) == []
