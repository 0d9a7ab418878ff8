"""A comparison as JSON, for scripts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sft_dist.compare import telling
from sft_dist.compare.pairing import ClassChange
from sft_dist.compare.standings import Entry
from sft_dist.compare.verdicts import Comparison, Pair

MOST = 1000  # samples that are named a pair and a direction; their number is always told


def content(comparison: Comparison) -> dict[str, Any]:
    """What compare.json holds; its fields are explained in docs/guides/compare.md."""
    return {
        "format": 1,
        "task": comparison.task,
        "at": comparison.at,
        "metric": comparison.metric,
        "baseline": comparison.baseline,
        "groups": [_group(entry) for entry in comparison.entries],
        "groups_in_all": comparison.groups,
        "differing": {fact.name: fact.values for fact in comparison.facts},
        "corrected_for": comparison.among,
        "pairs": [_pair(pair, comparison) for pair in comparison.pairs],
        "regressions": [pair.other for pair in comparison.regressions],
        "left_out": comparison.left_out,
        "notes": comparison.notes,
    }


def _group(entry: Entry) -> dict[str, Any]:
    runs = [
        {"name": run.name, "place": run.place, "seed": seed, "step": step}
        for run, seed, step in zip(entry.group.runs, entry.group.seeds, entry.steps, strict=True)
    ]
    spreads = {at: asdict(found) for at, found in entry.spreads.items()}
    return {"label": entry.group.label, "runs": runs, **spreads, "scores": entry.scores, "cost": asdict(entry.cost)}


def _pair(pair: Pair, comparison: Comparison) -> dict[str, Any]:
    return {
        "one": pair.one,
        "other": pair.other,
        "verdict": pair.verdict,
        "sentence": telling.sentence(pair, comparison),
        "difference": asdict(pair.difference) if pair.difference else None,
        "p_corrected": pair.p,
        "beside": {metric: asdict(difference) for metric, difference in pair.beside.items()},
        "samples": pair.samples,
        "classes": [_class(change) for change in pair.classes],
        "better": _moved(pair.better),
        "worse": _moved(pair.worse),
        "notes": pair.notes,
    }


def _class(change: ClassChange) -> dict[str, Any]:
    scores = {f"{name}_{side}": score for name, both in change.scores.items() for side, score in zip(("one", "other"), both, strict=True)}
    return {"name": change.name, "support": change.support, **scores}


def _moved(samples: Sequence[Any]) -> dict[str, Any]:
    return {"count": len(samples), "samples": [asdict(one) for one in samples[:MOST]]}
