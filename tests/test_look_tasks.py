"""Looking into a short real run of segmentation and of detection, and the page that comes of it."""

from pathlib import Path
from typing import Any

import numpy as np
from given import a_config
from given_boxes import saved, voc
from given_masks import a_folder
from PIL import Image
from test_pages import Page

from sft_dist.plan import World
from sft_dist.report import command as report
from sft_dist.report import exhibits
from sft_dist.report.exhibits import Exhibits
from sft_dist.report.look import look
from sft_dist.run import run


def looked_into(folder: Path, **keys: Any) -> tuple[Path, Exhibits, Page]:
    """A run of two steps of which only the head learns: its folder, what was found in it, and its page."""
    short = {"batch__total": 4, "batch__micro": 4, "optim__lr": 1e-4, "train__duration": "2 steps", "eval__every": "2 steps"}
    short |= {"data__workers": 0, "model__train": "head"}
    place = run(a_config(**short, run__dir=str(folder), run__name="run", **keys), World()).path
    [told] = look(place, "best")
    assert told == f"looked into step-00000002: report/exhibits.json and {len(list((place / 'report').glob('*.jpg')))} pictures"
    found, problems = exhibits.read(place)
    assert problems == []
    return place, found, Page(report.write(place).read_text())


def sections(page: Page) -> list[str]:
    return [str(attributes["id"]) for tag, attributes in page.tags if tag == "section" and attributes.get("id")]


def alternatives(page: Page) -> list[str]:
    return [str(attributes["alt"]) for tag, attributes in page.tags if tag == "img" and attributes.get("alt")]


def test_a_run_of_segmentation_shows_its_masks_its_samples_and_what_learned(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "coast", train=4, val=3)
    data = {"data__name": "masks", "data__root": str(root), "data__size": 32}
    place, found, page = looked_into(tmp_path, task="segment", **data, model__name="lraspp_mobilenet_v3_large", model__weights="none")
    assert sorted(mask.id for mask in found.masks) == [f"val/images/{number:02d}.png" for number in range(3)]
    assert [mask.iou for mask in found.masks] == sorted(mask.iou for mask in found.masks)
    sizes = {mask.id: np.asarray(Image.open(place / "report" / mask.truth)).shape[:2] for mask in found.masks}
    assert sizes == {"val/images/00.png": (36, 48), "val/images/01.png": (50, 40), "val/images/02.png": (36, 48)}
    assert all(patch.name in ("sky", "sea", "sand") for mask in found.masks for patch in mask.patches)
    assert {one.layer.partition(".")[0] for one in found.drift if one.moved} == {"classifier"}
    assert len(found.augmented) == 4 and found.cams == () and found.embedding is None
    assert {"overlay", "data", "learned"} <= set(sections(page)) and not {"looks", "map", "calibration"} & set(sections(page))
    assert "true masks and those of step 2" in page.words and "draws their masks" not in page.words
    assert sum(told.startswith("its true mask: ") for told in alternatives(page)) == 3


def test_a_run_of_detection_shows_its_boxes_its_samples_and_what_learned(tmp_path: Path) -> None:
    root = voc(tmp_path / "voc", {"train": range(4), "val": range(20, 23)})
    weights = saved(tmp_path / "random.safetensors")
    data = {"data__name": "voc", "data__root": str(root), "data__size": 96}
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    place, found, page = looked_into(tmp_path, task="detect", **data, model__name=name, model__weights=str(weights))
    assert {one.layer.partition(".")[0] for one in found.drift if one.moved} == {"backbone", "rpn", "roi_heads"}
    assert [one.layer for one in found.drift if one.moved and one.layer.startswith("backbone.body")] == []
    assert len(found.augmented) == 4 and found.masks == () and found.cams == () and found.embedding is None
    plain = np.asarray(Image.open(place / "report" / found.augmented[0].plain))
    assert plain.shape == (128, 128, 3)
    assert {"overlay", "data", "learned"} <= set(sections(page)) and not {"looks", "map", "calibration"} & set(sections(page))
    drawn = [told for told in alternatives(page) if told.startswith("JPEGImages/") and " There: " in told]
    assert sorted(told.partition(",")[0] for told in drawn) == [f"JPEGImages/{number:03d}.png" for number in range(20, 23)]
    assert "of the detections with a score of" in page.words
