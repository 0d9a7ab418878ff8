"""How runs stand, for the terminal: one in detail, or a line for each of many."""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_dist.pages import words
from sft_dist.watch.sight import Ranks, Sight

BARS = "▁▂▃▄▅▆▇█"
WIDE = 48  # columns of a curve
SHORT = 16  # of one in a table
LARGEST = 1e150  # of which a few thousand can be added
GROUPS = 12  # lines of ranks: more do different things only for a moment


def one(sight: Sight) -> RenderableType:
    """Everything that is known of a run."""
    return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines(sight)))


def many(sights: Sequence[Sight], more: int) -> RenderableType:
    """A line a run. more: how many others there are."""
    table = Table("run", "state", "progress", "step", "left", "loss", "score", "samples/s", "data wait", "quiet for")
    for sight in sights:
        score = sight.curves.get(sight.headline, ())
        cells = (
            sight.name,
            sight.state,
            bar(share(sight), 10),
            steps(sight),
            remaining(sight),
            spark(sight.curves.get("train/loss", ()), SHORT),
            f"{score[-1]:.4f}" if score else "-",
            words.speed(sight.samples_per_s),
            percent(sight.data_wait_pct),
            words.duration(sight.quiet_s),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return Group(table, *([Text(f"and {more} more that wrote nothing for longer")] if more else []))


def lines(sight: Sight) -> Iterator[str]:
    attempt = f", attempt {sight.attempt}" if sight.attempt else ""
    quiet = f" for {words.duration(sight.quiet_s)}" if sight.state == "silent" else ""
    yield f"{sight.name}  {sight.state}{quiet}{attempt}{f': {sight.reason}' if sight.reason else ''}"
    epochs = f"  epoch {sight.epoch:.4g} of {sight.epochs:.4g}" if sight.epoch is not None and sight.epochs is not None else ""
    yield f"{bar(share(sight), WIDE)}  step {steps(sight)}{epochs}"
    if sight.left:
        at_most = "" if sight.left.measured else "at most "
        each = f" of {at_most}{words.duration(sight.left.evaluation_s)}" if sight.left.evaluations else ""
        yield f"left {remaining(sight)}, with {sight.left.evaluations} evaluation(s){each}"
    yield f"{words.speed(sight.samples_per_s)} samples/s, {percent(sight.data_wait_pct)} of the time waiting for data"
    width = max(map(len, sight.curves), default=0)
    for name, values in sight.curves.items():
        yield f"{name:<{width}}  {spark(values, WIDE):<{WIDE}}  {values[0]:.4g} to {values[-1]:.4g}, between {min(values):.4g} and {max(values):.4g}"
    for group in sight.ranks[:GROUPS]:
        yield ranks(group)
    if len(sight.ranks) > GROUPS:
        yield f"and {len(sight.ranks) - GROUPS} more lines of ranks"


def ranks(group: Ranks) -> str:
    """Who does what: `rank 0-3 on host: forward of step 17, for up to 0.2 s (told 1 s ago)`."""
    doing = f"{group.phase} of step {group.step}" if group.step else group.phase
    return f"rank {together(group.ranks)} on {group.host}: {doing}, for up to {group.longest_s:.1f} s (told {group.told_s:.0f} s ago)"


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
