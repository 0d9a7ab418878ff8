"""How runs stand, for the terminal: one in detail, or a line for each of many."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_dist.pages import words
from sft_dist.watch.sight import Ranks, Sight

BARS = "▁▂▃▄▅▆▇█"
WIDE = 48  # columns of a curve, where the screen has them
NARROW = 8  # fewer columns show no curve
SHORT = 16  # of one in a table
LARGEST = 1e150  # of which a few thousand can be added
GROUPS = 12  # lines of ranks: more do different things only for a moment

COLUMNS: dict[str, Callable[[Sight], str]] = {
    "run": lambda sight: sight.name,
    "state": lambda sight: sight.state,
    "progress": lambda sight: bar(share(sight), 10),
    "step": lambda sight: steps(sight),
    "left": lambda sight: remaining(sight),
    "loss": lambda sight: spark(sight.curves.get("train/loss", ()), SHORT),
    "score": lambda sight: "-" if sight.score is None else f"{sight.score:.4f}",
    "samples/s": lambda sight: words.speed(sight.samples_per_s),
    "data wait": lambda sight: percent(sight.data_wait_pct),
    "quiet for": lambda sight: words.duration(sight.quiet_s),
}
FIRST = ("run", "state", "step", "left", "score", "quiet for", "progress", "data wait", "samples/s", "loss")  # on a narrow screen


def one(sight: Sight, width: int) -> RenderableType:
    """Everything that is known of a run; what is longer than the screen is wide goes on in the next line."""
    return Group(*(Text(line) for line in lines(sight, width)))


def many(sights: Sequence[Sight], more: int, width: int) -> RenderableType:
    """A line a run, with the columns that fit. more: how many other runs there are."""
    cells = {head: [make(sight) for sight in sights] for head, make in COLUMNS.items()}
    shown = fitting({head: max(map(cell_len, (head, *column))) for head, column in cells.items()}, width)
    table = Table(*shown)
    for row in zip(*(cells[head] for head in shown), strict=True):
        table.add_row(*map(Text, row))
    return Group(table, *([Text(f"and {more} more that wrote nothing for longer")] if more else []))


def fitting(widths: Mapping[str, int], width: int) -> list[str]:
    """The heads of the most important columns that fit side by side; the run and its state always."""
    room, shown = width - 1, set(FIRST[:2])
    for head in FIRST:
        room -= widths[head] + 3  # a border, and a space on either side
        if room >= 0:
            shown.add(head)
    return [head for head in widths if head in shown]


def lines(sight: Sight, width: int) -> Iterator[str]:
    attempt = f", attempt {sight.attempt}" if sight.attempt else ""
    quiet = f" for {words.duration(sight.quiet_s)}" if sight.state == "silent" else ""
    yield f"{sight.name}  {sight.state}{quiet}{attempt}{f': {sight.reason}' if sight.reason else ''}"
    epochs = f"  epoch {sight.epoch:.4g} of {sight.epochs:.4g}" if sight.epoch is not None and sight.epochs is not None else ""
    told = f"  step {steps(sight)}{epochs}"
    yield bar(share(sight), max(NARROW, min(WIDE, width - len(told)))) + told
    if sight.left:
        about = "" if sight.left.measured else "perhaps "
        each = f" of {about}{words.duration(sight.left.evaluation_s)}" if sight.left.evaluations else ""
        yield f"left {remaining(sight)}, with {sight.left.evaluations} evaluation(s){each}"
    yield f"{words.speed(sight.samples_per_s)} samples/s, {percent(sight.data_wait_pct)} of the time waiting for data"
    yield from curves(sight, width)
    for group in sight.ranks[:GROUPS]:
        yield ranks(group)
    if len(sight.ranks) > GROUPS:
        yield f"and {len(sight.ranks) - GROUPS} more lines of ranks"


def curves(sight: Sight, width: int) -> Iterator[str]:
    """Of each its latest value, its least and its most, and its shape where there is room."""
    name = max(map(len, sight.curves), default=0)
    told = [f"{values[-1]:.4g}, of {min(values):.4g} to {max(values):.4g}" for values in sight.curves.values()]
    room = width - name - max(map(len, told), default=0) - 4
    for (curve, values), numbers in zip(sight.curves.items(), told, strict=True):
        shape = spark(values, min(WIDE, room)) if room >= NARROW else ""
        yield f"{curve:<{name}}  {numbers:<{max(map(len, told))}}  {shape}".rstrip()


def ranks(group: Ranks) -> str:
    """Who does what: `rank 0-3 on host: forward of step 17, for up to 0.2 s (told 1 s ago)`; of ranks that hang, how long they are silent."""
    doing = f"{group.phase} of step {group.step}" if group.step else group.phase
    lasting = f"silent for up to {words.duration(group.silent_s)}" if group.silent_s else f"for up to {group.longest_s:.1f} s"
    return f"rank {together(group.ranks)} on {group.host}: {doing}, {lasting} (told {group.told_s:.0f} s ago)"


def together(numbers: Sequence[int]) -> str:
    """`0-3 6 8-9`."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def spark(values: Sequence[float], width: int) -> str:
    """A curve in one line of at most `width` characters, each the mean of as many values; from the smallest value to the largest."""
    values = [min(max(value, -LARGEST), LARGEST) for value in values]
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)] if count else []
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1)) if high > low else 0] for mean in means)


def bar(done: float, width: int) -> str:
    full = int(done * width)
    return "━" * full + "─" * (width - full)


def share(sight: Sight) -> float:
    return min(1.0, max(0.0, sight.step / sight.total)) if sight.total else 0.0


def steps(sight: Sight) -> str:
    return f"{sight.step}/{'?' if sight.total is None else sight.total}"


def remaining(sight: Sight) -> str:
    return words.duration(sight.left.seconds) if sight.left else "-"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"
