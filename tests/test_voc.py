"""`voc` finds what is in boxes, in the pixels that they are meant in, and refuses what is damaged, missing or meant to harm."""

from pathlib import Path

import pytest
from given_boxes import Box, drawn, voc, xml
from PIL import Image

from sft_dist import datasets
from sft_dist.config import Data
from sft_dist.errors import ConfigError


def data(root: Path, **changes: object) -> Data:
    return Data(name="voc", root=str(root), **changes)


def write(root: Path, name: str, text: str) -> Path:
    path = root / "Annotations" / f"{name}.xml"
    path.write_text(text)
    return path


def test_lists_are_splits_and_boxes_are_edges_counted_from_zero(tmp_path: Path) -> None:
    found = datasets.load(data(voc(tmp_path, {"train": range(6), "val": [6, 7], "test": [8]})))
    assert found.classes == ("bar", "disc") and found.remarks == ()
    assert [len(split) for split in (found.train, found.val, found.test)] == [6, 2, 1]
    assert found.val.names == ["JPEGImages/006.png", "JPEGImages/007.png"]
    assert found.train.read(0).shape == (3, 72, 96)
    for number in range(6):
        truth = found.train.target(number)
        assert [(found.classes[label], *box) for label, box in zip(truth.labels, truth.boxes, strict=True)] == drawn(number)[1]
        assert truth.size == (96, 72) and not any(truth.crowd) and all(truth.learned)
    assert found.train.target(4).boxes == []  # an image without objects is kept


@pytest.mark.parametrize(
    "lists", [{"": range(10)}, {"trainval": range(10)}, {"train": range(10)}], ids=lambda lists: next(iter(lists)) or "none"
)
def test_without_val_txt_a_fifth_of_the_images_is_held_out(lists: dict[str, range], tmp_path: Path) -> None:
    found = datasets.load(data(voc(tmp_path, lists)))
    assert (len(found.train), len(found.val), found.test) == (8, 2, None)
    assert not set(found.train.names) & set(found.val.names)


def test_without_train_txt_what_the_other_lists_name_is_not_learned(tmp_path: Path) -> None:
    found = datasets.load(data(voc(tmp_path, {"": range(10), "val": [2, 3], "test": [5]})))
    assert found.train.names == [f"JPEGImages/{number:03d}.png" for number in (0, 1, 4, 6, 7, 8, 9)]


def test_an_image_that_is_learned_and_scored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.txt names 002, and so does val.txt or test.txt"):
        datasets.load(data(voc(tmp_path, {"train": range(4), "val": [2, 5]})))


def test_chosen_classes_have_that_order_and_the_others_are_background(tmp_path: Path) -> None:
    found = datasets.load(data(voc(tmp_path, {"train": range(6), "val": [6, 7]}), classes=["disc"]))
    assert found.classes == ("disc",)
    assert sum(len(found.train.target(i).boxes) for i in range(6)) == sum(name == "disc" for i in range(6) for name, *_ in drawn(i)[1])
    with pytest.raises(ConfigError, match=r"data.classes: no 'cat' in the data; it has bar, disc"):
        datasets.load(data(tmp_path, classes=["cat"]))


def test_a_class_that_training_does_not_have_is_refused_in_validation(tmp_path: Path) -> None:
    write(voc(tmp_path, {"train": range(6), "val": [6, 7]}), "006", xml((96, 72), [("cup", 1, 1, 9, 9)]))
    with pytest.raises(
        ConfigError, match=r"the val split has objects of classes that training does not have: cup; choose with data.classes"
    ):
        datasets.load(data(tmp_path))
    assert len(datasets.load(data(tmp_path, classes=["bar", "disc"])).val) == 2


def test_boxes_without_area_are_left_out_and_told_of_and_those_beyond_the_edge_are_told_of(tmp_path: Path) -> None:
    voc(tmp_path, {"train": range(6), "val": [6, 7]})
    empty = [
        f"<object><name>bar</name><bndbox><xmin>{x}</xmin><ymin>5</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object>" for x in (5, 8)
    ]
    write(tmp_path, "000", f"<annotation>{''.join(empty)}</annotation>")
    write(tmp_path, "001", xml((96, 72), [("disc", 90, 60, 110, 72), ("bar", -1, 0, 97, 9)]))  # a pixel more is only another way to count
    found = datasets.load(data(tmp_path))
    assert found.train.target(0) == ([], (), (), (), None)
    assert found.remarks == (
        f"2 boxes without area, which are left out (the first in {tmp_path}/Annotations/000.xml)",
        f"1 boxes beyond the image's edge, which are clipped (the first in {tmp_path}/Annotations/001.xml)",
    )


def test_what_is_difficult_is_learned_and_is_a_crowd_in_the_scores(tmp_path: Path) -> None:
    write(
        voc(tmp_path, {"train": range(6), "val": [6, 7]}), "000", xml((96, 72), [("bar", 1, 1, 9, 9), ("disc", 2, 2, 9, 9)], difficult=[1])
    )
    truth = datasets.load(data(tmp_path)).train.target(0)
    assert (truth.labels, truth.crowd, truth.learned) == ((0, 1), (False, True), (True, True))


def test_a_moved_box_changes_the_fingerprint(tmp_path: Path) -> None:
    before = datasets.load(data(voc(tmp_path, {"train": range(6), "val": [6, 7]}))).fingerprint
    assert datasets.load(data(tmp_path)).fingerprint == before
    write(tmp_path, "000", xml((96, 72), [("bar", 1, 1, 9, 9)]))
    assert datasets.load(data(tmp_path)).fingerprint != before


LAUGHS = "".join(f'<!ENTITY lol{i + 1} "{f"&lol{i};" * 10}">' for i in range(9))
BOX = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            f'<!DOCTYPE a [<!ENTITY lol0 "lol">{LAUGHS}]><annotation><object><name>&lol9;</name></object></annotation>',
            "it declares a document type",
        ),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "it declares a document type"),
        ("<annotation><object>", "no element found"),
        ("", "no element found"),
        (f"<annotation><object><name>bar</name>{BOX.format('left')}</object></annotation>", "the xmin of bar is 'left', not a number"),
        (f"<annotation><object><name>bar</name>{BOX.format('nan')}</object></annotation>", "the xmin of bar is 'nan', not a number"),
        (f"<annotation><object><name>bar</name>{BOX.format('1e999')}</object></annotation>", "the xmin of bar is '1e999', not a number"),
        ("<annotation><object><name>bar</name></object></annotation>", "the xmin of bar is None, not a number"),
        (f"<annotation><object>{BOX.format(1)}</object></annotation>", "an object has no name"),
    ],
    ids=["laughs", "file", "cut", "empty", "word", "nan", "infinite", "no box", "no name"],
)
def test_a_damaged_or_dangerous_annotation_is_refused_by_its_path(content: str, told: str, tmp_path: Path) -> None:
    path = write(voc(tmp_path, {"train": range(6), "val": [6, 7]}), "003", content)
    with pytest.raises(ConfigError) as caught:
        datasets.load(data(tmp_path))
    assert caught.value.problems[0].startswith(f"{path} cannot be read as an annotation: {told}")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp037"])
def test_no_encoding_hides_a_document_type(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "Annotations" / "003.xml"
    voc(tmp_path, {"train": range(6), "val": [6, 7]})
    path.write_bytes(
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>'.encode(encoding)
    )
    with pytest.raises(ConfigError, match=r"003.xml cannot be read as an annotation"):
        datasets.load(data(tmp_path))


def test_names_without_image_or_annotation_are_told_together(tmp_path: Path) -> None:
    voc(tmp_path, {"train": range(6), "val": [6, 7]})
    (tmp_path / "JPEGImages" / "001.png").unlink()
    (tmp_path / "Annotations" / "002.xml").unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages" / "003.jpg")
    with pytest.raises(ConfigError, match=r"does not have one image in JPEGImages/ and one .xml in Annotations/ for 001, 002, 003"):
        datasets.load(data(tmp_path))


def test_missing_folders_and_empty_lists_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.root is missing"):
        datasets.check(Data(name="voc"))
    with pytest.raises(ConfigError) as caught:
        datasets.check(data(tmp_path))
    assert caught.value.problems == (
        f"data.root = '{tmp_path}' has no JPEGImages/ in it",
        f"data.root = '{tmp_path}' has no Annotations/ in it",
    )
    with pytest.raises(ConfigError, match=r"val.txt names no image"):
        datasets.check(data(voc(tmp_path, {"train": range(6), "val": []})))
    with pytest.raises(ConfigError, match=r"trainval.txt names no image"):
        datasets.check(data(voc(tmp_path, {"trainval": [], "val": range(6)})))


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("boxes", [[], [("bar", 1, 1, 9, 9)]], ids=["none", "difficult"])
def test_a_split_in_which_nothing_need_be_found_is_refused_by_name_before_anything_is_learned(
    boxes: list[Box], split: str, tmp_path: Path
) -> None:
    voc(tmp_path, {"train": range(6), "val": [6, 7], "test": [8, 10], split: [11]})
    write(tmp_path, "011", xml((96, 72), boxes, difficult=[0]))
    told = rf"the {split} split has 1 images, and not one object in them that need be found"
    with pytest.raises(ConfigError, match=told):
        datasets.load(data(tmp_path))
    with pytest.raises(ConfigError, match=told):
        datasets.load_split(data(tmp_path), split, ("bar", "disc"))


def test_one_split_is_read_alone_for_the_classes_of_a_model(tmp_path: Path) -> None:
    voc(tmp_path, {"val": [6, 7]})
    assert datasets.load_split(data(tmp_path), "val", ("bar", "disc")).names == ["JPEGImages/006.png", "JPEGImages/007.png"]
    with pytest.raises(ConfigError, match=r"val.txt has objects of classes that training does not have: disc"):
        datasets.load_split(data(tmp_path), "val", ("bar",))
    with pytest.raises(ConfigError, match=r"has no ImageSets/Main/test.txt"):
        datasets.load_split(data(tmp_path), "test", ("bar", "disc"))


@pytest.mark.real
def test_bccd_is_read_whole(real_data: Path) -> None:
    found = datasets.load(data(real_data / "bccd"))
    assert found.classes == ("Platelets", "RBC", "WBC") and (len(found.train), len(found.val)) == (205, 87)
    counts = [sum(len(split.target(i).boxes) for i in range(len(split))) for split in (found.train, found.val)]
    assert sum(counts) == 3350 + 301 + 292 - 2
    assert found.remarks[0].startswith("2 boxes without area, which are left out (the first in ") and len(found.remarks) == 1
