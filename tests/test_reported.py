"""The end of a run writes its report, and nothing that happens to that can hurt the run."""

import io
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from rich.console import Console
from test_report import a_whole_run

from sft_dist import beside
from sft_dist.config import Report, Track
from sft_dist.rundir import RunDir


def told(folder: Path, **keys: object) -> str:
    screen = io.StringIO()
    with beside.reported(RunDir(folder), Report.model_validate(keys), Console(file=screen, width=400)):
        pass
    return screen.getvalue()


def test_a_run_that_is_done_has_a_report(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    assert told(run) == f"   report  {run / 'report.html'}\n"
    assert "top1 0.9167" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("outcome", "keys"), [("saved", {}), (None, {}), ("done", {"write": "none"})], ids=["saved", "killed", "not wanted"]
)
def test_a_run_that_is_not_at_its_end_or_wants_none_has_none(tmp_path: Path, outcome: str | None, keys: dict[str, str]) -> None:
    run = a_whole_run(tmp_path / "run", outcome=outcome)
    assert told(run, **keys) == ""
    assert not (run / "report.html").exists()


def test_a_run_that_fails_waits_for_no_report(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), beside.reported(RunDir(run), Report(), Console()):
        raise ZeroDivisionError
    assert not (run / "report.html").exists()


def test_a_report_that_fails_costs_a_warning(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    (run / "report.html").mkdir()
    warning = told(run)
    assert warning.startswith("the report is not complete: cannot write ")
    assert warning.endswith(f"`sft-dist report {run}` tries again\n") and warning.count("\n") == 1


def test_what_a_library_says_in_other_letters_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.write(2, b'caf\\xe9.png is damaged\\n')\nos._exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "the report is not complete: caf\ufffd.png is damaged; " in told(a_whole_run(tmp_path / "run"))


INTERRUPTS = """import os, signal, time
def runs(): return open(f'/proc/{os.getppid()}/stat').read().rpartition(') ')[2][0] != 'S'
os.read(0, 99)
time.sleep(1)
while runs(): time.sleep(0.05)  # it has not come to its wait yet
os.kill(os.getppid(), signal.SIGINT)
time.sleep(60)
"""


@pytest.fixture
def interrupting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started beside the run sends it a ctrl-C as soon as it is waited for, and hangs."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("interrupting")
def test_an_interrupt_ends_the_wait_for_wandb_and_not_the_run(tmp_path: Path) -> None:
    """Passed on, it would make a failed run of one that is done."""
    run, screen = a_whole_run(tmp_path / "run"), io.StringIO()
    with beside.mirrored(RunDir(run), Track(wandb="offline", limit_s=30), Console(file=screen, width=400)):
        pass
    assert screen.getvalue().startswith("W&B: it was interrupted; ")


@pytest.mark.usefixtures("interrupting")
def test_an_interrupt_ends_the_report_and_not_the_run(tmp_path: Path) -> None:
    assert told(a_whole_run(tmp_path / "run"), limit_s=30).startswith("the report is not complete: it was interrupted; ")


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started beside the run hangs, and is not ended by being killed, as if a stuck disk held it."""
    (tmp_path / "sitecustomize.py").write_text("import os, time\ntime.sleep(20)\nos._exit(0)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(subprocess.Popen, "kill", lambda _: None)
    monkeypatch.setattr(beside, "KILLED_S", 0.5)


@pytest.mark.usefixtures("held")
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # so it is, and the run has said so
def test_a_process_that_does_not_go_when_it_is_killed_is_told_and_not_waited_for(tmp_path: Path) -> None:
    run, screen = a_whole_run(tmp_path / "run"), io.StringIO()
    with beside.mirrored(RunDir(run), Track(wandb="offline", limit_s=1), Console(file=screen, width=400)):
        pass
    troubles = {
        "W&B: not everything was taken in 1 s": screen.getvalue(),
        "the report is not complete: it took longer than report.limit_s = 1 s": told(run, limit_s=1),
    }
    for trouble, said in troubles.items():
        found = re.match(rf"{trouble}, and process (\d+) does not go 0.5 s after it was killed: a disk or a device holds it; ", said)
        assert found, said
        os.kill(int(found[1]), signal.SIGKILL)
    for thread in threading.enumerate():
        if thread.name == "mirror":  # it listens to the first of the two
            thread.join()


def test_a_report_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    assert told(run, write="look", limit_s=1).startswith("the report is not complete: it took longer than report.limit_s = 1 s; ")


def test_where_looking_fails_the_page_is_there_all_the_same(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")  # without a whole checkpoint
    assert told(run, write="look").startswith(
        f"the report is not complete: checkpoint {run / 'checkpoints' / 'step-00000004'} is damaged; "
    )
    assert "top1 0.9167" in (run / "report.html").read_text()
