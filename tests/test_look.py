"""What a run's data and model show, on a real run of which only the head learned, kept in its folder for a page without them."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from given import a_config
from PIL import Image
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from test_pages import Page

from sft_dist import datasets, models, parse
from sft_dist.plan import World
from sft_dist.report import command as report
from sft_dist.report import exhibits
from sft_dist.report.look import change, look
from sft_dist.run import run


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """A run of three steps, looked into."""
    save_file(torchvision.models.mobilenet_v2().state_dict(), folder / "start.safetensors")
    config = a_config(
        data__classes=["3", "5", "8"], data__per_class=8, data__size=64, data__augment="padded_crop", data__workers=0,
        model__name="mobilenet_v2", model__weights=str(folder / "start.safetensors"), model__train="head",
        batch__total=8, batch__micro=8, eval__micro=64, optim__lr=0.5, train__duration="3 steps", run__dir=str(folder), run__name="run",
    )  # fmt: skip
    folder = run(config, World()).path
    told = look(folder, "best")
    assert told == [
        f"looked into {(folder / 'checkpoints' / 'best').read_text().strip()}: report/exhibits.json and {count(folder)} pictures"
    ]
    return folder


def count(folder: Path) -> int:
    """Of pictures."""
    return len(list((folder / "report").glob("*.jpg")))


def found(folder: Path) -> exhibits.Exhibits:
    read, problems = exhibits.read(folder)
    assert problems == []
    return read


def test_the_balance_is_that_of_the_data(made: Path) -> None:
    assert [(one.name, one.train) for one in found(made).balance] == [("3", 8), ("5", 8), ("8", 8)]
    assert sum(one.val for one in found(made).balance) == json.loads((made / "plan.json").read_text())["val_samples"]


def test_only_what_learned_moved_and_by_as_much_as_the_files_say(made: Path) -> None:
    drift = {one.layer: one for one in found(made).drift}
    assert [name for name, one in drift.items() if one.moved] == ["classifier.1"]
    assert drift["classifier.1"].fresh and not drift["features.0.0"].fresh and not drift["features.0.0"].learning
    end = load_file(made / "checkpoints" / (made / "checkpoints" / "best").read_text().strip() / "model.safetensors")
    start = dict(models.build(parse.load(made / "config.yaml"), ("3", "5", "8"), weights=False)[0].named_parameters())
    names = ("classifier.1.weight", "classifier.1.bias")
    was = np.concatenate([start[name].detach().numpy().ravel() for name in names])
    moved = np.concatenate([end[name].ravel() for name in names]) - was
    assert drift["classifier.1"].change == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(was), rel=1e-4)


def test_a_change_is_relative_and_has_no_size_where_all_was_zero() -> None:
    """As the class token of a vision transformer that is trained from scratch."""
    zeros, ones = torch.zeros(4), torch.ones(4)
    assert change([ones, zeros], [3 * ones, zeros]) == 2.0
    assert change([ones, zeros], [ones, 2 * ones]) == 2.0
    assert change([zeros], [zeros]) == 0.0
    assert change([zeros], [ones]) is None
    assert math.isnan(change([zeros], [math.nan * ones]) or 0.0)


def test_where_the_body_is_frozen_the_embedding_is_the_same_before_and_after(made: Path) -> None:
    embedding = found(made).embedding
    assert embedding and len(embedding.labels) > 50
    assert embedding.before == embedding.after


def test_samples_are_shown_as_they_were_drawn(made: Path) -> None:
    augmented = found(made).augmented
    assert len(augmented) == 6
    looks = [np.asarray(Image.open(made / "report" / name), float) for name in (augmented[0].plain, *augmented[0].drawn)]
    assert all(one.shape == (128, 128, 3) for one in looks)
    assert all(np.abs(looks[0] - other).mean() > 2 for other in looks[1:])  # a crop is never the whole
    train = datasets.load(parse.load(made / "config.yaml").data).train
    truths = {name: "358"[label] for name, label in zip(train.names, train.labels, strict=True)}
    assert [one.truth for one in augmented] == [truths[one.id] for one in augmented]


def test_wrong_answers_are_looked_at_from_both_sides(made: Path) -> None:
    cams = found(made).cams
    assert found(made).layer == "features.13"
    assert [one.for_truth is None for one in cams] == [one.right for one in cams]
    wrong = [one for one in cams if not one.right]
    assert 0 < len(wrong) <= 8
    plain, heat = (np.asarray(Image.open(made / "report" / name), float) for name in (wrong[0].plain, wrong[0].for_said))
    assert plain.shape == heat.shape == (128, 128, 3)


def test_the_page_shows_them_and_needs_neither_model_nor_data(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, ignore=shutil.ignore_patterns("checkpoints"))
    page = Page(report.write(copy).read_text())
    heads = [attributes.get("id") for tag, attributes in page.tags if tag == "section"]
    assert {"data", "looks", "learned", "map"} <= set(heads)
    assert "104 of 105 layers were frozen, and did not move." in page.words
    assert sum(str(a.get("src")).startswith("data:image/jpeg") for _, a in page.tags) >= count(copy)


def test_data_that_has_changed_is_not_shown(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("split_seed: 0", "split_seed: 1"))
    assert look(copy, "best") == ["the data is not what the run learned from, so nothing is shown of it"]
    assert found(copy).balance == () and count(copy) == 0


def test_without_the_weights_of_the_start_nothing_is_compared_with_them(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    config = parse.load(copy / "config.yaml")
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace(config.model.weights, str(tmp_path / "gone.safetensors")))
    [_, told] = look(copy, "best")
    assert told.startswith("the weights at the start cannot be had again, so nothing is compared with them: ")
    assert found(copy).drift == () and found(copy).embedding is None and found(copy).cams


def test_weights_that_are_no_numbers_leave_each_section_to_itself(made: Path, tmp_path: Path) -> None:
    """A run in fp16 or without a look at its loss may end so; what needs no weights is shown all the same."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    best = copy / "checkpoints" / (copy / "checkpoints" / "best").read_text().strip()
    weights = load_file(best / "model.safetensors")
    weights["classifier.1.weight"][:] = np.nan
    weights["features.0.0.weight"][:] = np.nan
    save_numpy(weights, best / "model.safetensors")
    manifest = json.loads((best / "MANIFEST.json").read_text())
    content = (best / "model.safetensors").read_bytes()
    manifest["files"]["model.safetensors"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (best / "MANIFEST.json").write_text(json.dumps(manifest))
    told = look(copy, "best")
    assert len(told) == 4 and [line.partition(":")[0] for line in told[1:]] == ["no change of the weights", "no Grad-CAM", "no embedding"]
    shown = found(copy)
    assert len(shown.balance) == 3 and len(shown.augmented) == 6
    assert shown.drift == () and shown.cams == () and shown.embedding is None
    page = Page(report.write(copy).read_text())
    assert "no change of the weights: the weights are not finite" in page.words
