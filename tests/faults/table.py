"""The fault matrix: what each row asks, which test injects it; run as a script it runs them all and writes docs/reliability.md.

python tests/faults/table.py
"""

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "reliability.md"
SHOWN = 420  # characters of what was seen

HEAD = """\
# Reliability

<!-- Written by tests/faults/table.py from a real run. Do not edit; run it again. -->

Each row is a fault that was put into a real run of two gloo processes (one, where the row is about files or refusals; two agents or two nodes
of a private Slurm, where it is about the launcher; a server on this machine that fails, where it is about W&B), what was seen, and
whether it was what the row asks. After a fault the same command is given again, and the run is held against one that was never disturbed: the
whole curve within 1e-9 in double precision, the same best and last scores, every bit of the last model and optimizer tensors on the same
layout, no process left over, no half-written folder left. That this oracle sees what it should is a row of its own: ten restores that are
broken on purpose, which all must be caught. `python tests/faults/table.py` runs everything (ten minutes on two cores; some rows need root,
for small disks and for Slurm) and writes this page; `make test` and `make slurm` run the same tests, and `make bench` kills at every point twenty times at random steps and a
small run two hundred times.
"""


@dataclass(frozen=True)
class Row:
    """One fault. tests: functions of the files beside this one, or of those that ELSEWHERE names, as `file.py::function`."""

    number: int
    fault: str
    done: str
    must: str
    tests: tuple[str, ...]


ELSEWHERE = (
    *("launch/test_agents.py", "slurm/test_finetune.py", "slurm/test_gang_on_slurm.py"),
    *("test_mirror.py", "test_mirror_run.py"),
)
"""Below tests/."""
AGENTS, SLURM, NODES = "test_agents.py::test_", "test_finetune.py::test_", "test_gang_on_slurm.py::test_"
MIRROR, MIRRORED_RUN = "test_mirror.py::test_", "test_mirror_run.py::test_"
KILLS, SAVES, DAMAGE, STEPS = "test_kills.py::test_", "test_saves.py::test_", "test_damage.py::test_", "test_steps.py::test_"
ORACLE = 0

ROWS = (
    Row(
        1,
        "SIGKILL of a random rank in forward, backward, optimizer step",
        "SIGKILL from inside, of a random rank at a random step; once under torchrun, once under two agents",
        "the other rank ends within seconds with 75; the launcher names rank and signal; the resume is exact",
        (
            KILLS + "the_rank_that_lost_its_peer_ends_by_itself_and_the_resume_is_exact",
            KILLS + "the_launcher_names_the_rank_and_the_signal",
            AGENTS + "a_rank_that_is_killed_is_named_with_its_signal",
        ),
    ),
    Row(
        2,
        "SIGKILL of every rank at each point inside a save",
        "one run, killed in the middle of a file, after a file, before manifest, rename and pointer, and during retention",
        "a verified checkpoint exists after each: the previous or the new one",
        (KILLS + "a_kill_at_any_point_of_a_save_leaves_the_previous_checkpoint_or_the_new_one",),
    ),
    Row(
        3,
        "the same with a save in the background",
        "the same points, the save running behind the training",
        "the same; the half write is gone after the next start",
        (KILLS + "a_kill_at_any_point_of_a_save_in_the_background_leaves_the_previous_checkpoint_or_the_new_one",),
    ),
    Row(
        4,
        "the background writer dies",
        "rank 1's writer raises an input/output error, or has a bug",
        "all ranks stop, with 78 and the cause, or with 1 and the bug's traceback; the checkpoint does not count",
        (
            SAVES + "a_writer_that_dies_on_one_rank_stops_all_and_its_checkpoint_does_not_count",
            SAVES + "a_bug_in_the_writer_of_one_rank_stops_all_with_its_traceback",
        ),
    ),
    Row(
        5,
        "SIGTERM to the launcher",
        "`scancel` of a job of two nodes, on a real Slurm",
        "all ranks agree on the step, one save, the job CANCELLED and not queued again, no orphan",
        (SLURM + "a_cancelled_job_saves_and_is_not_queued_again",),
    ),
    Row(
        6,
        "SIGTERM or SIGUSR1 to one rank only",
        "sent to rank 1",
        "all ranks save the same step and exit 0",
        (SAVES + "a_signal_to_one_rank_makes_all_save_the_same_step_and_exit_0",),
    ),
    Row(
        7,
        "USR1 before the time limit under Slurm",
        "USR1 to the batch script of a job of two nodes, on a real Slurm; the run is mirrored to a W&B server",
        "saved and queued again once; the curve of one process; one run in W&B, with each step once",
        (SLURM + "a_warning_before_the_time_limit_saves_queues_again_and_goes_on",),
    ),
    Row(
        8,
        "a second TERM or INT during the save",
        "a slow disk, and the second signal while the save runs",
        "TERM: the save completes; INT: it is abandoned, and the last checkpoint is intact",
        (SAVES + "a_second_term_during_the_save_changes_nothing", SAVES + "a_second_interrupt_during_the_save_abandons_it_cleanly"),
    ),
    Row(
        9,
        "a save longer than the shutdown time-out",
        "an attempt that recorded a save of 41 s, under a Slurm whose KillWait is 30 s; one that measured saves on a slow disk, under a torchrun that "
        "waits for 3 s, and under two agents",
        "warned of at the next start, with both figures and what helps; the agents wait for it",
        (
            SLURM + "a_warning_before_the_time_limit_saves_queues_again_and_goes_on",
            AGENTS + "a_save_longer_than_its_patience_is_warned_of_under_torchrun_and_agents_have_more",
            AGENTS + "nobody_is_killed_in_a_slow_save",
        ),
    ),
    Row(
        10,
        "one flipped byte in each kind of file",
        "a bit of model, optim, state.json and the manifest, in four checkpoints",
        "path, expected and found hash; falls back to the fifth",
        (DAMAGE + "one_flipped_byte_in_any_kind_of_file_is_named_and_the_run_goes_on_from_the_last_whole_checkpoint",),
    ),
    Row(
        11,
        "truncated, empty, missing file",
        "one each, in three checkpoints",
        "path and sizes; falls back to the fourth",
        (DAMAGE + "truncated_empty_and_missing_files_are_named_and_the_run_goes_on_from_the_last_whole_checkpoint",),
    ),
    Row(
        12,
        "manifest missing or garbled; `latest` points to nothing",
        "each of them",
        "finds the newest whole checkpoint, and says so",
        (DAMAGE + "without_a_manifest_or_a_pointer_the_newest_whole_checkpoint_is_found",),
    ),
    Row(
        13,
        "disk full in a save",
        "a small file system is filled up between two saves; `save.on_error` stop, and continue",
        "bytes needed and free; the previous checkpoint intact, the partial one gone; stops, or goes on",
        (
            SAVES + "a_full_disk_stops_the_run_and_leaves_the_previous_checkpoint",
            SAVES + "a_full_disk_is_told_and_trained_through_if_the_config_says_so",
        ),
    ),
    Row(
        14,
        "read-only run folder",
        "a file system that is mounted read-only",
        "refused before anything is loaded, with the path",
        (SAVES + "a_read_only_run_folder_is_refused_before_anything_is_loaded",),
    ),
    Row(
        15,
        "stuck disk",
        "rank 0's writer sleeps for ten minutes, `save.limit_s` is 2",
        "named; the run is blocked no longer than the limit",
        (SAVES + "a_stuck_disk_is_named_and_blocks_no_longer_than_the_limit",),
    ),
    Row(
        16,
        "resume on another world or strategy",
        "a run of 2 ranks goes on with 1 and 3, with fsdp and with zero1",
        "the curve of one uninterrupted process (zero1: within 1e-5)",
        (DAMAGE + "a_resume_on_another_world_or_strategy_draws_the_same_curve",),
    ),
    Row(
        17,
        "resume with another model, class count, optimizer",
        "all three in one command",
        "refused, each key with both values",
        (DAMAGE + "a_resume_with_another_model_class_count_or_optimizer_is_refused_with_the_keys",),
    ),
    Row(
        18,
        "resume with a changed data set",
        "one image is added",
        "refused, with both fingerprints (no resume to check)",
        (DAMAGE + "a_resume_on_a_changed_data_set_is_refused_with_both_fingerprints",),
    ),
    Row(
        19,
        "NaN loss on one rank",
        "rank 1's loss becomes NaN in step 6",
        "both ranks end with 1; rank and samples (positions in the training split) are named once",
        (STEPS + "nan_on_one_rank_stops_all_alike_and_names_rank_and_samples",),
    ),
    Row(
        20,
        "exploding gradient norm",
        "rank 1's gradient times infinity, and times 1e12",
        "infinite: both ranks end with 1, with the limit; huge: clipped alike and logged (no resume to check)",
        (
            STEPS + "an_infinite_gradient_on_one_rank_stops_all_alike_with_the_limit",
            STEPS + "a_huge_gradient_on_one_rank_is_clipped_alike_on_all_and_logged",
        ),
    ),
    Row(
        21,
        "odd and corrupt images",
        "1 pixel, CMYK, 16 bits, EXIF-rotated; truncated, text, empty, decompression bomb",
        "the odd ones are read; the broken ones are each named once, and both ranks end with 2 (no resume; skipping is not built yet)",
        (STEPS + "odd_images_are_read_and_broken_ones_are_all_named_once",),
    ),
    Row(
        22,
        "a data worker killed",
        "SIGKILL to rank 1's worker during a step",
        "both ranks end at once with 75; process and samples of the step are named",
        (STEPS + "a_killed_data_worker_ends_the_run_at_once_and_is_named_with_its_samples",),
    ),
    Row(
        23,
        "one rank raises before a collective",
        "rank 1 raises in step 6",
        "rank 0 ends by itself with 75; the first cause stands on the screen with its traceback and step",
        (STEPS + "a_rank_that_raises_takes_the_others_along_and_its_error_is_on_the_screen",),
    ),
    Row(
        24,
        "one rank hangs",
        "SIGSTOP to rank 1, on the second of two agents, and on the second node of a real Slurm",
        "the watchdog ends the run with 75; the stopped rank is named, and where the other waits, with its stack",
        (
            AGENTS + "a_rank_that_stands_still_is_named_with_the_stack_of_the_one_that_waits",
            NODES + "a_rank_that_stands_still_is_named_with_the_stack_of_the_one_on_the_other_node",
        ),
    ),
    Row(
        25,
        "one rank has fewer batches",
        "11 samples over 2 ranks in micro-batches of 5",
        "no deadlock; the curve of one process (no resume to check)",
        (STEPS + "a_rank_with_fewer_batches_waits_for_nobody",),
    ),
    Row(
        26,
        "port taken, head node unreachable, a node that does not come, another world than the expected one",
        "each, with agents as they run on the nodes; all but the third with jobs of two nodes on a real Slurm as well",
        "host and port are named within seconds; 78 for port and world, else 75 (no run to resume)",
        (
            AGENTS + "a_port_that_is_taken_and_a_head_that_is_not_there_are_named",
            NODES + "a_port_that_is_taken_is_named_by_the_head",
            NODES + "a_head_that_cannot_be_reached_is_named_by_the_others",
            NODES + "another_world_than_the_expected_one_is_refused",
        ),
    ),
    Row(
        27,
        "a node lost",
        "SIGKILL to the agent of node 1; a node of a real Slurm with all that runs on it",
        "75, the node is named, its ranks save and leave; the job goes back into the queue, attempts are counted, the resume is exact",
        (
            AGENTS + "ranks_without_their_agent_save_and_leave_and_the_node_is_named",
            SLURM + "a_job_that_lost_a_node_queues_again_and_goes_on_when_there_are_two",
        ),
    ),
    Row(
        28,
        "two starts on one run folder; clock going backwards",
        "a second start during a save; a wall clock that runs backwards over folders with reversed dates",
        "locked out, with the holder's process and host; nothing breaks",
        (DAMAGE + "two_starts_on_one_folder_lock_the_second_out_by_name", DAMAGE + "a_clock_that_goes_backwards_breaks_nothing"),
    ),
    Row(
        29,
        "W&B down, bad key, hanging, 500s",
        "no key, nobody there, a server that refuses, fails, talks nonsense, hangs at once or later; a whole run of two ranks beside one that hangs",
        "one warning, with what sends the rest; the end waits no longer than `track.limit_s`; the numbers of the run are unchanged",
        (
            MIRROR + "a_server_that_fails_costs_a_warning_and_a_bounded_end",
            MIRRORED_RUN + "a_server_that_hangs_changes_no_number_of_a_run_on_two_ranks",
        ),
    ),
    Row(
        30,
        "resume after W&B logged past the checkpoint",
        "rows that W&B has already, again from an earlier checkpoint; a whole run through USR1 and SIGKILL",
        "the same run in W&B, with each step once",
        (
            MIRROR + "online_each_step_arrives_once_also_after_a_resume_from_before",
            MIRRORED_RUN + "one_curve_goes_through_a_signal_a_death_and_two_resumes",
        ),
    ),
    Row(
        31,
        "/dev/shm full",
        "a /dev/shm of 64 KiB in a mount namespace of its own",
        "refused with free and needed bytes and what helps (no resume to check)",
        (STEPS + "full_shared_memory_is_told_with_what_helps",),
    ),
    Row(
        32,
        "out of memory (simulated)",
        "torch's out-of-memory error in rank 1's forward pass",
        "78 with batch and remedy on the rank, 75 on the other; no half save",
        (STEPS + "out_of_memory_names_the_batch_and_leaves_no_half_save",),
    ),
    Row(
        33,
        "files that want to run code",
        "a pickle as weights and as a checkpoint with a matching manifest, `../` in a manifest, `!!python/object` in a config",
        "refused; the payload did nothing",
        (DAMAGE + "files_that_want_to_run_code_are_refused_and_their_payload_does_nothing",),
    ),
    Row(
        34,
        "the same failure at the same step k times",
        "SIGKILL in the forward pass of step 6, in three attempts; a checkpoint of step 4",
        "after the third: exit code 93, and no further start",
        (AGENTS + "the_same_death_in_the_same_step_is_not_tried_for_ever",),
    ),
    Row(
        35,
        "soak: random kills over one small run",
        "a random rank is killed after a random step, four times (200 in `make bench`)",
        "the last weights are those of the undisturbed run",
        (KILLS + "weights_after_many_kills_at_random_moments_are_those_of_the_undisturbed_run",),
    ),
    Row(
        ORACLE,
        "the oracle itself: a restore that is broken on purpose",
        "the draws of order, augmentation or dropout or the learning rate start again, or weights, a moment, the count of updates, "
        "the moving average or the running means are forgotten",
        "each is caught",
        (KILLS + "a_restore_that_is_broken_on_purpose_is_caught",),
    ),
)


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Found:
    """What the tests of the matrix told, by `file.py::function`."""

    outcomes: dict[str, list[str]] = field(default_factory=dict)
    saw: dict[str, list[str]] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = f"{Path(report.fspath).name}::{report.location[2].split('[')[0]}"
        if report.when == "call" or report.outcome != "passed":
            self.outcomes.setdefault(name, []).append("xfailed" if hasattr(report, "wasxfail") else report.outcome)
        if report.when == "call":
            self.saw.setdefault(name, []).extend(text for key, text in report.user_properties if key == "saw")


def page(found: Found, seconds: float) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "deepspeed"))
    when = f"Run on {datetime.now(UTC):%Y-%m-%d}: Python {platform.python_version()}, {versions}; {seconds:.0f} s.\n"
    lines = "".join(f"| {' | '.join(_cell(cell) for cell in _cells(row, found))} |\n" for row in ROWS)
    return f"{HEAD}\n{when}\n| # | fault | what was done | what is asked | what was seen | result | tests |\n|---|---|---|---|---|---|---|\n{lines}"


def _cells(row: Row, found: Found) -> tuple[str, ...]:
    outcomes = [outcome for test in row.tests for outcome in found.outcomes.get(test, ["missing"])]
    saw = [text for test in row.tests for text in found.saw.get(test, [])]
    each = max(130, SHOWN // max(1, len(saw)))
    seen = "<br>".join(_short(text, each) for text in saw)
    return (
        str(row.number) if row.number else "oracle",
        row.fault,
        row.done,
        row.must,
        seen,
        _result(outcomes),
        "<br>".join(f"`{test}`" for test in row.tests),
    )


def _result(outcomes: list[str]) -> str:
    """The worst of what the row's tests came to."""
    worst: Mapping[str, str] = {"failed": "**failed**", "missing": "**not run**", "xfailed": "known gap", "skipped": "skipped"}
    return next((told for outcome, told in worst.items() if outcome in outcomes), "passed")


def _short(text: str, characters: int) -> str:
    """Without the folders of the machine it ran on, and cut."""
    text = re.sub(r"(?<![\w.])(?:/[\w.-]+)+/(?=(?:runs|disk|checkpoints)\b)|(?<![\w.])/(?:tmp|work|root|home)(?:/[\w.-]+)*/", "", text)
    return text if len(text) <= characters else f"{text[:characters].rsplit(' ', 1)[0]} ..."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    import time

    import pytest

    found, began = Found(), time.monotonic()
    named = sorted({test for row in ROWS for test in row.tests})
    elsewhere = [
        str((HERE.parent / file).with_name(test)) for file in ELSEWHERE for test in named if test.startswith(f"{Path(file).name}::")
    ]
    code = pytest.main([str(HERE), *elsewhere, "-m", "(dist or slurm) and not bench", "-q"], plugins=[found])
    PAGE.write_text(page(found, time.monotonic() - began))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
