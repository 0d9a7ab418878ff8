"""Taking secrets out of what is written down or sent: command lines, and any JSON value."""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from sft_dist.units import SECRET_IN_URL

GONE = "(redacted)"
SECRET_NAME = re.compile(r"(?i)(?:(?:^|[_.-])(?:(?:api|access)?[_-]?key|token|secret)|password|passwd|sshpass|[_.-](?:pass|pat|pwd))$")
SECRET_FLAG = re.compile(r"(?i)--?[\w.-]*(?:key|token|secret|password)[\w.-]*")
SHORTEST = 8
"""Characters; a shorter value of a variable is no secret, and would be found everywhere."""


def redact(arguments: Sequence[str]) -> list[str]:
    """A command line without the values of what sounds like a secret: `key=value`, `--key value`, and what stands in a URL."""
    flags = [bool(SECRET_FLAG.fullmatch(before)) and not argument.startswith("-") for before, argument in pairwise(["", *arguments])]
    return [GONE if secret else _argument(argument) for secret, argument in zip(flags, arguments, strict=True)]


def secrets(env: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that sound like a secret, with their values."""
    return {name: value for name, value in env.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}


def without(known: Collection[str], value: Any) -> Any:
    """A JSON value in which no secret stands: none by the name of its key, none in a URL, and none of those that are known."""
    if isinstance(value, Mapping):
        return {
            without(known, name): GONE if isinstance(entry, str) and SECRET_NAME.search(name) else without(known, entry)
            for name, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [without(known, entry) for entry in value]
    if not isinstance(value, str):
        return value
    for secret in sorted(known, key=len, reverse=True):  # one may hold another
        value = value.replace(secret, GONE)
    return _in_urls(value)


def _argument(argument: str) -> str:
    return _in_urls(re.sub(r"(?is)^([^=:]*(?:key|token|secret|password)[^=:]*)=.+", rf"\1={GONE}", argument))


def _in_urls(text: str) -> str:
    return SECRET_IN_URL.sub(lambda found: f"{found[1] or ''}{GONE}", text)
