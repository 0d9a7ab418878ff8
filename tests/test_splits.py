"""Splits are drawn by their seed alone: stratified, stable, and the same on every machine."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_dist.config import Data
from sft_dist.datasets.splits import Split, Splits, draw_splits, hold_out, thin
from sft_dist.errors import ConfigError

LABELS = [0, 1, 2] * 10
CLASSES = ("ant", "bee", "cat")


def a_split(labels: list[int], prefix: str = "s") -> Split:
    return Split([f"{prefix}{i}" for i in range(len(labels))], labels, lambda i: f"pixels of {prefix}{i}")


def drawn(labels: list[int] = LABELS, val: Split | None = None, **keys: object) -> Splits:
    return draw_splits(a_split(labels), val, None, CLASSES, Data(name="digits", **keys))


def test_the_split_of_a_seed_never_changes() -> None:
    assert hold_out(LABELS, 0.2, seed=0) == [4, 12, 21, 22, 26, 29]
    assert hold_out(LABELS, 0.2, seed=1) == [7, 11, 15, 18, 20, 25]
    assert thin(LABELS, 2, seed=0) == [2, 6, 10, 18, 19, 20]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 3))
def test_every_class_keeps_its_share_on_both_sides(labels: list[int], fraction: float, seed: int) -> None:
    held = Counter(labels[i] for i in hold_out(labels, fraction, seed))
    for label, members in Counter(labels).items():
        assert held[label] == (0 if members == 1 else min(max(1, round(fraction * members)), members - 1))


def test_training_and_validation_share_no_sample_and_lose_none() -> None:
    splits = drawn(val_fraction=0.3)
    assert sorted([*splits.train.names, *splits.val.names]) == sorted(f"s{i}" for i in range(30))
    assert (len(splits.train), len(splits.val)) == (21, 9)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 10), st.integers(0, 3))
def test_a_smaller_draw_per_class_is_part_of_a_larger_one(labels: list[int], per_class: int, seed: int) -> None:
    small, large = thin(labels, per_class, seed), thin(labels, per_class + 1, seed)
    assert set(small) <= set(large)
    assert Counter(labels[i] for i in small) == {label: min(count, per_class) for label, count in Counter(labels).items()}


def test_thinning_leaves_validation_as_it_is() -> None:
    whole, few = drawn(), drawn(per_class=2)
    assert few.val.names == whole.val.names
    assert Counter(few.train.labels) == {0: 2, 1: 2, 2: 2}
    assert set(few.train.names) <= set(whole.train.names)


def test_chosen_classes_without_a_sample_do_not_get_those_of_others() -> None:
    assert draw_splits(a_split([0, 0]), a_split([1]), None, CLASSES, Data(name="digits", classes=("bee", "cat"))).train.labels == []


def test_chosen_classes_are_numbered_in_the_order_asked_for() -> None:
    splits = drawn(classes=("cat", "ant"))
    assert splits.classes == ("cat", "ant")
    assert {(int(name[1:]) % 3, label) for name, label in zip(splits.train.names, splits.train.labels, strict=True)} == {(2, 0), (0, 1)}
    assert splits.train.read(0) == f"pixels of {splits.train.names[0]}"


def test_a_class_that_the_data_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^data.classes: no 'dog', 'eel' in the data; it has ant, bee, cat$"):
        drawn(classes=("ant", "dog", "eel"))


def test_no_validation_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.val_fraction = 0, but the set has no validation split"):
        drawn(val_fraction=0)


def test_a_validation_split_of_its_own_is_taken_whole() -> None:
    splits = drawn(val=a_split([0, 1, 2, 2], "v"), val_fraction=0)
    assert (len(splits.train), splits.val.names) == (30, ["v0", "v1", "v2", "v3"])


def test_the_fingerprint_tells_data_apart() -> None:
    val = a_split([0, 1, 2], "v")
    same = Splits(a_split(LABELS), val, None, CLASSES)
    assert same.fingerprint == Splits(a_split(LABELS), val, a_split([0]), CLASSES).fingerprint == "bd4fd3f0bcda08d7"
    others = [
        Splits(a_split([*LABELS, 0]), val, None, CLASSES),  # added
        Splits(a_split(LABELS[:-1]), val, None, CLASSES),  # removed
        Splits(a_split(LABELS, "t"), val, None, CLASSES),  # renamed
        Splits(a_split([1, *LABELS[1:]]), val, None, CLASSES),  # relabelled
        Splits(val, a_split(LABELS), None, CLASSES),  # moved
        Splits(a_split(LABELS), val, None, ("ant", "bee", "cow")),  # another class
    ]
    assert len({same.fingerprint, *(other.fingerprint for other in others)}) == 7
