"""Runs of segmentation and detection, compared from their folders: what is said is what scikit-learn, pycocotools and scipy say of the same answers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from given_runs import a_run, guesses
from given_tasks import CLASSES, FILE, a_boxed_run, a_masked_run
from test_compare import told
from test_overlaps import VOID, Masks, drawn_boxes, drawn_masks, error, over_all_swaps, pycocotools, scipys_interval, sklearns

from sft_dist.compare import boxes, verdicts
from sft_dist.compare.verdicts import Choice, Pair
from sft_dist.errors import ConfigError
from sft_dist.history import reading
from sft_dist.history.records import Predictions
from sft_dist.overlaps import Found, Objects

RED, WHITE = 0, 1


def judged(folder: Path, **choice: Any) -> verdicts.Comparison:
    records, _ = reading.gather([folder])
    return verdicts.judge(records, [], Choice(**choice))


def masked(folder: Path, images: int = 7, right: Sequence[float] = (0.7, 0.72)) -> list[list[Masks]]:
    """A run for each share of right pixels, and what was drawn: truths, then what each run says."""
    truths, *said = drawn = drawn_masks(np.random.default_rng(2), images, right=right)
    for number, run in enumerate(said):
        a_masked_run(folder / f"run-{number}", truths, run, optim__lr=0.1 + number)
    return drawn


def pair_of(found: verdicts.Comparison, one: str = "run-0") -> tuple[Pair, int]:
    """The only pair, and 1 where it is told as `other` against `one`, else -1."""
    [pair] = found.pairs
    return pair, 1 if pair.one == one else -1


def test_segmentations_are_judged_by_miou_as_scikit_learn_and_scipy_would(tmp_path: Path) -> None:
    truths, one, other = masked(tmp_path)
    found = judged(tmp_path)
    pair, sign = pair_of(found)
    assert (found.task, found.metric, pair.samples) == ("segment", "val/miou", 7)
    assert pair.difference and pair.difference.test == "permutation"
    assert sign * pair.difference.value == pytest.approx(sklearns(truths, other) - sklearns(truths, one), abs=1e-12)
    theirs = over_all_swaps(lambda images: sklearns(truths, [one[i - 1] if i > 0 else other[-i - 1] for i in images]), 7)
    assert pair.difference.p == pytest.approx(theirs, abs=error(theirs))
    known = [np.concatenate([mask[truth != VOID] for mask, truth in zip(masks, truths, strict=True)]) for masks in (truths, one, other)]
    accuracy = [float((side == known[0]).mean()) for side in known[1:]]
    assert sign * pair.beside["val/pixel_accuracy"].value == pytest.approx(accuracy[1] - accuracy[0], abs=1e-12)
    assert found.entries[0].scores["val/miou"] == pytest.approx(max(sklearns(truths, one), sklearns(truths, other)), abs=1e-12)


def test_the_interval_of_miou_is_scipys_within_its_own_noise(tmp_path: Path) -> None:
    truths, one, other = masked(tmp_path, images=30, right=(0.6, 0.75))

    def difference(images: np.ndarray[Any, np.dtype[np.int64]]) -> float:
        there = [truths[i] for i in images]
        return sklearns(there, [other[i] for i in images]) - sklearns(there, [one[i] for i in images])

    low, high = scipys_interval(difference, 30, 400)
    pair, _ = pair_of(judged(tmp_path))
    assert pair.verdict == "better" and pair.difference
    assert (pair.difference.low, pair.difference.high) == pytest.approx((low, high), abs=0.12 * (high - low))


@pytest.mark.parametrize("metric", ["val/miou", "val/pixel_accuracy", "val/recall_macro"])
def test_each_score_of_segmentation_differs_as_the_runs_own_scores_do(tmp_path: Path, metric: str) -> None:
    masked(tmp_path)
    found = judged(tmp_path, metric=metric)
    pair, sign = pair_of(found)
    scores = {entry.group.label: entry.scores[metric] for entry in found.entries}
    assert pair.difference and sign * pair.difference.value == pytest.approx(scores["run-1"] - scores["run-0"], abs=1e-12)


def test_classes_and_images_that_got_better_are_those_whose_iou_did(tmp_path: Path) -> None:
    """Of two images of two classes: in the first the tree is found by the second run alone, the second is the same for both."""
    truths = [np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0, VOID]])]
    a_masked_run(tmp_path / "run-0", truths, [np.array([[0, 0, 0, 0]]), np.array([[0, 0, 0, 1]])], CLASSES[:2], optim__lr=0.1)
    a_masked_run(tmp_path / "run-1", truths, [np.array([[0, 0, 0, 1]]), np.array([[0, 0, 0, 1]])], CLASSES[:2], optim__lr=0.2)
    pair, sign = pair_of(judged(tmp_path))
    assert sign == 1
    assert [(change.name, change.support, change.scores) for change in pair.classes] == [
        ("tree", 2, {"iou": (0.0, 0.5)}),
        ("road", 5, {"iou": (pytest.approx(5 / 7), pytest.approx(5 / 6))}),
    ]
    [better] = pair.better
    assert (better.id, better.iou_one, better.iou_other) == ("val/images/0.png", 0.25, pytest.approx((2 / 3 + 1 / 2) / 2))
    assert not pair.worse


def test_classes_in_another_order_are_the_same_classes_and_other_masks_are_left_out(tmp_path: Path) -> None:
    """The second run has the same masks, its classes moved on by one; in the third, one image has another truth."""
    truths = [np.array([[0, 0, 0, 1, 1, 2]])] * 3
    said = [np.array([[0, 0, 1, 1, 1, 1]])] * 3
    a_masked_run(tmp_path / "run-0", truths, said, ("road", "tree", "car"), optim__lr=0.1)
    moved = [[(mask + 1) % 3 for mask in masks] for masks in (truths, said)]
    a_masked_run(tmp_path / "run-1", *moved, ("car", "road", "tree"), optim__lr=0.2)
    pair, _ = pair_of(judged(tmp_path))
    assert (pair.samples, pair.difference and pair.difference.value, pair.better, pair.worse) == (3, 0.0, [], [])
    assert {change.name: (change.support, change.scores["iou"]) for change in pair.classes} == {
        "road": (9, (pytest.approx(2 / 3), pytest.approx(2 / 3))),
        "tree": (6, (0.5, 0.5)),
        "car": (3, (0.0, 0.0)),
    }
    a_masked_run(tmp_path / "run-2", [np.array([[0, 1, 1, 1, 1, 2]]), *truths[1:]], said, ("road", "tree", "car"), optim__lr=0.3)
    found = {frozenset((pair.one, pair.other)): pair for pair in judged(tmp_path).pairs}[frozenset(("run-0", "run-2"))]
    assert found.samples == 2 and found.notes == ["1 samples have other numbers of true pixels on the other side and are left out"]


def boxed(folder: Path, images: int = 7, shaken: Sequence[float] = (1.6, 1.0)) -> tuple[list[Objects], list[list[Found]]]:
    scene, runs = drawn_boxes(np.random.default_rng(2), images, shaken=shaken)
    for number, run in enumerate(runs):
        a_boxed_run(folder / f"run-{number}", scene, run, optim__lr=0.1 + number)
    return scene, runs


def test_detections_are_judged_by_map_as_pycocotools_and_scipy_would(tmp_path: Path) -> None:
    scene, (one, other) = boxed(tmp_path)
    found = judged(tmp_path)
    pair, sign = pair_of(found)
    assert (found.task, found.metric, pair.samples) == ("detect", "val/map", 7)
    assert pair.difference and sign * pair.difference.value == pytest.approx(pycocotools(scene, other) - pycocotools(scene, one), abs=1e-12)
    theirs = over_all_swaps(lambda images: pycocotools(scene, [one[i - 1] if i > 0 else other[-i - 1] for i in images]), 7)
    assert pair.difference.p == pytest.approx(theirs, abs=error(theirs))


@pytest.mark.parametrize("metric", ["val/map", "val/map_50", "val/map_75"])
def test_each_score_of_detection_differs_as_the_runs_own_scores_do(tmp_path: Path, metric: str) -> None:
    boxed(tmp_path)
    found = judged(tmp_path, metric=metric)
    pair, sign = pair_of(found)
    scores = {entry.group.label: entry.scores[metric] for entry in found.entries}
    assert pair.difference and sign * pair.difference.value == pytest.approx(scores["run-1"] - scores["run-0"], abs=1e-12)


def test_seeds_of_detection_are_compared_by_their_means(tmp_path: Path) -> None:
    scene, runs = drawn_boxes(np.random.default_rng(6), 25, shaken=(2.5, 2.5, 0.5, 0.5))
    for number, run in enumerate(runs):
        a_boxed_run(
            tmp_path / f"{'one' if number < 2 else 'other'}-{number % 2}", scene, run, optim__lr=0.1 + number // 2, train__seed=number % 2
        )
    [pair] = judged(tmp_path).pairs
    scores = [pycocotools(scene, run) for run in runs]
    assert pair.difference and pair.difference.value == pytest.approx(np.mean(scores[2:]) - np.mean(scores[:2]))
    assert (pair.verdict, pair.runs, pair.difference.test) == ("better", (2, 2), "bootstrap t")


@pytest.mark.parametrize("silent", ["all", "one"])
@pytest.mark.parametrize("task", ["segment", "detect"])
def test_runs_without_predictions_as_wandb_has_them_are_tested_over_their_seeds(tmp_path: Path, task: str, silent: str) -> None:
    random = np.random.default_rng(6)
    scene, found = drawn_boxes(random, 12, shaken=(2.5, 2.4, 0.3, 0.4))
    truths, *said = drawn_masks(random, 12, right=(0.5, 0.52, 0.8, 0.82))
    for number in range(4):
        keys = {"optim__lr": 0.1 + number // 2, "train__seed": number % 2}
        if task == "segment":
            a_masked_run(tmp_path / f"run-{number}", truths, said[number], **keys)
        else:
            a_boxed_run(tmp_path / f"run-{number}", scene, found[number], **keys)
    records = [replace(record, fingerprint="f1") for record in reading.gather([tmp_path])[0]]
    records = [replace(one, predictions=lambda _: Predictions()) if silent == "all" or one.name == "run-3" else one for one in records]
    [pair] = verdicts.judge(records, [], Choice()).pairs
    assert (pair.verdict, pair.reason, pair.difference and pair.difference.test) == ("better", "", "Welch t")
    assert "no predictions of " in pair.notes[0] and pair.notes[0].endswith("so it speaks of these validation samples only")


def square(*corners: float) -> list[list[float]]:
    """Boxes of 10 x 10 pixels at these places, side by side."""
    return [[corner, 0.0, corner + 10, 10.0] for corner in corners]


def finds(corners: Sequence[float], labels: Sequence[int], scores: Sequence[float]) -> Found:
    return Found(np.array(square(*corners)).reshape(-1, 4), np.array(labels, dtype=np.int64), np.array(scores, dtype=float))


def test_images_are_counted_with_the_detections_that_make_a_runs_f1_the_highest(tmp_path: Path) -> None:
    scene = [Objects(np.array(square(0, 20)), np.array([RED, WHITE])), Objects(np.array(square(0)), np.array([RED]))]
    bad = [finds([0, 40, 60], [RED, RED, WHITE], [0.9, 0.8, 0.1]), finds([0], [RED], [0.7])]
    good = [finds([0, 20, 40], [RED, WHITE, RED], [0.9, 0.8, 0.1]), finds([0], [RED], [0.7])]
    a_boxed_run(tmp_path / "run-0", scene, bad, optim__lr=0.1)
    a_boxed_run(tmp_path / "run-1", scene, good, optim__lr=0.2)
    pair, sign = pair_of(judged(tmp_path))
    assert sign == 1 and not pair.worse
    [better] = pair.better
    assert boxes.brief(better) == "found 1 -> 2 of 2, false 1 -> 0" and better.id == "JPEGImages/0.jpg"
    assert {change.name: change.support for change in pair.classes} == {"white": 1, "red": 2}
    assert pair.classes[0].name == "white" and pair.classes[0].scores == {"ap": (0.0, 1.0)}


def test_boxes_of_classes_in_another_order_are_of_the_same_classes(tmp_path: Path) -> None:
    """The second run has the same boxes, its classes moved on by one."""
    there, said = [RED, RED, WHITE], [RED, WHITE, WHITE]
    for number, names in enumerate([("red", "white", "plate"), ("plate", "red", "white")]):
        scene = [Objects(np.array(square(0, 20, 40)), np.array(there) + number)] * 2
        found = [finds([0, 20, 40], [label + number for label in said], [0.9, 0.8, 0.7])] * 2
        a_boxed_run(tmp_path / f"run-{number}", scene, found, names, optim__lr=0.1 + number)
    pair, _ = pair_of(judged(tmp_path))
    assert (pair.samples, pair.difference and pair.difference.value, pair.better, pair.worse) == (2, 0.0, [], [])
    # of red, half the objects are found, without a false one before them: precision 1 at 51 of 101 recalls; white's false ones come first
    assert {change.name: (change.support, change.scores["ap"]) for change in pair.classes} == {
        "red": (4, (pytest.approx(51 / 101), pytest.approx(51 / 101))),
        "white": (2, (0.5, 0.5)),
    }


def test_runs_of_other_tasks_are_refused_in_a_sentence(tmp_path: Path) -> None:
    masked(tmp_path)
    a_run(tmp_path / "named", guesses([1]))
    with pytest.raises(ConfigError) as refused:
        judged(tmp_path)
    assert list(refused.value.problems) == [
        "runs of different tasks cannot be compared: named of classify and run-0 of segment; name runs of one task, or add --where task=classify"
    ]
    assert judged(tmp_path, where=["task=segment"]).metric == "val/miou"


def test_a_score_of_another_task_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    masked(tmp_path)
    with pytest.raises(ConfigError, match="--metric val/top1: runs are judged by one of val/miou, val/pixel_accuracy, val/recall_macro;"):
        judged(tmp_path, metric="val/top1")


def test_what_is_shown_of_detections_names_their_scores_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    boxed(tmp_path / "runs", images=20, shaken=(3.0, 0.5))
    monkeypatch.chdir(tmp_path)
    code, screen = told(capsys, "compare", "runs")
    assert code == 0
    assert "points of mAP, 95 % interval" in screen and "AP by class, in points: " in screen and "points of mAP50" in screen
    assert "samples better: JPEGImages/" in screen and "(found " in screen
    content = json.loads(Path("compare.json").read_text())
    assert (content["task"], content["metric"]) == ("detect", "val/map")
    assert set(content["pairs"][0]["classes"][0]) == {"name", "support", "ap_one", "ap_other"}
    assert set(content["pairs"][0]["better"]["samples"][0]) == {"id", "objects", "found_one", "found_other", "false_one", "false_other"}
    page = Path("compare.html").read_text()
    assert "AP (COCO, overlaps from 0.50 to 0.95) on both sides" in page and ">objects</th>" in page and "recall" not in page.lower()


@pytest.mark.parametrize(
    "row",
    [
        '{"id": "x", "boxes": [[0, 0, 1, 1]], "labels": [], "scores": [1], "truth_boxes": [], "truth_labels": [], "crowd": []}',
        '{"id": "x", "boxes": [[5, 0, 1, 1]], "labels": [0], "scores": [1], "truth_boxes": [], "truth_labels": [], "crowd": []}',
        '{"id": "x", "boxes": [[0, 0, 1, NaN]], "labels": [0], "scores": [1], "truth_boxes": [], "truth_labels": [], "crowd": []}',
        '{"id": "x", "boxes": [[0, 0, 1, 1]], "labels": [10000], "scores": [1], "truth_boxes": [], "truth_labels": [], "crowd": []}',
        '{"id": "x", "boxes": [[0, 0, 1, 1]], "labels": [9223372036854775808], "scores": [1], "truth_boxes": [], "truth_labels": [], "crowd": []}',
        '{"id": "x", "boxes": [], "labels": [], "scores": [], "truth_boxes": [[0, 0, 1, 1]], "truth_labels": [1000000000], "crowd": [false]}',
        '{"id": "x", "right": [1], "said": [1], "there": [1]}',
    ],
    ids=[
        "a label too few",
        "ends before it begins",
        "no number",
        "more classes than there are",
        "a label of more than 64 bits",
        "a true label",
        "of another task",
    ],
)
def test_rows_that_are_no_detections_are_left_out_and_told(tmp_path: Path, row: str) -> None:
    boxed(tmp_path)
    path = tmp_path / "run-0" / FILE
    path.write_text(path.read_text() + row + "\n")
    pair, _ = pair_of(judged(tmp_path))
    wanted = "no id, boxes with classes and scores, or an id that was there before"
    assert pair.samples == 7 and pair.notes == [f"run-0: step-00000004.jsonl: 1 row(s) left out ({wanted})"]


@pytest.mark.parametrize(
    "counts",
    [([2] * 4, [1] * 4, [2] * 4), ([1] * 4, [1] * 5, [1] * 4), ([-1] * 4, [1] * 4, [1] * 4), ([0] * 4, [1] * 4, [2**63] * 4)],
)
def test_rows_that_are_no_counts_of_pixels_are_left_out_and_told(tmp_path: Path, counts: tuple[list[int], list[int], list[int]]) -> None:
    masked(tmp_path)
    path = tmp_path / "run-0" / FILE
    path.write_text(path.read_text() + json.dumps({"id": "x", **dict(zip(("right", "said", "there"), counts, strict=True))}) + "\n")
    pair, _ = pair_of(judged(tmp_path))
    assert pair.samples == 7 and len(pair.notes) == 1 and "1 row(s) left out (no id, counts of pixels by class" in pair.notes[0]


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_row_of_another_number_of_classes_costs_no_row_but_itself(tmp_path: Path, place: int) -> None:
    masked(tmp_path)
    path = tmp_path / "run-0" / FILE
    rows = path.read_text().splitlines(keepends=True)
    rows.insert(place, json.dumps({"id": "x", "right": [1], "said": [1], "there": [1]}) + "\n")
    path.write_text("".join(rows))
    pair, _ = pair_of(judged(tmp_path))
    assert pair.samples == 7
    assert pair.notes[0] == "run-0: step-00000004.jsonl: 1 row(s) left out (not of 4 classes, as the others are)"


@pytest.mark.parametrize("make", [masked, boxed])
def test_predictions_of_which_every_number_is_kept_are_read_up_to_a_smaller_size(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path)
    with (tmp_path / "run-0" / FILE).open("ab") as added:
        added.truncate(257 << 20)  # a hole: nothing is written
    found = reading.read(tmp_path / "run-0").predictions(4)
    assert (found.ids, found.problems) == ([], ("step-00000004.jsonl cannot be read (257 MiB; at most 256 MiB are read)",))


def test_an_image_of_more_boxes_than_any_run_finds_is_left_out_and_told(tmp_path: Path) -> None:
    boxed(tmp_path)
    path = tmp_path / "run-0" / FILE
    many = {"boxes": [[0, 0, 1, 1]] * 10_001, "labels": [0] * 10_001, "scores": [1] * 10_001}
    path.write_text(json.dumps({"id": "x", **many, "truth_boxes": [], "truth_labels": [], "crowd": []}) + "\n" + path.read_text())
    found = reading.read(tmp_path / "run-0").predictions(4)
    assert (len(found.ids), "x" in found.ids) == (7, False)
    assert found.problems == ("step-00000004.jsonl: 1 row(s) left out (more than 10,000 boxes in an image)",)


def test_masks_with_other_pixels_of_the_classes_are_told_to_be_other_data(tmp_path: Path) -> None:
    for number in range(2):
        truths = [np.array([[0] * (2 + number) + [1] * (4 - number)])] * 3
        a_masked_run(tmp_path / f"run-{number}", truths, truths, CLASSES[:2], optim__lr=0.1 + number)
    [pair] = judged(tmp_path).pairs
    assert pair.reason == "0 images with as many true pixels of each class on both sides: these are other data, or masks of other sizes"
