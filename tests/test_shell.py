"""The shell scripts are read by bash without complaint, and by shellcheck."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))


def test_there_are_scripts() -> None:
    assert "finetune.sh" in [path.name for path in SCRIPTS]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_the_script(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_the_script(path: Path) -> None:
    if shutil.which("shellcheck") is None and not os.environ.get("SFT_REQUIRE_SHELLCHECK"):
        pytest.skip("no shellcheck here (Debian: apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", "-x", path], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
