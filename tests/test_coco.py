"""`coco` finds what COCO's files say, keeps crowds out of training, and refuses files that do not fit together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from given_boxes import coco, drawn

from sft_dist import datasets
from sft_dist.config import Data
from sft_dist.errors import ConfigError


def data(root: Path, **changes: object) -> Data:
    return Data(name="coco", root=str(root), **changes)


def test_files_are_splits_and_boxes_are_edges(tmp_path: Path) -> None:
    found = datasets.load(data(coco(tmp_path / "set", {"train": range(6), "val": [6, 7]})))
    assert found.classes == ("bar", "disc") and found.test is None
    assert found.train.names == [f"train2017/{number:03d}.png" for number in range(6)]
    for number in range(6):
        truth = found.train.target(number)
        assert [(found.classes[label], *box) for label, box in zip(truth.labels, truth.boxes, strict=True)] == drawn(number)[1]
    assert found.val.read(0).shape == (3, 72, 96)


def test_a_crowd_is_not_learned(tmp_path: Path) -> None:
    truth = datasets.load(data(coco(tmp_path / "set", {"train": range(6), "val": [6, 7]}, crowds=[0]))).train.target(0)
    assert (truth.crowd[0], truth.learned[0]) == (True, False)
    assert not any(truth.crowd[1:]) and all(truth.learned[1:])


def test_without_a_validation_file_images_are_held_out_and_chosen_classes_have_that_order(tmp_path: Path) -> None:
    found = datasets.load(data(coco(tmp_path / "set", {"train": range(10)}), classes=["disc", "bar"]))
    assert (len(found.train), len(found.val), found.classes) == (8, 2, ("disc", "bar"))


def damaged(change: Callable[[dict[str, Any]], object], root: Path) -> Path:
    written = coco(root, {"train": range(6), "val": [6, 7]}) / "annotations" / "instances_train2017.json"
    content = json.loads(written.read_text())
    change(content)
    written.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content.pop("annotations"), r"is not as COCO has it \(no 'annotations'\)"),
        (lambda content: content["annotations"][0].update(image_id=99), r"is not as COCO has it \(no 99\)"),
        (lambda content: content["annotations"][0].update(category_id=99), r"is not as COCO has it \(no 99\)"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, 3]), "is not as COCO has it"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, "wide", 4]), "is not as COCO has it"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "is not as COCO has it"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, 10**400, 4]), "is not as COCO has it"),
        (lambda content: content["images"][0].update(width=float("inf")), "is not as COCO has it"),
        (lambda content: content["images"][0].update(file_name="../secret.png"), "file_name '../secret.png' leads out of"),
        (lambda content: content["images"][0].update(file_name="/secret.png"), "file_name '/secret.png' leads out of"),
        (lambda content: content["images"][0].update(file_name="999.png"), "names images that are not there: .*999.png"),
        (lambda content: content["images"].append(content["images"][0]), "two images of one id"),
        (lambda content: content["categories"].append({"id": 7, "name": "bar"}), "two categories of one name"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused_by_its_path(change: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"instances_train2017.json.*{told}"):
        datasets.load(data(damaged(change, tmp_path / "set")))


def test_what_is_no_json_and_what_is_missing_is_refused(tmp_path: Path) -> None:
    root = coco(tmp_path / "set", {"train": range(6), "val": [6, 7]})
    (root / "annotations" / "instances_val2017.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"instances_val2017.json is not JSON"):
        datasets.load(data(root))
    (root / "annotations" / "instances_train2014.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        datasets.check(data(root))
    assert caught.value.problems == (
        f"{root}/annotations has 2 files for train: instances_train2014.json, instances_train2017.json; leave one there",
        f"{root}/annotations/instances_train2014.json: its images should be in {root}/train2014, which is no folder",
    )
    with pytest.raises(ConfigError, match=r"has no annotations/instances_train\*.json"):
        datasets.check(data(tmp_path))


def test_one_split_is_read_alone_for_the_classes_of_a_model(tmp_path: Path) -> None:
    root = coco(tmp_path / "set", {"val": [6, 7]})
    assert len(datasets.load_split(data(root), "val", ("bar", "disc"))) == 2
    with pytest.raises(ConfigError, match=r"has no annotations/instances_test\*.json"):
        datasets.load_split(data(root), "test", ("bar", "disc"))
    (root / "annotations" / "instances_val2014.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"annotations has 2 files for val: instances_val2014.json, instances_val2017.json; leave one there$"
    ):
        datasets.load_split(data(root), "val", ("bar", "disc"))
