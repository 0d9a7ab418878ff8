"""What is compared with what, and how it is judged."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given_runs import a_run, guesses
from scipy import stats

from sft_dist.compare import verdicts
from sft_dist.compare.verdicts import Choice
from sft_dist.errors import ConfigError
from sft_dist.history import reading
from sft_dist.history.records import Predictions, Record

NOTHING: Sequence[Record] = ()


def some(folder: Path, name: str, wrong: Sequence[int] = (), **keys: Any) -> Record:
    return reading.read(a_run(folder / name, guesses(wrong), **keys))


def recipe(folder: Path, name: str, wrongs: Sequence[Sequence[int]], lr: float, **keys: Any) -> list[Record]:
    return [some(folder, f"{name}-{seed}", wrong, train__seed=seed, optim__lr=lr, **keys) for seed, wrong in enumerate(wrongs)]


def test_the_better_of_two_models_is_told_with_its_test(tmp_path: Path) -> None:
    runs = [some(tmp_path, "bad", range(12), optim__lr=0.1), some(tmp_path, "good", range(10, 13), optim__lr=0.2)]
    found = verdicts.judge(runs, NOTHING, Choice())
    [pair] = found.pairs
    assert (pair.one, pair.other, pair.verdict, pair.runs, pair.samples) == ("bad", "good", "better", (1, 1), 60)
    assert pair.p == pytest.approx(stats.binomtest(1, 11).pvalue)
    assert [moved.id for moved in pair.worse] == ["12.png"]
    assert len(pair.better) == 10
    assert [entry.group.label for entry in found.entries] == ["good", "bad"]
    assert (found.among, found.baseline, found.regressions) == (1, None, [])


def test_a_small_difference_could_be_noise(tmp_path: Path) -> None:
    runs = [some(tmp_path, "a", range(3), optim__lr=0.1), some(tmp_path, "b", range(2, 4), optim__lr=0.2)]
    [pair] = verdicts.judge(runs, NOTHING, Choice()).pairs
    assert (pair.verdict, pair.p) == ("noise", 1.0)


def test_a_p_value_is_corrected_for_all_pairs_of_what_the_first_few_were_chosen_from(tmp_path: Path) -> None:
    runs = [some(tmp_path, f"r{i}", range(2 * i), optim__lr=0.1 + i) for i in range(8)]
    found = verdicts.judge(runs, NOTHING, Choice(top=2))
    assert [entry.group.label for entry in found.entries] == ["r0", "r1"]
    assert (found.among, found.groups, len(found.pairs)) == (28, 8, 1)
    assert found.pairs[0].p == pytest.approx(min(1.0, 28 * 0.5))
    assert "the first 2 of 8 are shown; --top 8 shows all" in found.notes


def test_of_many_recipes_the_first_is_held_against_each_of_the_others(tmp_path: Path) -> None:
    runs = [some(tmp_path, f"r{i}", range(i), optim__lr=0.1 + i) for i in range(6)]
    few, many = (verdicts.judge(runs[:count], NOTHING, Choice()) for count in (5, 6))
    assert len(few.pairs) == 10
    assert [(pair.one, pair.other) for pair in many.pairs] == [(f"r{i}", "r0") for i in range(1, 6)]
    assert many.among == 15


def test_seeds_are_judged_together_and_their_spread_counts(tmp_path: Path) -> None:
    steady = recipe(tmp_path, "steady", [range(10), range(1, 11), range(2, 12)], lr=0.1)
    shaky = recipe(tmp_path, "shaky", [range(0), range(30), range(0)], lr=0.2)
    found = verdicts.judge([*steady, *shaky], NOTHING, Choice())
    [pair] = found.pairs
    assert (pair.runs, pair.verdict, pair.difference and pair.difference.test) == ((3, 3), "noise", "crossed t")
    single = verdicts.judge([steady[0], shaky[0]], NOTHING, Choice())
    assert single.pairs[0].verdict == "better"


def test_against_a_baseline_what_is_worse_is_a_regression(tmp_path: Path) -> None:
    base = [some(tmp_path, "base", range(2))]
    runs = [some(tmp_path, "same", range(2)), some(tmp_path, "worse", range(20), optim__lr=1.0), some(tmp_path, "better", optim__lr=2.0)]
    found = verdicts.judge([*runs, *base], base, Choice())
    assert [(pair.one, pair.other, pair.verdict) for pair in found.pairs] == [
        ("base", "better", "noise"),
        ("base", "same", "noise"),
        ("base", "worse", "worse"),
    ]
    assert [pair.other for pair in found.regressions] == ["worse"]
    assert (found.baseline, found.among, found.groups) == ("base", 3, 4)


def test_a_candidate_of_the_baselines_recipe_and_seed_stays_a_candidate(tmp_path: Path) -> None:
    base, same = some(tmp_path, "base"), some(tmp_path, "again")
    assert [(pair.one, pair.other) for pair in verdicts.judge([base, same], [base], Choice()).pairs] == [("base", "again")]


def test_a_baseline_is_no_candidate_by_whatever_path_it_is_named(tmp_path: Path) -> None:
    a_run(tmp_path / "new" / "a", guesses(range(3)))
    (tmp_path / "link").symlink_to(a_run(tmp_path / "old" / "a", guesses([])))
    runs, _ = reading.gather([tmp_path])
    base, _ = reading.gather([tmp_path / "new" / ".." / "link"])
    found = verdicts.judge(runs, base, Choice())
    assert [(pair.one, pair.other) for pair in found.pairs] == [("link", "a")]


def test_a_baseline_of_two_recipes_is_refused_with_what_differs(tmp_path: Path) -> None:
    base = [some(tmp_path, "a"), some(tmp_path, "b", optim__lr=0.5)]
    with pytest.raises(ConfigError, match=r"--baseline names 2 recipes(.|\n)*optim.lr: 0.001 \| 0.5"):
        verdicts.judge([some(tmp_path, "c")], base, Choice())


def test_the_first_few_of_a_baseline_would_hide_regressions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--top with --baseline would hide regressions"):
        verdicts.judge([some(tmp_path, "a")], [some(tmp_path, "b")], Choice(top=2))


def test_one_recipe_alone_is_nothing_to_compare_and_what_was_left_out_is_told(tmp_path: Path) -> None:
    begun = replace(some(tmp_path, "begun", optim__lr=0.3), scores={}, outcome={})
    with pytest.raises(ConfigError, match=r"there are no two recipes(.|\n)*begun is left out: unfinished, without val/top1"):
        verdicts.judge([some(tmp_path, "a"), begun], NOTHING, Choice())


def test_of_one_recipe_with_one_seed_on_two_worlds_it_is_told_why_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there are no two recipes(.|\n)*are the same recipe with the same seed: only the newer, "):
        verdicts.judge([some(tmp_path, "a"), some(tmp_path, "b")], NOTHING, Choice())


def test_an_unfinished_run_is_compared_as_far_as_it_came_and_it_is_told(tmp_path: Path) -> None:
    found = verdicts.judge([some(tmp_path, "a"), some(tmp_path, "b", outcome="saved")], NOTHING, Choice())
    assert found.notes == ["b is saved: its last evaluation is of step 4 of 4"]
    assert len(found.pairs) == 1


def test_without_predictions_a_pair_of_single_runs_is_not_decided(tmp_path: Path) -> None:
    runs = [some(tmp_path, "a"), some(tmp_path, "b", range(30), optim__lr=0.5)]
    silent = [runs[0], replace(runs[1], predictions=lambda _: Predictions())]
    found = verdicts.judge(silent, NOTHING, Choice())
    assert [(pair.verdict, pair.reason) for pair in found.undecided] == [("unknown", "no predictions of b")]


def test_without_predictions_seeds_are_tested_alone_if_they_saw_the_same_data(tmp_path: Path) -> None:
    one = recipe(tmp_path, "one", [range(1), range(2), range(1)], lr=0.1)
    other = [replace(run, predictions=lambda _: Predictions()) for run in recipe(tmp_path, "other", [range(20), range(21)], lr=0.2)]
    [pair] = verdicts.judge([*one, *other], NOTHING, Choice()).pairs
    assert (pair.verdict, pair.difference and pair.difference.test, pair.reason) == ("better", "Welch t", "")
    assert "speaks of these validation samples only" in pair.notes[0]
    elsewhere = [replace(run, fingerprint="f2") for run in other]
    [pair] = verdicts.judge([*one, *elsewhere], NOTHING, Choice()).pairs
    assert (pair.verdict, pair.reason) == ("unknown", "no predictions of other-0, other-1")


def test_seeds_that_all_score_the_same_are_no_measure_of_noise(tmp_path: Path) -> None:
    one = [replace(run, predictions=lambda _: Predictions()) for run in recipe(tmp_path, "one", [range(1), range(1)], lr=0.1)]
    other = recipe(tmp_path, "other", [range(2), range(2)], lr=0.2)
    [pair] = verdicts.judge([*one, *other], NOTHING, Choice()).pairs
    reason = "no predictions of one-0, one-1, and on each side all seeds score the same, which is no measure of noise"
    assert (pair.verdict, pair.reason) == ("unknown", reason)


def test_recipes_are_sorted_by_a_score_or_by_a_key_of_the_config(tmp_path: Path) -> None:
    runs = [some(tmp_path, "a", range(3), optim__lr=0.3), some(tmp_path, "b", optim__lr=0.2), some(tmp_path, "c", range(1), optim__lr=0.1)]

    def order(**choice: Any) -> list[str]:
        return [entry.group.label for entry in verdicts.judge(runs, NOTHING, Choice(**choice)).entries]

    assert order() == order(sort="val/top1") == order(sort="val/loss") == ["b", "c", "a"]
    assert order(sort="optim.lr") == ["c", "b", "a"]
    assert order(where=["optim.lr>0.1"]) == ["b", "a"]
    with pytest.raises(ConfigError, match=r"--sort val/top2: no run has that; did you mean val/top1\?"):
        order(sort="val/top2")


def test_the_cost_of_a_group_is_summed_and_its_scores_are_means(tmp_path: Path) -> None:
    runs = [*recipe(tmp_path, "one", [range(6), range(12)], lr=0.1), some(tmp_path, "two")]
    entry = next(entry for entry in verdicts.judge(runs, NOTHING, Choice()).entries if entry.group.label == "one (2 seeds)")
    assert (entry.cost.train_s, entry.cost.device_hours, entry.cost.samples_per_s) == (16.0, pytest.approx(16 / 3600), 16.0)
    assert entry.scores["val/top1"] == pytest.approx(0.85)
    assert entry.spreads["last"].mean == pytest.approx(0.85)
    assert entry.steps == [4, 4]
