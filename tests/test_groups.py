"""Runs that differ in nothing but their seed are one recipe; what else differs is told, and only that."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given_runs import a_run, aged, guesses

from sft_dist.history import groups, reading
from sft_dist.history.groups import Fact
from sft_dist.history.records import Record


def some(folder: Path, name: str, **keys: Any) -> Record:
    return reading.read(a_run(folder / name, guesses([]), **keys))


def test_seeds_of_one_recipe_are_one_group_in_the_order_of_the_seeds(tmp_path: Path) -> None:
    runs = [some(tmp_path, "low-10", train__seed=10), some(tmp_path, "high", optim__lr=0.1), some(tmp_path, "low-2", train__seed=2)]
    found, told = groups.group(runs)
    assert [(group.label, group.seeds) for group in found] == [("low (2 seeds)", [2, 10]), ("high", [0])]
    assert told == []


@pytest.mark.parametrize(
    "keys",
    [{"data__workers": 3}, {"data__root": "elsewhere"}, {"track__every": "2 steps"}, {"save__keep": 9}, {"run__shared": True}],
    ids=lambda keys: next(iter(keys)),
)
def test_where_a_run_lies_and_what_it_writes_is_not_its_recipe(tmp_path: Path, keys: dict[str, Any]) -> None:
    found, _ = groups.group([some(tmp_path, "a-0"), some(tmp_path, "a-1", train__seed=1, **keys)])
    assert [group.label for group in found] == ["a (2 seeds)"]


def changed(record: Record, what: str) -> Record:
    return {
        "commit": replace(record, env={**record.env, "commit": "decade"}),
        "version": replace(record, env={**record.env, "packages": {"sft-dist": "0.2.0"}}),
        "data": replace(record, fingerprint="f2"),
        "not done": replace(record, outcome={"outcome": "saved"}),
        "no config": replace(record, config={}),
    }[what]


@pytest.mark.parametrize("what", ["commit", "version", "data", "not done", "no config"])
def test_other_code_other_data_and_unfinished_runs_stand_alone(tmp_path: Path, what: str) -> None:
    found, _ = groups.group([some(tmp_path, "a-0"), changed(some(tmp_path, "a-1", train__seed=1), what)])
    assert [len(group.runs) for group in found] == [1, 1]


def test_runs_whose_config_says_nothing_of_the_recipe_are_not_one_recipe(tmp_path: Path) -> None:
    """As of other programs in W&B, of which only the place there is known."""
    silent = [replace(some(tmp_path, name), config={"track.group": None, "track.tags": []}) for name in ("a", "b")]
    found, told = groups.group(silent)
    assert ([len(group.runs) for group in found], told) == ([1, 1], [])


def test_of_two_runs_with_one_seed_the_newer_counts_and_it_is_told(tmp_path: Path) -> None:
    new, old = aged(a_run(tmp_path / "new", guesses([])), 2000), aged(a_run(tmp_path / "old", guesses([])), 1000)
    [group], told = groups.group([reading.read(new), reading.read(old)])
    assert [run.name for run in group.runs] == ["new"]
    assert told == ["old and new are the same recipe with the same seed: only the newer, new, counts"]


def test_code_that_was_not_committed_may_not_be_one_recipe_and_it_is_told(tmp_path: Path) -> None:
    runs = [some(tmp_path, "a-0"), some(tmp_path, "a-1", train__seed=1)]
    [group], told = groups.group([runs[0], replace(runs[1], env={**runs[1].env, "dirty": True})])
    assert group.label == "a (2 seeds)"
    assert told == ["a (2 seeds): code with changes that were not committed ran, and may not have been the same for all"]


def test_groups_that_would_bear_one_label_are_told_apart(tmp_path: Path) -> None:
    runs = [some(tmp_path, f"run-{i}", train__seed=i % 2, optim__lr=0.1 * (1 + i // 2)) for i in range(4)]
    found, _ = groups.group(runs)
    assert [group.label for group in found] == ["run (2 seeds): run-0", "run (2 seeds): run-2"]


def test_only_what_differs_is_told_with_a_value_for_each_group(tmp_path: Path) -> None:
    low = [some(tmp_path, f"low-{seed}", train__seed=seed, data__workers=seed) for seed in (0, 1)]
    high = changed(some(tmp_path, "high", optim__lr=0.1, train__clip=1.5), "commit")
    found, _ = groups.group([*low, replace(high, env={**high.env, "dirty": True}, plan={**high.plan, "world": 2})])
    assert groups.differing(found) == [
        Fact("data.workers", ["0, 1", "auto"]),
        Fact("optim.lr", ["0.001", "0.1"]),
        Fact("train.clip", ["null", "1.5"]),
        Fact("code: commit", ["c0ffeec0ffee", "decade"]),
        Fact("code: changes not committed", ["no", "yes"]),
        Fact("machine: processes", ["1", "2"]),
    ]


def test_a_key_that_only_one_version_has_is_a_difference(tmp_path: Path) -> None:
    run = a_run(tmp_path / "new", guesses([]))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "extra: {key: [1, 2]}\n")
    found, _ = groups.group([some(tmp_path, "old"), reading.read(run)])
    assert groups.differing(found) == [Fact("extra.key", ["-", "[1, 2]"])]


def test_values_are_shown_as_one_would_write_them() -> None:
    assert [groups.shown(value) for value in (None, True, 3, 0.0001, "sgd", [0.5, 1])] == ["null", "true", "3", "0.0001", "sgd", "[0.5, 1]"]
    assert json.loads(groups.shown([1.5, None])) == [1.5, None]
