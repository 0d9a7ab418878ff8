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


def test_the_tasks_of_an_array_do_not_share_a_name_or_an_id_of_wandb(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "finetune.sh").write_text('echo "$1 ${WANDB_SWEEP_ID-none} ${WANDB_RUN_ID-none} $WANDB_PROJECT"\n')
    told = {"SFT_CODE": str(tmp_path), "SLURM_ARRAY_TASK_ID": "3", "SLURM_SUBMIT_DIR": str(tmp_path)}
    told |= {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "abc12345", "WANDB_PROJECT": "pets"}
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "array.sh", "configs"], env={**os.environ, **told}, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "configs/3.yaml none none pets\n"
