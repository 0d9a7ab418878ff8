"""A comparison on the screen."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from sft_dist.compare import telling
from sft_dist.compare.verdicts import Comparison, Pair
from sft_dist.history.records import printable
from sft_dist.pages import terminal, words

MOST = 8


def show(comparison: Comparison) -> None:
    """A table of the groups, what differs, a verdict for each pair, and what to know of it. Names are printed as they are, never obeyed."""
    terminal.screen().print(_table(comparison))
    terminal.say(*_lines(comparison))


def _table(comparison: Comparison) -> Table:
    name = words.score(comparison.metric)
    table = Table("run", "seeds", f"{name}, last", "95 % of the mean", f"{name}, best", "step", "training", "samples/s", "device-hours")
    for i, entry in enumerate(comparison.entries):
        last, best = (entry.spreads.get(at) for at in ("last", "best"))
        cells = [
            entry.group.label + (" (baseline)" if comparison.baseline and i == 0 else ""),
            " ".join(map(str, entry.group.seeds)),
            telling.spread(last),
            telling.interval(last),
            telling.spread(best),
            telling.steps(entry),
            words.duration(entry.cost.train_s),
            words.speed(entry.cost.samples_per_s),
            words.hours(entry.cost.device_hours),
        ]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _lines(comparison: Comparison) -> Iterator[str]:
    labels = [entry.group.label for entry in comparison.entries]
    if comparison.facts:
        yield "what differs:"
    for fact in comparison.facts:
        same: dict[str, list[str]] = {}
        for label, value in zip(labels, fact.values, strict=True):
            same.setdefault(value, []).append(label)
        told = [f"{value} ({words.listed(those, 3)})" for value, those in same.items()]
        yield f"  {fact.name}: {words.listed(told, MOST)}"
    yield f"{words.score(comparison.metric)} of the {comparison.at} evaluation, on the same validation samples:"
    for pair in comparison.pairs:
        yield f"  {telling.sentence(pair, comparison)}"
        yield from (f"    {line}" for line in _details(pair))
    if comparison.at == "best":
        yield "  the best evaluation was picked by the same samples that it is compared on, which flatters whoever evaluated more often"
    yield from (f"note: {note}" for note in comparison.notes)
    if comparison.baseline:
        yield from telling.regressions(comparison)


def _details(pair: Pair) -> Iterator[str]:
    yield from telling.beside(pair)
    changed = [telling.class_change(change) for change in pair.classes if change.recall_other != change.recall_one]
    if changed:
        yield f"recall by class, in points: {words.listed(changed, MOST)}"
    for name, moved in (("better", pair.better), ("worse", pair.worse)):
        if moved:
            yield f"{len(moved)} samples {name}: {words.listed([f'{one.id} ({telling.guess(one)})' for one in moved], 4)}"
    yield from pair.notes
