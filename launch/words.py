"""How the screen puts values into words, in lines that no terminal obeys."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sft_dist.pulse import Beat

WIDTH = 130


def plain(text: str) -> str:
    """Printable ASCII, and everything else escaped: a hostile message must not drive the terminal."""
    return "".join(letter if " " <= letter <= "~" else letter.encode("unicode_escape").decode() for letter in text.replace("\t", "    "))


def cut(line: str) -> str:
    """A line as far as it fits."""
    shown = plain(line)
    return shown if len(shown) <= WIDTH else f"{shown[: WIDTH - 3]}..."


def wrapped(message: str, most: int | None) -> list[str]:
    """A message in lines that fit, of which only the first are shown where there are more than `most`."""
    lines = [part for line in message.splitlines() for part in textwrap.wrap(plain(line), WIDTH)]
    if most is None or len(lines) <= most:
        return lines
    return [*lines[:most], f"({len(lines) - most} more lines; --all)"]


def rows(label: str, lines: Sequence[str]) -> list[str]:
    """Lines under a label, which stands before the first of them."""
    return [f"{label if not index else '':>11}  {line}" for index, line in enumerate(lines)]


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table, each cell as wide as the widest of its column."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def counted(nodes: int) -> str:
    return f"{nodes} node{'s' * (nodes != 1)}"


def groups(beats: Mapping[int, Beat]) -> list[tuple[str, Beat]]:
    """Ranks that are at the same place, together; since the first of them came there."""
    places: dict[tuple[int, str], list[int]] = {}
    for rank in sorted(beats):
        places.setdefault((beats[rank].step, beats[rank].phase), []).append(rank)
    return [(ranks(there), replace(beats[there[0]], since_ns=min(beats[rank].since_ns for rank in there))) for there in places.values()]


def ranks(numbers: Iterable[int]) -> str:
    """`rank 1`, `ranks 0, 2-5`."""
    return numbered("rank", numbers)


def numbered(noun: str, numbers: Iterable[int]) -> str:
    """Things by their numbers, `task 1` or `tasks 0, 2-5`."""
    text = ", ".join(spans(numbers))
    return f"{noun}{'s' * (not text.isdecimal())} {text}"


def spans(numbers: Iterable[int]) -> list[str]:
    """Numbers in order, three or more in a row as `2-5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [part for run in runs for part in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run))]


def moment(ns: int, short: bool = False) -> str:
    """A time since 1970 on the clock of whoever looks, with or without the day."""
    try:
        return datetime.fromtimestamp(ns / 1e9).astimezone().strftime("%H:%M:%S" if short else "%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "an unknown time"
