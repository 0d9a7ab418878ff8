"""Pictures for a page come from the data set where it can be reached, and from nowhere else."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from sft_dist import pictures


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_files_of_a_folder_are_shown_small(tmp_path: Path) -> None:
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (400, 200), (250, 10, 10)).save(tmp_path / "val" / "cat" / "1.jpg")
    found = pictures.of({"data.name": "folder", "data.root": str(tmp_path)}, ["val/cat/1.jpg", "val/cat/2.jpg"])
    assert list(found) == ["val/cat/1.jpg"]
    with opened(found["val/cat/1.jpg"]) as image:
        assert (image.size, image.format) == ((128, 64), "JPEG")


def test_an_id_cannot_reach_out_of_the_data_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    (root / "link.png").symlink_to(tmp_path / "private.png")
    (root / "notes.png").write_text("no image")
    (root / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    ids = ["../private.png", str(tmp_path / "private.png"), "link.png", "notes.png", "postscript.png", "", "a\0b", "x" * 5000]
    assert pictures.of({"data.name": "folder", "data.root": str(root)}, ids) == {}


def test_digits_are_those_of_scikit_learn() -> None:
    found = pictures.of({"data.name": "digits"}, ["digits/0007", "digits/1797", "digits/x", "7"])
    assert sorted(found) == ["7", "digits/0007"]
    with opened(found["digits/0007"]) as image:
        assert np.array_equal(np.asarray(image)[..., 0], (load_digits().images[7] * 255 // 16).astype(np.uint8))


def test_data_that_cannot_be_reached_has_no_pictures(tmp_path: Path) -> None:
    for config in ({}, {"data.name": "torchvision"}, {"data.name": "folder"}, {"data.name": "folder", "data.root": str(tmp_path / "gone")}):
        assert pictures.of(config, ["a.png"]) == {}
