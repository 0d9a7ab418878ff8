"""A folder of images is read as ImageFolder reads it, and told apart from one that cannot be trained on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision
from PIL import Image

from sft_dist import datasets
from sft_dist.config import Data
from sft_dist.datasets import Splits
from sft_dist.errors import ConfigError

CAT_AND_DOG = {"train/cat": 5, "train/dog": 4, "val/cat": 2, "val/dog": 1}


def fill(root: Path, counts: dict[str, int]) -> None:
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (6, 4), (number * 20, i * 20, 7)).save(root / folder / f"{i}.png")


def load(root: Path, **keys: object) -> Splits:
    return datasets.load(Data(name="folder", root=str(root), **keys))


def test_samples_and_classes_are_those_of_image_folder(tmp_path: Path) -> None:
    fill(tmp_path, {**CAT_AND_DOG, "train/cat/deeper": 2, "test/dog": 1})
    splits = load(tmp_path)
    for name, split in (("train", splits.train), ("val", splits.val)):
        theirs = torchvision.datasets.ImageFolder(str(tmp_path / name))
        ours = {str(tmp_path / path): label for path, label in zip(split.names, split.labels, strict=True)}
        assert ours == dict(theirs.samples)
        assert list(splits.classes) == theirs.classes == ["cat", "dog"]
    assert splits.test is not None
    assert (splits.test.names, splits.test.labels) == (["test/dog/0.png"], [1])
    assert splits.train.read(3)[:, 0, 0].tolist() == [0, 60, 7]


def test_without_val_a_share_of_every_class_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path, {"train/cat": 10, "train/dog": 5})
    splits = load(tmp_path, split_seed=1)
    assert [splits.val.labels, splits.test] == [[0, 0, 1], None]
    assert splits.val.names == load(tmp_path, split_seed=1).val.names != load(tmp_path, split_seed=2).val.names
    assert not set(splits.val.names) & set(splits.train.names)


def test_a_chosen_class_may_be_left_out_of_every_split(tmp_path: Path) -> None:
    fill(tmp_path, {**CAT_AND_DOG, "train/eel": 1, "val/fox": 1})
    splits = load(tmp_path, classes=("dog", "cat"))
    assert (splits.classes, splits.val.names, splits.val.labels) == (
        ("dog", "cat"),
        ["val/dog/0.png", "val/cat/0.png", "val/cat/1.png"],
        [0, 1, 1],
    )


def test_hidden_files_and_folders_are_not_data(tmp_path: Path) -> None:
    fill(tmp_path, {**CAT_AND_DOG, "train/.ipynb_checkpoints": 1, "val/.cache": 1})
    before = load(tmp_path).fingerprint
    (tmp_path / "train/cat/.DS_Store.png").touch()
    (tmp_path / "train/cat/._0.png").touch()
    (tmp_path / "train/notes.txt").touch()
    assert load(tmp_path).fingerprint == before


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "train/cat/9.png").write_bytes((root / "train/cat/0.png").read_bytes()),
        lambda root: (root / "train/cat/0.png").rename(root / "train/cat/zero.png"),
        lambda root: (root / "train/cat/4.png").rename(root / "train/dog/4.png"),
        lambda root: (root / "val/cat/1.png").unlink(),
        lambda root: (root / "val/cat/1.png").rename(root / "train/cat/9.png"),
    ],
    ids=["added", "renamed", "relabelled", "removed", "moved"],
)
def test_the_fingerprint_changes_when_a_sample_is(tmp_path: Path, change: Callable[[Path], object]) -> None:
    fill(tmp_path / "here", CAT_AND_DOG)
    fill(tmp_path / "there", CAT_AND_DOG)
    assert load(tmp_path / "here").fingerprint == load(tmp_path / "there").fingerprint
    change(tmp_path / "there")
    assert load(tmp_path / "here").fingerprint != load(tmp_path / "there").fingerprint


def test_a_name_that_is_no_text_is_a_name_like_others(tmp_path: Path) -> None:
    fill(tmp_path, CAT_AND_DOG)
    before = load(tmp_path).fingerprint
    (tmp_path / "train/cat/0.png").rename(tmp_path / "train/cat/\udcff.png")
    assert load(tmp_path).fingerprint != before


REFUSED = {
    "nothing": ({}, r"data.root = '.*': there is no such folder \(from "),
    "no train": ({"val/cat": 1}, r"data.root = '.*' has no train/ with a folder for each class in it"),
    "no classes": ({"train": 3}, r"train has no folders in it; it needs one for each class"),
    "one class": ({"train/cat": 5}, r"data: only the class 'cat'; a classifier needs at least two"),
    "empty class": ({**CAT_AND_DOG, "train/eel": 0}, r"train/eel has no image in it; add some, or leave the class out with data.classes"),
    "class only in val": ({**CAT_AND_DOG, "val/eel": 1}, r"val/eel is a class that train/ does not have"),
    "class only in test": ({**CAT_AND_DOG, "test/eel": 1}, r"test/eel is a class that train/ does not have"),
    "empty val": ({"train/cat": 5, "train/dog": 4, "val/cat": 0}, r"data.name = folder: there are no validation samples"),
    "one image a class": ({"train/cat": 1, "train/dog": 1}, r"data.name = folder: there are no validation samples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_on_is_refused_with_its_name(tmp_path: Path, case: str) -> None:
    counts, told = REFUSED[case]
    fill(tmp_path / "data", counts)
    with pytest.raises(ConfigError, match=told):
        load(tmp_path / "data")


def test_all_problems_of_a_folder_are_told_at_once(tmp_path: Path) -> None:
    fill(tmp_path, {**CAT_AND_DOG, "train/eel": 0, "train/fox": 0, "val/gnu": 1})
    with pytest.raises(ConfigError) as caught:
        datasets.check(Data(name="folder", root=str(tmp_path)))
    assert [problem.removeprefix(str(tmp_path) + "/").split()[0] for problem in caught.value.problems] == [
        "train/eel",
        "train/fox",
        "val/gnu",
    ]


def test_a_root_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"^data.root is missing; name the folder that holds train/$"):
        datasets.check(Data(name="folder"))
