"""Evidence that adds: sums over samples, across batches and ranks, divided once at the very end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evidence:
    """What some samples prove. Two pieces about different samples add up to the piece about both.

    sums: name -> number, array or tensor that adds element by element (counts as integers, so that they stay exact).
    rows: tables of what does not add, column -> one entry a sample; every table has the column `id`.
    """

    sums: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()

    def __add__(self, other: "Evidence") -> "Evidence":
        return Evidence(add(self.sums, other.sums), self.rows + other.rows)


def add(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Name by name; a name that only one side has counts as zero on the other."""
    both = dict(one)
    for name, value in other.items():
        both[name] = both[name] + value if name in both else value
    return both


def per_count(sums: Mapping[str, float]) -> dict[str, float]:
    """Every sum of training steps divided by what it is a sum over: `counted` (labelled pixels, say) where a task counts that, else `samples`.

    Over nothing counted, the sums are 0, and so are these. Empty where no step was made.
    """
    weight = max(1, sums.get("counted", sums.get("samples", 0)))
    return {name: value / weight for name, value in sums.items() if name not in ("samples", "counted")}
