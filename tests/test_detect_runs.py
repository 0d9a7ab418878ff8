"""Detection on several ranks: the same curve and the same scores on any layout and strategy, with a frozen part, killed and gone on with."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given_boxes import saved, voc
from ranks import Job, largest_difference, output, rows, run_ranks

pytestmark = pytest.mark.dist

# world, micro-batch, strategy: none of them cuts 5 samples evenly
LAYOUTS = [(1, 5, "ddp"), (2, 3, "ddp"), (2, 2, "fsdp"), (2, 2, "zero2"), (3, 1, "ddp")]
RULER = {"ddp": 1e-9, "fsdp": 1e-9, "zero2": 1e-5}  # DeepSpeed keeps and reduces in fp32


def job(folder: Path, name: str, micro: int, strategy: str = "ddp", precision: str = "fp64", **save: Any) -> Job:
    content = {
        "task": "detect",
        "data": {"name": "voc", "root": str(folder / "voc"), "size": 96, "crop_scale": [0.3, 1.0], "workers": 0},
        "model": {"name": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": str(folder / "random.safetensors"), "train": "last:3"},
        "batch": {"total": 5, "micro": micro},
        "optim": {"name": "sgd", "lr": 0.005, "momentum": 0.9, "weight_decay": 1e-4},
        "train": {"duration": "3 steps", "clip": 1.0, "seed": 5},
        "eval": {"every": "3 steps", "micro": micro},
        "save": {"every": "1000 steps", "keep": 1, **save},
        "shard": {"strategy": strategy},
        "precision": precision,
        "device": "cpu",
        "report": {"write": "none"},
        "run": {"dir": str(folder / "runs"), "name": name},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return Job(str(path))


def name_of(world: int, micro: int, strategy: str) -> str:
    return f"{strategy}-{world}x{micro}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    voc(folder / "voc", {"train": range(13), "val": range(20, 27)})
    saved(folder / "random.safetensors")
    jobs: dict[int, list[Job]] = {}
    for world, micro, strategy in LAYOUTS:
        jobs.setdefault(world, []).append(job(folder, name_of(world, micro, strategy), micro, strategy))
    for world, its in jobs.items():
        assert run_ranks(world, its, folder / f"world{world}") == [0] * world, output(folder / f"world{world}", world)
    return folder / "runs"


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=lambda layout: name_of(*layout))
def test_the_curve_in_fp64_is_the_same_on_every_layout(runs: Path, layout: tuple[int, int, str]) -> None:
    alone = rows(runs / "ddp-1x5")
    assert {"train/loss_objectness", "train/loss_rpn_box_reg", "train/loss_classifier", "train/loss_box_reg"} <= alone[3, "train"].keys()
    assert largest_difference(alone, rows(runs / name_of(*layout))) < RULER[layout[2]]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS[1:] if layout[2] != "zero2"], ids=lambda layout: name_of(*layout))
def test_every_image_is_evaluated_once_and_alike(runs: Path, layout: tuple[int, int, str]) -> None:
    """To a hundredth of a pixel and a millionth, which is how they are written."""
    one, other = (
        [json.loads(line) for line in (runs / name / "predictions" / "step-00000003.jsonl").read_text().splitlines()]
        for name in ("ddp-1x5", name_of(*layout))
    )
    assert [row["id"] for row in one] == [f"JPEGImages/{number:03d}.png" for number in range(20, 27)]
    for row, same in zip(one, other, strict=True):
        assert row.keys() == same.keys() and (row["labels"], row["truth_boxes"]) == (same["labels"], same["truth_boxes"])
        assert row["scores"] == pytest.approx(same["scores"], abs=2e-6)
        assert [edge for box in row["boxes"] for edge in box] == pytest.approx([edge for box in same["boxes"] for edge in box], abs=0.02)
    assert sum(len(row["boxes"]) for row in one) > 50


def test_a_run_killed_on_two_ranks_goes_on_on_one_as_if_nothing_had_been(runs: Path) -> None:
    folder = runs.parent
    whole = job(folder, "killed", 3, every="1 step")
    killed = replace(whole, die_at="before pointer", die_step=2)
    assert run_ranks(2, [killed], folder / "killed-log")[0] == -signal.SIGKILL, output(folder / "killed-log", 2)
    assert run_ranks(1, [whole], folder / "resumed-log") == [0], output(folder / "resumed-log", 1)
    assert "resumed at step 2" in output(folder / "resumed-log", 1)
    assert largest_difference(rows(runs / "ddp-1x5"), rows(runs / "killed")) < 1e-9
