"""Which runs are one recipe with several seeds, and in what recipes differ: keys of the config, code, data, machine."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.history.records import Record, is_number, natural

NOT_THE_RECIPE = ("train.seed", "run.", "track.", "report.", "watch.", "save.", "data.root", "data.download", "data.workers")
"""Keys in which runs of one recipe may differ. Of the data the fingerprint is compared instead of the place."""
OWN = ("train.seed", "run.name", "run.dir")  # of each run its own, and never worth a line


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed, by seed; often only one."""

    label: str
    runs: Sequence[Record]

    @property
    def seeds(self) -> list[Any]:
        return [run.config.get("train.seed") for run in self.runs]


@dataclass(frozen=True)
class Fact:
    """Something in which groups differ, and for each of them what it is there."""

    name: str
    values: Sequence[str]


def group(records: Sequence[Record]) -> tuple[list[Group], list[str]]:
    """The groups in the order of their first runs; and what was not counted: of two runs with the same seed only the newer one is."""
    families: dict[str, list[Record]] = {}
    for record in records:
        families.setdefault(_identity(record), []).append(record)
    groups, told = [], []
    for family in families.values():
        by_seed: dict[str, Record] = {}
        for run in sorted(family, key=lambda run: run.when):
            seed = str(run.config.get("train.seed"))
            if older := by_seed.get(seed):
                told.append(f"{older.name} and {run.name} are the same recipe with the same seed: only the newer, {run.name}, counts")
            by_seed[seed] = run
        runs = sorted(by_seed.values(), key=lambda run: natural(str(run.config.get("train.seed"))))
        groups.append(Group(_label(runs), tuple(runs)))
        if len(runs) > 1 and any(run.env.get("dirty") for run in runs):
            told.append(f"{groups[-1].label}: code with changes that were not committed ran, and may not have been the same for all")
    labels = [one.label for one in groups]
    return [Group(f"{one.label}: {one.runs[0].name}", one.runs) if labels.count(one.label) > 1 else one for one in groups], told


def differing(groups: Sequence[Group]) -> list[Fact]:
    """The facts that are not the same in all runs of all groups, in the order of the config, then code, data and machine."""
    known = [[_facts(run) for run in one.runs] for one in groups]
    names = dict.fromkeys(name for runs in known for facts in runs for name in facts)
    found = []
    for name in names:
        values = [list(dict.fromkeys(facts.get(name, "-") for facts in runs)) for runs in known]
        if len({value for those in values for value in those}) > 1:
            found.append(Fact(name, [", ".join(those) for those in values]))
    return found


def _identity(record: Record) -> str:
    """Equal for runs of one recipe. A run that is not done, or whose config says nothing of the recipe, stands alone."""
    recipe = {key: _plain(value) for key, value in record.config.items() if not key.startswith(NOT_THE_RECIPE)}
    if not record.done or not recipe:
        return record.place
    code = [record.env.get("commit"), _packages(record).get("sft-dist")]
    return json.dumps([recipe, record.fingerprint, code], sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    """One whole number, written by one program as 1.0 and by another as 1, is one value."""
    return [_plain(part) for part in value] if isinstance(value, list) else float(value) if is_number(value) else value


def _facts(run: Record) -> dict[str, str]:
    facts = {key: shown(value) for key, value in run.config.items() if key not in OWN}
    commit = run.env.get("commit")
    facts["code: commit"] = commit[:12] if isinstance(commit, str) else "-"
    facts["code: changes not committed"] = "yes" if run.env.get("dirty") else "no"
    facts |= {f"code: {name}": shown(version) for name, version in _packages(run).items()}
    facts["data: fingerprint"] = run.fingerprint or "-"
    facts["machine: device"] = shown(run.env.get("device"))
    facts["machine: processes"] = shown(run.plan.get("world"))
    return facts


def shown(value: object) -> str:
    """A value of a config or a record as one would write it."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)


def _packages(run: Record) -> Mapping[str, Any]:
    packages = run.env.get("packages")
    return packages if isinstance(packages, dict) else {}


def _label(runs: Sequence[Record]) -> str:
    """The run's name; of several what their names begin with, without the number of the seed."""
    names = [run.name for run in runs]
    if len(names) == 1:
        return names[0]
    stem = re.sub(r"[-_.=]*(?:seed)?[-_.=]*\d*$", "", _common(names))
    return f"{stem or names[0] + ' ...'} ({len(names)} seeds)"


def _common(names: Sequence[str]) -> str:
    shortest, longest = min(names), max(names)
    return next((shortest[:i] for i, c in enumerate(shortest) if c != longest[i]), shortest)
