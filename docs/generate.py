"""Writes docs/reference/config.md and configs/schema.json from the config models, so that they say what the code does: `make docs`."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sft_dist.config import Config
from sft_dist.plan import MAY_CHANGE
from sft_dist.refuse import NOT_BUILT
from sft_dist.schema import meanings, text

PAGE = Path(__file__).parent / "reference" / "config.md"
SCHEMA = Path(__file__).parent.parent / "configs" / "schema.json"

HEAD = """\
# Config keys

<!-- Written by docs/generate.py from sft_dist/config.py. Do not edit; run `make docs`. -->

A config is one YAML file with the sections below. What is left out takes its default, and the run's own `config.yaml` has every default
written out. An unknown key is refused with the nearest name, and all mistakes are told at once. On the command line,
`key=value` or `--key=value` lays single keys over the file: `optim.lr=0.01`, `train.duration="500 steps"`, `data.classes="[cat, dog]"`.

Editors that speak to the YAML language server complete keys, check values and show these meanings where a config opens with
`# yaml-language-server: $schema=` and a path to its schema, as those in `configs/` do; `sft-dist config schema > schema.json` writes one.

- A **length** is a number and a unit: `"3 epochs"`, `"0.5 epochs"`, `"500 steps"`, `"64000 samples"`. Only epochs can be fractions.
- **resume**: `yes` marks a key that may change when a run is started again; every other one shapes the curve, and a change is refused.
- *Not built yet* marks values that are part of the stable interface and are refused today (exit code 2), never ignored.
"""

FILLED_IN = {"run.name": "the file's name"}  # needed by the model, but filled in by parse.load
IN_WORDS = {  # validator -> what it lets through
    "_span": "length",
    "_positive_span": "length above zero",
    "_workers": "whole number or `auto`",
    "_train_part": "`head`, `all` or `last:N`",
    "plain_name": "folder name",
    "_target": "`val/<score> >= x` or `<= x`",
}
SIGNS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def page() -> str:
    """The whole page."""
    top = {name: field for name, field in Config.model_fields.items() if not _is_section(field)}
    parts = [HEAD, _table("", top, meanings(Config))]
    for name, field in Config.model_fields.items():
        if _is_section(field):
            section: type[BaseModel] = field.annotation  # type: ignore[assignment]
            parts.append(f"\n## {name}\n\n{_table(f'{name}.', section.model_fields, meanings(section))}")
    return "".join(parts)


def _table(prefix: str, fields: dict[str, FieldInfo], meant: dict[str, str]) -> str:
    cells = ([*_row(prefix + name, field), meant.get(name, "")] for name, field in fields.items())
    rows = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in cells)
    return f"\n| key | type | default | resume | meaning |\n|---|---|---|---|---|\n{rows}".removeprefix("\n" if prefix else "")


def _row(key: str, field: FieldInfo) -> Iterator[str]:
    missing = NOT_BUILT.get(key, ())
    later = f"; not built yet: {', '.join(f'`{_plain(value)}`' for value in missing)}" if missing else ""
    yield f"`{key}`"
    yield _kind(field.annotation, field.metadata, missing) + later
    yield FILLED_IN.get(key) or ("*needed*" if field.is_required() else f"`{_plain(field.default)}`")
    yield "yes" if key.startswith(MAY_CHANGE) else ""


def _kind(kind: Any, metadata: Any, missing: tuple[object, ...] = ()) -> str:
    """A type in words, with its bounds."""
    if get_origin(kind) is Annotated:
        base, *more = get_args(kind)
        return _kind(base, [m for part in more for m in (part.metadata if isinstance(part, FieldInfo) else [part])], missing)
    for validator in metadata:
        if (name := getattr(getattr(validator, "func", None), "__name__", "")) in IN_WORDS:
            return IN_WORDS[name]
    if get_origin(kind) is Literal or kind is bool:
        return ", ".join(f"`{_plain(value)}`" for value in get_args(kind) or (True, False) if value not in missing)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(
            "null" if part is type(None) else _kind(part, metadata if part is not type(None) else ()) for part in get_args(kind)
        )
    if get_origin(kind) is tuple:
        of = get_args(kind)
        noun, *bound = _kind(of[0], ()).split(" ")
        return " ".join(["list of" if of[-1] is ... else str(len(of)), f"{noun}s", *bound])
    bounds = [f"{sign} {value:g}" for bound in metadata for name, sign in SIGNS if (value := getattr(bound, name, None)) is not None]
    return {int: "whole number", float: "number", str: "text"}[kind] + (f" {', '.join(bounds)}" if bounds else "")


def _plain(value: object) -> str:
    """A value as YAML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


if __name__ == "__main__":
    PAGE.write_text(page())
    SCHEMA.write_text(text())
