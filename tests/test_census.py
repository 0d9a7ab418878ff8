"""A look at an image says what the loader would make of it, and returns whatever the file holds."""

import os
from pathlib import Path, PosixPath

import numpy as np
import pytest
from given import a_config
from PIL import Image

from sft_dist import datasets
from sft_dist.datacheck import census
from sft_dist.datacheck.census import Look, look

SMOOTH = np.stack([np.add.outer(np.arange(40) * k, np.arange(60)) for k in (1, 2, 3)], axis=2).astype(np.uint8)


def written(path: Path, mode: str = "RGB", **options: object) -> Path:
    Image.fromarray(SMOOTH).convert(mode).save(path, **options)
    return path


def test_an_ordinary_image_has_its_size_and_nothing_odd(tmp_path: Path) -> None:
    found = look(written(tmp_path / "a.png"))
    assert (found.problem, found.width, found.height, found.odd, len(found.thumb)) == (None, 60, 40, (), 256)


def test_the_same_pixels_in_another_format_have_the_same_digest_and_others_do_not(tmp_path: Path) -> None:
    first, second = look(written(tmp_path / "a.png")), look(written(tmp_path / "b.bmp"))
    assert first.pixels == second.pixels
    assert look(written(tmp_path / "c.jpg")).pixels != first.pixels
    for name, size in (("wide.png", (8, 2)), ("high.png", (2, 8))):
        Image.new("RGB", size).save(tmp_path / name)
    assert look(tmp_path / "wide.png").pixels != look(tmp_path / "high.png").pixels


def test_the_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    found = look(written(tmp_path / "a.jpg", exif=tag))
    assert (found.width, found.height) == (40, 60)


def test_what_is_odd_about_a_file_is_told(tmp_path: Path) -> None:
    written(tmp_path / "b.png").rename(tmp_path / "b.jpg")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "c.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    Image.new("RGB", (8, 8), "red").save(tmp_path / "d.png")
    assert look(written(tmp_path / "a.jpg", "CMYK")).odd == ("its mode is CMYK, which is turned into RGB",)
    assert look(tmp_path / "b.jpg").odd == ("it is a PNG under the name of another format",)
    assert "it has several pictures, of which the first counts" in look(tmp_path / "c.gif").odd
    assert look(tmp_path / "d.png").odd == ("it is of one colour",)


def test_a_picture_of_which_one_channel_is_even_is_not_of_one_colour(tmp_path: Path) -> None:
    bands = Image.fromarray(SMOOTH).split()
    Image.merge("RGB", (Image.new("L", bands[0].size, 7), *bands[1:])).save(tmp_path / "a.png")
    assert look(tmp_path / "a.png").odd == ()


def test_hostile_files_are_problems_and_nothing_worse(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<html>not found</html>")
    (tmp_path / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    told = {
        name: look(tmp_path / f"{name}.png").problem for name in ("cut", "empty", "text", "postscript", "folder", "gone", "pipe", "bomb")
    }
    assert all(told.values()), told
    assert told["pipe"] == "it is no regular file"
    assert "200000000 pixels" in str(told["bomb"])
    assert "cannot identify" in str(told["postscript"])


def test_an_image_below_the_limit_that_pillow_warns_of_is_read_and_told(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    found = look(tmp_path / "large.png")
    assert found.problem is None
    assert [odd for odd in found.odd if "90000000 pixels" in odd]


def test_all_splits_are_looked_at_in_their_order(tmp_path: Path) -> None:
    for i, name in enumerate(("train/b", "train/a", "val/a", "test/b")):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (10 + i, 10)).save(tmp_path / name / "0.png")
    data = a_config(data={"name": "folder", "root": str(tmp_path)}).data
    assert [found.width for found in census.take(datasets.load(data), data, workers=0)] == [11, 10, 12, 13]


def test_digits_are_looked_at_as_a_run_reads_them() -> None:
    data = a_config(data__classes=["0", "1"]).data
    splits = datasets.load(data)
    found = list(census.take(splits, data, workers=0))
    assert len(found) == len(splits.train) + len(splits.val)
    assert {(each.problem, each.width, each.height) for each in found} == {(None, 8, 8)}


class Deadly(PosixPath):
    """A file that takes the process down with it that opens it."""

    def is_file(self) -> bool:
        os._exit(9)


@pytest.mark.dist
def test_a_file_that_kills_its_process_is_found_and_the_others_are_looked_at(tmp_path: Path) -> None:
    paths: list[Path] = [written(tmp_path / f"{i:02}.png") for i in range(census.CHUNK + 2)]
    paths[1] = Deadly(paths[1])
    found = list(census._by_several(paths, workers=2))
    assert [place for place, each in enumerate(found) if each == Look(census.DEADLY)] == [1]
    assert len(found) == len(paths)
    assert sum(each.width == 60 for each in found) == len(paths) - 1


@pytest.mark.dist
def test_several_processes_see_what_one_sees(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{i:02}.png") for i in range(census.CHUNK + 5)]
    assert list(census._by_several(paths, workers=2)) == [look(path) for path in paths]
