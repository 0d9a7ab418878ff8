"""What only the data and the model can show of a run, kept in its folder as numbers and pictures, so that a page is drawn without them."""

import base64
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sft_dist.rundir import write_json

FOLDER = "report"
FILE = "exhibits.json"
KINDS = {b"\x89PNG\r\n": "png", b"\xff\xd8\xff": "jpeg"}  # beginning of a file -> what it is
LARGEST = 2_000_000  # bytes of one picture

Picture = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,80}\.(png|jpg)$")]
"""The name of a file beside `exhibits.json`."""
Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Exhibit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Balance(Exhibit):
    """How many samples a class has in each split."""

    name: str
    train: Annotated[int, Field(ge=0)]
    val: Annotated[int, Field(ge=0)]


class Drawn(Exhibit):
    """A training sample as evaluation would show it, and as training did in its first epochs."""

    id: str
    truth: str
    plain: Picture
    drawn: tuple[Picture, ...]


class Drift(Exhibit):
    """How far the weights of a layer moved: the norm of the change, divided by that of the weights at the start; None where
    these were all zero and have moved, as a class token's.

    learning: whether they were to learn at all. fresh: they were drawn at random, not loaded.
    """

    layer: str
    elements: int
    change: Annotated[Finite, Field(ge=0)] | None
    learning: bool
    fresh: bool

    @property
    def moved(self) -> bool:
        return self.learning or self.change != 0


class Cam(Exhibit):
    """Where a model looked: the picture, and over it what spoke for the class that it said and, if it was wrong, for the truth."""

    id: str
    truth: str
    said: str
    confidence: Share
    plain: Picture
    for_said: Picture
    for_truth: Picture | None = None

    @property
    def right(self) -> bool:
        return self.truth == self.said


class Patch(Exhibit):
    """A class in a mask: its share of the pixels, and its IoU there."""

    name: str
    colour: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
    there: Share
    said: Share
    iou: Share


class Mask(Exhibit):
    """A validation image, its true mask and the predicted one, each over the image; and what they are of."""

    id: str
    iou: Share
    plain: Picture
    truth: Picture
    said: Picture
    patches: tuple[Patch, ...]


class Map(Exhibit):
    """Features in two dimensions. explained: the share of their variance that each shows; neighbours: how many samples have one of
    their own class for their nearest neighbour, in all dimensions."""

    points: tuple[tuple[Finite, Finite], ...]
    explained: tuple[Share, Share]
    neighbours: Share


class Embedding(Exhibit):
    """The validation samples as the last layer gets them, with the weights at the start and with those at the end."""

    labels: tuple[Annotated[int, Field(ge=0)], ...]
    before: Map
    after: Map


class Exhibits(Exhibit):
    """Everything there is. step: of the checkpoint that was looked at; start: what the weights were before; told: what is missing, and why."""

    format: int = 1
    step: int | None = None
    start: str = ""
    layer: str = ""
    """The layer whose output Grad-CAM weighs."""
    classes: tuple[str, ...] = ()
    balance: tuple[Balance, ...] = ()
    augmented: tuple[Drawn, ...] = ()
    drift: tuple[Drift, ...] = ()
    cams: tuple[Cam, ...] = ()
    masks: tuple[Mask, ...] = ()
    embedding: Embedding | None = None
    told: tuple[str, ...] = ()


def read(run: Path) -> tuple[Exhibits, list[str]]:
    """What a run's folder holds of them, nothing where there is none; and what is wrong with it."""
    path = run / FOLDER / FILE
    try:
        found = Exhibits.model_validate_json(path.read_bytes()) if path.is_file() else Exhibits()
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error.error_count()} fields are not what they should be"
        return Exhibits(), [f"{FOLDER}/{FILE} cannot be read ({reason})"]
    if found.embedding:
        sizes = {len(found.embedding.labels), len(found.embedding.before.points), len(found.embedding.after.points)}
        if len(sizes) > 1:
            return found.model_copy(update={"embedding": None}), [f"{FOLDER}/{FILE}: an embedding of {sorted(sizes)} points is none"]
    return found, []


def write(run: Path, exhibits: Exhibits) -> None:
    """Replace what was there. Pictures are written before, beside it; those of an earlier time that are not named any more go."""
    write_json(run / FOLDER / FILE, exhibits.model_dump(mode="json"))
    named = set(pictures(exhibits))
    for path in (run / FOLDER).iterdir():
        if re.fullmatch(r"[A-Za-z0-9_-]+\.(png|jpg)", path.name) and path.name not in named:
            path.unlink()


def pictures(exhibits: Exhibits) -> list[str]:
    """The names of all pictures."""
    drawn = [name for one in exhibits.augmented for name in (one.plain, *one.drawn)]
    cams = [name for one in exhibits.cams for name in (one.plain, one.for_said, one.for_truth) if name]
    masks = [name for one in exhibits.masks for name in (one.plain, one.truth, one.said)]
    return [*drawn, *cams, *masks]


def uris(run: Path, names: Sequence[str]) -> dict[str, str]:
    """Name -> data URI, of those that are there and are pictures."""
    found = {}
    for name in names:
        path = run / FOLDER / name
        with suppress(OSError):
            if path.is_file() and path.stat().st_size <= LARGEST:
                content = path.read_bytes()
                kind = next((kind for start, kind in KINDS.items() if content.startswith(start)), None)
                if kind:
                    found[name] = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return found
