"""Saves that go wrong without a kill: a writer that dies, a disk that is full, stuck or forbidden, signals in the middle."""

import json
import os
import signal
import subprocess
import time

import pytest
from harness import first_line, litter, resume, wait_until, whole_steps
from injections import Fault
from ranks import logged
from waits import WAITS

pytestmark = pytest.mark.dist


def test_a_writer_that_dies_on_one_rank_stops_all_and_its_checkpoint_does_not_count(shop, saw):
    name = "the-writer-fails"
    codes, said = shop.run(name, fault=Fault("the writer fails", rank=1, step=6))
    assert codes == [78, 78], said
    line = first_line(said, having="cannot save a checkpoint")
    assert line.startswith("rank 1: ")
    assert "Input/output error" in line
    assert "step-00000004 is intact" in line
    saw(line)
    assert whole_steps(shop.path(name)) == [2, 4]
    assert litter(shop.path(name)) == []
    assert "resumed at step 4" in resume(shop, name)


def test_a_bug_in_the_writer_of_one_rank_stops_all_with_its_traceback(shop, saw):
    name = "the-writer-has-a-bug"
    codes, said = shop.run(name, fault=Fault("the writer has a bug", rank=1, step=6))
    assert codes == [1, 1], said
    assert said.count("WriterError: rank 1: a bug in the writer of a checkpoint") == 2
    assert said.count("raise error\n") == 2
    assert said.count("KeyError: 'a bug'") == 2
    saw(f"{first_line(said, having='a bug in the writer')} (with its traceback: {first_line(said, having='KeyError')})")
    assert whole_steps(shop.path(name)) == [2, 4]
    assert litter(shop.path(name)) == []
    assert "resumed at step 4" in resume(shop, name)


def test_a_signal_to_one_rank_makes_all_save_the_same_step_and_exit_0(shop, saw):
    for number in (signal.SIGTERM, signal.SIGUSR1):
        name = f"asked-{number.name}"
        ranks = shop.start(name, fault=Fault("waits", rank=1, step=4))
        wait_until(lambda: logged(shop.path(name), 3))  # noqa: B023
        os.kill(ranks.pid(1), number)
        assert ranks.wait() == [0, 0], ranks.said()
        line = first_line(ranks.said(), having="stopped as asked")
        outcome = json.loads((shop.path(name) / "outcome.json").read_text())
        assert (outcome["outcome"], outcome["step"]) == ("saved", max(whole_steps(shop.path(name))))
        saw(f"{number.name}: {line}")
        resume(shop, name)


def test_a_second_term_during_the_save_changes_nothing(shop, saw):
    name = "term-twice"
    ranks = shop.start(name, "save.every=4 steps", fault=Fault("the disk waits"))
    _ask_and_wait_for_the_save(shop, name, ranks, signal.SIGTERM)
    os.kill(ranks.pid(1), signal.SIGTERM)
    ranks.let_go()
    assert ranks.wait() == [0, 0], ranks.said()
    saw(f"TERM: {first_line(ranks.said(), having='stopped as asked')}")
    resume(shop, name)


def test_a_second_interrupt_during_the_save_abandons_it_cleanly(shop, saw):
    name = "interrupted-twice"
    ranks = shop.start(name, "save.every=4 steps", fault=Fault("the disk waits"))
    _ask_and_wait_for_the_save(shop, name, ranks, signal.SIGINT)
    for rank in (0, 1):
        os.kill(ranks.pid(rank), signal.SIGINT)
    codes = ranks.wait()
    assert codes[0] == 1, ranks.said()
    saw(f"INT: {first_line(ranks.said(), having='sft-dist: interrupted')}")
    resume(shop, name)


def _ask_and_wait_for_the_save(shop, name, ranks, number) -> None:
    wait_until(lambda: logged(shop.path(name), 2))
    os.kill(ranks.pid(0), number)
    os.kill(ranks.pid(1), number)
    wait_until(lambda: WAITS in ranks.said(0))


@pytest.fixture
def disk(shop, tmp_path):
    """A file system of 400 MiB in the place of the runs' folder; only root can mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def on_disk(shop, disk, name: str, *overrides: str):
    """A run on the small disk, which is also looked for where the other runs are; the disk is full after the second save."""
    (disk / name).mkdir()
    shop.path(name).symlink_to(disk / name)
    return shop.run(name, f"run.dir={disk}", *overrides, fault=Fault("the disk is full", rank=1, step=5))


def test_a_full_disk_stops_the_run_and_leaves_the_previous_checkpoint(shop, saw, disk):
    codes, said = on_disk(shop, disk, "full")
    assert codes == [78, 78], said
    line = first_line(said, having="no space is left")
    assert "MiB needed" in line
    assert "MiB free" in line
    assert "is intact" in line
    assert "error-rank" not in said  # that it cannot be written either hides nothing
    saw(f"stop: {line}")
    assert whole_steps(disk / "full")
    assert litter(disk / "full") == []
    (disk / "filler").unlink()
    resume(shop, "full", f"run.dir={disk}")


def test_a_full_disk_is_told_and_trained_through_if_the_config_says_so(shop, saw, disk):
    codes, said = on_disk(shop, disk, "full-but-on", "save.on_error=continue")
    assert codes == [0, 0], said
    saw(f"continue: {first_line(said, having='training goes on without this checkpoint')}")
    resume(shop, "full-but-on", f"run.dir={disk}")


def test_a_read_only_run_folder_is_refused_before_anything_is_loaded(shop, saw, disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    codes, said = shop.run("forbidden", f"run.dir={disk}")
    assert codes == [78, 78], said
    assert f"cannot write to {disk}" in said
    assert "weights  " not in said
    saw(first_line(said, having="cannot write to"))


def test_a_stuck_disk_is_named_and_blocks_no_longer_than_the_limit(shop, saw):
    name = "stuck"
    ranks = shop.start(name, "save.limit_s=2", fault=Fault("the disk is stuck", rank=0, step=6))
    wait_until(lambda: list((shop.path(name) / "checkpoints").glob(".unfinished-step-00000006*")))
    began = time.monotonic()
    assert ranks.wait() == [78, 78], ranks.said()
    assert time.monotonic() - began < 60
    line = first_line(ranks.said(), having="has not reached the disk")
    assert "step-00000006" in line
    assert "save.limit_s = 2" in line
    saw(line)
    resume(shop, name)
