"""Image files become upright uint8 tensors of three channels; what cannot be read is told with its path."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sft_dist.datasets import images
from sft_dist.errors import ConfigError, MachineError

ROWS, COLUMNS = np.mgrid[0:48, 0:64]
SMOOTH = np.stack([ROWS * 5, COLUMNS * 4 - 1, 255 - ROWS - COLUMNS], axis=2).clip(0, 255).astype(np.uint8)  # height 48, width 64
GREY = SMOOTH[..., 0]
SIXTEEN = (ROWS * 1024 + COLUMNS * 4).astype(np.uint16)

UPRIGHT = {  # value of the EXIF tag -> what turns the stored rows upright (EXIF 2.32, tag 0x0112)
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def written(folder: Path, name: str, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(folder / name, **options)
    return folder / name


def pixels_of(path: Path) -> np.ndarray:
    tensor = images.read(path)
    assert tensor.dtype == torch.uint8
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.TIF", "a.ppm", "a.webp"])
def test_lossless_formats_give_the_pixels_that_were_written(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name == "a.webp" else {}
    assert (pixels_of(written(tmp_path, name, SMOOTH, **options)) == SMOOTH).all()


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", None), ("a.JPEG", None), ("cmyk.jpg", "CMYK"), ("a.webp", None)])
def test_lossy_formats_come_close_to_the_pixels_that_were_written(tmp_path: Path, name: str, mode: str | None) -> None:
    found = pixels_of(written(tmp_path, name, SMOOTH, mode, quality=95)).astype(int)
    assert found.shape == SMOOTH.shape
    assert abs(found - SMOOTH).max() <= 12


def test_a_grey_jpeg_fills_all_three_channels(tmp_path: Path) -> None:
    found = pixels_of(written(tmp_path, "grey.jpg", GREY, quality=95)).astype(int)
    assert abs(found - GREY[..., None]).max() <= 4


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_grey_fills_all_three_channels(tmp_path: Path, name: str, mode: str) -> None:
    assert (pixels_of(written(tmp_path, name, GREY, mode)) == GREY[..., None]).all()


def test_transparency_is_dropped_and_the_colours_stay(tmp_path: Path) -> None:
    half = np.concatenate([SMOOTH, GREY[..., None]], axis=2)
    assert (pixels_of(written(tmp_path, "rgba.png", half)) == SMOOTH).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([17, 34, 51, 68, 85, 102])
    palette.putpixel((1, 0), 1)
    for name in ("palette.png", "palette.gif"):
        palette.save(tmp_path / name)
        assert pixels_of(tmp_path / name).tolist() == [[[17, 34, 51], [68, 85, 102]]]
    palette.save(tmp_path / "clear.png", transparency=bytes([0, 128]))
    assert pixels_of(tmp_path / "clear.png").tolist() == [[[17, 34, 51], [68, 85, 102]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_of_16_bits_the_upper_eight_stay(tmp_path: Path, name: str) -> None:
    assert (pixels_of(written(tmp_path, name, SIXTEEN)) == (SIXTEEN >> 8)[..., None]).all()


@pytest.mark.parametrize("pixels", [SIXTEEN.astype(np.float32) / 65535, SIXTEEN.astype(np.int32) * 4096])
def test_grey_of_an_unknown_range_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"odd\.tif cannot be decoded: its pixels are neither 8 nor 16 bits of grey"):
        images.read(written(tmp_path, "odd.tif", pixels))


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_the_exif_tag_turns_an_image_upright(tmp_path: Path, name: str, turn: int) -> None:
    tag = Image.Exif()
    tag[0x0112] = turn
    options = {"lossless": True} if name == "a.webp" else {"quality": 95} if name == "a.jpg" else {}
    found = pixels_of(written(tmp_path, name, SMOOTH, exif=tag, **options)).astype(int)
    wanted = UPRIGHT[turn](SMOOTH).astype(int)
    assert found.shape == wanted.shape
    assert abs(found - wanted).max() <= (12 if name == "a.jpg" else 0)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if name == "a.webp" else {}))
        assert pixels_of(tmp_path / name).reshape(-1, 3).tolist() == [[255, 0, 0]] * 64


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp"])
def test_one_pixel_is_an_image(tmp_path: Path, name: str) -> None:
    assert images.read(written(tmp_path, name, SMOOTH[:1, :1])).shape == (3, 1, 1)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"])
@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "a flipped byte", "missing", "a folder"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, kind: str, damage: str) -> None:
    path = written(tmp_path, f"whole.{kind}", SMOOTH)
    whole = path.read_bytes()
    broken = tmp_path / f"broken.{kind}"
    if damage == "a folder":
        broken.mkdir()
    elif damage == "a flipped byte":
        at = {"jpg": 2, "png": 60, "webp": 20, "gif": 3, "bmp": 15, "tiff": 4, "ppm": 3}[kind]
        broken.write_bytes(whole[:at] + bytes([whole[at] ^ 0x47]) + whole[at + 1 :])
    elif damage != "missing":
        broken.write_bytes({"cut short": whole[: len(whole) // 2], "empty": b"", "text": b"<html>not found</html>"}[damage])
    with pytest.raises((OSError, ValueError), match=rf"broken\.{kind}"):
        images.read(broken)


def test_a_small_file_that_claims_a_huge_image_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png cannot be decoded: .*200000000 pixels"):
        images.read(tmp_path / "bomb.png")


def test_a_page_description_under_an_images_name_is_not_interpreted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded: cannot identify"):
        images.read(tmp_path / "a.png")


def test_find_lists_images_of_all_levels_sorted_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.tif", "notes.txt", ".hidden.png", "deep/Thumbs.db", "deep/.ipynb_checkpoints/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in images.find(tmp_path)] == ["a.JPG", "b.png", "deep/er/c.tif"]


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"gone: No such file or directory; a run needs to list every folder of its images"):
        list(images.find(tmp_path / "gone"))


def test_a_link_to_another_folder_is_followed_and_one_in_a_circle_refused(tmp_path: Path) -> None:
    for name in ("here/cat/a.png", "there/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "here" / "cat" / "more").symlink_to(tmp_path / "there")
    assert [path.name for path in images.find(tmp_path / "here")] == ["a.png", "b.png"]
    (tmp_path / "here" / "cat" / "up").symlink_to("..")
    with pytest.raises(ConfigError, match=r"here/cat/up is a link to a folder that it lies in"):
        list(images.find(tmp_path / "here"))


def test_the_size_of_a_file_is_that_in_its_head_and_nothing_is_unpacked(tmp_path: Path) -> None:
    whole = written(tmp_path, "a.png", SMOOTH).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:60])
    assert images.size(tmp_path / "a.png") == images.size(tmp_path / "cut.png") == (64, 48)


def test_what_has_no_size_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("<html>not found</html>")
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    for name, told in (
        ("text", "cannot identify"),
        ("pipe", "it is no regular file"),
        ("bomb", "200000000 pixels"),
        ("gone", "regular file"),
    ):
        with pytest.raises(ValueError, match=rf"{name}\.png cannot be opened: .*{told}"):
            images.size(tmp_path / f"{name}.png")
