"""Boxes over the images that they are of, from predictions and pictures alone: what is there in full lines, what was found in dashed ones."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from sft_dist.history.records import Box, printable
from sft_dist.pages.figures import Picture
from sft_dist.pictures import Photo
from sft_dist.report.answers import Rated, name
from sft_dist.report.study import Study

SIDE = 480  # pixels of the longer side of a picture that has boxes in it
WORST, BEST = 8, 4  # images that are shown
MOST = 100  # boxes of one image and kind that are drawn
TRUTH, SAID = "#ffd400", "#00d0ff"  # told apart by all kinds of eyes, on dark edges that every image lets see
DASHES = "7 4"


@dataclass(frozen=True)
class Frame:
    """An image with its boxes, and what there is to say of it."""

    id: str
    told: str
    picture: Picture


def chosen(study: Study) -> list[Rated]:
    """The images that are done worst, then some of those that are done best."""
    return [*study.images[:WORST], *study.images[WORST:][-BEST:]]


def frames(study: Study, photos: Mapping[str, Photo]) -> list[Frame]:
    """The images that are shown, as far as there is a picture of them."""
    names = [score.name for score in study.classes]
    return [
        Frame(one.id, one.told, _drawn(photo, one, names, study.cutoff or 0.0))
        for one in chosen(study)
        if one.found and (photo := photos.get(one.id))
    ]


def _drawn(photo: Photo, one: Rated, names: Sequence[str], cutoff: float) -> Picture:
    assert one.found
    found, unit = one.found, max(photo.width, photo.height) / SIDE
    said = [
        (box, f"{name(names, label)} {score:.2f}")
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True)
        if score >= cutoff
    ]
    there = [
        (box, name(names, label) + (" (any number)" if many else ""))
        for box, label, many in zip(found.truth_boxes, found.truth_labels, found.crowd, strict=True)
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{photo.width}" height="{photo.height}" viewBox="0 0 {photo.width} {photo.height}">',
        f'<image href="{photo.uri}" width="{photo.width}" height="{photo.height}"/>',
        *(line for box, label in there[:MOST] for line in _box(box, label, TRUTH, unit)),
        *(line for box, label in said[:MOST] for line in _box(box, label, SAID, unit, dashed=True)),
        "</svg>",
    ]
    uri = "data:image/svg+xml;base64," + base64.b64encode("".join(parts).encode()).decode()
    words = [f"{title}: {', '.join(f'{label} at {_place(box)}' for box, label in boxes[:MOST]) or 'nothing'}" for title, boxes in
             (("There", there), ("Found", said))]  # fmt: skip
    return Picture(uri, printable(f"{one.id}, {one.told}. {'. '.join(words)}."))


def _box(box: Box, label: str, colour: str, unit: float, dashed: bool = False) -> Iterator[str]:
    """A frame in a colour on a wider dark one, and its label: of what is found above its upper edge, of what is there within the lower one."""
    left, top, right, bottom = box
    frame = f'<rect x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{bottom - top:.2f}" fill="none"'
    yield f'{frame} stroke="#000" stroke-opacity=".6" stroke-width="{4 * unit:.2f}"/>'
    dashes = f' stroke-dasharray="{" ".join(f"{float(one) * unit:.2f}" for one in DASHES.split())}"' if dashed else ""
    yield f'{frame} stroke="{colour}" stroke-width="{2 * unit:.2f}"{dashes}/>'
    size = 12 * unit
    y = max(top - 3 * unit, size) if dashed else bottom - 4 * unit
    style = f'font-family="system-ui, sans-serif" font-size="{size:.2f}" stroke="#000" stroke-width="{3 * unit:.2f}" paint-order="stroke"'
    yield f'<text x="{max(left, 0) + 3 * unit:.2f}" y="{y:.2f}" fill="{colour}" {style}>{escape(printable(label))}</text>'


def _place(box: Box) -> str:
    return f"{(box[0] + box[2]) / 2:.0f}, {(box[1] + box[3]) / 2:.0f}"
