"""Every command of the README runs as it stands there, shortened only by keys appended to it, in a folder of its own."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
LOOKED_AT = [command for command in COMMANDS if command.startswith(("make ", "source ", "sbatch "))]  # minutes, a shell's own, a cluster
RUN = [command for command in COMMANDS if command not in LOOKED_AT]
SHORTER = ["train.duration=2 steps", "schedule.warmup=1 step", "data.per_class=8", "batch.total=8", "batch.micro=4", "data.workers=0"]


@pytest.fixture(scope="module")
def place(folder):
    """A folder that looks like the repository, so that runs/ is made here; with the images and the config of the README's own set."""
    import torchvision
    from PIL import Image
    from safetensors.torch import save_file

    for name in ("sft_dist", "launch", "configs", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    [pets] = [block for block in re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "data/pets" in block]
    (folder / "pets.yaml").write_text(pets)
    for i in range(20):
        image = folder / "data" / "pets" / "train" / ("cat", "dog")[i % 2] / f"{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (12 * i, 90, 40)).save(image)
    save_file(torchvision.models.resnet50().state_dict(), folder / "pets.safetensors")
    return folder


def execute(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    """The command in a shell, with this Python's programs first on the path; without the user's Accelerate settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "SFT_"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def quickstart(place):
    """The run of the first command, which later ones score again and transfer from."""
    done = execute(shlex.join([*shlex.split(RUN[0]), *SHORTER]), place)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.dist
@pytest.mark.parametrize("command", RUN)
def test_command_runs_as_it_stands_in_the_readme(command, place, quickstart):
    trains = "train" in command or "sft-launch run" in command
    reads = command.split()[1] in ("eval", "ls", "compare", "report", "watch", "data")
    if "runs/slow" in command and not (place / "runs" / "slow").exists():
        [slow] = [line for line in RUN if "run.name=slow" in line]
        assert execute(f"{slow} {shlex.join(SHORTER)}", place).returncode == 0
    own_name = re.search(r"run\.name=(\w+)", command)
    name = own_name[1] if own_name else "quickstart" if command == RUN[0] else f"door-{RUN.index(command)}"
    extra = [] if reads else [*SHORTER, f"run.name={name}"]
    extra += ["report.write=none"] if name.startswith("door-") and trains else []
    if "pets.yaml" in command:
        extra += ["model.weights=pets.safetensors", "data.size=32"]  # instead of a download, and of minutes
    done = execute(f"{command} {shlex.join(extra)}", place)
    assert done.returncode == 0, done.stdout + done.stderr
    if trains:
        run = place / "runs" / name
        assert json.loads((run / "outcome.json").read_text())["outcome"] == "done"
        assert json.loads((run / "plan.json").read_text())["world"] == (2 if " 2 " in command else 1)
        if name not in ("quickstart", "slow"):  # which are read afterwards
            shutil.rmtree(run)


@pytest.mark.dist
def test_first_run_leaves_the_files_that_the_readme_shows(place, quickstart):
    [tree] = [
        block for block in re.findall(r"^```text\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if block.startswith("runs/quickstart")
    ]
    shown = set(re.findall(r"^  ([\w.]+)", tree, re.MULTILINE))
    assert shown == {path.name for path in (place / "runs" / "quickstart").iterdir() if not path.name.startswith(".")}
    assert "resumed" not in quickstart.stdout


@pytest.mark.parametrize("command", LOOKED_AT)
def test_command_that_is_not_run_here_has_what_it_needs(command):
    verb, thing, *rest = command.split()
    if verb == "make":
        assert re.search(rf"^{thing}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif verb == "source":
        assert "-m venv .venv" in (ROOT / "Makefile").read_text()
    else:
        assert all((ROOT / path).is_file() for path in (thing, *rest))
        assert subprocess.run(["bash", "-n", ROOT / thing]).returncode == 0


def test_the_two_commands_of_the_set_up_come_first() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]
