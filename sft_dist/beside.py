"""What shows a run elsewhere: beside the training the process that feeds W&B, after it a table and the report. Rank 0 only."""

import csv
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console

from sft_dist import signals
from sft_dist.config import Report, Track
from sft_dist.errors import SftError
from sft_dist.finale import with_this_package
from sft_dist.rundir import RunDir, read_json, read_rows, write_atomically
from sft_dist.session import FOLDER, SYNC, later
from sft_dist.track import say

URGENT_S = 5
"""Seconds for the mirror where the end must not wait."""
KILLED_S = 5
"""Seconds for a process to go that was killed. One that waits for a stuck disk or device goes only when that answers."""


@contextmanager
def mirrored(run: RunDir, track: Track, console: Console) -> Iterator[None]:
    """Show the metrics elsewhere, as the config asks for. No failure of that is one of the run's."""
    try:
        with _in_wandb(run, track, console):
            yield
    finally:
        if track.csv:
            try:
                write_table(run)
            except (SftError, OSError, ValueError) as error:
                say(console, f"metrics.csv is not written: {error}")


def write_table(run: RunDir) -> None:
    """metrics.csv: the rows of metrics.jsonl, with a column for each name that is among them."""
    rows = read_rows(run.metrics)
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    table.writeheader()
    table.writerows(rows)
    write_atomically(run.path / "metrics.csv", text.getvalue())


@contextmanager
def reported(run: RunDir, report: Report, console: Console) -> Iterator[None]:
    """Write the report of a run that has come to its end, in a process of its own: whatever happens to it, and however long it takes,
    costs the run a warning and `report.limit_s` seconds at most."""
    yield
    if report.write == "none" or read_json(run.outcome).get("outcome") != "done":
        return
    trouble = _write_report(run, report)
    again = f"the report is not complete: {trouble}; `sft-dist report {run.path}` tries again"
    say(console, again if trouble else f"   report  {run.path / 'report.html'}")


def _write_report(run: RunDir, report: Report) -> str:
    """What went wrong, or nothing. The process sees no GPU, which may still be full of the run."""
    command = [sys.executable, "-P", "-m", "sft_dist.report.command", str(run.path.absolute()), report.write]
    with signals.held_back():
        try:
            process = subprocess.Popen(
                command,
                env={**with_this_package(), "CUDA_VISIBLE_DEVICES": ""},
                text=True,
                errors="replace",  # a library may say anything, and no letter of it may fail the run
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            return f"its process cannot be started ({error})"
    assert process.stderr
    with process.stderr:
        try:
            _, told = process.communicate(timeout=report.limit_s)
            trouble = (told.strip().splitlines() or [f"exit code {process.returncode}"])[-1] if process.returncode else ""
        except subprocess.TimeoutExpired:
            trouble = f"it took longer than report.limit_s = {report.limit_s} s"
        except KeyboardInterrupt:  # of somebody who has waited long enough; the run is done all the same
            trouble = "it was interrupted"
        return trouble + _kill(process)


@contextmanager
def _in_wandb(run: RunDir, track: Track, console: Console) -> Iterator[None]:
    """Let a process of its own feed Weights & Biases. It gets the processor time that the training leaves, and nothing waits for it but
    the end: `track.limit_s` seconds at most, and a few where something is more urgent, a stop that was asked for or an error.
    """
    process = None if track.wandb == "disabled" else _start_mirror(run, track, console)
    if not process:
        yield
        return
    said: list[str] = []
    voice = threading.Thread(target=_repeat, args=(process, console, said), name="mirror", daemon=True)
    voice.start()
    word = "failed"
    try:
        yield
        word = str(read_json(run.outcome).get("outcome"))
    finally:
        patience_s = track.limit_s if word == "done" else min(track.limit_s, URGENT_S)
        trouble = _end_mirror(process, word, patience_s)
        voice.join(1.0)
        if trouble and not any(SYNC in sentence for sentence in said):  # one warning is enough
            say(console, f"W&B: {trouble}; {later(run)}")


def _start_mirror(run: RunDir, track: Track, console: Console) -> "subprocess.Popen[str] | None":
    """In a session of its own, so that no signal to the ranks reaches it; what it says besides sentences goes to mirror.log."""
    command = [sys.executable, "-P", "-m", "sft_dist.mirror", str(run.path.absolute()), track.wandb, str(track.limit_s)]
    try:
        folder = run.path / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        with signals.held_back(), os.fdopen(os.open(folder / "mirror.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)) as log:
            return subprocess.Popen(
                command, env=with_this_package(), text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
    except OSError as error:
        say(console, f"W&B: its process cannot be started ({error}); {later(run)}")
        return None


def _repeat(process: "subprocess.Popen[str]", console: Console, said: list[str]) -> None:
    assert process.stdout
    with process.stdout as sentences:
        for sentence in sentences:
            said.append(sentence.rstrip())
            say(console, said[-1])


def _end_mirror(process: "subprocess.Popen[str]", word: str, patience_s: float) -> str:
    """Tell the mirror how the training ended, and wait; whatever still runs then is killed. What went wrong, or nothing."""
    assert process.stdin
    try:
        with suppress(OSError), process.stdin:
            process.stdin.write(f"{word}\n")
        code = process.wait(patience_s)
        trouble = f"the mirror ended with code {code}, see {FOLDER}/mirror.log" if code else ""
    except subprocess.TimeoutExpired:
        trouble = f"not everything was taken in {patience_s} s"
    except KeyboardInterrupt:  # the run is over, and must not fail by it
        trouble = "it was interrupted"
    return trouble + _kill(process)


def _kill(process: "subprocess.Popen[str]") -> str:
    """End a process that may still run; the end of a sentence where it does not go, else nothing."""
    process.kill()
    try:
        process.wait(KILLED_S)
    except subprocess.TimeoutExpired:
        return f", and process {process.pid} does not go {KILLED_S} s after it was killed: a disk or a device holds it"
    return ""
