"""The scores are scikit-learn's, and evidence adds up however the samples are cut into batches."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor, nn
from torchmetrics.functional import classification as torchmetrics

from sft_dist.tally import Evidence
from sft_dist.tasks import TASKS, Sample, Scores
from sft_dist.tasks.classify import Labelled, collate, loss, measure, score

AS_THEY_ARE = nn.Identity()  # the logits stand where the images would


def a_batch(logits: Tensor, labels: Tensor, first: int = 0) -> Labelled:
    return Labelled(torch.arange(first, first + len(labels)), (), logits, labels)


def drawn(samples: int, classes: int, seed: int, used: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Logits that know a little of the labels; only the classes in `used` occur as labels or as predictions."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor(list(used or range(classes)))
    labels = allowed[torch.randint(len(allowed), (samples,), generator=generator)]
    logits = torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), labels] += 1
    logits[:, [c for c in range(classes) if c not in allowed]] -= 100
    return logits, labels


def scored(logits: Tensor, labels: Tensor) -> Scores:
    return score(measure(AS_THEY_ARE, a_batch(logits, labels)), [f"c{i}" for i in range(logits.shape[1])])


CASES = [(200, 10, None), (40, 7, (1, 2, 5)), (30, 5, (3,)), (1, 3, None), (12, 2, None), (300, 37, range(30)), (3, 6, None)]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")  # scikit-learn's accuracy of absent classes
@pytest.mark.parametrize(("samples", "classes", "used"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_scores_are_scikit_learns(samples: int, classes: int, used: Sequence[int] | None, seed: int) -> None:
    logits, labels = drawn(samples, classes, seed, used)
    values, details = scored(logits, labels)
    predicted, everyone = logits.argmax(1), range(classes)
    each = metrics.precision_recall_fscore_support(labels, predicted, labels=everyone, zero_division=0)
    for i, per_class in enumerate(details["per_class"].values()):
        assert list(per_class.values()) == pytest.approx([part[i] for part in each], abs=1e-12)
    macro = metrics.precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    assert [values[f"val/{name}_macro"] for name in ("precision", "recall", "f1")] == pytest.approx(macro[:3], abs=1e-12)
    assert values["val/top1"] == metrics.accuracy_score(labels, predicted)
    assert values["val/loss"] == pytest.approx(metrics.log_loss(labels, logits.double().softmax(1).numpy(), labels=everyone), rel=1e-5)
    assert details["confusion"] == metrics.confusion_matrix(labels, predicted, labels=everyone).tolist()
    assert details["samples"] == samples
    if classes > 5:
        assert values["val/top5"] == metrics.top_k_accuracy_score(labels, logits.numpy(), k=5, labels=everyone)


def test_the_scores_are_torchmetrics() -> None:
    logits, labels = drawn(150, 8, 0, (0, 1, 2, 4, 5))
    values, details = scored(logits, labels)
    for name in ("precision", "recall", "f1_score"):
        theirs = getattr(torchmetrics, f"multiclass_{name}")(logits, labels, num_classes=8, average="none")
        ours = [per_class[name.removesuffix("_score")] for per_class in details["per_class"].values()]
        assert ours == pytest.approx(theirs.tolist(), abs=1e-6)
    for k in (1, 5):
        theirs = torchmetrics.multiclass_accuracy(logits, labels, num_classes=8, top_k=k, average="micro")
        assert values[f"val/top{k}"] == pytest.approx(float(theirs), abs=1e-6)


def test_three_samples_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.5, 0.0, 0.0]])
    values, details = score(measure(AS_THEY_ARE, a_batch(logits, torch.tensor([0, 1, 1]))), ["ant", "bee", "cat"])
    assert details == {
        "samples": 3,
        "per_class": {
            "ant": {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1},
            "bee": {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2},
            "cat": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        },
        "confusion": [[1, 0, 0], [1, 1, 0], [0, 0, 0]],
    }
    assert values == pytest.approx(
        {
            "val/loss": 0.62394,
            "val/top1": 2 / 3,
            "val/top5": 1.0,
            "val/precision_macro": 0.75,
            "val/recall_macro": 0.75,
            "val/f1_macro": 2 / 3,
        },
        abs=1e-5,
    )


@given(st.integers(1, 30), st.integers(2, 7), st.integers(0, 5), st.lists(st.integers(1, 29), max_size=5), st.booleans())
def test_evidence_adds_over_any_cut_of_the_samples(samples: int, classes: int, seed: int, cuts: list[int], ties: bool) -> None:
    logits, labels = drawn(samples, classes, seed)
    if ties:
        logits = logits.round()
    edges = [0, *sorted({cut for cut in cuts if cut < samples}), samples]
    parts = [measure(AS_THEY_ARE, a_batch(logits[a:b], labels[a:b], a)) for a, b in itertools.pairwise(edges)]
    whole, added = measure(AS_THEY_ARE, a_batch(logits, labels)), sum(parts, Evidence())
    for name in ("samples", "top1", "top5", "confusion"):
        assert not whole.sums[name].is_floating_point()
        assert torch.equal(whole.sums[name], added.sums[name])
    assert torch.allclose(whole.sums["loss"], added.sums["loss"], rtol=1e-12)
    for column, values in whole.rows[0].items():
        assert np.array_equal(values, np.concatenate([rows[column] for rows in added.rows]))


def test_top5_of_three_classes_is_top3() -> None:
    values, _ = scored(*drawn(20, 3, 0))
    assert values["val/top5"] == 1.0 > values["val/top1"]


def test_the_rows_hold_what_each_sample_got() -> None:
    logits, labels = drawn(4, 3, 0)
    [rows] = measure(AS_THEY_ARE, a_batch(logits, labels, first=7)).rows
    assert (rows["id"].tolist(), rows["label"].tolist()) == ([7, 8, 9, 10], labels.tolist())
    assert rows["probs"].sum(1) == pytest.approx(1, abs=1e-6)
    assert rows["loss"] == pytest.approx(-np.log(rows["probs"][np.arange(4), labels]), abs=1e-5)


def test_the_training_loss_is_a_sum_whose_gradient_adds() -> None:
    logits, labels = drawn(6, 4, 0)
    logits.requires_grad_()
    whole = loss(AS_THEY_ARE, a_batch(logits, labels))
    assert float(whole.total.detach()) == pytest.approx(6 * float(nn.functional.cross_entropy(logits, labels).detach()), rel=1e-6)
    assert int(whole.sums["top1"]) == int((logits.argmax(1) == labels).sum())
    whole.total.backward()
    one_by_one = torch.cat([(logits[i : i + 1].softmax(1) - nn.functional.one_hot(labels[i : i + 1], 4)).detach() for i in range(6)])
    assert torch.allclose(logits.grad, one_by_one, atol=1e-6)


def test_a_batch_keeps_order_and_problems() -> None:
    images = [torch.full((3, 2, 2), i, dtype=torch.uint8) for i in range(3)]
    batch = collate(
        [Sample(5, images[0], 1, None), Sample(3, images[1], 0, "data: unreadable sample a.jpg"), Sample(4, images[2], 2, None)]
    )
    assert (batch.ids.tolist(), batch.labels.tolist(), batch.problems) == ([5, 3, 4], [1, 0, 2], ("data: unreadable sample a.jpg",))
    assert (batch.images[:, 0, 0, 0].tolist(), batch.images.dtype, len(batch)) == ([0, 1, 2], torch.uint8, 3)


def test_more_right_answers_are_better() -> None:
    task = TASKS["classify"]
    assert (task.headline, task.better(0.6, 0.5), task.better(0.5, 0.5), task.better(0.4, 0.5)) == ("val/top1", True, False, False)
