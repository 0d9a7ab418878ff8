"""Which runs are held against which, and for each pair whether the difference is noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import fmean
from typing import Any

from sft_dist.compare import noise, standings
from sft_dist.compare.kinds import KINDS
from sft_dist.compare.noise import Difference
from sft_dist.compare.pairing import Answers, ClassChange, Held, Kind
from sft_dist.compare.standings import Entry
from sft_dist.errors import ConfigError
from sft_dist.history import groups, selection
from sft_dist.history.groups import Fact, Group
from sft_dist.history.records import Record, told_apart

ALPHA = 1 - noise.LEVEL
ALL_PAIRS = 5  # groups of which every pair is judged; of more, the first against each of the others
TOP = 10

Predicted = Callable[[Record], Answers]


@dataclass(frozen=True)
class Choice:
    """What is compared: the `last` evaluation or the `best`, of the runs that meet the conditions, in an order, the first few.

    metric: one of those that their kind of work is tested by; None is the score that decided the runs' best.
    """

    at: str = "last"
    metric: str | None = None
    where: Sequence[str] = ()
    sort: str | None = None
    top: int | None = None


@dataclass(frozen=True)
class Pair:
    """`other` against `one`. verdict: better, worse, noise or unknown. p: corrected. reason: why nothing can be said, where it is so.

    beside: other scores -> their differences, told as well, without correction, and deciding nothing.
    """

    one: str
    other: str
    runs: tuple[int, int]
    verdict: str = "unknown"
    difference: Difference | None = None
    p: float | None = None
    beside: Mapping[str, Difference] = field(default_factory=dict)
    samples: int = 0
    classes: Sequence[ClassChange] = ()
    better: Sequence[Any] = ()
    worse: Sequence[Any] = ()
    notes: Sequence[str] = ()
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """Everything that the screen, the page and compare.json show.

    among: how many comparisons the p values are corrected for. groups: how many there were before the first few were chosen.
    left_out: runs that were asked for and have no score.
    """

    task: str
    at: str
    metric: str
    entries: Sequence[Entry]
    facts: Sequence[Fact]
    pairs: Sequence[Pair]
    among: int
    groups: int
    baseline: str | None
    left_out: Sequence[str]
    notes: Sequence[str]

    @property
    def kind(self) -> Kind:
        return KINDS[self.task]

    @property
    def regressions(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.verdict == "worse"] if self.baseline else []

    @property
    def undecided(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.verdict == "unknown"]

    @property
    def complete(self) -> bool:
        """Whether every run that was asked for was judged."""
        return not self.undecided and not self.left_out


def judge(records: Sequence[Record], baseline: Sequence[Record], choice: Choice) -> Comparison:
    """Compare runs with each other or, where there is a baseline, each recipe with that. Raises ConfigError where there is nothing to compare."""
    if baseline and choice.top:
        raise ConfigError("--top with --baseline would hide regressions; use --where to choose runs")
    places = {record.place for record in baseline}
    everyone = told_apart([*baseline, *(record for record in records if record.place not in places)])
    baseline, records = everyone[: len(baseline)], everyone[len(baseline) :]
    chosen = selection.where(records, choice.where, choice.at)
    task = _task([*baseline, *chosen])
    tested = KINDS[task].tested
    metric = choice.metric or tested[0]
    if metric not in tested:
        raise ConfigError(f"--metric {metric}: runs are judged by one of {', '.join(tested)}; --sort {metric} orders them by it")
    scored, notes = _scored(chosen, metric, choice.at)
    left_out = [record.name for record in chosen if metric not in record.numbers(choice.at)]
    wanted, told = groups.group(scored)
    wanted = _sorted(wanted, metric, choice)
    base, more_told = _baseline(baseline, metric, choice.at)
    if len(wanted) + len(base) < 2:
        raise ConfigError(
            [
                f"there are no two recipes to compare: {len(wanted) + len(base)} with {metric} at its {choice.at} evaluation",
                *notes,
                *told,
                *more_told,
            ]
        )
    shown = wanted if base else wanted[: choice.top or TOP]
    if len(shown) < len(wanted):
        notes.append(f"the first {len(shown)} of {len(wanted)} are shown; --top {len(wanted)} shows all")
    among = len(wanted) if base else len(wanted) * (len(wanted) - 1) // 2
    entries = [standings.entry(group, metric, choice.at) for group in (*base, *shown)]
    pairs = _judged(_chosen(base, shown), metric, choice.at, among)
    problems = [f"{name}: {told}" for entry in entries for name, read in entry.curves.items() for told in read.problems]
    facts, count = groups.differing([*base, *shown]), len(wanted) + len(base)
    label = base[0].label if base else None
    return Comparison(task, choice.at, metric, entries, facts, pairs, among, count, label, left_out, [*notes, *told, *more_told, *problems])


def _task(records: Sequence[Record]) -> str:
    """That of all of them. Raises ConfigError where they are of several."""
    first = {record.task: record.name for record in reversed(records)}
    if len(first) > 1:
        told = " and ".join(f"{name} of {task}" for task, name in sorted(first.items()))
        raise ConfigError(f"runs of different tasks cannot be compared: {told}; name runs of one task, or add --where task={min(first)}")
    return next(iter(first), "classify")


def _scored(records: Sequence[Record], metric: str, at: str) -> tuple[list[Record], list[str]]:
    """The runs that have the score; and what is to be said of the others, and of those that are not at their end."""
    scored, notes = [], []
    for record in records:
        step, of, ended = record.step(at), record.plan.get("total_steps"), record.outcome.get("outcome", "unfinished")
        if metric not in record.numbers(at):
            notes.append(f"{record.name} is left out: {ended}, without {metric}")
            continue
        scored.append(record)
        if not record.done:
            notes.append(f"{record.name} is {ended}: its {at} evaluation is of step {step} of {of}")
    return scored, notes


def _baseline(records: Sequence[Record], metric: str, at: str) -> tuple[list[Group], list[str]]:
    if not records:
        return [], []
    scored, notes = _scored(records, metric, at)
    found, told = groups.group(scored)
    if len(found) != 1:
        facts = [f"{fact.name}: {' | '.join(fact.values)}" for fact in groups.differing(found)]
        raise ConfigError(
            [f"--baseline names {len(found)} recipes with {metric}; name runs that differ in nothing but their seed", *notes, *facts]
        )
    return found, [*notes, *told]


def _sorted(found: Sequence[Group], metric: str, choice: Choice) -> list[Group]:
    """By the mean of a score or by a value of the config; by the headline score without an order."""
    key = choice.sort or metric
    known = {group.label: [selection.values(run, choice.at) for run in group.runs] for group in found}
    selection.check_keys("--sort", [key] if found else [], [values for runs in known.values() for values in runs])

    def place(group: Group) -> tuple[int, float, str]:
        values = [values.get(key) for values in known[group.label]]
        numbers = [value for value in values if isinstance(value, float) and "/" in key]
        return selection.rank(key, fmean(numbers) if numbers else values[0])

    return sorted(found, key=place)


def _chosen(base: Sequence[Group], shown: Sequence[Group]) -> list[tuple[Group, Group]]:
    """The pairs to judge, the one that is expected to be less good first: without a baseline the groups come best first."""
    if base:
        return [(base[0], group) for group in shown]
    firsts = shown if len(shown) <= ALL_PAIRS else shown[:1]
    return [(worse, better) for i, better in enumerate(firsts) for worse in shown[i + 1 :]]


def _judged(chosen: Sequence[tuple[Group, Group]], metric: str, at: str, among: int) -> list[Pair]:
    @cache
    def answers(place: str) -> Answers:
        run = runs[place]
        step = run.step(at)
        return Answers(run.name, run.classes, run.predictions(step if step is not None else 0))

    runs = {run.place: run for pair in chosen for group in pair for run in group.runs}
    pairs = [_pair(one, other, metric, at, lambda run: answers(run.place)) for one, other in chosen]
    corrected = iter(noise.holm([pair.difference.p for pair in pairs if pair.difference], among))
    return [_decided(pair, next(corrected)) if pair.difference else pair for pair in pairs]


def _decided(pair: Pair, p: float) -> Pair:
    assert pair.difference
    verdict = "noise" if p >= ALPHA else "better" if pair.difference.value > 0 else "worse"
    return replace(pair, p=p, verdict=verdict)


def _pair(one: Group, other: Group, metric: str, at: str, answers: Predicted) -> Pair:
    kind = KINDS[one.runs[0].task]
    held = kind.hold([answers(run) for run in one.runs], [answers(run) for run in other.runs])
    begun = Pair(one.label, other.label, (len(one.runs), len(other.runs)))
    if not isinstance(held, Held):
        silent = any(not answers(run).predictions.ids for run in (*one.runs, *other.runs))
        return _by_seeds_alone(replace(begun, reason=held), one, other, metric, at) if silent else replace(begun, reason=held)
    return replace(
        begun,
        difference=held.difference(metric),
        beside={name: held.difference(name) for name in kind.beside if name != metric},
        samples=held.samples,
        classes=held.classes,
        better=held.better,
        worse=held.worse,
        notes=held.notes,
    )


def _by_seeds_alone(pair: Pair, one: Group, other: Group, metric: str, at: str) -> Pair:
    """Where predictions are missing: a test over the seeds, if there are several on both sides, they differ, and all saw the same data."""
    runs = [*one.runs, *other.runs]
    data = {run.fingerprint for run in runs}
    if min(pair.runs) < 2 or len(data) > 1 or None in data:
        return pair
    scores = [[run.numbers(at)[metric] for run in group.runs] for group in (one, other)]
    if all(len(set(side)) == 1 for side in scores):
        return replace(pair, reason=f"{pair.reason}, and on each side all seeds score the same, which is no measure of noise")
    note = f"{pair.reason}: tested over the seeds alone, so it speaks of these validation samples only"
    return replace(pair, difference=noise.welch(*scores), notes=[note], reason="")
