"""A check of the data names what is wrong with it, once and by file, and its exit code says whether a run should start."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from given import TREE
from given_pictures import as_jpeg, scene
from PIL import ImageOps

from sft_dist import cli
from sft_dist.datacheck import strays

CLASSES = ("cat", "dog")


def photos(folder: Path) -> Path:
    """A clean set: 12 training, 4 validation and 2 test pictures, no two alike."""
    seed = 0
    for split, count in (("train", 6), ("val", 2), ("test", 1)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                scene(seed, 64).save(folder / split / name / f"{i}.png")
                seed += 1
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photos(tmp_path / "data")


def checked(root: Path, *extra: str) -> tuple[Result, dict[str, dict[str, object]]]:
    """What the door says, and the findings of data-check.json by their kind."""
    place = root.parent
    tree = {**yaml.safe_load(TREE), "data": {"name": "folder", "root": str(root), "size": 64}}
    (place / "photos.yaml").write_text(yaml.safe_dump(tree))
    done = CliRunner().invoke(cli.cli, ["data", "check", str(place / "photos.yaml"), "--out", str(place / "out"), "--workers", "0", *extra])
    content = json.loads((place / "out" / "data-check.json").read_text())
    return done, {finding["kind"]: finding for finding in content["findings"]}


def names(finding: dict[str, object]) -> list[list[str]]:
    return [item["names"] for item in finding["items"]]  # type: ignore[index, attr-defined]


def test_a_clean_set_passes_without_a_remark(root: Path) -> None:
    done, findings = checked(root)
    assert (done.exit_code, findings) == (0, {})
    assert done.output.splitlines() == [
        "train  12 images of 2 classes, shorter side 64 to 64 pixels, median 64",
        "  val  4 images of 2 classes, shorter side 64 to 64 pixels, median 64",
        " test  2 images of 2 classes, shorter side 64 to 64 pixels, median 64",
        "18 images looked at: nothing is wrong",
        f"page: {root.parent / 'out' / 'data-check.html'}",
    ]


def test_an_unreadable_image_is_wrong_and_named_with_its_reason(root: Path) -> None:
    (root / "val" / "dog" / "1.png").write_text("no image")
    done, findings = checked(root)
    assert done.exit_code == 1
    assert list(findings) == ["unreadable"]
    assert re.search(r"wrong: 1 x an image that cannot be read\n    val/dog/1\.png: cannot identify image file", done.output)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_training_picture_in_another_split_is_a_leak(root: Path, split: str) -> None:
    shutil.copy(root / "train" / "cat" / "3.png", root / split / "cat" / "copy.png")
    done, findings = checked(root)
    assert done.exit_code == 1
    assert list(findings) == ["leak"]
    assert names(findings["leak"]) == [["train/cat/3.png", f"{split}/cat/copy.png"]]


def test_a_re_encoded_one_is_nearly_a_leak_unless_nobody_asks(root: Path) -> None:
    as_jpeg(scene(3, 64)).save(root / "val" / "cat" / "copy.jpg", quality=60)
    done, findings = checked(root)
    assert (done.exit_code, list(findings)) == (1, ["near-leak"])
    assert names(findings["near-leak"]) == [["train/cat/3.png", "val/cat/copy.jpg"]]
    done, findings = checked(root, "--no-near")
    assert (done.exit_code, findings) == (0, {})


def test_a_mirrored_one_is_nearly_a_leak(root: Path) -> None:
    ImageOps.mirror(scene(3, 64)).save(root / "val" / "cat" / "copy.png")
    done, findings = checked(root)
    assert (done.exit_code, list(findings)) == (1, ["near-leak"])
    assert findings["near-leak"]["items"] == [  # type: ignore[comparison-overlap]
        {"names": ["train/cat/3.png", "val/cat/copy.png"], "note": "cat in train and cat in val; likeness 1.000, mirrored"}
    ]


def test_nearly_the_same_picture_within_a_split_is_a_remark_that_says_whether_its_classes_differ(root: Path) -> None:
    as_jpeg(scene(3, 64)).save(root / "train" / "cat" / "copy.jpg", quality=60)
    done, findings = checked(root)
    assert (done.exit_code, list(findings)) == (0, ["near-double"])
    (root / "train" / "cat" / "copy.jpg").rename(root / "train" / "dog" / "copy.jpg")
    done, findings = checked(root)
    assert (done.exit_code, list(findings)) == (0, ["near-contradiction"])
    assert names(findings["near-contradiction"]) == [["train/cat/3.png", "train/dog/copy.jpg"]]


def test_images_that_no_run_reads_are_told_by_folder(root: Path) -> None:
    (root / "valid" / "cat").mkdir(parents=True)
    for name in ("valid/cat/0.png", "valid/cat/1.png", "train/loose.png", "loose.png"):
        scene(3, 64).save(root / name)
    for name in ("train/cat/phone.heic", "train/cat/.hidden.png", "train/cat/notes.txt"):
        (root / name).touch()
    (root / "valid" / "round").symlink_to(root.parent)  # leads up, and is not followed
    done, findings = checked(root)
    assert (done.exit_code, list(findings)) == (0, ["outside"])
    assert names(findings["outside"]) == [
        ["loose.png"],
        ["train/loose.png"],
        ["train/cat/phone.heic"],
        ["valid/cat/0.png", "valid/cat/1.png"],
    ]


def test_links_to_folders_are_followed_as_a_run_does_and_no_file_is_told_twice(root: Path) -> None:
    elsewhere = photos(root.parent / "elsewhere")
    (elsewhere / "train" / "cat" / "phone.heic").touch()
    (root / "valid").symlink_to(elsewhere / "val")
    (root / "valid-again").symlink_to(root / "valid")
    (root / "train" / "cat").rename(root / "cats")
    (root / "train" / "cat").symlink_to(root / "cats")  # read there, and so no stray here
    (root / "train" / "cat" / "more").symlink_to(elsewhere / "train" / "cat")
    for here, there in (("a", "b"), ("b", "a")):  # a ring, in which no link leads up
        (root.parent / here).mkdir()
        (root.parent / here / "on").symlink_to(root.parent / there)
    scene(3, 64).save(root.parent / "b" / "loose.png")
    (root / "ring").symlink_to(root.parent / "a")
    assert strays.find(root) == [
        "cats/more/phone.heic",
        "ring/on/loose.png",
        "valid/cat/0.png",
        "valid/cat/1.png",
        "valid/dog/0.png",
        "valid/dog/1.png",
    ]


def test_a_class_that_the_config_leaves_out_is_not_told_as_unread(root: Path) -> None:
    (root / "train" / "fox").mkdir()
    scene(300, 64).save(root / "train" / "fox" / "0.png")
    _, findings = checked(root, "data.classes=[cat, dog]")
    assert findings == {}


def test_a_picture_in_two_classes_is_a_contradiction_and_twice_in_one_only_a_remark(root: Path) -> None:
    shutil.copy(root / "train" / "cat" / "3.png", root / "train" / "dog" / "copy.png")
    done, findings = checked(root)
    assert (done.exit_code, list(findings)) == (1, ["contradiction"])
    (root / "train" / "dog" / "copy.png").rename(root / "train" / "cat" / "copy.png")
    done, findings = checked(root)
    assert (done.exit_code, list(findings)) == (0, ["double"])
    assert "nothing is wrong, but see the remarks" in done.output


def test_what_is_rare_missing_small_long_or_odd_is_a_remark(root: Path) -> None:
    for i in range(1, 6):
        (root / "train" / "dog" / f"{i}.png").unlink()
    for i in range(100, 101):
        scene(i, 64).save(root / "train" / "cat" / f"{i}.png")
    (root / "test" / "dog" / "0.png").unlink()
    scene(200, 40).resize((40, 30)).save(root / "train" / "cat" / "small.png")
    scene(201, 64).resize((300, 64)).save(root / "train" / "cat" / "long.png")
    scene(202, 64).convert("RGBA").save(root / "train" / "cat" / "clear.png")
    done, findings = checked(root)
    assert done.exit_code == 0
    told = {kind: (names(finding), finding["items"][0]["note"]) for kind, finding in findings.items()}  # type: ignore[index]
    assert told == {
        "rare-class": ([["dog"]], "1 of at most 10"),
        "missing-class": ([["dog"]], "none in test"),
        "small": ([["train/cat/small.png"]], "40 x 30"),
        "long": ([["train/cat/long.png"]], "300 x 64"),
        "odd": ([["train/cat/clear.png"]], ""),
    }


def test_what_a_run_would_hold_out_of_its_training_images_is_checked_as_validation(root: Path) -> None:
    shutil.rmtree(root / "val")
    _, findings = checked(root)
    assert findings == {}
    for i in range(30):  # seven of six pictures, six times each: some fall on either side
        shutil.copy(root / "train" / "cat" / f"{i % 6}.png", root / "train" / "cat" / f"copy-{i}.png")
    done, findings = checked(root)
    assert done.exit_code == 1
    assert "leak" in findings
    assert "cat in train, cat in val" in done.output


def test_the_screen_names_five_of_a_kind_and_the_page_shows_all(root: Path) -> None:
    for i in range(6):
        shutil.copy(root / "train" / "cat" / f"{i}.png", root / "val" / "cat" / f"copy-{i}.png")
    done, findings = checked(root)
    assert len(names(findings["leak"])) == 6
    assert done.output.count("train/cat/") == 5 and "    and 1 more\n" in done.output
    page = (root.parent / "out" / "data-check.html").read_text()
    assert sum(tag == "img" for tag, _ in Tags(page).found) == 12


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_shows_the_pictures_fetches_nothing_and_obeys_no_name(root: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>\u202e\x1b[31m {{ 7*7 }}.png"
    shutil.copy(root / "train" / "cat" / "3.png", root / "val" / "cat" / hostile)
    done, _ = checked(root)
    assert not re.search("[\u202e\x1b]", done.output)
    text = (root.parent / "out" / "data-check.html").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;\\u202e\\x1b[31m {{ 7*7 }}.png" in text
    assert not re.search("[\u202e\x1b]", text) and "default-src 'none'" in text
    tags = Tags(text).found
    assert {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "base", "form"} == set()
    pictures = [attributes for tag, attributes in tags if tag == "img"]
    assert next(attributes["alt"] for attributes in pictures) == "train/cat/3.png"
    assert len(pictures) == 2
    assert all(str(attributes["src"]).startswith("data:image/") for attributes in pictures)


def test_a_folder_of_files_is_checked_without_torch(root: Path) -> None:
    checked(root)
    arguments = ["data", "check", str(root.parent / "photos.yaml"), "--out", str(root.parent / "out"), "--workers", "0"]
    program = f"import sys\nfrom sft_dist import cli\ntry: cli.cli({arguments!r})\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
