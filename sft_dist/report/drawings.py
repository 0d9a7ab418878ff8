"""The pictures that only a report has."""

from collections.abc import Sequence
from typing import Any

from sft_dist.pages import figures
from sft_dist.report.calibration import Calibration


def reliability(found: Calibration) -> str:
    """Accuracy against confidence, a bar for each bin, and the line on which they would be equal; below, how many samples a bin holds."""
    with figures.drawing(4.2, 4.2, rows=2) as ((axes, below), made):
        left, width = [one.low for one in found.bins], [one.high - one.low for one in found.bins]
        shape: dict[str, Any] = {"width": width, "align": "edge", "edgecolor": figures.INK, "linewidth": 0.5}
        axes.bar(left, [one.accuracy for one in found.bins], color=figures.colour(0), **shape)
        axes.plot([one.confidence for one in found.bins], [one.accuracy for one in found.bins], "o", color=figures.INK, markersize=3)
        axes.plot([0, 1], [0, 1], color=figures.INK, linewidth=1, linestyle="dashed")
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        below.bar(left, [one.samples for one in found.bins], color=figures.colour(0), alpha=0.5, **shape)
        below.set(xlim=(0, 1), xlabel="confidence", ylabel="samples")
        below.locator_params(axis="y", nbins=3, integer=True)
    return made[0]


def heat(shares: Sequence[Sequence[float]]) -> str:
    """A square of numbers from 0 to 1: rows are truths, columns what was said."""
    from matplotlib.colors import LinearSegmentedColormap

    shading = LinearSegmentedColormap.from_list("shading", [(0.12, 0.47, 0.71, 0), (0.12, 0.47, 0.71, 1)])
    with figures.drawing(4.8, 4.6) as (axes, made):
        axes.imshow(shares, cmap=shading, vmin=0, vmax=1, interpolation="none")
        axes.set(xlabel="said (class number)", ylabel="truth (class number)")
    return made[0]


def scatter(points: Sequence[tuple[float, float]], labels: Sequence[int], shown: Sequence[int]) -> str:
    """Points by class: those of `shown` in colours and marks of their own, the others grey. Both axes have one scale and no unit."""
    with figures.drawing(4.2, 4.0) as (axes, made):
        others = [point for point, label in zip(points, labels, strict=True) if label not in shown]
        style: dict[str, Any] = {"s": 12, "linewidths": 0, "rasterized": True}  # thousands of points would be a large file
        axes.scatter([x for x, _ in others], [y for _, y in others], color="#888888", alpha=0.4, **style)
        for place, label in enumerate(shown):
            its = [point for point, one in zip(points, labels, strict=True) if one == label]
            marker = figures.MARKS[place % len(figures.MARKS)]
            axes.scatter([x for x, _ in its], [y for _, y in its], color=figures.colour(place), marker=marker, alpha=0.75, **style)
        axes.set(xticks=[], yticks=[], xlabel="first component", ylabel="second component")
        axes.set_aspect("equal", adjustable="datalim")
    return made[0]
