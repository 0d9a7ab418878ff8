"""Curves as pictures: SVG that follows the reader's light or dark colours, as a data URI that an <img> shows."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#b8860b", "#a6761d")
DASHES = {"solid": "none", "dashed": "6 3", "dotted": "2 2", "dashdot": "6 2 2 2"}  # so that colour alone tells nothing; in SVG's words
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


def colour(group: int) -> str:
    return COLOURS[group % len(COLOURS)]


def dash(group: int) -> str:
    return list(DASHES)[group % len(DASHES)]


def curves(lines: Sequence[Line], x_label: str, y_label: str, whole: bool) -> str:
    """The picture of some curves over each other. It bears no legend: names are the page's to write. whole: x counts things."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=(4.8, 3.0), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            marker = "o" if len(line.x) <= FEW else None
            axes.plot(line.x, line.y, color=colour(line.group), linestyle=dash(line.group), linewidth=1.3, marker=marker, markersize=3)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.locator_params(axis="x", integer=whole)
        axes.grid(alpha=0.2, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _uri(file.getvalue())


def _uri(svg: str) -> str:
    svg = svg[svg.index("<svg") :].replace(INK, "var(--ink)")
    head, end, rest = svg.partition(">")
    return "data:image/svg+xml;base64," + base64.b64encode(f"{head}{end}{THEME}{rest}".encode()).decode()
