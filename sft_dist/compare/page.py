"""A comparison as one HTML file that opens anywhere: no network, no script, light and dark, on a telephone and in print."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sft_dist.compare import telling
from sft_dist.compare.standings import Entry
from sft_dist.compare.verdicts import Comparison
from sft_dist.history.curves import Point, series, thin
from sft_dist.pages import figures, paper, words
from sft_dist.pages.figures import Picture

DRAWN = len(figures.COLOURS)  # groups whose curves are drawn over each other
POINTS = 400  # of one curve: more than a picture is wide
MOVED = 24  # samples a pair and a direction that the page shows; compare.json names them all
FIRST = 6  # of them that are seen before anything is opened, where there is one pair alone
PICTURES = 500  # samples of the whole page that are shown with a picture
METRICS = ("val/loss", "train/loss")


@dataclass(frozen=True)
class Axis:
    """What curves are drawn against. of: a point's place on it, or None where that is not known."""

    title: str
    label: str
    attribute: str


AXES = (
    Axis("By step", "step", "step"),
    Axis("By samples", "training samples seen", "samples"),
    Axis("By time", "seconds of training", "seconds"),
)


def page(comparison: Comparison, pictures: Mapping[str, str]) -> str:
    """The whole file. pictures: sample id -> data URI of its picture, as far as there are any."""
    drawn = [(axis.title, list(_pictures(comparison, axis))) for axis in AXES]
    return paper.render(
        "compare.html",
        comparison=comparison,
        kind=comparison.kind,
        words=words,
        telling=telling,
        figures=figures,
        name=words.score(comparison.metric),
        curves=[(title, found) for title, found in drawn if found],
        drawn=DRAWN,
        scale=_scale(comparison),
        first=FIRST,
        most=MOVED,
        pictures=pictures,
    )


def shown_samples(comparison: Comparison) -> list[str]:
    """The ids of the samples that the page shows, as far as pictures are worth looking for."""
    found = dict.fromkeys(one.id for pair in comparison.pairs for moved in (pair.better, pair.worse) for one in moved[:MOVED])
    return list(found)[:PICTURES]


def _pictures(comparison: Comparison, axis: Axis) -> Iterator[Picture]:
    """A picture for each metric that there is against this axis; none where the axis would say nothing that steps do not."""
    entries = comparison.entries[:DRAWN]
    if axis.attribute == "samples" and len({str(run.plan.get("global_batch")) for entry in entries for run in entry.group.runs}) < 2:
        return
    for metric in (comparison.metric, *METRICS):
        found = [(number, entry, points) for number, entry in enumerate(entries) for points in _points(entry, metric)]
        lines = [
            figures.Line(number, [getattr(point, axis.attribute) for point in points], [point.value for point in points])
            for number, _, points in found
            if all(getattr(point, axis.attribute) is not None for point in points)
        ]
        if lines and len(lines) == len(found):
            ends = [f"{entry.group.label} ends at {points[-1].value:.4g}" for _, entry, points in found]
            yield Picture(
                figures.curves(lines, axis.label, metric, whole=axis.attribute != "seconds"),
                f"{metric} against {axis.label}: {words.listed(ends, 20)}.",
            )


def _points(entry: Entry, metric: str) -> Iterator[Sequence[Point]]:
    for run in entry.group.runs:
        if points := series(entry.curves[run.name].rows, metric):
            yield thin(points, POINTS)


def _scale(comparison: Comparison) -> float:
    """The largest difference that an interval reaches: all of them are drawn on the same scale, around zero."""
    ends = [abs(end) for pair in comparison.pairs if pair.difference for end in (pair.difference.low, pair.difference.high)]
    return max([*ends, 0.001]) * 1.05
