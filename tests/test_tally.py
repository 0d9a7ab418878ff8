"""Evidence adds, in any order and any grouping, and is divided once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sft_dist.tally import Evidence, add, per_count

counts = st.dictionaries(st.sampled_from("abcd"), st.integers(-(10**12), 10**12))


@given(counts, counts, counts)
def test_sums_do_not_depend_on_order_or_grouping(one: dict[str, int], two: dict[str, int], three: dict[str, int]) -> None:
    assert add(add(one, two), three) == add(one, add(two, three)) == add(three, add(two, one))


def test_a_name_that_only_one_side_has_counts_as_zero_on_the_other() -> None:
    assert add({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}
    assert add({}, {}) == {}


def test_adding_changes_neither_side() -> None:
    one, other = {"a": np.array([1, 2])}, {"a": np.array([3, 4])}
    assert add(one, other)["a"].tolist() == [4, 6]
    assert one["a"].tolist() == [1, 2]
    assert other["a"].tolist() == [3, 4]


def test_arrays_add_element_by_element_and_stay_whole_numbers() -> None:
    confusion = add({"confusion": np.eye(2, dtype=np.int64)}, {"confusion": np.ones((2, 2), dtype=np.int64)})["confusion"]
    assert confusion.tolist() == [[2, 1], [1, 2]]
    assert confusion.dtype == np.int64


def test_rows_are_kept_side_by_side() -> None:
    both = Evidence({"n": 1}, ({"id": [0]},)) + Evidence({"n": 2}, ({"id": [1, 2]},))
    assert both == Evidence({"n": 3}, ({"id": [0]}, {"id": [1, 2]}))
    assert both + Evidence() == both == Evidence() + both


def test_sums_of_steps_are_divided_by_their_samples() -> None:
    assert per_count({"samples": 4, "loss": 2.0, "top1": 3}) == {"loss": 0.5, "top1": 0.75}


def test_sums_of_steps_are_divided_by_what_the_task_counts_where_that_is_not_samples() -> None:
    assert per_count({"samples": 4, "counted": 200.0, "loss": 50.0}) == {"loss": 0.25}


def test_over_nothing_that_is_counted_a_mean_is_zero() -> None:
    assert per_count({"samples": 4, "counted": 0.0, "loss": 0.0}) == {"loss": 0.0}


def test_means_of_no_steps_are_none_at_all() -> None:
    assert per_count({}) == {}
