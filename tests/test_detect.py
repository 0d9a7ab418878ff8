"""What an image with boxes goes through, and that the scores of what is found are COCO's, by COCO's own code."""

import contextlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given import a_config
from given_boxes import saved, voc

from sft_dist import cli
from sft_dist.config import Data
from sft_dist.datasets.boxes import Boxes
from sft_dist.errors import ConfigError
from sft_dist.plan import World
from sft_dist.refuse import check
from sft_dist.tally import Evidence
from sft_dist.tasks import TASKS, Sample

TASK = TASKS["detect"]


def truth(*boxes: tuple[float, float, float, float], size: tuple[int, int] | None = None, learned: bool = True) -> Boxes:
    return Boxes(boxes, range(len(boxes)), [not learned] * len(boxes), [learned] * len(boxes), size)


def data(**changes: Any) -> Data:
    return Data(**{"name": "voc", "root": "data", "size": 64, "augment": "none", "flip": 0, "mean": (0.5, 0.25, 1.0), **changes})


def picture(height: int, width: int) -> torch.Tensor:
    return torch.arange(3 * height * width, dtype=torch.int64).remainder(256).to(torch.uint8).view(3, height, width)


def test_the_longer_side_becomes_the_size_and_the_rest_is_padded_in_the_mean_colour() -> None:
    image, scene = TASK.prepare(data(), False)(torch.zeros(3, 96, 128, dtype=torch.uint8), truth((0, 0, 128, 96), (20, 40, 60, 50)))
    assert image.shape == (3, 64, 64) and scene.size == (48, 64) and scene.whole == (96, 128)
    assert not image[:, :48].any() and image[:, 48:].flatten(1).unique(dim=1).tolist() == [[128], [64], [255]]
    assert scene.boxes.tolist() == [[0, 0, 64, 48], [10, 20, 30, 25]] and scene.labels.tolist() == [0, 1]
    assert scene.there.boxes.tolist() == [[0, 0, 128, 96], [20, 40, 60, 50]]


def test_a_flip_mirrors_image_and_boxes_in_training_only() -> None:
    image, box = picture(64, 64), (4, 10, 20, 30)
    flipped, scene = TASK.prepare(data(flip=1), True)(image, truth(box))
    assert torch.equal(flipped, image.flip(2)) and scene.boxes.tolist() == [[44, 10, 60, 30]]
    assert torch.equal(TASK.prepare(data(flip=1), False)(image, truth(box))[0], image)


def test_a_crop_keeps_boxes_on_what_they_are_around() -> None:
    """Objects are white on black: whatever is cropped, what is white lies in a box, to a pixel of interpolation."""
    image = torch.zeros(3, 90, 120, dtype=torch.uint8)
    boxes = [(10, 10, 40, 50), (60, 30, 110, 80)]
    for left, top, right, bottom in boxes:
        image[:, top:bottom, left:right] = 255
    prepare, sizes = TASK.prepare(data(augment="resized_crop", mean=(0, 0, 0)), True), set()
    for seed in range(30):
        torch.manual_seed(seed)
        seen, scene = prepare(image, truth(*boxes))
        sizes.add(scene.size)
        rest = seen.clone()
        for left, top, right, bottom in scene.boxes.round().int().tolist():
            assert seen[0, top + 1 : bottom - 1, left + 1 : right - 1].float().mean() > 250
            rest[:, max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = 0
        if len(scene.boxes) == 2:  # what has its middle outside of the crop is no object any more, though a part of it may be seen
            assert rest.max() < 128
    assert len(sizes) > 5


def test_boxes_are_clipped_and_what_is_outside_or_not_to_be_learned_is_not_learned() -> None:
    prepare = TASK.prepare(data(), False)
    _, scene = prepare(picture(64, 64), truth((-9, 5, 20, 90), (70, 5, 90, 20), (5, 5, 5.5, 5.5)))
    assert scene.boxes.tolist() == [[0, 5, 20, 64]] and scene.labels.tolist() == [0]
    assert scene.there.boxes.tolist() == [[0, 5, 20, 64], [5, 5, 5.5, 5.5]] and scene.there.labels.tolist() == [0, 2]
    _, crowd = prepare(picture(64, 64), truth((1, 2, 30, 40), learned=False))
    assert len(crowd.boxes) == 0 and crowd.there.crowd.tolist() == [True]


def test_an_image_of_another_size_than_its_annotation_says_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is of an image of 96 x 64 pixels, but upright it has 64 x 96"):
        TASK.prepare(data(), False)(picture(96, 64), truth((1, 2, 30, 40), size=(96, 64)))
    with pytest.raises(ValueError, match=r"with 200 x 2 pixels it is too narrow for data.size = 64"):
        TASK.prepare(data(), False)(picture(2, 200), truth())


def test_an_image_too_narrow_to_be_cropped_is_refused_in_training_with_crops_only() -> None:
    cropped = data(augment="resized_crop", crop_scale=(0.09, 1.0))
    with pytest.raises(ValueError, match=r"with 40 x 3 pixels it is too narrow for crops of 30% of its sides; .*data.augment: none$"):
        TASK.prepare(cropped, True)(picture(3, 40), truth((1, 0, 30, 3)))
    for settings, training in ((cropped, False), (data(), True)):
        assert TASK.prepare(settings, training)(picture(3, 40), truth((1, 0, 30, 3)))[1].whole == (3, 40)
    for seed in range(50):
        torch.manual_seed(seed)
        assert TASK.prepare(cropped, True)(picture(4, 40), truth((1, 0, 30, 4)))[0].shape == (3, 64, 64)


def test_what_cannot_be_read_becomes_an_empty_scene_that_tells_why() -> None:
    image, scene = TASK.prepare(data(), True)(picture(64, 64), truth((1, 2, 30, 40)))
    batch = TASK.collate([Sample(3, image, scene, None, 7), Sample(4, torch.zeros_like(image), None, "unreadable", 8)])
    assert [len(boxes) for boxes in batch.boxes] == [1, 0]
    assert (batch.problems, batch.draws, batch.ids.tolist()) == (("unreadable",), (7, 8), [3, 4])
    assert batch.to(torch.device("cpu")).sizes == ((64, 64), (64, 64))


def pycocotools(rows: list[dict[str, Any]], classes: int) -> dict[str, Any]:
    """Of the rows of a predictions file, by COCO's own code: precision of thresholds x recalls x classes, and recall of thresholds x classes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def wide(box: list[float]) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    there, found = [], []
    for image, row in enumerate(rows):
        for box, label, crowd in zip(row["truth_boxes"], row["truth_labels"], row["crowd"], strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1])
            there.append(
                {"image_id": image, "category_id": label, "bbox": wide(box), "area": area, "iscrowd": int(crowd), "id": len(there) + 1}
            )
        for box, label, score in zip(row["boxes"], row["labels"], row["scores"], strict=True):
            found.append({"image_id": image, "category_id": label, "bbox": wide(box), "score": score})
    truths = COCO()
    truths.dataset = {
        "images": [{"id": image} for image in range(len(rows))],
        "categories": [{"id": i} for i in range(classes)],
        "annotations": there,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truths.createIndex()
        judge = COCOeval(truths, truths.loadRes(found), "bbox")
        judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = [[0, 1e10]], ["all"], [100]
        judge.evaluate()
        judge.accumulate()
    return {"precision": judge.eval["precision"][:, :, :, 0, 0], "recall": judge.eval["recall"][:, :, 0, 0]}


def agree(scores: dict[str, Any], rows: list[dict[str, Any]], classes: list[str]) -> None:
    """All of a run's scores are those of COCO's code, to 1e-12."""
    theirs = pycocotools(rows, len(classes))
    precision, recall = theirs["precision"], theirs["recall"]
    known = precision > -1
    assert scores["val/map"] == pytest.approx(precision[known].mean(), abs=1e-12)
    assert scores["val/map_50"] == pytest.approx(precision[0][known[0]].mean(), abs=1e-12)
    assert scores["val/map_75"] == pytest.approx(precision[5][known[5]].mean(), abs=1e-12)
    for label, name in enumerate(classes):
        its = scores["per_class"][name]
        if its["support"]:
            expected = (precision[:, :, label].mean(), precision[0, :, label].mean(), recall[:, label].mean())
            assert (its["ap"], its["ap_50"], its["recall"]) == pytest.approx(expected, abs=1e-12)
        else:
            assert (its["ap"], its["ap_50"], its["recall"], precision[:, :, label].max()) == (0, 0, 0, -1)


def drawn_rows(images: int, classes: int, seed: int) -> list[dict[str, Any]]:
    """Objects, some of them crowds, and boxes near them or anywhere, with ties among their scores."""
    chance = np.random.default_rng(seed)
    rows = []
    for image in range(images):
        count = int(chance.integers(0, 6))
        corners = chance.integers(0, 50, (count, 2))
        there = np.concatenate([corners, corners + chance.integers(5, 40, (count, 2))], 1).astype(float)
        found = np.concatenate([there + chance.normal(0, 3, there.shape), np.repeat(there, 2, 0) + [3, 0, 9, 4]]).round(2)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
        labels = chance.integers(0, classes - 1, count)  # of the last class there is none
        said = np.where(
            chance.random(3 * count) < 0.8, np.concatenate([labels, np.repeat(labels, 2)]), chance.integers(0, classes, 3 * count)
        )
        rows.append(
            {"id": image, "boxes": found, "labels": said, "scores": chance.integers(1, 30, 3 * count) / 30}
            | {"truth_boxes": there, "truth_labels": labels, "crowd": chance.random(count) < 0.2}
        )
    return rows


def tables(rows: list[dict[str, Any]], sizes: list[int]) -> tuple[dict[str, Any], ...]:
    ends = np.cumsum([0, *sizes])
    return tuple({name: [row[name] for row in rows[a:b]] for name in rows[0]} for a, b in itertools.pairwise(ends))


def test_the_scores_are_those_of_pycocotools_in_whatever_order_the_ranks_bring_the_rows() -> None:
    rows, names = drawn_rows(30, 4, 1), ["a", "b", "c", "d"]
    scores = TASK.score(Evidence({}, tables(rows, [30])), names)
    found = {**scores.values, **scores.details}
    assert found["val/map"] > 0.05 and found["per_class"]["d"]["support"] == 0 and found["samples"] == 30
    agree(found, rows, names)
    odd = tables([*rows[::2], *rows[1::2]], [7, 8, 9, 6])
    assert TASK.score(Evidence({}, odd[::-1]), names) == scores


def test_images_without_an_object_that_need_be_found_have_no_score() -> None:
    rows = drawn_rows(3, 2, 1)
    for row in rows:
        row["crowd"] = np.ones(len(row["crowd"]), dtype=bool)
    with pytest.raises(ConfigError, match=r"^not one object that need be found lies in the 3 images, .* eval.test: false"):
        TASK.score(Evidence({}, tables(rows, [3])), ["a", "b"])


def test_scores_of_as_much_as_cocos_validation_set_take_a_minute_at_most() -> None:
    """A twentieth of it: 250 images with 100 detections each of 80 classes."""
    import time

    chance = np.random.default_rng(0)
    rows = []
    for image in range(250):
        corners = chance.random((107, 2)) * 400
        boxes = np.concatenate([corners, corners + 20 + chance.random((107, 2)) * 100], 1)
        labels = chance.integers(0, 80, 107)
        rows.append(
            {"id": image, "boxes": boxes[:100], "labels": labels[:100], "scores": chance.random(100)}
            | {"truth_boxes": boxes[93:100], "truth_labels": labels[93:100], "crowd": np.zeros(7, dtype=bool)}
        )
    begun = time.process_time()
    TASK.score(Evidence({}, tables(rows, [250])), [str(i) for i in range(80)])
    assert time.process_time() - begun < 60 / 20


def config(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "detect",
        "data": {"name": "voc", "root": str(root / "voc"), "size": 96, "workers": 0},
        "model": {"name": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": str(root / "random.safetensors"), "train": "head"},
        "batch": {"total": 4, "micro": 2},
        "train": {"duration": "2 steps", "clip": 1},
        "device": "cpu",
        "report": {"write": "none"},
        "run": {"dir": str(root / "runs"), "name": "one"},
        **changes,
    }


def test_a_runs_scores_are_those_of_its_own_predictions_and_evaluating_again_gives_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc(tmp_path / "voc", {"train": range(6), "val": range(20, 26)})
    saved(tmp_path / "random.safetensors")
    (tmp_path / "one.yaml").write_text(json.dumps(config(tmp_path)))

    def ends_well(*words: str) -> str:
        cli.main(list(words))
        return capsys.readouterr().out

    ends_well("train", str(tmp_path / "one.yaml"))
    run = tmp_path / "runs" / "one"
    best = json.loads((run / "scores.json").read_text())["best"]
    rows = [json.loads(line) for line in (run / "predictions" / "step-00000002.jsonl").read_text().splitlines()]
    assert rows[0].keys() == {"id", "boxes", "labels", "scores", "truth_boxes", "truth_labels", "crowd"}
    agree(best, rows, ["bar", "disc"])
    told = ends_well("eval", str(run), "eval.micro=3")
    again = json.loads(told[told.index("{") :])
    assert {name: again[name] for name in ("val/map", "val/map_50", "val/map_75", "per_class")} == {
        name: best[name] for name in ("val/map", "val/map_50", "val/map_75", "per_class")
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data__name": "folder"}, "task = detect with data.name = folder; detect learns from voc or coco"),
        ({"task": "classify"}, "task = classify with data.name = voc; classify learns from folder or torchvision or digits"),
        ({"data__size": 333}, "data.size = 333; detectors halve the image five times, so use a multiple of 32, like 320"),
        (
            {"data__augment": "padded_crop"},
            "data.augment = 'padded_crop' is for small images of one object; detect knows resized_crop, and none, which only flips",
        ),
        ({"data__resize": 600}, "data.resize = 600: detect resizes the longer side to data.size, in evaluation as well; leave it out"),
        ({"data__per_class": 5}, "data.per_class = 5: an image has objects of many classes; leave it out"),
        ({"stop__when": "val/loss <= 1"}, "stop.when watches val/loss, which detect does not score; use val/map, val/map_50, val/map_75"),
    ],
)
def test_what_detection_cannot_do_is_refused_early(changes: dict[str, Any], told: str) -> None:
    settings = {"task": "detect", "data__name": "voc", "data__root": "data", "model__name": "fasterrcnn_resnet50_fpn", **changes}
    with pytest.raises(ConfigError) as caught:
        check(a_config(**settings), World(), {})
    assert caught.value.problems == (told,)


def test_the_scores_that_can_be_watched_are_those_of_the_task() -> None:
    from sft_dist.kinds import SCORES
    from sft_dist.progress import HEADLINES

    values = TASK.score(Evidence({}, tables(drawn_rows(4, 3, 2), [4])), ["a", "b", "c"]).values
    assert tuple(values) == SCORES["detect"] and HEADLINES["detect"] == (TASK.headline, TASK.higher_is_better)


@pytest.mark.real
def test_a_detector_from_nothing_learns_on_real_blood_cells(real_data: Path, tmp_path: Path) -> None:
    """Within a minute on two cores, which is not enough to find cells well: the loss falls, and some of them are found."""
    content = config(tmp_path, optim={"name": "adamw", "lr": 0.0005}, train={"duration": "20 steps", "clip": 5})
    content["data"] |= {"root": str(real_data / "bccd"), "size": 160, "augment": "none"}
    content["model"] |= {"weights": "none", "train": "all", "norm": "train"}
    (tmp_path / "one.yaml").write_text(json.dumps(content))
    cli.main(["train", str(tmp_path / "one.yaml")])
    lines = [json.loads(line) for line in (tmp_path / "runs" / "one" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if line["kind"] == "train"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert lines[-1]["val/map_50"] > 0
