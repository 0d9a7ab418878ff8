"""The config as JSON Schema, from which editors complete keys, check values and show what a key means: `sft-dist config schema`."""

import ast
import inspect
import json
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from sft_dist import config
from sft_dist.config import Config
from sft_dist.refuse import NOT_BUILT

DIALECT = "http://json-schema.org/draft-07/schema#"  # what editors read; the YAML language server among them
LINE = "# yaml-language-server: $schema="
"""How a config names its schema, by a path from its own folder or by a URL."""
SCIENTIFIC = r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"  # PyYAML reads 1e-3 as a text, and the config takes it for the number
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_SOURCE = ast.parse(inspect.getsource(config))
WITHOUT_NEED = ("run",)  # its one needed key is filled in by parse.load: the file's name


def text() -> str:
    """The schema as a file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """What a config file may hold. Values that are refused because they are not built yet are left out.

    It knows each key by itself: what several keys make impossible together is told by `sft-dist plan`.
    """
    drawn = Config.model_json_schema()
    for name, section in {**drawn["$defs"], "Config": drawn}.items():
        for key, meaning in meanings(getattr(config, name)).items():
            section["properties"][key] = {"description": meaning, **section["properties"][key]}
    whole = _in_draft_07(drawn, drawn["$defs"])
    whole["required"] = [name for name in whole["required"] if name not in WITHOUT_NEED]
    whole["properties"]["run"].pop("required")
    for key, missing in NOT_BUILT.items():
        place = whole
        for name in key.split("."):
            place = place["properties"][name]
        place["enum"] = [value for value in place["enum"] if value not in missing]
    return {"$schema": DIALECT, "title": "sft-dist config", **whole}


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """What the keys of a section mean: the docstrings under them. Pydantic could collect them, but would do so at the start of every process."""
    [found] = [node for node in _SOURCE.body if isinstance(node, ast.ClassDef) and node.name == section.__name__]
    return {
        key.target.id: inspect.cleandoc(told.value.value)
        for key, told in pairwise(found.body)
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        if isinstance(told, ast.Expr) and isinstance(told.value, ast.Constant) and isinstance(told.value.value, str)
    }


def _in_draft_07(part: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """A part as pydantic draws it, with sections in their places, bounds that pydantic leaves in its own words, and no titles."""
    if "$ref" in part:  # its default goes: a section that is left out is no value that anybody writes
        return _in_draft_07(sections[part["$ref"].rpartition("/")[2]], sections)
    made = {BOUNDS.get(name, name): value for name, value in part.items() if name not in ("title", "$defs", "prefixItems")}
    if "properties" in part:
        made["properties"] = {name: _in_draft_07(value, sections) for name, value in part["properties"].items()}
    if "anyOf" in part:
        made["anyOf"] = [_in_draft_07(value, sections) for value in part["anyOf"]]
    if items := part.get("items") or part.get("prefixItems", [None])[0]:  # our tuples are of one kind
        made["items"] = _in_draft_07(items, sections)
    if part.get("type") == "number":
        made |= {"type": ["number", "string"], "pattern": SCIENTIFIC}
    return made
