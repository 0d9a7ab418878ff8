"""The embedded digits are scikit-learn's."""

from collections import Counter

import numpy as np
import torch
from sklearn.datasets import load_digits

from sft_dist import datasets
from sft_dist.config import Data


def test_every_image_and_label_is_scikit_learns() -> None:
    splits, theirs = datasets.load(Data(name="digits")), load_digits()
    seen = {}
    for split in (splits.train, splits.val):
        for i, name in enumerate(split.names):
            seen[int(name.removeprefix("digits/"))] = (split.read(i), split.labels[i])
    assert sorted(seen) == list(range(1797))
    grey = np.stack([seen[i][0].numpy() for i in range(1797)])
    assert grey.dtype == np.uint8
    assert (grey == (theirs.images * 255 // 16).astype(np.uint8)[:, None]).all()
    assert [seen[i][1] for i in range(1797)] == theirs.target.tolist()


def test_the_split_that_every_example_uses() -> None:
    splits = datasets.load(Data(name="digits"))
    assert (len(splits.train), len(splits.val), splits.test) == (1438, 359, None)
    assert splits.fingerprint == "939ded7e1d87bf32"


def test_half_of_the_classes_can_be_the_target_of_a_transfer() -> None:
    splits = datasets.load(Data(name="digits", classes=tuple("56789"), per_class=10))
    assert splits.classes == tuple("56789")
    assert Counter(splits.train.labels) == dict.fromkeys(range(5), 10)
    whole = load_digits()
    assert [int(splits.classes[label]) for label in splits.val.labels] == [whole.target[int(n.split("/")[1])] for n in splits.val.names]
    assert torch.equal(splits.val.read(0)[0], splits.val.read(0)[2])
