"""The end of a run writes its report, and nothing that happens to that can hurt the run."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from test_report import a_whole_run

from sft_dist import beside
from sft_dist.config import Report
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


def test_a_report_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")
    assert told(run, write="look", limit_s=1).startswith("the report is not complete: it took longer than report.limit_s = 1 s; ")


def test_a_report_whose_last_words_are_no_text_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.write(2, b'\\xff\\n')\nos._exit(1)\n")  # as a library in C may
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert told(a_whole_run(tmp_path / "run")).startswith("the report is not complete: \ufffd; ")


def test_where_looking_fails_the_page_is_there_all_the_same(tmp_path: Path) -> None:
    run = a_whole_run(tmp_path / "run")  # without a whole checkpoint
    assert told(run, write="look").startswith(
        f"the report is not complete: checkpoint {run / 'checkpoints' / 'step-00000004'} is damaged; "
    )
    assert "top1 0.9167" in (run / "report.html").read_text()
