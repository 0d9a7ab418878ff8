"""`sft-dist ls`: a line for each run, from the few small files that say how it stands; quick for thousands, without torch."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sft_dist.history import files, reading
from sft_dist.history.records import Record, is_number, printable
from sft_dist.progress import HEADLINES

TAIL = 4096  # bytes of metrics.jsonl that hold its last row
SCALARS = re.compile(r'"best": \{((?:"[^"\\]*": (?:-?[\d.eE+-]+|null)(?:, )?)+)')


@dataclass(frozen=True)
class Line:
    """How one run stands. outcome: done, saved or failed; `unfinished` while it runs, and after a kill. None: not known."""

    name: str
    outcome: str
    step: int | None
    of: int | None
    metric: str | None
    best: float | None
    seed: int | None
    when: str


def lines(place: Path) -> tuple[list[Line], list[str]]:
    """The runs of a folder, sorted by name as people count, and what was passed over."""
    folders, passed = reading.find([place])
    return [_line(folder, _title(folder, place), passed) for folder in folders], passed


def of(records: Sequence[Record]) -> list[Line]:
    """The lines of runs that were read already."""
    return [
        Line(
            name=record.name,
            outcome=record.outcome.get("outcome", "unfinished"),
            step=_whole(record.outcome.get("step")),
            of=_whole(record.plan.get("total_steps")),
            metric=record.headline if record.headline in record.numbers("best") else None,
            best=record.numbers("best").get(record.headline),
            seed=_whole(record.config.get("train.seed")),
            when=_shown(record.when),
        )
        for record in records
    ]


def describe(found: Sequence[Line]) -> list[str]:
    """The lines for people, in columns."""
    cells = [
        (
            line.name,
            line.outcome,
            f"{'?' if line.step is None else line.step}/{'?' if line.of is None else line.of}",
            "" if line.best is None else f"{line.metric} {line.best:.4f}",
            "" if line.seed is None else f"seed {line.seed}",
            line.when,
        )
        for line in found
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _title(folder: Path, place: Path) -> str:
    """The path below the place that was named; the folder's own name where it was named itself."""
    below = str(folder.relative_to(place)) if folder.is_relative_to(place) else str(folder)
    return printable(folder.absolute().name if below == "." else below)


def _line(folder: Path, name: str, passed: list[str]) -> Line:
    outcome, plan = _object(folder / "outcome.json", passed), _object(folder / "plan.json", passed)
    best = _best(folder / "scores.json", passed)
    metric = next((name for name, _ in HEADLINES.values() if is_number(best.get(name))), None)
    ended = outcome.get("outcome")
    return Line(
        name=name,
        outcome=ended if ended in ("done", "saved", "failed") else "unfinished",
        step=_whole(outcome.get("step")) if outcome else _last_step(folder / "metrics.jsonl"),
        of=_whole(plan.get("total_steps")),
        metric=metric,
        best=float(best[metric]) if metric else None,
        seed=_whole(plan.get("seed")),
        when=_shown(reading.touched(folder)),
    )


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _object(path: Path, passed: list[str]) -> dict[str, Any]:
    """A JSON object, empty where there is none that can be read. One that is far too large is told."""
    try:
        content = json.loads(files.text(path)) if path.is_file() else {}
    except files.TooLargeError as error:
        passed.append(f"{printable(path.parent.name)}/{path.name} ({error})")
        return {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _best(scores: Path, passed: list[str]) -> dict[str, Any]:
    """The numbers of the best evaluation. They come first in our files, so that a confusion matrix of 1,000 classes is not parsed."""
    if not scores.is_file():
        return {}
    with suppress(OSError, ValueError), scores.open(encoding="utf-8") as file:
        if found := SCALARS.search(file.read(2048)):
            return dict(json.loads("{" + found[1].removesuffix(", ") + "}"))
    entry = _object(scores, passed).get("best")
    return entry if isinstance(entry, dict) else {}


def _last_step(metrics: Path) -> int | None:
    """The step of the last whole row."""
    if not metrics.is_file():
        return None
    with suppress(OSError), metrics.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        for line in reversed(file.read().splitlines()):
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and _whole(row.get("step")) is not None:
                    return _whole(row["step"])
    return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
