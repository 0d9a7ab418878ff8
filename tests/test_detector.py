"""The detector's loss is torchvision's own of each image by itself, its gradient adds over images, and what it finds is torchvision's too."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from given import a_config
from given_boxes import detector, saved

from sft_dist import detector as ours
from sft_dist import models
from sft_dist.detector import Detector, Truths
from sft_dist.errors import ConfigError
from sft_dist.families import ZOOS, family

SIDE = 96
NAMES = [
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
]


def images(count: int) -> torch.Tensor:
    """Normalised ones, in fp64."""
    return torch.rand(count, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 4 - 2


TARGETS = [
    {"boxes": torch.tensor([[5.0, 6, 40, 60], [30, 30, 90, 80]]), "labels": torch.tensor([1, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    {"boxes": torch.tensor([[50.0, 8, 80, 44]]), "labels": torch.tensor([2])},
]
DRAWS = [11, 12, 13]
SIZES = [(SIDE, SIDE)] * 3


def theirs(name: str) -> Any:
    """torchvision's model in fp64, which takes our images as they are: normalised, and of the right size."""
    model = detector(
        name, image_mean=[0.0] * 3, image_std=[1.0] * 3, min_size=SIDE, max_size=SIDE, _skip_resize=True, box_batch_size_per_image=16
    ).double()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.stays_frozen = True
    models.train_mode(model)
    assign = model.rpn.assign_targets_to_anchors

    def in_fp64(*given: Any) -> Any:
        """Its labels are fp32, and make its loss fp32: the one number of torchvision's that is not as exact as its model."""
        labels, boxes = assign(*given)
        return [each.double() for each in labels], boxes

    model.rpn.assign_targets_to_anchors = in_fp64
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_of_a_batch_are_the_sums_of_torchvisions_own_of_each_image(name: str) -> None:
    model = theirs(name)
    expected: dict[str, torch.Tensor] = {}
    for image, target, draw in zip(images(3), TARGETS, DRAWS, strict=True):
        torch.manual_seed(draw)
        for key, value in model([image], [target]).items():
            expected[key] = expected.get(key, 0) + value
    sum(expected.values()).backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    mine = Detector(model)
    models.train_mode(mine)
    found = mine(images(3), sizes=SIZES, truths=Truths(TARGETS, DRAWS))
    assert {key: value.item() for key, value in found.items()} == pytest.approx(
        {key: value.item() for key, value in expected.items()}, abs=1e-12
    )
    sum(found.values()).backward()
    assert mine.state_dict().keys() == model.state_dict().keys() and list(dict(mine.named_parameters())) == list(gradients)
    for key, parameter in mine.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key], atol=1e-10, rtol=1e-8, msg=key)


def rows(found: dict[str, torch.Tensor]) -> torch.Tensor:
    """Label, box and score of each, in an order that does not hang on the last digit of scores that are nearly the same."""
    table = torch.cat([found["labels"][:, None].double(), found["boxes"], found["scores"][:, None]], dim=1)
    return torch.tensor(sorted(table.tolist(), key=lambda row: [round(value, 6) for value in row]), dtype=torch.float64)


def test_what_is_found_is_what_torchvision_finds_in_each_image_alone() -> None:
    model = theirs(NAMES[0]).eval()
    model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(0.01)  # random weights are as good as sure, and what is equal may drop out
        mine = Detector(model)
        for image, found in zip(images(3), mine(images(3), sizes=SIZES), strict=True):
            [expected], [alone] = model([image]), mine(image[None], sizes=SIZES[:1])
            assert len(found["boxes"]) > 10
            assert all(torch.equal(alone[key], expected[key]) for key in ("boxes", "labels", "scores"))
            torch.testing.assert_close(rows(found), rows(expected), atol=1e-9, rtol=0)


def test_what_is_found_lies_in_the_picture_and_not_in_its_padding() -> None:
    model = Detector(theirs(NAMES[0])).eval()
    model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        one, _ = model(images(2), sizes=[(40, SIDE), (SIDE, SIDE)])
        [alone] = model(images(1), sizes=[(40, SIDE)])
    assert one["boxes"][:, 3].max() == 40 and one["boxes"][:, 2].max() == SIDE
    torch.testing.assert_close(one["boxes"], alone["boxes"])  # neither do the shapes of the first batch stay with the model


def test_an_image_without_objects_and_without_proposals_has_a_loss() -> None:
    model = Detector(theirs(NAMES[0]))
    models.train_mode(model)
    model.rpn.score_thresh = 1.1
    found = model(images(1), sizes=SIZES[:1], truths=Truths(TARGETS[1:2], DRAWS[1:2]))
    sum(found.values()).backward()
    assert 0 < found["loss_classifier"] < float("inf") and found["loss_box_reg"] == 0
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        assert [len(each["boxes"]) for each in model.eval()(images(2), sizes=SIZES[:2])] == [0, 0]


def test_the_same_seed_samples_the_same_anchors_whatever_was_drawn_before() -> None:
    model = Detector(theirs(NAMES[0]))
    models.train_mode(model)
    first = model(images(3), sizes=SIZES, truths=Truths(TARGETS, DRAWS))
    torch.rand(7)
    again = model(images(3), sizes=SIZES, truths=Truths(TARGETS, DRAWS))
    other = model(images(3), sizes=SIZES, truths=Truths(TARGETS, [1, 2, 3]))
    assert first == again
    assert first["loss_objectness"] != other["loss_objectness"]


def detection(**changes: Any) -> Any:
    settings = {
        "task": "detect",
        "data__name": "voc",
        "data__root": "data",
        "data__size": 96,
        "data__augment": "none",
        "model__name": NAMES[0],
    }
    return a_config(**{**settings, "model__weights": "none", "model__norm": "train", "model__train": "all", **changes})


def test_a_built_detector_has_an_output_more_than_classes_and_takes_uint8() -> None:
    model, told = ours.build(detection(), ["bar", "disc"])
    assert model.roi_heads.box_predictor.cls_score.out_features == 3 and told == []
    assert model.state_dict().keys() == detector().state_dict().keys()
    with torch.no_grad():
        assert len(model.eval()(torch.zeros(2, 3, 96, 96, dtype=torch.uint8), sizes=[(96, 96), (40, 96)])) == 2


@pytest.mark.parametrize(
    ("train", "learns"),
    [("head", ["backbone.fpn", "roi_heads", "rpn"]), ("last:1", ["backbone.body.16", "backbone.fpn", "roi_heads", "rpn"])],
)
def test_the_head_is_both_stages_and_the_pyramid_and_stages_of_the_body_come_with_it(train: str, learns: list[str], tmp_path: Path) -> None:
    config = detection(model__train=train, model__weights=str(saved(tmp_path / "w.safetensors", classes=5)), model__norm="frozen")
    model, told = ours.build(config, ["bar", "disc"])
    names = {
        ".".join(name.split(".")[: 3 if "body" in name else 2 if "backbone" in name else 1])
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert sorted(names) == learns
    assert (
        told[1]
        == "new: roi_heads.box_predictor.cls_score.weight, roi_heads.box_predictor.cls_score.bias, roi_heads.box_predictor.bbox_pred.weight, roi_heads.box_predictor.bbox_pred.bias"
    )


@pytest.mark.parametrize(
    ("name", "classifier", "norm"),
    [(NAMES[0], "mobilenet_v3_large", "frozen"), (NAMES[2], "resnet50", "frozen"), (NAMES[3], "resnet50", "train")],
)
def test_a_classifiers_weights_become_the_body(name: str, classifier: str, norm: str, tmp_path: Path) -> None:
    source = torchvision.models.get_model(classifier, weights=None, num_classes=10)
    torch.save(source.state_dict(), tmp_path / "classifier.pth")
    model, told = ours.build(
        detection(model__name=name, model__weights=str(tmp_path / "classifier.pth"), model__norm=norm), ["bar", "disc"]
    )
    body = source.features if hasattr(source, "features") else source
    own = model.backbone.body.state_dict()
    assert all(torch.equal(tensor, body.state_dict()[key]) for key, tensor in own.items())
    assert told[2].startswith("not used: classifier.0.weight" if "mobile" in name else "not used: fc.weight")


def test_a_classifiers_weights_with_frozen_norms_are_refused_where_the_new_head_has_norms(tmp_path: Path) -> None:
    torch.save(torchvision.models.get_model("resnet50", weights=None).state_dict(), tmp_path / "classifier.pth")
    config = detection(model__name="fasterrcnn_resnet50_fpn_v2", model__weights=str(tmp_path / "classifier.pth"), model__norm="frozen")
    with pytest.raises(ConfigError, match=r"the new head \(backbone.fpn.inner_blocks.0.1, .*\) at identity; use model.norm: train$"):
        ours.build(config, ["bar", "disc"])


def test_a_deeper_classifiers_weights_are_refused_and_not_cut_off(tmp_path: Path) -> None:
    torch.save(torchvision.models.get_model("resnet101", weights=None).state_dict(), tmp_path / "classifier.pth")
    config = detection(model__name="fasterrcnn_resnet50_fpn", model__weights=str(tmp_path / "classifier.pth"))
    with pytest.raises(ConfigError, match=r"does not fit the model: .*; only in the file: backbone.body.layer3.6.conv1.weight, "):
        ours.build(config, ["bar", "disc"])


def test_the_table_of_detectors_has_these_of_torchvisions() -> None:
    zoo, families = ZOOS["detect"]
    assert [name for name in torchvision.models.list_models(zoo) if name.startswith(tuple(families))] == sorted(NAMES)
    assert {family(name, "detect").background for name in NAMES} == {1}
