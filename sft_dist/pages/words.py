"""Numbers and lists in words, the same on the screen, in a page and in JSON."""

from collections.abc import Sequence
from datetime import timedelta

LONGEST_S = timedelta.max.total_seconds() - 1
SPELT = {"miou": "mIoU", "map": "mAP", "map_50": "mAP50", "map_75": "mAP75"}


def score(metric: str) -> str:
    """A score as people write it, without the split that it is of."""
    name = metric.rpartition("/")[2]
    return SPELT.get(name, name)


def hours(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    return "-" if seconds is None or abs(seconds) > LONGEST_S else str(timedelta(seconds=round(seconds)))


def speed(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def listed(items: Sequence[str], most: int) -> str:
    """The first few, and how many more there are."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")
