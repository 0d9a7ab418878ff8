"""`masks`: which file is whose, what a pixel's number means, and what is refused before it trains the wrong thing."""

from pathlib import Path

import numpy as np
import pytest
from given_masks import CLASSES, a_folder, a_scene, put
from PIL import Image

from sft_dist import datasets
from sft_dist.config import Data
from sft_dist.datasets import masks
from sft_dist.errors import ConfigError
from sft_dist.loading import Samples
from sft_dist.schedule import Pick
from sft_dist.tasks import TASKS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return a_folder(tmp_path / "coast")


def data_of(root: Path, **keys: object) -> Data:
    return Data.model_validate({"name": "masks", "root": str(root), **keys})


def refused(root: Path, **keys: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        datasets.check(data_of(root, **keys))
    with pytest.raises(ConfigError):
        datasets.load(data_of(root, **keys))
    return caught.value.problems


def saved(tmp_path: Path, image: Image.Image, **keys: object) -> Path:
    image.save(tmp_path / "mask.png", **keys)
    return tmp_path / "mask.png"


def test_images_and_masks_of_a_name_belong_together(root: Path) -> None:
    splits = datasets.load(data_of(root))
    assert (len(splits.train), len(splits.val), splits.test, splits.classes) == (8, 3, None, CLASSES)
    assert splits.train.names[:2] == ["train/images/00.png", "train/images/01.png"]
    photo, mask = a_scene(1, 40, 50)
    assert np.array_equal(splits.train.read(1).permute(1, 2, 0).numpy(), np.asarray(photo))
    target = splits.train.target(1).numpy()
    assert np.array_equal(target, np.where(np.asarray(mask) == 255, masks.VOID, np.asarray(mask).astype(int)))
    assert target.dtype == np.int16


def test_folders_below_images_are_found_below_masks(root: Path) -> None:
    for kind in ("images", "masks"):
        (root / "train" / kind / "north").mkdir()
        (root / "train" / kind / "00.png").rename(root / "train" / kind / "north" / "00.png")
    splits = datasets.load(data_of(root))
    assert splits.train.names[-1] == "train/images/north/00.png"
    assert splits.train.target(7).shape == (36, 48)


def test_validation_is_held_out_where_there_is_no_val(root: Path) -> None:
    for path in sorted((root / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "val").rmdir()
    splits = datasets.load(data_of(root, val_fraction=0.25))
    assert (len(splits.train), len(splits.val)) == (6, 2)
    assert not set(splits.train.names) & set(splits.val.names)
    assert splits.val.target(0).ndim == 2
    assert list(datasets.load_split(data_of(root, val_fraction=0.25), "val", CLASSES).names) == list(splits.val.names)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)),
        Image.fromarray(np.array([[0, 1], [2, 255]], np.uint16)),
    ],
    ids=["8 bits", "16 bits"],
)
def test_a_pixel_s_number_is_its_id(tmp_path: Path, image: Image.Image) -> None:
    assert masks.decode(saved(tmp_path, image)).tolist() == [[0, 1], [2, 255]]


def test_of_a_palette_the_numbers_count_and_not_the_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    path = saved(tmp_path, image, bits=2)
    with Image.open(path) as stored:
        assert stored.mode == "P"
    assert masks.decode(path).tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greys_of_few_bits_are_not_spread_over_a_byte(tmp_path: Path, bits: int) -> None:
    """Pillow reads a grey of 2 bits as 0, 85, 170 or 255: the second class as one that there may be."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    ids = [1, 0, 2**bits - 1, 1]
    packed = int("".join(f"{number:0{bits}b}" for number in ids).ljust(16, "0"), 2).to_bytes(2, "big")[: -(-4 * bits // 8)]
    head = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    path = tmp_path / "mask.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b""))
    assert masks.decode(path).tolist() == [ids]


def test_a_mask_is_turned_upright_as_its_image_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)), exif=exif)
    assert masks.decode(path).tolist() == [[2, 0], [3, 1]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_mask_of_colours_is_refused(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path, Image.new(mode, (2, 2)))
    with pytest.raises(ValueError, match=rf"mask.png cannot be read as a mask: a mask has one channel of class ids, this file has {mode}$"):
        masks.decode(path)


def sample(root: Path, position: int, training: bool = True, **keys: object) -> tuple[str | None, object]:
    data = data_of(root, size=32, **keys)
    found = Samples(datasets.load(data).train, TASKS["segment"].prepare(data, training), 32, 0)[Pick(0, position)]
    return found.problem, found.target


def test_an_id_of_no_class_is_an_unreadable_sample(root: Path) -> None:
    photo, mask = a_scene(0)
    mask.putpixel((3, 3), 7)
    put(root, "train", "00", photo, mask)
    told, target = sample(root, 0)
    assert target is None
    assert told == (
        f"data: unreadable sample train/images/00.png: {root}/train/masks/00.png holds the id 7, but there are 3 classes (0 to 2), "
        "and data.void is [255]; name the class, or add the id to data.void"
    )
    assert sample(root, 0, void=[255, 7])[0] is None
    assert sample(root, 1)[0] is None


def test_a_mask_of_another_size_than_its_image_is_an_unreadable_sample(root: Path) -> None:
    photo, mask = a_scene(0)
    put(root, "train", "00", photo, mask.resize((24, 18), Image.Resampling.NEAREST))
    for training in (True, False):
        told, _ = sample(root, 0, training)
        assert told == (
            "data: unreadable sample train/images/00.png: its mask is 24 x 18 pixels, the image (turned upright by its EXIF tag) 48 x 36; "
            "draw the mask on the upright image"
        )


def test_a_broken_mask_is_an_unreadable_sample(root: Path) -> None:
    path = root / "train" / "masks" / "00.png"
    path.write_bytes(path.read_bytes()[:60])
    told, _ = sample(root, 0)
    assert told is not None
    assert told.startswith(f"data: unreadable sample train/images/00.png: {path} cannot be read as a mask: ")


def test_what_has_no_partner_is_named_all_at_once(root: Path) -> None:
    for i in range(8):
        (root / "train" / "masks" / f"{i:02d}.png").unlink()
    (root / "val" / "images" / "01.png").unlink()
    shown = ", ".join(f"{root}/train/images/{i:02d}.png" for i in range(6))
    assert refused(root) == (
        f"{shown} and 2 more have no mask of their name in masks/",
        f"{root}/val/masks/01.png have no image of their name in images/",
    )


def test_masks_that_are_no_png_and_images_of_one_name_are_refused(root: Path) -> None:
    (root / "train" / "masks" / "00.png").rename(root / "train" / "masks" / "00.jpg")
    a_scene(1)[0].save(root / "train" / "images" / "01.jpg")
    assert refused(root) == (
        f"{root}/train/images/01.png have the name of another image, so that both would have one mask",
        f"{root}/train/masks/00.jpg are no PNG files; convert the masks without loss (JPEG changes ids)",
    )


def test_missing_folders_are_refused_with_what_is_needed(tmp_path: Path, root: Path) -> None:
    assert refused(tmp_path / "nowhere") == (f"data.root = '{tmp_path}/nowhere': there is no such folder (from {Path.cwd()})",)
    with pytest.raises(ConfigError, match=r"^data.root is missing; name the folder that holds train/images and train/masks$"):
        datasets.check(Data(name="masks"))
    for path in (root / "val" / "masks").iterdir():
        path.unlink()
    (root / "val" / "masks").rmdir()
    (root / "test").mkdir()
    assert refused(root) == (
        f"{root}/val has no masks/; it needs images/ and masks/ with files of the same names",
        f"{root}/test has no images/ and no masks/; it needs images/ and masks/ with files of the same names",
    )


def test_a_split_without_images_is_refused(root: Path) -> None:
    for kind in ("images", "masks"):
        (root / "test" / kind).mkdir(parents=True)
    assert refused(root) == (f"{root}/test/images has no image in it; add some, or remove {root}/test",)


def test_classes_come_from_the_config_or_from_the_file(root: Path) -> None:
    assert datasets.load(data_of(root, classes=list(CLASSES))).classes == CLASSES
    (root / "classes.txt").unlink()
    assert datasets.load(data_of(root, classes=["a", "b", "c"])).classes == ("a", "b", "c")
    assert refused(root) == (
        "nothing names the classes of the masks; write data.classes: [name of id 0, name of id 1, ...], "
        f"or {root}/classes.txt with a name a line",
    )


@pytest.mark.parametrize("names", ["sky\n\nsand\n", "sky\nsky\nsand", "  \n"])
def test_a_list_of_names_with_gaps_or_twins_is_refused(root: Path, names: str) -> None:
    (root / "classes.txt").write_text(names)
    assert refused(root) == (f"{root}/classes.txt has an empty line or a name twice; it needs the name of id 0, of id 1, ..., one a line",)


def test_two_lists_of_classes_that_differ_are_refused(root: Path) -> None:
    assert refused(root, classes=["sea", "sky", "sand"]) == (
        f"data.classes names other classes than {root}/classes.txt, or in another order; the ids of masks have one meaning: "
        "leave data.classes out",
    )


def test_keys_that_mean_nothing_for_masks_are_refused(root: Path) -> None:
    assert refused(root, per_class=3, void=[2, 255]) == (
        "data.void = [2, 255], but 2 is the id of a class: 3 classes have the ids 0 to 2; use ids above, or leave the class out of the names",
        "data.per_class is for data with one label an image, and a mask has many; leave it out",
    )
    for path in sorted((root / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "val").rmdir()
    with pytest.raises(ConfigError, match=r"^data.val_fraction = 0, but the set has no validation split of its own; use 0.2, say$"):
        datasets.load(data_of(root, val_fraction=0))


def test_one_split_is_enough_to_score_a_model_of_its_classes(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "val").rename(elsewhere / "test")
    split = datasets.load_split(data_of(elsewhere, classes=list(CLASSES)), "test", CLASSES)
    assert (len(split), split.target(0).shape) == (3, (36, 48))
    with pytest.raises(ConfigError, match="the model tells apart 2 classes"):
        datasets.load_split(data_of(elsewhere, classes=list(CLASSES)), "test", ("sky", "sea"))
    with pytest.raises(ConfigError, match=r"train has no images/ and no masks/"):
        datasets.load_split(data_of(elsewhere, classes=list(CLASSES)), "val", CLASSES)


def test_the_fingerprint_follows_the_masks(root: Path) -> None:
    before = datasets.load(data_of(root)).fingerprint
    assert datasets.load(data_of(root)).fingerprint == before
    put(root, "train", "00", a_scene(0)[0], Image.new("L", (48, 36)))
    assert datasets.load(data_of(root)).fingerprint != before
