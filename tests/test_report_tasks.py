"""The page of a run of segmentation and of detection: its numbers are those of scikit-learn and pycocotools, its pictures have boxes in their places."""

import base64
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from given_tasks import CLASSES, FILE, a_boxed_run, a_masked_run
from PIL import Image
from test_overlaps import Masks, drawn_boxes, drawn_masks, pycocotools, scipys_interval, sklearns
from test_report import cells, drawn

from sft_dist.history import records
from sft_dist.overlaps import Found, Objects
from sft_dist.report import answers, exhibits, overlay
from sft_dist.report.answers import Answered
from sft_dist.report.exhibits import Exhibits, Mask, Patch

ABSENT = ("Calibration", "Grad-CAM", "Embedding", "top1", "commonest class", "F1 of", "most doubtful")


def a_masked(folder: Path, **keys: Any) -> tuple[Path, list[Masks], list[Masks]]:
    truths, said = drawn_masks(np.random.default_rng(3), 12, right=(0.7,))
    return a_masked_run(folder / "run", truths, said, **keys), truths, said


def a_boxed(folder: Path, **keys: Any) -> Path:
    """Two images of 80 x 40 pixels: in the first one of two objects is found, and one is false; in the second all are found."""
    root = folder / "data"
    (root / "JPEGImages").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (80, 40), (90, 120, 40 * i)).save(root / "JPEGImages" / f"{i}.jpg")
    scene = [
        Objects(np.array([[0.0, 0, 20, 20], [40, 10, 60, 30]]), np.array([0, 1])),
        Objects(np.array([[5.0, 5, 25, 35]]), np.array([0])),
    ]
    found = [
        Found(np.array([[0.0, 0, 20, 20], [60, 0, 79, 30], [0, 0, 5, 5]]), np.array([0, 1, 2]), np.array([0.9, 0.8, 0.05])),
        Found(np.array([[5.0, 5, 25, 35]]), np.array([0]), np.array([0.7])),
    ]
    return a_boxed_run(folder / "run", scene, found, data__name="voc", data__root=str(root), **keys)


def test_the_headline_of_segmentation_is_scikit_learns_with_scipys_bootstrap(tmp_path: Path) -> None:
    run, truths, said = a_masked(tmp_path)
    told = cells(drawn(run))
    found = re.search(r"mIoU (\S+) on 12 validation images with ([0-9,]+) pixels \(95 % interval (\S+) to (\S+) over images\)", told)
    assert found and float(found[1]) == pytest.approx(sklearns(truths, said), abs=1e-4)
    assert int(found[2].replace(",", "")) == sum(int((mask < 4).sum()) for mask in truths)
    low, high = scipys_interval(lambda images: sklearns([truths[i] for i in images], [said[i] for i in images]), 12, 400)
    assert (float(found[3]), float(found[4])) == pytest.approx((low, high), abs=0.12 * (high - low) + 0.001)


def test_a_page_of_segmentation_has_its_classes_and_nothing_of_classifiers(tmp_path: Path) -> None:
    run, truths, said = a_masked(tmp_path)
    page = drawn(run)
    told = cells(page)
    assert "IoU, precision and recall of 4 classes" in told and "in percent of the pixels of the row" in told
    right = sum(int(((mask == guess) & (mask == 0)).sum()) for mask, guess in zip(truths, said, strict=True))
    either = sum(int((((mask == 0) | (guess == 0)) & (mask < 4)).sum()) for mask, guess in zip(truths, said, strict=True))
    assert re.search(rf"road\s*{right / either:.4f}", page.words)
    assert "pixels (" in told and "% of its pixels)" in told and "The weakest class is" in told
    assert "sft-dist report --look draws their masks" in told
    assert [word for word in ABSENT if word in told] == []


def test_an_image_of_which_nothing_is_known_is_not_among_the_worst() -> None:
    columns = {"right": [[2, 0], [0, 0], [1, 1]], "said": [[3, 1], [0, 0], [1, 1]], "there": [[2, 2], [0, 0], [1, 1]]}
    found = answers.of_masks(records.Masks(["half", "void", "whole"], **columns), CLASSES[:2])
    assert [(one.id, one.told) for one in found.images] == [("half", "IoU 0.333"), ("whole", "IoU 1.000")]
    assert answers.of_masks(records.Masks(["void"], [[0, 0]], [[0, 0]], [[0, 0]]), CLASSES[:2]) == Answered()


@pytest.mark.parametrize(("images", "given"), [(1, False), (9, False), (10, True)])
def test_of_few_images_there_is_no_interval(tmp_path: Path, images: int, given: bool) -> None:
    truths, said = drawn_masks(np.random.default_rng(3), images, right=(0.7,))
    told = cells(drawn(a_masked_run(tmp_path / "run", truths, said)))
    assert f" on {images} validation images with " in told and ("95 % interval" in told) == given


@pytest.mark.parametrize(("trees", "named"), [(3, True), (4, False), (0, False)])
def test_a_class_in_too_few_images_for_the_interval_is_named(tmp_path: Path, trees: int, named: bool) -> None:
    truths = [np.array([[0, 0, 1 if i < trees else 0]]) for i in range(12)]
    told = cells(drawn(a_masked_run(tmp_path / "run", truths, truths, CLASSES[:2])))
    sentence = "The interval cannot be relied on: tree in fewer than 4 images, so that many draws have none."
    assert (sentence in told) == named and ("cannot be relied on" in told) == named


def with_masks(run: Path, road: str = "road") -> Path:
    """Looked into, of one image."""
    (run / "report").mkdir()
    for which in ("plain", "truth", "said"):
        Image.new("RGB", (64, 32), (90, 20, 90)).save(run / "report" / f"mask-0-{which}.jpg")
    patches = (
        Patch(name=road, colour="#009ffa", there=0.6, said=1.0, iou=0.6),
        Patch(name="tree", colour="#ffdc3d", there=0.4, said=0.0, iou=0.0),
    )
    mask = Mask(id="val/images/3.png", iou=0.3, plain="mask-0-plain.jpg", truth="mask-0-truth.jpg", said="mask-0-said.jpg", patches=patches)
    exhibits.write(run, Exhibits(step=4, masks=(mask,)))
    return run


def test_masks_stand_beside_each_other_with_their_classes_in_words(tmp_path: Path) -> None:
    page = drawn(with_masks(a_masked(tmp_path)[0]))
    told = [str(attributes["alt"]) for tag, attributes in page.tags if tag == "img"]
    assert "its true mask: road 60 %, tree 40 %" in told and "its predicted mask: road 100 %" in told
    assert "val/images/3.png: IoU 0.300 road 0.60 tree 0.00" in cells(page)


def test_a_page_of_detection_has_its_classes_and_nothing_of_classifiers(tmp_path: Path) -> None:
    scene, [found] = drawn_boxes(np.random.default_rng(3), 20, shaken=(1.0,))
    page = drawn(a_boxed_run(tmp_path / "run", scene, found))
    told = cells(page)
    objects = sum(len(each.labels) for each in scene)
    assert f"mAP {pycocotools(scene, found):.4f} on 20 validation images with {objects} objects, the best" in told
    assert "AP, AP50 and recall of 3 classes" in told and "The weakest class is" in told and "Confusion matrix" not in told
    assert [word for word in ABSENT if word in told] == []


def test_boxes_are_drawn_where_they_are_from_predictions_alone(tmp_path: Path) -> None:
    page = drawn(a_boxed(tmp_path))
    shown = [attributes for tag, attributes in page.tags if tag == "img" and str(attributes["alt"]).startswith("JPEGImages/")]
    assert [attributes["alt"] for attributes in shown] == [
        "JPEGImages/0.jpg, 1 of 2 found, 1 false. There: red at 10, 10, white at 50, 20. Found: red 0.90 at 10, 10, white 0.80 at 70, 15.",
        "JPEGImages/1.jpg, 1 of 1 found, 0 false. There: red at 15, 20. Found: red 0.70 at 15, 20.",
    ]
    tree = ElementTree.fromstring(base64.b64decode(str(shown[0]["src"]).partition(",")[2]))
    boxes = [one.attrib for one in tree.iter("{http://www.w3.org/2000/svg}rect")]
    places = [tuple(float(box[side]) for side in ("x", "y", "width", "height")) for box in boxes[::2]]
    assert places == [(0, 0, 20, 20), (40, 10, 20, 20), (0, 0, 20, 20), (60, 0, 19, 30)]
    assert [(box["stroke"], "stroke-dasharray" in box) for box in boxes[1::2]] == [(overlay.TRUTH, False)] * 2 + [(overlay.SAID, True)] * 2
    assert tree.attrib["viewBox"] == "0 0 80 40"
    assert "of the detections with a score of 0.70 or more" in cells(page)


def test_images_that_are_done_equally_badly_are_ordered_by_their_mistakes(tmp_path: Path) -> None:
    """Nothing is found in the first three: of one object, of three, of one with two false detections."""
    box, far = np.array([[0.0, 0, 9, 9]]), np.array([[50.0, 50, 59, 59], [70, 70, 79, 79]])
    three, red = np.concatenate([box, far]), np.array([0])
    scene = [Objects(box, red), Objects(three, np.array([0, 0, 1])), Objects(box, red), Objects(box, red)]
    nothing = Found(np.empty((0, 4)), np.array([], int), np.array([]))
    found = [nothing, nothing, Found(far, np.array([0, 0]), np.array([0.9, 0.9])), Found(box, red, np.array([0.9]))]
    told = cells(drawn(a_boxed_run(tmp_path / "run", scene, found)))
    listed = re.findall(r"JPEGImages/(\d).jpg\s*(\d of \d found, \d false)", told)
    assert listed == [
        ("1", "0 of 3 found, 0 false"),
        ("2", "0 of 1 found, 2 false"),
        ("0", "0 of 1 found, 0 false"),
        ("3", "1 of 1 found, 0 false"),
    ]
    assert "The 8 validation images with the lowest F1, then some with the highest." in told


def test_an_image_whose_file_cannot_be_read_is_named_among_those_that_are_drawn(tmp_path: Path) -> None:
    run = a_boxed(tmp_path)
    (tmp_path / "data" / "JPEGImages" / "0.jpg").write_bytes(b"no picture")
    page = drawn(run)
    assert [str(attributes["alt"])[:16] for tag, attributes in page.tags if tag == "img" and "There: " in str(attributes["alt"])] == [
        "JPEGImages/1.jpg"
    ]
    assert "No picture could be read of JPEGImages/0.jpg (1 of 2 found, 1 false)." in cells(page)


def test_the_name_of_a_class_is_text_in_a_picture_and_nothing_else(tmp_path: Path) -> None:
    run = a_boxed(tmp_path)
    path = run / "scores.json"
    path.write_text(path.read_text().replace('"red"', '"<script onload=alert(1)>"'))
    shown = [attributes for tag, attributes in drawn(run).tags if str(attributes.get("alt")).startswith("JPEGImages/")]
    assert len(shown) == 2
    for attributes in shown:
        tree = ElementTree.fromstring(base64.b64decode(str(attributes["src"]).partition(",")[2]))
        assert {one.tag.rpartition("}")[2] for one in tree.iter()} == {"svg", "image", "rect", "text"}
        assert "<script onload=alert(1)> 0.90" in [one.text for one in tree.iter()] or attributes is shown[1]


def test_without_pictures_the_images_are_told_in_words(tmp_path: Path) -> None:
    run = a_boxed(tmp_path)
    (tmp_path / "data" / "JPEGImages" / "0.jpg").unlink()
    (tmp_path / "data" / "JPEGImages" / "1.jpg").unlink()
    assert re.search(r"JPEGImages/0.jpg\s*1 of 2 found, 1 false\s*JPEGImages/1.jpg\s*1 of 1 found, 0 false", drawn(run).words)


@pytest.mark.parametrize("content", ["", "{}\n", '{"id": "a", "label": 0, "probs": [1]}\n', '{"id": "a", "boxes": 3}\n'])
@pytest.mark.parametrize("make", ["masks", "boxes"])
def test_a_run_with_damaged_predictions_has_a_page_too(tmp_path: Path, make: str, content: str) -> None:
    run = a_masked(tmp_path)[0] if make == "masks" else a_boxed(tmp_path)
    (run / FILE).write_text(content)
    told = cells(drawn(run))
    assert "no predictions of step 4" in told and "Predictions over truth" not in told


def test_a_detector_whose_last_evaluation_is_the_best_may_still_gain(tmp_path: Path) -> None:
    """It has no validation loss that could say so."""
    run = a_boxed(tmp_path)
    assert "longer training may still gain" not in cells(drawn(run))  # after one evaluation
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "kind": "eval", "samples": 64, "val/map": 0.1, "val/map_50": 0.2, "val/map_75": 0.1}) + "\n")
    assert "The last evaluation is the best: longer training may still gain." in cells(drawn(run))
