"""Copies are found, re-encoded, scaled and brightened ones too; different pictures are left alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from given_pictures import as_jpeg, scene
from PIL import Image, ImageEnhance, ImageOps

from sft_dist.datacheck import census, likeness
from sft_dist.datacheck.census import Look


def looked(tmp_path: Path, *pictures: Image.Image) -> list[Look]:
    found = []
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
        found.append(census.look(tmp_path / f"{i}.png"))
    return found


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": as_jpeg,
    "half the size": lambda picture: picture.resize((48, 48)),
    "three times the size": lambda picture: picture.resize((288, 288)),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
    "grey": lambda picture: picture.convert("L"),
    "mirrored": ImageOps.mirror,
    "mirrored and re-encoded": lambda picture: as_jpeg(ImageOps.mirror(picture)),
    "a pixel cut off all around": lambda picture: picture.crop((1, 1, 95, 95)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_nearly_the_same_and_not_the_same(tmp_path: Path, kind: str) -> None:
    looks = looked(tmp_path, scene(0), scene(1), COPIES[kind](scene(0)))
    assert likeness.same(looks) == []
    assert [(pair.one, pair.other, pair.mirrored) for pair in likeness.alike(looks, [range(3)])] == [(0, 2, kind.startswith("mirrored"))]


def test_a_picture_is_no_copy_of_itself_though_it_is_its_own_mirror_image(tmp_path: Path) -> None:
    half = scene(0, 48)
    whole = Image.new("RGB", (96, 48))
    whole.paste(half, (0, 0))
    whole.paste(ImageOps.mirror(half), (48, 0))
    assert likeness.alike(looked(tmp_path, whole, scene(1)), [range(2)]) == []


def test_of_two_ways_to_be_alike_the_nearer_is_told(tmp_path: Path) -> None:
    half = scene(0, 48)
    even = Image.new("RGB", (96, 48))
    even.paste(half, (0, 0))
    even.paste(ImageOps.mirror(half), (48, 0))
    uneven = Image.blend(even, scene(5).resize((96, 48)), 0.08)
    [pair] = likeness.alike(looked(tmp_path, uneven, ImageOps.mirror(uneven)), [range(2)])
    assert pair.mirrored and pair.correlation > 0.9999
    [pair] = likeness.alike(looked(tmp_path, uneven, ImageEnhance.Brightness(uneven).enhance(1.01)), [range(2)])
    assert not pair.mirrored


def test_pictures_of_32_pixels_are_compared(tmp_path: Path) -> None:
    looks = looked(tmp_path, scene(0, 32), ImageEnhance.Brightness(scene(0, 32)).enhance(1.01))
    assert len(likeness.alike(looks, [range(2)])) == 1


def test_turned_and_half_cropped_copies_are_not_found(tmp_path: Path) -> None:
    looks = looked(tmp_path, scene(0), scene(0).rotate(90), ImageOps.flip(scene(0)), scene(0).crop((24, 24, 96, 96)))
    assert likeness.alike(looks, [range(4)]) == []


def test_two_hundred_different_pictures_have_no_pair(tmp_path: Path) -> None:
    assert likeness.alike(looked(tmp_path, *(scene(seed, 32) for seed in range(200))), [range(200)]) == []


def test_equal_pictures_are_the_same_and_are_not_told_again_as_nearly_so(tmp_path: Path) -> None:
    looks = looked(tmp_path, scene(0), scene(1), scene(0), scene(0))
    assert likeness.same(looks) == [(0, 2, 3)]
    assert likeness.alike(looks, [range(2), range(2, 4)]) == []


def test_a_copy_in_another_split_is_found_beside_a_nearer_one_in_its_own(tmp_path: Path) -> None:
    looks = looked(tmp_path, as_jpeg(scene(0)), scene(0), ImageEnhance.Brightness(scene(0)).enhance(1.01))
    pairs = likeness.alike(looks, [range(1), range(1, 3)])
    assert {(pair.one, pair.other) for pair in pairs} == {(0, 1), (0, 2), (1, 2)}
    assert all(0.96 <= pair.correlation <= 1.0001 for pair in pairs)


def test_pictures_that_show_nothing_or_are_tiny_or_unreadable_are_not_compared(tmp_path: Path) -> None:
    plain = [Image.new("RGB", (64, 64), (shade, shade, shade)) for shade in (100, 101)]
    tiny = [scene(0, 31), ImageEnhance.Brightness(scene(0, 31)).enhance(1.01)]
    faint = [scene(0).convert("L").point(lambda grey, to=to: to + grey // 86) for to in (100, 101)]  # three shades of grey
    looks = [*looked(tmp_path, *plain, *tiny, *faint), Look("broken"), Look("broken")]
    assert likeness.alike(looks, [range(8)]) == []
    assert likeness.same(looks) == []
    assert likeness.alike([], [range(0)]) == []


def test_blocks_of_any_size_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looked(tmp_path, *(picture for seed in range(5) for picture in (scene(seed), as_jpeg(scene(seed)))))
    whole = likeness.alike(looks, [range(10)])
    monkeypatch.setattr(likeness, "BLOCK", 1)
    found = likeness.alike(looks, [range(10)])
    assert [(pair.one, pair.other) for pair in found] == [(pair.one, pair.other) for pair in whole] == [(i, i + 1) for i in range(0, 10, 2)]
