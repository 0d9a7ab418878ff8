"""The scores of masks are scikit-learn's and torchmetrics', draws and losses are torchvision's, and evidence adds over any cut of the images."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from given import a_config
from given_masks import CLASSES
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index
from torchvision import tv_tensors
from torchvision.transforms import v2

from sft_dist import families, models, refuse
from sft_dist.config import Config, Data
from sft_dist.datasets.masks import VOID
from sft_dist.errors import ConfigError
from sft_dist.plan import World
from sft_dist.tally import Evidence
from sft_dist.tasks import TASKS, Sample, Scores
from sft_dist.tasks.segment import Masked, collate, count, loss, measure, prepare, score

NAMES = [
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet101",
    "deeplabv3_resnet50",
    "fcn_resnet101",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
]


class AsTheyAre(nn.Module):
    """The logits stand where the images would."""

    def forward(self, logits: Tensor) -> dict[str, Tensor]:
        return {"out": logits}


def drawn(images: int, classes: int, seed: int, side: int = 6) -> tuple[Tensor, Tensor]:
    """Logits that know a little of the masks, in which a tenth of the pixels has no class."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(classes, (images, side, side + 1), generator=generator)
    logits = torch.randn(images, classes, side, side + 1, generator=generator)
    logits += 2 * functional.one_hot(masks, classes).movedim(-1, 1)
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = VOID
    return logits, masks.short()


def a_batch(logits: Tensor, masks: Tensor, first: int = 0) -> Masked:
    return Masked(torch.arange(first, first + len(masks)), (), logits, masks)


def scored(logits: Tensor, masks: Tensor) -> Scores:
    return score(measure(AsTheyAre(), a_batch(logits, masks)), [f"c{i}" for i in range(logits.shape[1])])


def config_of(root: Path | str = "data", **keys: object) -> Config:
    settings = {"task": "segment", "data__name": "masks", "data__root": str(root), "model__name": "lraspp_mobilenet_v3_large"}
    return a_config(**{**settings, "model__weights": "none", "model__norm": "train", "model__train": "all", "data__size": 32, **keys})


@pytest.mark.parametrize(("images", "classes", "seed"), [(5, 4, 0), (1, 2, 1), (12, 21, 2)])
def test_the_scores_are_scikit_learns_over_the_pixels_that_have_a_class(images: int, classes: int, seed: int) -> None:
    logits, masks = drawn(images, classes, seed)
    values, details = scored(logits, masks)
    labelled = masks != VOID
    truth, said = masks[labelled].numpy(), logits.argmax(1)[labelled].numpy()
    everyone = list(range(classes))
    assert details["confusion"] == metrics.confusion_matrix(truth, said, labels=everyone).tolist()
    assert values["val/miou"] == pytest.approx(metrics.jaccard_score(truth, said, average="macro", labels=everyone), abs=1e-12)
    assert values["val/pixel_accuracy"] == pytest.approx(metrics.accuracy_score(truth, said), abs=1e-12)
    assert values["val/recall_macro"] == pytest.approx(metrics.recall_score(truth, said, average="macro", labels=everyone), abs=1e-12)
    flat = logits.movedim(1, -1)[labelled].double()
    assert values["val/loss"] == pytest.approx(float(functional.cross_entropy(flat, masks[labelled].long())), rel=1e-5)
    each = [metrics.jaccard_score(truth, said, average=None, labels=everyone, zero_division=0).tolist()]
    each += [part.tolist() for part in metrics.precision_recall_fscore_support(truth, said, labels=everyone, zero_division=0)]
    for i, per_class in enumerate(details["per_class"].values()):
        assert list(per_class) == ["iou", "precision", "recall", "support"]
        assert list(per_class.values()) == pytest.approx([each[0][i], each[1][i], each[2][i], each[4][i]], abs=1e-12)
    assert details["samples"] == images


def test_the_scores_are_torchmetrics() -> None:
    logits, masks = drawn(4, 5, 3)
    values, details = scored(logits, masks)
    how = {"num_classes": 5, "ignore_index": VOID}
    assert details["confusion"] == multiclass_confusion_matrix(logits, masks.long(), **how).tolist()
    assert values["val/miou"] == pytest.approx(float(multiclass_jaccard_index(logits, masks.long(), **how)), abs=1e-6)


def test_four_pixels_by_hand() -> None:
    logits = functional.one_hot(torch.tensor([[[0, 1], [1, 1]]]), 3).movedim(-1, 1) * 20.0
    values, details = scored(logits, torch.tensor([[[0, 0], [1, VOID]]]).short())
    assert details == {
        "samples": 1,
        "per_class": {
            "c0": {"iou": 0.5, "precision": 1.0, "recall": 0.5, "support": 2},
            "c1": {"iou": 0.5, "precision": 0.5, "recall": 1.0, "support": 1},
            "c2": {"iou": 0.0, "precision": 0.0, "recall": 0.0, "support": 0},
        },
        "confusion": [[1, 1, 0], [0, 1, 0], [0, 0, 0]],
    }
    assert values == pytest.approx({"val/loss": 20 / 3, "val/miou": 0.5, "val/pixel_accuracy": 2 / 3, "val/recall_macro": 0.75}, abs=1e-6)


def test_a_split_without_a_labelled_pixel_has_no_score() -> None:
    logits, masks = drawn(2, 3, 0)
    with pytest.raises(ConfigError, match=r"^no pixel of the masks has a class"):
        scored(logits, torch.full_like(masks, VOID))


@given(st.integers(1, 8), st.integers(2, 5), st.integers(0, 5), st.lists(st.integers(1, 7), max_size=4))
def test_evidence_adds_over_any_cut_of_the_images(images: int, classes: int, seed: int, cuts: list[int]) -> None:
    logits, masks = drawn(images, classes, seed)
    edges = [0, *sorted({cut for cut in cuts if cut < images}), images]
    parts = [measure(AsTheyAre(), a_batch(logits[a:b], masks[a:b], a)) for a, b in itertools.pairwise(edges)]
    whole, added = measure(AsTheyAre(), a_batch(logits, masks)), sum(parts, Evidence())
    for name in ("samples", "confusion"):
        assert whole.sums[name].dtype == torch.int64
        assert torch.equal(whole.sums[name], added.sums[name])
    assert torch.allclose(whole.sums["loss"], added.sums["loss"], rtol=1e-12)
    for column, values in whole.rows[0].items():
        assert np.array_equal(values, np.concatenate([rows[column] for rows in added.rows]))


def test_the_rows_of_the_images_add_up_to_the_scores() -> None:
    logits, masks = drawn(5, 4, 0)
    evidence = measure(AsTheyAre(), a_batch(logits, masks, first=7))
    [rows] = evidence.rows
    confusion = evidence.sums["confusion"]
    assert rows["id"].tolist() == [7, 8, 9, 10, 11]
    assert rows["right"].sum(0).tolist() == confusion.diag().tolist()
    assert rows["said"].sum(0).tolist() == confusion.sum(0).tolist()
    assert rows["there"].sum(0).tolist() == confusion.sum(1).tolist()
    assert (rows["loss"] * rows["there"].sum(1)).sum() == pytest.approx(float(evidence.sums["loss"]), rel=1e-12)


def test_an_answer_is_scored_at_the_size_of_the_mask() -> None:
    logits, _ = drawn(1, 3, 0)
    mask = torch.randint(3, (1, 23, 40)).short()
    full = functional.interpolate(logits, size=(23, 40), mode="bilinear", align_corners=False)
    assert scored(logits, mask) == scored(full, mask)
    assert np.array(scored(logits, mask).details["confusion"]).sum() == 23 * 40


def test_the_training_loss_is_a_sum_over_labelled_pixels_with_half_of_the_auxiliary_one() -> None:
    class WithAux(nn.Module):
        def forward(self, logits: Tensor) -> dict[str, Tensor]:
            return {"out": logits, "aux": logits * 0.3}

    logits, masks = drawn(3, 4, 0)
    logits.requires_grad_()
    batch = a_batch(logits, masks)
    labelled = masks != VOID
    means = [functional.cross_entropy(factor * logits, masks.long(), ignore_index=VOID) for factor in (1, 0.3)]
    alone, both = loss(AsTheyAre(), batch), loss(WithAux(), batch)
    assert count(batch) == int(labelled.sum()) < labelled.numel()
    assert float(alone.total.detach() / count(batch)) == pytest.approx(float(means[0].detach()), rel=1e-6)
    assert float(both.total.detach() / count(batch)) == pytest.approx(float((means[0] + 0.5 * means[1]).detach()), rel=1e-6)
    assert int(both.sums["pixel_accuracy"]) == int((logits.argmax(1) == masks)[labelled].sum())
    [ours] = torch.autograd.grad(both.total, logits)
    [theirs] = torch.autograd.grad(means[0] + 0.5 * means[1], logits)
    assert torch.allclose(ours / count(batch), theirs, atol=1e-7)


def test_images_without_a_labelled_pixel_have_no_loss_and_no_gradient() -> None:
    logits, masks = drawn(2, 3, 0)
    logits.requires_grad_()
    batch = a_batch(logits, torch.full_like(masks, VOID))
    found = loss(AsTheyAre(), batch)
    found.total.backward()
    assert (count(batch), float(found.total.detach()), float(logits.grad.abs().sum())) == (0, 0.0, 0.0)


def test_a_batch_keeps_order_and_problems_and_calls_the_unreadable_void() -> None:
    image, mask = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.ones(4, 4, dtype=torch.int16)
    batch = collate([Sample(5, image, mask, None), Sample(3, image, None, "data: unreadable sample a.jpg")])
    assert (batch.ids.tolist(), batch.problems, len(batch), count(batch)) == ([5, 3], ("data: unreadable sample a.jpg",), 2, 16)
    assert batch.masks[1].unique().tolist() == [VOID]


CROPS = {
    "resized_crop": lambda size: [v2.RandomResizedCrop(size, scale=(0.2, 0.9), antialias=True), v2.RandomHorizontalFlip(0.5)],
    "padded_crop": lambda size: [
        v2.Resize(size, antialias=True),
        v2.CenterCrop(size),
        v2.RandomCrop(size, padding=size // 8, fill={tv_tensors.Image: 0, tv_tensors.Mask: VOID}),
        v2.RandomHorizontalFlip(0.5),
    ],
    "none": lambda size: [v2.Resize(size, antialias=True), v2.CenterCrop(size)],
}


@pytest.mark.parametrize("augment", CROPS)
def test_image_and_mask_are_cut_by_the_same_draws_and_as_torchvision_does(augment: str) -> None:
    data = Data.model_validate({"name": "masks", "augment": augment, "size": 32, "crop_scale": [0.2, 0.9]})
    mask = torch.arange(45)[:, None].expand(45, 60).short()
    image = mask.to(torch.uint8).expand(3, 45, 60)
    ours, theirs = prepare(data, True), v2.Compose(CROPS[augment](32))
    for seed in range(8):
        torch.manual_seed(seed)
        cut, its = ours(image, mask)
        torch.manual_seed(seed)
        expected = theirs(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert torch.equal(cut, expected[0])
        assert torch.equal(its, expected[1])
        assert (cut.shape, its.shape, type(cut), type(its), its.dtype) == ((3, 32, 32), (32, 32), Tensor, Tensor, torch.int16)
        inside = its != VOID
        assert inside.all() or augment == "padded_crop"
        assert (cut[0][inside].float() - its[inside]).abs().max() <= 2, "a row of the mask is where the image has it"


def test_evaluation_keeps_the_whole_image_and_every_pixel_of_the_mask() -> None:
    image, mask = torch.zeros(3, 45, 60, dtype=torch.uint8), torch.zeros(45, 60, dtype=torch.int16)
    for keys, size in (({"size": 90}, (90, 120)), ({"size": 90, "resize": 30}, (30, 40))):
        whole, same = prepare(Data.model_validate({"name": "masks", **keys}), False)(image, mask)
        assert (whole.shape, same is mask) == ((3, *size), True)


def test_the_networks_are_those_of_torchvision_s_segmentation() -> None:
    assert torchvision.models.list_models(torchvision.models.segmentation) == NAMES
    for name in NAMES:
        assert families.family(name, "segment") is families.family(name)
    with pytest.raises(ConfigError, match=rf"^model.name = 'resnet50'; use one of {', '.join(NAMES)}$"):
        families.family("resnet50", "segment")
    with pytest.raises(ConfigError, match=r"^model.name = 'fcn_resnet50'; use one of convnext_base, "):
        models.on_paper(a_config(model__name="fcn_resnet50"), 3)


STAGES = {"deeplabv3_resnet50": 5, "fcn_resnet50": 5, "lraspp_mobilenet_v3_large": 17, "deeplabv3_mobilenet_v3_large": 17}


@pytest.mark.parametrize("name", STAGES)
def test_head_and_stages_of_a_network_learn_as_asked(name: str) -> None:
    def learning(train: str) -> set[str]:
        with torch.device("meta"):
            model = models.network(config_of(model__name=name), 3)
        models.freeze(model, config_of(model__name=name, model__train=train).model)
        return {part for part, parameter in model.named_parameters() if parameter.requires_grad}

    with torch.device("meta"):
        everything = dict(models.network(config_of(model__name=name), 3).named_parameters())
    heads = {part for part in everything if part.startswith(("classifier.", "aux_classifier."))}
    assert learning("head") == heads
    assert learning("all") == learning(f"last:{STAGES[name]}") == set(everything)
    last = "backbone.layer4." if "resnet" in name else "backbone.16."
    assert learning("last:1") - heads == {part for part in everything if part.startswith(last)}
    with pytest.raises(ConfigError, match=rf"^model.train = 'last:{STAGES[name] + 1}', but {name} has {STAGES[name]} stages"):
        learning(f"last:{STAGES[name] + 1}")


def saved(folder: Path, model: nn.Module) -> str:
    torch.save(model.state_dict(), folder / "weights.pth")
    return str(folder / "weights.pth")


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_weights_for_other_classes_fill_all_but_the_last_layers(name: str, tmp_path: Path) -> None:
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=21, **options)
    model, told = models.furnish(
        models.network(config_of(model__name=name), 3), config_of(model__name=name, model__weights=saved(tmp_path, theirs)), CLASSES, True
    )
    own, last = model.state_dict(), families.family(name).last
    for part, tensor in theirs.state_dict().items():
        if part.startswith(tuple(f"{layer}." for layer in last)):
            assert own[part].shape[0] == 3
        else:
            assert torch.equal(own[part], tensor), part
    assert told[1].startswith(f"new: {last[0]}.weight, {last[0]}.bias, {last[1]}.weight")
    model, _ = models.furnish(
        models.network(config_of(model__name=name), 21),
        config_of(model__name=name, model__head="keep", model__weights=saved(tmp_path, theirs)),
        ["x"] * 21,
        True,
    )
    assert all(torch.equal(tensor, model.state_dict()[part]) for part, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(("name", "classifier"), [("lraspp_mobilenet_v3_large", "mobilenet_v3_large"), ("fcn_resnet50", "resnet50")])
def test_a_classifier_s_weights_fill_the_backbone(name: str, classifier: str, tmp_path: Path) -> None:
    theirs = torchvision.models.get_model(classifier, weights=None)
    config = config_of(model__name=name, model__weights=saved(tmp_path, theirs))
    fresh = models.network(config, 3)
    head = {part: tensor.clone() for part, tensor in fresh.state_dict().items() if not part.startswith("backbone.")}
    model, told = models.furnish(fresh, config, CLASSES, True)
    own = model.state_dict()
    assert all(torch.equal(own[part], tensor) for part, tensor in head.items())
    kept = {part: tensor for part, tensor in theirs.state_dict().items() if not part.startswith(("fc.", "classifier."))}
    assert all(torch.equal(own[f"backbone.{part.removeprefix('features.')}"], tensor) for part, tensor in kept.items())
    assert told[0].startswith(f"{len(kept)} of {len(own)} tensors from ")
    other = torchvision.models.get_model("resnet18", weights=None)
    with pytest.raises(ConfigError, match="does not fit the model"):
        models.furnish(models.network(config, 3), config_of(model__name=name, model__weights=saved(tmp_path, other)), CLASSES, True)


@pytest.mark.parametrize(
    ("name", "first"), [("lraspp_mobilenet_v3_large", "classifier.cbr.1"), ("fcn_resnet50", "classifier.1, aux_classifier.1")]
)
def test_a_classifier_s_weights_with_frozen_norms_are_refused_for_the_new_head_would_never_learn_its_statistics(
    name: str, first: str, tmp_path: Path
) -> None:
    theirs = torchvision.models.get_model("resnet50" if "resnet50" in name else "mobilenet_v3_large", weights=None)
    config = config_of(model__name=name, model__weights=saved(tmp_path, theirs), model__norm="frozen")
    told = rf"would leave the batch norms of the new head \({first}\) at identity; use model.norm: train$"
    with pytest.raises(ConfigError, match=told):
        models.furnish(models.network(config, 3), config, CLASSES, True)


def test_a_plan_counts_a_network_without_building_or_fetching_it() -> None:
    counts = models.on_paper(config_of(model__name="deeplabv3_resnet50"), 21)
    assert counts["parameters"] == counts["trained"] == 42_004_074  # as torchvision documents it for COCO_WITH_VOC_LABELS_V1
    assert models.on_paper(config_of(model__name="lraspp_mobilenet_v3_large"), 21)["parameters"] == 3_221_538


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_recomputed_blocks_change_no_number(name: str) -> None:
    found = []
    for again in (False, True):
        config = config_of(model__name=name, model__dropout="none", model__activation_checkpointing=again, precision="fp64")
        model, _ = TASKS["segment"].build(config, CLASSES)
        model.double()
        _, masks = drawn(2, 3, 0, side=32)
        images = torch.randint(256, (2, 3, 32, 33), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        total = loss(model, a_batch(images, masks)).total
        total.backward()
        found.append([total.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def refused(world: int = 1, **keys: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        refuse.check(config_of(**keys), World(size=world, local_size=world), {})
    return caught.value.problems


def test_what_does_not_fit_segmentation_is_refused_in_a_sentence() -> None:
    assert refused(data__name="folder") == ("task = segment with data.name = folder; segment learns from masks",)
    assert refused(task="classify", model__name="resnet18") == (
        "task = classify with data.name = masks; classify learns from folder or torchvision or digits",
    )
    assert refused(eval__micro=4) == (
        "eval.micro = 4, but segment evaluates one image at a time, since images differ in size; leave it out",
    )
    assert refused(stop__when="val/top1 >= 0.5") == (
        "stop.when watches val/top1, which segment does not score; use val/loss, val/miou, val/pixel_accuracy, val/recall_macro",
    )
    with pytest.raises(ConfigError, match=r"^data.void = \[0\] is for masks, and task = classify; leave it out$"):
        refuse.check(a_config(data__void=[0]), World(), {})


def test_a_single_image_in_a_pass_through_deeplab_s_pooling_is_refused() -> None:
    told = (
        "model.norm = 'train' with a micro-batch of one image: the pooling of deeplabv3_resnet50 normalises one value a channel, "
        "which has no variance; use model.norm: frozen, or batch.total and batch.micro that leave no single image",
    )
    deeplab = {"model__name": "deeplabv3_resnet50"}
    assert refused(**deeplab, batch__micro=1) == told
    assert refused(**deeplab, batch__total=9, batch__micro=4) == told
    assert refused(3, **deeplab, batch__total=11, batch__micro=3) == told
    for fits in ({"batch__total": 8, "batch__micro": 4}, {"batch__total": 9, "batch__micro": 1, "model__name": "fcn_resnet50"}):
        refuse.check(config_of(**{**deeplab, **fits}), World(), {})
    model, _ = TASKS["segment"].build(config_of(model__name="deeplabv3_mobilenet_v3_large"), CLASSES)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_masks_of_0_and_255_are_no_perfect_score() -> None:
    """The usual masks of two classes: with 255 as void, all that is left is background, and to say so everywhere would be all right."""
    evidence = Evidence({"samples": torch.tensor(1), "loss": torch.tensor(0.0), "confusion": torch.tensor([[9, 0], [0, 0]])})
    with pytest.raises(ConfigError, match=r"is background, and nothing else is said of one, .* masks of 0 and 255 need 1 for 255"):
        TASKS["segment"].score(evidence, ("background", "crack"))
