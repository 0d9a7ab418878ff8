"""One run as one HTML file that opens anywhere: no network, no script, light and dark, on a telephone and in print."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.config import Config, Section
from sft_dist.history.curves import Point, series, thin
from sft_dist.history.groups import shown
from sft_dist.pages import figures, paper, words
from sft_dist.pages.figures import Line, Picture
from sft_dist.report import drawings, overlay, telling
from sft_dist.report.chronicle import Chapter
from sft_dist.report.exhibits import Embedding, Exhibits, Mask
from sft_dist.report.kinds import Panel
from sft_dist.report.overlay import Frame
from sft_dist.report.study import Study
from sft_dist.report.times import Times

POINTS = 400  # of one curve: more than a picture is wide
FEW_CLASSES = 15  # whose confusion matrix is a table; of more it is a picture
MOST_CLASSES = 1000  # that the table of classes and the picture of the matrix show
SAMPLES = 24  # of the worst and of the most doubtful
MISTAKES = 12
LAYERS = 60


@dataclass(frozen=True)
class Drawing:
    """A panel as it is drawn: its picture, and the metrics that it has."""

    title: str
    metrics: Sequence[str]
    picture: Picture


FIRST = (Panel("Loss", ("train/loss", "val/loss")),)
LAST = (
    Panel("Learning rate", ("train/lr",)),
    Panel("Norm of the gradient", ("train/grad_norm",)),
    Panel("Loss scale of fp16", ("train/loss_scale",)),
    Panel("Samples a second", ("speed/samples_per_s",)),
    Panel("Waiting for data, % of the time", ("speed/data_wait_pct",)),
    Panel("Peak memory of the device, GiB", ("memory/peak_gib",)),
)


def page(
    study: Study,
    chapters: Sequence[Chapter],
    times: Times | None,
    exhibits: Exhibits,
    pictures: Mapping[str, str],
    frames: Sequence[Frame] = (),
) -> str:
    """The whole file. pictures: sample id, or name of an exhibit's picture -> data URI, as far as there are any. frames: images with boxes."""
    marks = [chapter.from_step for chapter in chapters[1:] if chapter.from_step]
    return paper.render(
        "report.html",
        study=study,
        frames=frames,
        masks=_masks(exhibits, pictures),
        overlay=overlay,
        chapters=chapters,
        times=times,
        exhibits=exhibits,
        pictures=pictures,
        telling=telling,
        words=words,
        figures=figures,
        how=telling.ended(study, chapters),
        remarks=list(telling.remarks(study, times, chapters)),
        panels=list(_drawn(study, marks)),
        resumed=marks,
        matrix=_matrix(study),
        reliability=drawings.reliability(study.calibration) if study.calibration else None,
        maps=_maps(study, exhibits),
        config=[(key, shown(value), value != default) for key, value, default in _config(study.record.config)],
        shown=shown,
        silent=_silent(study),
        samples=SAMPLES,
        most_mistakes=MISTAKES,
        few=FEW_CLASSES,
        most_classes=MOST_CLASSES,
        layers=LAYERS,
    )


def shown_samples(study: Study) -> list[str]:
    """The ids of the samples that the page shows."""
    named = [one.id for answers in (study.worst, study.doubtful) for one in answers[:SAMPLES]]
    return list(dict.fromkeys([*named, *(one.id for one in overlay.chosen(study) if not one.found)]))


def _masks(exhibits: Exhibits, pictures: Mapping[str, str]) -> list[Mask]:
    """Those of which all pictures are there."""
    return [one for one in exhibits.masks if {one.plain, one.truth, one.said} <= set(pictures)]


def _drawn(study: Study, marks: Sequence[int]) -> Iterator[Drawing]:
    for panel in (*FIRST, *study.kind.panels, *LAST):
        told = [metric for metric in panel.metrics if metric not in _silent(study)]
        found = {metric: points for metric in told if (points := series(study.curves.rows, metric))}
        if found:
            thinned = [thin(points, POINTS) for points in found.values()]
            lines = [Line(i, [p.step for p in points], [p.value for p in points]) for i, points in enumerate(thinned)]
            alt = " ".join(_told(metric, points) for metric, points in found.items())
            uri = figures.curves(lines, "step", "", whole=True, marks=marks)
            yield Drawing(panel.title, list(found), Picture(uri, alt))


def _silent(study: Study) -> tuple[str, ...]:
    """Scores that cannot say anything: of five classes or fewer, one of the first five is always right."""
    return ("val/top5",) if 0 < len(study.classes) <= 5 else ()


def _told(metric: str, points: Sequence[Point]) -> str:
    """A curve in words."""
    first, last, values = points[0], points[-1], [point.value for point in points]
    if len(points) == 1:
        return f"{metric} is {first.value:.4g} at step {first.step}."
    ends = f"{metric} goes from {first.value:.4g} at step {first.step} to {last.value:.4g} at step {last.step}"
    return f"{ends}, between {min(values):.4g} and {max(values):.4g}."


def _matrix(study: Study) -> Picture | None:
    """The confusion matrix of many classes; of few it is a table."""
    if not FEW_CLASSES < len(study.confusion) <= MOST_CLASSES:
        return None
    shares = [[cell / max(1, sum(row)) for cell in row] for row in study.confusion]
    right = sum(row[i] for i, row in enumerate(study.confusion))
    said = f"Confusion matrix of {len(shares)} classes: {right} of {study.support} {study.kind.support} are on its diagonal."
    return Picture(drawings.heat(shares), said)


@dataclass(frozen=True)
class Maps:
    """The embedding as it is drawn. classes: the names of those in colour, by colour; others: whether there are more."""

    before: Picture
    after: Picture
    classes: Sequence[str]
    others: bool


def _maps(study: Study, exhibits: Exhibits) -> Maps | None:
    found = exhibits.embedding
    if not found or not found.labels:
        return None
    names = exhibits.classes
    poorest = {score.name: score.lead for score in study.classes}
    there = sorted(set(found.labels))
    chosen = sorted(sorted(there, key=lambda label: poorest.get(_name(names, label), 1.0))[: len(figures.MARKS)])
    before, after = (_map(found, which, chosen) for which in ("before", "after"))
    return Maps(before, after, [_name(names, label) for label in chosen], len(there) > len(chosen))


def _map(found: Embedding, which: str, chosen: Sequence[int]) -> Picture:
    drawn = found.before if which == "before" else found.after
    told = f"{len(found.labels)} validation samples in two dimensions {which} training: "
    told += f"{100 * drawn.neighbours:.0f} % have a nearest neighbour of their own class."
    return Picture(drawings.scatter(drawn.points, found.labels, chosen), told)


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def _config(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Key, value and default of every key of a config; the value itself where its default is not known."""
    defaults: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            defaults |= {f"{name}.{key}": one.default for key, one in field.annotation.model_fields.items()}
        else:
            defaults[name] = field.default
    for key, value in config.items():
        default = defaults.get(key, value)
        yield key, value, list(default) if isinstance(default, tuple) else default
