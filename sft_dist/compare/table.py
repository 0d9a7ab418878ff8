"""A comparison on the screen."""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from sft_dist.compare import telling
from sft_dist.compare.pairing import Kind
from sft_dist.compare.verdicts import Comparison, Pair
from sft_dist.history.records import printable
from sft_dist.pages import terminal, words

MOST = 8
KEPT = 3  # columns of the table that a narrow screen has too


def show(comparison: Comparison) -> None:
    """A table of the groups, what differs, a verdict for each pair, and what to know of it. Names are printed as they are, never obeyed."""
    screen = terminal.screen()
    screen.print(_table(comparison, screen.width))
    terminal.say(*_lines(comparison))


def _table(comparison: Comparison, width: int) -> Table:
    """As many columns as the screen has room for, but the first KEPT in any case; the page has all of them."""
    rows = [_cells(comparison, i) for i in range(len(comparison.entries))]
    wide = {title: max(cell_len(text) for text in (title, *(row[title] for row in rows))) + 3 for title in rows[0]}
    titles = [title for i, title in enumerate(wide) if i < KEPT or 1 + sum([*wide.values()][: i + 1]) <= width]
    table = Table(*titles)
    for row in rows:
        table.add_row(*(Text(row[title]) for title in titles))
    return table


def _cells(comparison: Comparison, number: int) -> dict[str, str]:
    """A row by the titles of its columns, the most important first."""
    entry, name = comparison.entries[number], words.score(comparison.metric)
    last, best = (entry.spreads.get(at) for at in ("last", "best"))
    cells = {
        "run": entry.group.label + (" (baseline)" if comparison.baseline and number == 0 else ""),
        "seeds": " ".join(map(str, entry.group.seeds)),
        f"{name}, last": telling.spread(last),
        "95 % of the mean": telling.interval(last),
        f"{name}, best": telling.spread(best),
        "step": telling.steps(entry),
        "training": words.duration(entry.cost.train_s),
        "samples/s": words.speed(entry.cost.samples_per_s),
        "device-hours": words.hours(entry.cost.device_hours),
    }
    return {title: printable(cell) for title, cell in cells.items()}


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
        yield from (f"    {line}" for line in _details(pair, comparison.kind))
    if comparison.at == "best":
        yield "  the best evaluation was picked by the same samples that it is compared on, which flatters whoever evaluated more often"
    yield from (f"note: {note}" for note in comparison.notes)
    if comparison.baseline:
        yield from telling.regressions(comparison)


def _details(pair: Pair, kind: Kind) -> Iterator[str]:
    yield from telling.beside(pair)
    changed = [telling.class_change(change) for change in pair.classes if change.change]
    if changed:
        yield f"{kind.columns[0]} by class, in points: {words.listed(changed, MOST)}"
    for name, moved in (("better", pair.better), ("worse", pair.worse)):
        if moved:
            yield f"{len(moved)} samples {name}: {words.listed([f'{one.id} ({kind.brief(one)})' for one in moved], 4)}"
    yield from pair.notes
