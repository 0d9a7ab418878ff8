"""A first config fits the folder that it was written for, says why, and is let through by everything that a run asks of it."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from sft_dist import cli, datasets, draft, parse, preflight, schema
from sft_dist.config import Config
from sft_dist.datasets import Split, Splits
from sft_dist.errors import ConfigError
from sft_dist.plan import World, make_plan


def photos(folder: Path, counts: dict[str, int], side: int = 40) -> Path:
    """A data set: `train/cat` -> how many images of side x 1.5 side pixels."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (side * 3 // 2, side)).save(folder / name / "0.png")
        for i in range(1, count):
            (folder / name / f"{i}.png").hardlink_to(folder / name / "0.png")
    return folder


def drafted(folder: Path) -> Config:
    """The config for a folder, after all that `sft-dist plan` would ask of it."""
    draft.write(folder, Path("photos.yaml"))
    config = parse.load(Path("photos.yaml"))
    preflight.check(config, World(), {})
    splits = datasets.load(config.data)
    make_plan(config, World(), len(splits.train), len(splits.val))
    jsonschema.validate(yaml.safe_load(Path("photos.yaml").read_text()), schema.schema())
    return config


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_few_large_photos_train_a_head_at_full_size(here: Path) -> None:
    config = drafted(photos(here / "data", {"train/cat": 60, "train/dog": 60}, side=200))
    assert (config.data.size, config.data.resize, config.data.val_fraction, config.data.flip) == (224, None, 0.2, 0.5)
    assert (config.model.name, config.model.weights, config.model.train) == ("resnet18", "DEFAULT", "head")
    assert (config.batch.total, config.batch.micro) == (8, 8)  # of the 96 that are left
    assert (config.train.duration, config.train.clip, config.optim.lr) == ("42 epochs", None, 0.003)


def test_thousands_of_tiny_ones_are_enlarged_and_train_more(here: Path) -> None:
    config = drafted(photos(here / "data", {"train/cat": 600, "train/dog": 600, "val/cat": 20, "val/dog": 20}, side=32))
    assert (config.data.size, config.data.resize, config.model.train) == (96, 96, "last:2")
    assert (config.batch.total, config.batch.micro, config.train.duration) == (64, 16, "27 epochs")
    assert "val_fraction" not in Path("photos.yaml").read_text()


@pytest.mark.parametrize("counts", [{"train/a": 1, "train/b": 1, "val/a": 1}, {"train/0": 2, "train/10": 3}])
def test_the_smallest_sets_there_are_can_be_planned(here: Path, counts: dict[str, int]) -> None:
    config = drafted(photos(here / "data", counts))
    assert (config.batch.total, config.data.flip) == (2, 0)


def of_size(samples: int, side: int = 300) -> dict[str, Any]:
    """The config for so many training images of two classes, as YAML reads it."""
    some = Split(["a"] * samples, [i % 2 for i in range(samples)], lambda _: None)
    held = draft.Photos("data", Splits(some, some, None, ("cat", "dog")), [side], 0)
    tree: dict[str, Any] = yaml.safe_load("\n".join(draft.lines(held, Path("photos.yaml"))))
    return tree


@pytest.mark.parametrize(
    ("samples", "part", "model", "epochs", "hard_crop"),
    [
        (999, "head", "resnet18", "33 epochs", False),
        (1000, "last:2", "resnet18", "32 epochs", False),
        (4999, "last:2", "resnet18", "7 epochs", False),
        (5000, "all", "resnet18", "7 epochs", False),
        (9999, "all", "resnet18", "5 epochs", False),
        (10_000, "all", "resnet50", "5 epochs", True),
    ],
)
def test_more_images_train_more_of_a_larger_model(samples: int, part: str, model: str, epochs: str, hard_crop: bool) -> None:
    tree = of_size(samples)
    assert (tree["model"]["train"], tree["model"]["name"], tree["train"]["duration"]) == (part, model, epochs)
    assert ("crop_scale" not in tree["data"]) == hard_crop


@pytest.mark.parametrize(("side", "size"), [(1, 96), (97, 128), (159, 160), (160, 224), (4000, 224)])
def test_images_are_shown_at_the_size_of_the_weights_or_enlarged_a_little(side: int, size: int) -> None:
    assert of_size(100, side)["data"]["size"] == size


def test_classes_that_differ_three_times_in_size_are_minded(here: Path) -> None:
    photos(here / "data", {"train/cat": 30, "train/dog": 10, "val/cat": 10, "val/dog": 10})
    assert "classes differ in size (dog has 10): look at val/f1_macro, and at each class, not at val/top1 alone" in draft.write(
        here / "data", None
    )


def test_every_value_but_names_stands_beside_a_reason(here: Path) -> None:
    drafted(photos(here / "data", {"train/cat": 12, "train/dog": 12}))
    text = Path("photos.yaml").read_text()
    bare = [line.partition(":")[0].strip() for line in text.splitlines() if "#" not in line]
    assert bare == ["task", "data", "name", "model"]


def test_what_to_mind_is_said(here: Path) -> None:
    folder = photos(here / "data", {"train/cat": 40, "train/dog": 10, "val/cat": 30, "val/dog": 4})
    (folder / "train" / "cat" / "5.png").unlink()
    (folder / "train" / "cat" / "5.png").write_text("no image")
    (folder / "valid").mkdir()
    (folder / "valid" / "a.png").touch()
    told = draft.write(folder, None)
    assert told == [
        "2 classes: cat, dog",
        "50 training images, 10 to 40 of each class; 34 validation images; no test images",
        "shorter side of 49 images that were looked at: 40 to 40 pixels, median 40",
        "classes differ in size (dog has 10): look at val/f1_macro, and at each class, not at val/top1 alone",
        "dog has 4 validation image(s): expect its score, and the whole, to jump about",
        "1 image(s) could not be opened, and one ends a run: `sft-dist data check` names them",
        "1 image(s) lie where no run reads them, like valid/a.png: `sft-dist data check` names them",
        "wrote data.yaml; now: sft-dist plan data.yaml",
    ]


def test_the_door_writes_what_plan_takes_and_overwrites_nothing(here: Path) -> None:
    photos(here / "data", {"train/cat": 12, "train/dog": 12})
    first = CliRunner().invoke(cli.cli, ["init", "data"])
    assert first.exit_code == 0, first.output
    planned = CliRunner().invoke(cli.cli, ["plan", "data.yaml", "--quick"])
    assert "folder: 20 training and 4 validation samples" in planned.output
    before = Path("data.yaml").read_text()
    again = CliRunner().invoke(cli.cli, ["init", "data"])
    assert str(again.exception) == "data.yaml exists; init overwrites nothing: choose another file with --out"
    assert Path("data.yaml").read_text() == before


def test_folders_that_are_no_data_set_are_told_what_to_do(here: Path) -> None:
    photos(here / "flat", {"cat": 2, "dog": 2})
    photos(here / "capital", {"Training/cat": 2, "Training/dog": 2})
    (here / "empty").mkdir()
    photos(here / "broken", {"train/cat": 2, "train/dog": 2})
    for path in (here / "broken").rglob("*.png"):
        path.unlink()
        path.write_text("no image")
    for name, told in {
        "flat": r"flat has no train/, but cat, dog; if these are the classes, move them into .*flat/train/",
        "capital": "capital has no train/, but Training/; rename it",
        "empty": "empty has no images in folders; it needs one folder for each class",
        "broken": "none of the 2 images of .*broken/train that were looked at can be opened",
        "gone": "there is no such folder",
    }.items():
        with pytest.raises(ConfigError, match=told):
            draft.write(here / name, None)
    assert list(here.glob("*.yaml")) == []


def test_images_so_large_that_pillow_warns_of_them_are_no_noise(here: Path) -> None:
    for name in ("cat", "dog"):
        (here / "data" / "train" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("1", (10_000, 9_000)).save(here / "data" / "train" / name / f"{i}.png")
    assert drafted(here / "data").data.size == 224  # a warning would be an error here


@pytest.mark.parametrize(
    ("folder", "file"), [("my photos", "my-photos.yaml"), ("_cats & dogs (2)", "cats-dogs-2.yaml"), ("pets.v2", "pets.v2.yaml")]
)
def test_a_folder_that_cannot_name_a_run_gives_a_plain_name_to_it(here: Path, folder: str, file: str) -> None:
    told = draft.write(photos(here / folder, {"train/cat": 4, "train/dog": 4}), None)
    why = "" if folder == "pets.v2" else f" (the file's name is the run's, and {folder!r} cannot name a run)"
    assert told[-1] == f"wrote {file}{why}; now: sft-dist plan {file}"
    config = parse.load(Path(file))
    assert (config.run.name, config.data.root) == (file.removesuffix(".yaml"), str(here / folder))


def test_a_name_that_would_be_refused_later_is_refused_before_writing(here: Path) -> None:
    folder = photos(here / "фото", {"train/cat": 4, "train/dog": 4})
    with pytest.raises(ConfigError, match=r"'фото' cannot name a folder.*--out"):
        draft.write(folder, None)
    (here / "runs" / "x").mkdir(parents=True)
    (here / "runs" / "x" / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"runs/x exists and is not a run"):
        draft.write(folder, Path("x.yaml"))
    assert list(here.glob("*.yaml")) == []


def test_names_of_folders_and_classes_cannot_break_out_of_the_text(here: Path) -> None:
    folder = photos(here / 'a "b": {c} # d', {"train/x\ntask: text\n#": 3, "train/\u202ey": 3})
    config = drafted(folder)
    assert config.task == "classify"
    assert config.data.root == str(folder)
    assert "\u202e" not in Path("photos.yaml").read_text()
