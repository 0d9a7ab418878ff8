"""Pictures as SVG that follows the reader's light or dark colours, each a data URI that an <img> shows."""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#b8860b", "#a6761d")
SHADES = (*COLOURS, "#17becf", "#888888", "#bbbbbb")  # of the parts of one bar
DASHES = {"solid": "none", "dashed": "6 3", "dotted": "2 2", "dashdot": "6 2 2 2"}  # so that colour alone tells nothing; in SVG's words
MARKS, GLYPHS = "os^DvPX*", "●■▲◆▼✚✖★"  # likewise of points, and the same for words
INK = "#123456"  # what matplotlib draws axes and words in, replaced by the reader's own colour
FEW = 40  # points of a line that are marked one by one
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # words stay words
    "svg.hashsalt": "sft-dist",  # the same picture is the same file
    "text.parse_math": False,
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
THEME = """<style>:root { --ink: #333 } text { font-family: system-ui, sans-serif !important }
@media (prefers-color-scheme: dark) { :root { --ink: #ccc } }</style>"""


@dataclass(frozen=True)
class Line:
    """One curve. group: its place among the groups, which decides colour and dashes."""

    group: int
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Picture:
    """A picture with the words that stand for it where it cannot be seen."""

    uri: str
    alt: str


def colour(group: int) -> str:
    return COLOURS[group % len(COLOURS)]


def shade(part: int) -> str:
    return SHADES[part % len(SHADES)]


def dash(group: int) -> str:
    return list(DASHES)[group % len(DASHES)]


def curves(lines: Sequence[Line], x_label: str, y_label: str, whole: bool, marks: Sequence[float] = ()) -> str:
    """The picture of some curves over each other. It bears no legend: names are the page's to write. whole: x counts things.

    marks: places on the x axis where a thin line stands.
    """
    with drawing(3.8, 2.5) as (axes, made):
        for line in lines:
            marker = "o" if len(line.x) <= FEW else None
            axes.plot(line.x, line.y, color=colour(line.group), linestyle=dash(line.group), linewidth=1.3, marker=marker, markersize=3)
        for place in marks:
            axes.axvline(place, color=INK, alpha=0.5, linewidth=0.8, linestyle="dotted")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.locator_params(axis="x", integer=whole)
        axes.grid(alpha=0.2, color=INK)
    return made[0]


@contextmanager
def drawing(width: float, height: float, rows: int = 1) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on, two below each other with rows=2; and a list that holds the picture's URI when the context has ended."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    made: list[str] = []
    with rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
        axes = figure.subplots(rows, 1, height_ratios=(3, 1)[:rows], sharex=rows > 1) if rows > 1 else figure.subplots()
        yield axes, made
        for one in figure.axes:
            one.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    made.append(_uri(file.getvalue()))


def _uri(svg: str) -> str:
    svg = svg[svg.index("<svg") :].replace(INK, "var(--ink)")
    head, end, rest = svg.partition(">")
    return "data:image/svg+xml;base64," + base64.b64encode(f"{head}{end}{THEME}{rest}".encode()).decode()
