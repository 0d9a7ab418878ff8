"""Every command of the guide to checkpoints runs as it stands there, one after the other, on a short run of the quickstart."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from test_readme import SHORTER, execute

pytestmark = pytest.mark.dist

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "guides" / "checkpoints.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
PRUNED = "sft-dist ckpt prune runs/quickstart --keep 1 --before 40"


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """What each command ended with, in a folder with a run of three checkpoints and the image of a digit."""
    from PIL import Image
    from sklearn.datasets import load_digits

    (folder / "configs").symlink_to(ROOT / "configs")
    Image.fromarray((load_digits().images[7] * 255 // 16).astype("uint8")).save(folder / "digit.png")
    keys = [key for key in SHORTER if not key.startswith("train.duration")]
    run = ["sft-dist", "train", "configs/quickstart.yaml", *keys, "train.duration=3 steps", "save.every=1 step"]
    trained = execute(shlex.join(run), folder)
    assert trained.returncode == 0, trained.stderr
    return {command: execute(command, folder) for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs_as_it_stands_in_the_guide(command: str, told: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert told[command].returncode == 0, told[command].stdout + told[command].stderr


def test_the_commands_say_and_do_what_the_guide_says(told: dict[str, subprocess.CompletedProcess[str]]) -> None:
    listed = told["sft-dist ckpt ls runs/quickstart"].stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["step-00000001", "step-00000002", "step-00000003", "3"]
    assert re.fullmatch(r"\d 0\.\d{4}\n", told["python runs/quickstart/export/predict.py digit.png"].stdout)
    assert (
        "step-00000003 is exported to exported/digits ("
        in told["sft-dist ckpt export runs/quickstart --checkpoint latest --to exported/digits"].stdout
    )
    assert "would delete step-00000001, " in told["sft-dist ckpt prune runs/quickstart --keep 2 --every-nth 40 --dry-run"].stdout
    assert re.search(r"^deleted 2 folders, \d+ bytes$", told[PRUNED].stdout, re.MULTILINE)
    assert told["sft-dist ckpt verify archive/quickstart"].stdout == "step-00000003  whole\n"
    assert "this run is finished" in told["sft-dist train archive/quickstart/config.yaml run.dir=archive"].stdout


def test_the_options_of_the_commands_are_those_of_the_guide() -> None:
    from sft_dist.cli import ckpt

    options = {name for command in ckpt.commands.values() for p in command.params for name in p.opts if name.startswith("--")}
    assert {option for option in options if option not in GUIDE} == set()
