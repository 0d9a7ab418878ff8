from pathlib import Path

import pytest
from given import a_config

from sft_dist import attempts, notice, rundir
from sft_dist.rundir import RunDir

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = rundir.create(a_config(run__dir=str(tmp_path)))
    for _ in range(2):
        attempts.begin(run)
    return run


def test_the_longest_save_of_the_newest_attempt_that_saved_counts(run: RunDir) -> None:
    assert notice.longest_save_s(run) == 0.0
    notice.note_save(run, 1, 10, 80.0)
    assert notice.longest_save_s(run) == 80.0, "attempt 2 has saved nothing yet"
    notice.note_save(run, 2, 20, 41.0004)
    notice.note_save(run, 2, 30, 39.0)
    assert notice.longest_save_s(run) == 41.0


@pytest.mark.parametrize("text", ["", "{", '{"step": 3}\n', "[1]\n", '{"seconds": null}\n'])
def test_a_record_that_a_crash_cut_short_is_passed_over(run: RunDir, text: str) -> None:
    notice.note_save(run, 1, 10, 80.0)
    (attempts.folder(run, 2) / notice.FILE).write_text(text)
    assert notice.longest_save_s(run) == 80.0


def test_a_save_longer_than_torchruns_patience_is_warned_of() -> None:
    said = notice.too_short(41.3, TORCHRUN)
    assert said == [
        "a save of this run took 41 s, but torchrun kills its workers 30 s after a TERM, in the midst of it, "
        "unless its --shutdown-timeout, which no rank can see, says more; "
        "export PET_SHUTDOWN_TIMEOUT=194, or start by sft-launch run, which waits for the save"
    ]
    assert notice.too_short(29.0, TORCHRUN) == []
    assert notice.too_short(41.3, {**TORCHRUN, "PET_SHUTDOWN_TIMEOUT": "194"}) == []
    assert "10 s after a TERM, in the midst of it; export" in notice.too_short(29.0, {**TORCHRUN, "PET_SHUTDOWN_TIMEOUT": "10"})[0]


def test_nothing_is_said_of_who_waits() -> None:
    assert notice.too_short(1000.0, {}) == [], "a lone process"
    assert notice.too_short(1000.0, {**TORCHRUN, "SFT_PULSE": "/dev/shm/x"}) == [], "an agent of ours"


def test_slurm_is_told_of_with_the_flag_that_helps() -> None:
    assert notice.too_short_for_slurm(29.0, 30.0, 600.0) == []
    assert notice.too_short_for_slurm(31.0, 30.0, 600.0) == [
        "a save of this run took 31 s, but after scancel Slurm kills in 30 s (KillWait); `sft-launch slurm cancel --save` waits for the save"
    ]
    both = notice.too_short_for_slurm(400.0, 30.0, 600.0)
    assert len(both) == 2
    assert both[1].endswith("submit with --signal=B:USR1@1600, if you do not already (no job can see it)")
