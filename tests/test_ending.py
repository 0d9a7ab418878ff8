"""A command that is interrupted says so, and speaks of a checkpoint only where a run may have one."""

from pathlib import Path

import click
import pytest

from sft_dist import ending
from sft_dist.pulse import Pulse


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (True, "sft-dist: interrupted; the last checkpoint is intact, and the same command goes on from it\n"),
        (False, "sft-dist: interrupted\n"),
    ],
    ids=["in a run", "in another command"],
)
def test_an_interrupt_speaks_of_a_checkpoint_only_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], training: bool, said: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    pulse = Pulse()
    pulse.attempt = tmp_path if training else None
    assert ending.end(click.exceptions.Abort(), pulse) == 1
    assert capsys.readouterr().err == said
