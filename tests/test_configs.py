"""Every config that is shipped can be planned where its data and weights are, and opens with its schema and the command that runs it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from sft_dist import datasets, parse, refuse
from sft_dist.plan import World, make_plan

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
DOORS = {  # what a config's command may begin with -> the file of the door, where it has one
    "sft-dist train": None,
    "torchrun --nproc-per-node 2 sft_dist/train.py": "sft_dist/train.py",
    "sbatch slurm/finetune.sh": "slurm/finetune.sh",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def stand_ins(folder: Path) -> Path:
    """A folder of images in two classes, one of images with masks, one of images with boxes, a file that is called weights, and a folder that looks like a run with a checkpoint."""
    for split in ("train", "val"):
        for kind in ("cat", "dog"):
            (folder / split / kind).mkdir(parents=True)
            Image.new("RGB", (40, 30)).save(folder / split / kind / "1.png")
    for kind in ("images", "masks"):
        (folder / "masked" / "train" / kind).mkdir(parents=True)
        Image.new("L", (40, 30)).save(folder / "masked" / "train" / kind / "1.png")
    (folder / "masked" / "classes.txt").write_text("road\nsky\n")
    for kind in ("JPEGImages", "Annotations"):
        (folder / "boxed" / kind).mkdir(parents=True)
    for file in ("weights.pth", "weights.safetensors"):
        (folder / file).touch()
    manifest = folder / "source" / "checkpoints" / "step-00000001" / "MANIFEST.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    (folder / "source" / "config.yaml").touch()
    return folder


def local(path: Path, folder: Path) -> list[str]:
    """The overrides that put a config's data and weights on this machine, and change nothing else."""
    config = parse.load(path)
    root = {"masks": folder / "masked", "voc": folder / "boxed"}.get(config.data.name, folder)
    overrides = [f"data.root={root}"] if config.data.root else []
    if config.model.weights.startswith("run:"):
        overrides.append(f"model.weights=run:{folder}/source")
    elif suffix := Path(config.model.weights).suffix:
        overrides.append(f"model.weights={folder}/weights{suffix}")
    return overrides


def opening(path: Path) -> list[str]:
    """The words of the command in a config's second line."""
    second = path.read_text().splitlines()[1]
    assert second.startswith("# "), f"{name(path)} has {second!r} below its schema, not its command"
    return shlex.split(second.removeprefix("# "))


@pytest.mark.parametrize("path", CONFIGS, ids=name)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_config_can_be_planned(path: Path, ranks: int, stand_ins: Path) -> None:
    config = parse.load(path, local(path, stand_ins))
    world = World(size=ranks, local_size=ranks)
    refuse.check(config, world, {})
    datasets.check(config.data)
    splits = datasets.load(config.data) if config.data.name == "digits" else None
    plan = make_plan(config, world, len(splits.train) if splits else 4000, len(splits.val) if splits else 1000)
    assert plan.total_steps > 0
    assert sum(plan.samples_per_rank) == config.batch.total


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_every_config_opens_with_the_command_that_runs_it(path: Path) -> None:
    *door, config = opening(path)
    assert " ".join(door) in DOORS
    assert config == name(path)
    script = DOORS[" ".join(door)]
    assert script is None or (ROOT / script).is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_every_config_names_its_schema_and_keeps_to_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    schema = json.loads((path.parent / first.partition("=")[2]).read_text())
    jsonschema.validate(parse.read_yaml(path), schema, jsonschema.Draft7Validator)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_every_file_and_key_that_a_comment_names_is_real(path: Path) -> None:
    comments = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for file in re.findall(r"\b(?:configs|slurm|docs|benchmarks)/[\w./-]+\.\w+", comments):
        assert (ROOT / file).exists(), file
    keys = parse.flat(parse.load(path))
    for key in re.findall(r"\b((?:data|model|batch|optim|train|eval|save)\.[a-z_]+)=", comments):
        assert key in keys


def test_no_config_needs_torch_to_be_refused_or_let_through(stand_ins: Path) -> None:
    cases = [(str(path), local(path, stand_ins)) for path in CONFIGS]
    program = (
        "import sys, pathlib\nfrom sft_dist import datasets, parse, plan, refuse\n"
        f"for path, overrides in {cases!r}:\n"
        "    config = parse.load(pathlib.Path(path), overrides)\n"
        "    refuse.check(config, plan.World(), {})\n"
        "    datasets.check(config.data)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr
