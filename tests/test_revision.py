"""The commit that a run names is that of the code which ran, not of a repository that its folder happens to lie in."""

import subprocess
from pathlib import Path

import pytest

from launch import snapshot
from sft_dist import revision, rundir


@pytest.fixture
def git(tmp_path: Path):
    """Runs git in a folder, as somebody."""

    def git(folder: Path, *command: str) -> str:
        words = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *command]
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    return git


@pytest.fixture
def checkout(git, tmp_path: Path) -> Path:
    """A repository with what counts as the code in it, committed."""
    for name in ("sft_dist/revision.py", "slurm/finetune.sh", "x.yaml"):
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a\n")
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message=first")):
        git(tmp_path / "checkout", *command)
    return tmp_path / "checkout"


def test_a_checkout_is_its_commit_and_dirty_once_it_is_edited(checkout: Path, git) -> None:
    assert revision.of(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    (checkout / "sft_dist" / "revision.py").write_text("b\n")
    assert revision.of(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": True}


def test_a_checkout_whose_state_git_cannot_tell_is_not_called_clean(checkout: Path, git) -> None:
    (checkout / ".git" / git(checkout, "symbolic-ref", "HEAD")).write_text("1" * 40 + "\n")  # a commit that has been lost
    assert revision.of(checkout) == {"commit": "1" * 40, "dirty": None}


def test_a_copy_inside_another_repository_is_not_that_repository_s_commit(checkout: Path, git) -> None:
    copy = checkout / "runs" / "copy" / "sft_dist"
    copy.mkdir(parents=True)
    (copy / "revision.py").write_text("a\n")
    assert revision.of(copy.parent) == {"commit": None, "dirty": None}


def test_a_snapshot_keeps_the_commit_that_it_was_made_of(checkout: Path, git) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    run = rundir.RunDir(checkout / "runs" / "r")
    run.path.mkdir(parents=True)
    made = snapshot.make(run, snapshot.contents(checkout, checkout / "x.yaml", "a: 1\n"))
    (checkout / "x.yaml").write_text("b\n")
    git(checkout, "commit", "--quiet", "--all", "--message=second")
    assert git(checkout, "rev-parse", "HEAD") != first
    assert revision.of(made) == {"commit": first, "dirty": False}


def test_code_that_no_repository_keeps_has_no_commit_and_its_snapshot_neither(tmp_path: Path) -> None:
    assert revision.of(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / revision.NOTE).write_text('{"commit": null, "dirty": null}')
    assert revision.of(tmp_path) == {"commit": None, "dirty": None}
