"""Files of runs, read up to a size that is stated here: what is damaged, or far too large, is told and left out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_dist.history.records import printable

MIB = 1 << 20
MOST_RECORD, MOST_ROWS, MOST_PREDICTIONS, MOST_IMAGES = 64 * MIB, 256 * MIB, 2048 * MIB, 256 * MIB
"""Bytes of a file that is read: a JSON or YAML file, the rows of a run, its predictions (50,000 samples of 1,000 classes are 1,000 MiB), or
those of masks and boxes, of which every number is kept (20,000 images of 100 boxes and 10 objects are some 100 MiB, several times that in memory)."""


class TooLargeError(ValueError):
    """A file is larger than any of its kind that a run writes."""


def lines(path: Path, problems: list[str], most: int = MOST_ROWS) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; what is none, like a last line that a crash cut short, is counted under `problems`."""
    bad, number, line = [], 0, "\n"
    try:
        if not path.is_file():
            return
        fits(path, most)
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line) if line != "\n" else None
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield row
                elif line != "\n":
                    bad.append(number)
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({first_line(error)})")
    if bad:
        where = "the last, cut short" if bad == [number] and not line.endswith("\n") else f"the first is line {bad[0]}"
        problems.append(f"{path.name}: {len(bad)} line(s) left out ({where})")


def text(path: Path) -> str:
    fits(path)
    return path.read_text(encoding="utf-8")


def fits(path: Path, most: int = MOST_RECORD) -> None:
    """Raises TooLargeError where it does not."""
    if (size := path.stat().st_size) > most:
        raise TooLargeError(f"{size // MIB} MiB; at most {most // MIB} MiB are read")


def first_line(error: BaseException) -> str:
    return printable(next(iter(str(error).splitlines()), type(error).__name__))
