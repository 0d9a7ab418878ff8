"""Values with a unit or a direction, as the config writes them: "3 epochs", "val/top1 >= 0.95"."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction


@dataclass(frozen=True)
class Span:
    """A length of training with its unit, as the config writes it: "3 epochs", "500 steps", "0.5 epochs"."""

    count: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Span":
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s+(epoch|step|sample)s?", text.strip())
        if not match:
            raise ValueError(f'{text!r} is not a length of training; write a number and a unit, like "3 epochs" or "500 steps"')
        count, unit = Fraction(match[1]), match[2]
        if unit != "epoch" and count.denominator != 1:
            raise ValueError(f"{text!r}: only epochs can be fractions")
        return cls(count, unit)

    def steps(self, samples: int, total: int) -> Fraction:
        """This length in optimizer steps, not yet rounded, for `samples` training samples and `total` samples a step."""
        per_unit = {"epoch": Fraction(samples, total), "step": Fraction(1), "sample": Fraction(1, total)}
        return self.count * per_unit[self.unit]

    def __str__(self) -> str:
        number = f"{Decimal(self.count.numerator) / Decimal(self.count.denominator):f}"  # a float might say 1e-05, which parse refuses
        return f"{number} {self.unit}" + ("" if self.count == 1 else "s")


@dataclass(frozen=True)
class Target:
    """A score to reach: `val/top1 >= 0.95`."""

    metric: str
    at_least: bool
    value: float

    @classmethod
    def parse(cls, text: str) -> "Target":
        match = re.fullmatch(r"\s*(val/\w+)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
        try:
            number = float(match[3]) if match else None
        except ValueError:
            number = None
        if match is None or number is None:
            raise ValueError(f'{text!r} is not a target; write a score, >= or <=, and a number, like "val/top1 >= 0.95"')
        return cls(match[1], match[2] == ">=", number)

    def reached(self, score: float) -> bool:
        return score >= self.value if self.at_least else score <= self.value
