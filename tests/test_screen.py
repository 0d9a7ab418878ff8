"""What `sft-dist watch` prints: one run in detail, a line for each of many, and nothing that a terminal would obey."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from given_runs import a_run, guesses
from given_watched import NOON, looked, training
from rich.console import Console

from sft_dist import cli
from sft_dist.errors import ConfigError
from sft_dist.rundir import write_json
from sft_dist.watch import screen
from sft_dist.watch.sight import Ranks


def test_a_run_in_its_midst_is_told_in_a_few_lines(tmp_path: Path) -> None:
    assert list(screen.lines(looked(training(tmp_path / "pets", 25), NOON + 200), width=100)) == [
        "pets  silent for 0:03:21",
        "━━━━━━━━━━━━────────────────────────────────────  step 25/100  epoch 6.25 of 25",
        "left 0:03:10, with 8 evaluation(s) of perhaps 0:00:05",
        "16 samples/s, - of the time waiting for data",
        "train/loss  0.04, of 0.04 to 1  █▄▃▃▂▂▂▂▂▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁",
        "val/top1    0.2, of 0.1 to 0.2  ▁█",
    ]


@pytest.mark.parametrize("width", [30, 45, 60, 80])
def test_a_narrow_screen_loses_no_number(tmp_path: Path, width: int) -> None:
    sight = looked(training(tmp_path / "pets", 25), NOON + 10)
    told = list(screen.lines(sight, width))
    assert [line.partition("  ")[2] for line in told if "step" in line] == ["step 25/100  epoch 6.25 of 25"]
    assert [re.sub("[ ▁-█]+$", "", line) for line in told if "/" in line.split()[0]] == [
        "train/loss  0.04, of 0.04 to 1",
        "val/top1    0.2, of 0.1 to 0.2",
    ]
    assert all(len(line) <= width for line in told if line.startswith(("train/", "val/"))) or width == 30
    assert width < 60 or any("▁" in line for line in told)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (10, ["run", "state"]),
        (60, ["run", "state", "step", "left", "score"]),
        (80, ["run", "state", "progress", "step", "left", "score", "quiet for"]),
        (160, list(screen.COLUMNS)),
    ],
)
def test_a_narrow_screen_shows_the_columns_that_matter_most(tmp_path: Path, width: int, shown: list[str]) -> None:
    table = Console(width=width, file=io.StringIO())
    table.print(screen.many([looked(training(tmp_path / "a-run-of-pets", 25), NOON + 10)], 0, width))
    [heads] = [line for line in table.file.getvalue().splitlines() if line.startswith("┃")]  # type: ignore[attr-defined]
    assert width == 10 or [head.strip() for head in heads.strip("┃").split("┃")] == shown
    assert screen.fitting({head: len(head) for head in screen.COLUMNS}, 10) == ["run", "state"]


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 8, ""),
        ([5.0], 8, "▁"),
        ([1, 1, 1], 8, "▁▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 0, 7, 7], 2, "▁█"),
        ([0, 1, 2, 3, 4, 5, 6], 3, "▁▄█"),
        ([-1.7e308, 1.7e308, 1.7e308], 3, "▁██"),
    ],
)
def test_a_curve_in_a_line_goes_from_its_least_to_its_most(values: list[float], width: int, drawn: str) -> None:
    assert screen.spark(values, width) == drawn


@pytest.mark.parametrize(("numbers", "told"), [([0], "0"), ([0, 1, 2], "0-2"), ([0, 1, 3, 7, 8], "0-1 3 7-8")])
def test_ranks_are_told_in_ranges(numbers: list[int], told: str) -> None:
    assert screen.together(numbers) == told


@pytest.mark.parametrize(
    ("longest_s", "told_s", "told"),
    [
        (0.25, 1.0, "for up to 0.2 s (told 1 s ago)"),
        (118.5, 1.0, "for up to 118.5 s (told 1 s ago)"),
        (299.0, 1.0, "silent for up to 0:05:00 (told 1 s ago)"),
        (0.25, 600.0, "silent for up to 0:10:00 (told 600 s ago)"),
    ],
)
def test_ranks_that_begin_nothing_for_two_minutes_are_called_silent(longest_s: float, told_s: float, told: str) -> None:
    assert screen.ranks(Ranks("alpha", 17, "forward", (0, 1), longest_s, told_s)) == f"rank 0-1 on alpha: forward of step 17, {told}"


def test_the_door_prints_a_run_once_and_ends(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.cli, ["watch", str(a_run(tmp_path / "pets", guesses([0, 1, 2])))])
    assert done.exit_code == 0
    assert done.output.splitlines()[:2] == ["pets  done", f"{'━' * 48}  step 4/4"]


def test_a_watch_goes_on_while_the_run_does_and_ends_with_it(tmp_path: Path) -> None:
    run = training(tmp_path / "pets", 25)
    command = [sys.executable, "-m", "sft_dist", "watch", "--every", "0.2", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout
        told = [watch.stdout.readline()]
        with pytest.raises(subprocess.TimeoutExpired):
            watch.wait(1)
        write_json(run / "outcome.json", {"outcome": "saved", "step": 25})
        told += watch.communicate(timeout=60)[0].splitlines()
    assert watch.returncode == 0
    assert [line.split()[1] for line in told if line.startswith("pets")] == ["silent", "saved"]


def test_the_door_prints_a_line_for_each_run_of_a_folder_the_latest_first(tmp_path: Path) -> None:
    a_run(tmp_path / "old", guesses([0, 1, 2]))
    training(tmp_path / "new", 25)
    done = CliRunner().invoke(cli.cli, ["watch", "--once", str(tmp_path)])
    assert done.exit_code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if line.startswith("│")]
    assert {row[0]: row[1:4] for row in rows} == {
        "old": ["done", "━━━━━━━━━━", "4/4"],
        "new": ["silent", "━━────────", "25/100"],
    }


def test_a_folder_of_runs_is_printed_once_where_there_is_no_terminal(tmp_path: Path) -> None:
    training(tmp_path / "new", 25)
    done = CliRunner().invoke(cli.cli, ["watch", str(tmp_path)])
    assert done.exit_code == 0
    assert done.output.count("│ new") == 1


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone"):
        done = CliRunner().invoke(cli.cli, ["watch", "--once", str(place)])
        assert isinstance(done.exception, ConfigError)


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    run = training(tmp_path / "a", 25).rename(tmp_path / "a\x1b[2J[bold]\u202e")
    node = run / "attempts" / "1" / "node-0"
    node.mkdir(parents=True)
    (node / "agent.json").write_text(json.dumps({"host": "\x1b]0;owned\x07"}))
    beat = {"pid": 1, "step": 3, "phase": "\x1b[31m", "since_ns": 0, "count": 0}
    (node / "heartbeats.json").write_text(json.dumps({"time_ns": 1, "ranks": {"0": beat}}))
    for place in (run, tmp_path):
        done = CliRunner().invoke(cli.cli, ["watch", "--once", str(place)])
        assert done.exit_code == 0
        assert not re.search("[\x1b\x07\u202e]", done.output)
        assert "[bold]" in done.output
