"""Which runs: conditions like `optim.lr<1e-3`, and an order like `val/top1`; read by a small parser, never evaluated."""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.errors import ConfigError
from sft_dist.history.records import Record, is_number

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Condition:
    """`key op value`, the key a config key or a score."""

    key: str
    sign: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> "Condition":
        match = re.fullmatch(r"\s*([\w./-]+?)\s*(<=|>=|!=|==?|<|>)\s*(.*?)\s*", text)
        if not match or not match[3]:
            raise ConfigError(f"--where {text!r} is no condition; write a key, one of {' '.join(COMPARISONS)}, and a value: optim.lr<1e-3")
        key, sign, value = match[1], match[2].replace("==", "="), _value(match[3])
        if sign in ("<", ">", "<=", ">=") and not is_number(value):
            raise ConfigError(f"--where {text!r}: {sign} needs a number, like optim.lr<1e-3")
        return cls(key, sign, value)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether a run's values meet it; a run without the key does not, nor does a text that should be less than a number."""
        if self.key not in values:
            return False
        found = values[self.key]
        if self.sign in ("=", "!="):
            found = _value(found) if isinstance(found, str) else found
            same = found == self.value and isinstance(found, bool) == isinstance(self.value, bool)  # to Python 0 is False
            return same is (self.sign == "=")
        return is_number(found) and COMPARISONS[self.sign](found, self.value)


def values(record: Record, at: str) -> dict[str, Any]:
    """What conditions and orders can name: the keys of the config, and the scores of the best or the last evaluation."""
    return {**record.config, **record.numbers(at)}


def where(records: Sequence[Record], conditions: Sequence[str], at: str) -> list[Record]:
    """The runs that meet all conditions. Raises ConfigError for a key that no run has, with the nearest that there is."""
    wanted = [Condition.parse(text) for text in conditions]
    everything = [values(record, at) for record in records]
    check_keys("--where", [condition.key for condition in wanted], everything)
    return [record for record, known in zip(records, everything, strict=True) if all(condition.holds(known) for condition in wanted)]


def check_keys(option: str, keys: Iterable[str], everything: Sequence[Mapping[str, Any]]) -> None:
    known = dict.fromkeys(name for one in everything for name in one)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            raise ConfigError(f"{option} {key}: no run has that" + (f"; did you mean {near[0]}?" if near else ""))


def rank(key: str, value: object) -> tuple[int, float, str]:
    """What sorts values of a key: the best score first, the smallest value of the config first, what is missing last."""
    if is_number(value):
        return (0, -float(value) if more_is_better(key) else float(value), "")
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def more_is_better(key: str) -> bool:
    """Of scores all but losses; of anything else nothing is better, and the smallest comes first."""
    return "/" in key and not key.endswith("loss")


def _value(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    try:
        number = float(text)
    except ValueError:
        return text.strip("\"'")
    return number if is_number(number) else text
