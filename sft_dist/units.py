"""The kinds of values that a config holds: numbers with bounds, plain names, and texts with a meaning, like "3 epochs" or "val/top1 >= 0.95"."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

SECRET_IN_URL = re.compile(r"(?i)(?<=://)[^/\s@]+(?=@)|(?<=[?&;])([^=&\s]*(?:key|token|secret|password|signature)[^=&\s]*=)[^&\s]+")


@dataclass(frozen=True)
class Span:
    """A length of training with its unit, as the config writes it: "3 epochs", "500 steps", "0.5 epochs"."""

    count: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Span":
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s+(epoch|step|sample)s?", text.strip())
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
        match = re.fullmatch(r"\s*(val/\w+)\s*(>=|<=)\s*([-+.0-9eE]+)\s*", text)
        try:
            number = float(match[3]) if match else None
        except ValueError:
            number = None
        if match is None or number is None:
            raise ValueError(f'{text!r} is not a target; write a score, >= or <=, and a number, like "val/top1 >= 0.95"')
        return cls(match[1], match[2] == ">=", number)

    def reached(self, score: float) -> bool:
        return score >= self.value if self.at_least else score <= self.value


def _span(text: object) -> str:
    return str(Span.parse(str(text)))


def _positive_span(text: object) -> str:
    span = Span.parse(str(text))
    if not span.count:
        raise ValueError(f"{str(text)!r} is no time at all; use at least 1 step")
    return str(span)


def _not_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")  # pydantic would read true as 1.0
    return value


def _target(text: str) -> str:
    Target.parse(text)
    return " ".join(text.split())


def _workers(value: object) -> object:
    if value != "auto" and (isinstance(value, bool) or not re.fullmatch(r"[0-9]+", str(value))):
        raise ValueError(f"{value!r} is neither a number of processes nor auto")
    return value if value == "auto" else int(str(value))


def _train_part(text: str) -> str:
    if text not in ("head", "all") and not re.fullmatch(r"last:[1-9][0-9]*", text):
        raise ValueError(f"{text!r} is not a part of a model; use head, all, or last:N (the head and the last N stages)")
    return text


def plain_name(text: str) -> str:
    """The text, if it can name a folder, a job and a run. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.+=-]*", text):
        raise ValueError(f"{text!r} cannot name a folder; use letters, digits and . _ + = - (first a letter or digit)")
    return text


def _printable(text: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ValueError(f"{text!r} has control characters in it")
    return text


def _without_secret(text: str) -> str:
    if SECRET_IN_URL.search(text):  # the text itself is not repeated: messages are logged
        raise ValueError("a URL with a password or a token in it; config.yaml and env.json would keep that. Use the library's own login")
    return text


def _written(pattern: str, *examples: object) -> WithJsonSchema:
    """How the values of a kind are written, for editors; the validator beside it decides."""
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern}$", **({"examples": list(examples)} if examples else {})})


_SPAN = r"\s*([0-9]+(\.[0-9]+)?\s+epochs?|[0-9]+(\.0+)?\s+(step|sample)s?)\s*"
Length = Annotated[str, BeforeValidator(_span), _written(_SPAN, "3 epochs", "500 steps")]
PositiveLength = Annotated[str, BeforeValidator(_positive_span), _written(rf"(?=.*[1-9]){_SPAN}", "3 epochs", "500 steps")]
Text = Annotated[str, AfterValidator(_printable), AfterValidator(_without_secret), _written(r"[^\u0000-\u001f\u007f]*")]
Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, BeforeValidator(_not_boolean), Field(allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=0, lt=1)]
Rate = Annotated[Number, Field(ge=0)]
Three = tuple[Number, Number, Number]
Goal = Annotated[str, AfterValidator(_target), _written(r"\s*val/\w+\s*(>=|<=)\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*", "val/top1 >= 0.95")]
Workers = Annotated[
    int | Literal["auto"],
    BeforeValidator(_workers),
    WithJsonSchema({"type": ["integer", "string"], "minimum": 0, "pattern": "^(auto|[0-9]+)$", "examples": ["auto", 4]}),
]
TrainPart = Annotated[str, AfterValidator(_train_part), _written(r"(head|all|last:[1-9][0-9]*)", "head", "all", "last:2")]
PlainName = Annotated[str, AfterValidator(plain_name), _written(r"[A-Za-z0-9][\w\u00a1-\uffff.+=-]*", "pets-resnet50")]
