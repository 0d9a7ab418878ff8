"""Predictions are lined up by id and by the names of classes, never by place or number."""

from collections.abc import Sequence

import numpy as np

from sft_dist.compare import labels
from sft_dist.compare.labels import Moved, Paired
from sft_dist.compare.pairing import Answers, ClassChange
from sft_dist.history.records import Predictions

NAMES = ("cat", "dog")


def says(run: str, rows: Sequence[tuple[str, str, str, float]], classes: Sequence[str] = NAMES) -> Answers:
    """Rows of id, truth, guess and the probability of the truth."""
    number = {name: i for i, name in enumerate(classes)}
    ids, truths, guesses, certainty = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Answers(run, classes, Predictions(ids, [number[name] for name in truths], [number[name] for name in guesses], certainty))


def lined_up(one: Sequence[Answers], other: Sequence[Answers]) -> Paired:
    found = labels.align(one, other)
    assert isinstance(found, Paired), found
    return found


A = ("a", "cat", "cat", 0.9)
B = ("b", "dog", "cat", 0.2)
C = ("c", "dog", "dog", 0.6)


def test_the_order_of_rows_does_not_matter() -> None:
    found = lined_up([says("x", [A, B, C])], [says("y", [C, ("b", "dog", "dog", 0.7), A])])
    assert found.ids == ["a", "b", "c"]
    assert found.right_one.tolist() == [[True, False, True]]
    assert found.right_other.tolist() == [[True, True, True]]
    assert found.certainty_other.tolist() == [[0.9, 0.7, 0.6]]
    assert found.notes == []


def test_classes_in_another_order_are_the_same_classes() -> None:
    found = lined_up([says("x", [A, B, C])], [says("y", [A, B, C], classes=("dog", "eel", "cat"))])
    assert np.array_equal(found.one, found.other)
    assert found.right_other.tolist() == [[True, False, True]]


def test_only_samples_in_common_are_compared_and_it_is_told() -> None:
    found = lined_up([says("x", [A, B, C])], [says("y", [C, B, ("z", "cat", "cat", 1.0), ("w", "cat", "cat", 1.0)])])
    assert found.ids == ["b", "c"]
    assert found.notes == ["paired over the 2 samples in common, of 3 and 4"]


def test_a_sample_whose_true_class_is_another_is_left_out_and_told() -> None:
    found = lined_up([says("x", [A, B, C])], [says("y", [("a", "dog", "dog", 0.5), B, C])])
    assert found.ids == ["b", "c"]
    assert found.notes == ["1 samples have another true class on the other side and are left out"]


def test_what_cannot_be_paired_says_why() -> None:
    assert labels.align([says("x", [A])], [says("y", [])]) == "no predictions of y"
    assert labels.align([says("x", [A])], [says("y", [B])]) == "not one validation sample in common"
    other = says("y", [("a", "dog", "dog", 0.5), C])
    assert labels.align([says("x", [A, C])], [other]) == "1 samples with the same true class on both sides: these are other data"


def test_what_could_not_be_read_of_predictions_is_passed_on() -> None:
    damaged = Answers("y", NAMES, Predictions(["a", "c"], [0, 1], [0, 1], [1.0, 1.0], ("1 line left out",)))
    assert lined_up([says("x", [A, C])], [damaged]).notes == ["y: 1 line left out"]


def test_classes_without_names_keep_their_numbers() -> None:
    nameless = [Answers(run, (), Predictions(["a", "b"], [0, 3], [3, 3], [0.1, 0.8])) for run in "xy"]
    assert list(lined_up(nameless[:1], nameless[1:]).classes) == ["0", "1", "2", "3"]


def several() -> Paired:
    one = [says("x", [A, B, C]), says("x2", [A, B, ("c", "dog", "cat", 0.4)])]
    other = [says("y", [("a", "cat", "dog", 0.3), ("b", "dog", "dog", 0.9), C])]
    return lined_up(one, other)


def test_samples_that_moved_come_with_the_clearest_first() -> None:
    assert labels.moved(several(), better=True) == [
        Moved("b", "dog", 0.0, 1.0, 0.2, 0.9, ["cat"], ["dog"]),
        Moved("c", "dog", 0.5, 1.0, 0.5, 0.6, ["dog", "cat"], ["dog"]),
    ]
    assert labels.moved(several(), better=False) == [Moved("a", "cat", 1.0, 0.0, 0.9, 0.3, ["cat"], ["dog"])]


def test_a_class_changes_by_what_is_found_of_it_and_by_what_is_taken_for_it() -> None:
    assert labels.class_changes(several()) == [
        ClassChange("dog", 2, {"recall": (0.25, 1.0), "false": (0.0, 1.0)}),
        ClassChange("cat", 1, {"recall": (1.0, 0.0), "false": (1.5, 0.0)}),
    ]
