"""From YAML and `key=value` to a Config and back; every mistake is named, all of them at once."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sft_dist.config import Config
from sft_dist.errors import ConfigError

AS_WRITTEN = "as-written.yaml"
"""Lies beside the config of a job's snapshot: the file that it was made from."""


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a file, with `key=value` or `--key=value` laid over it. Raises ConfigError with all problems at once."""
    tree = read_yaml(path)
    problems: list[str] = []
    for override in overrides:
        try:
            _lay_over(tree, override)
        except ConfigError as error:
            problems += error.problems
    try:
        config = from_tree(tree, default_name=path.stem)
    except ConfigError as error:
        raise ConfigError([f"{path}: {line}" for line in (*problems, *error.problems)]) from None
    if problems:
        raise ConfigError(problems)
    return config


def named(path: Path, overrides: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """The overrides, and in a W&B sweep a name of its own for each run, unless they give one: the sweep's runs must not share a folder.

    The snapshot of a job has its name already, which is that of its folder.
    """
    given = any(override.removeprefix("--").startswith("run.name=") for override in overrides)
    if given or not ("WANDB_SWEEP_ID" in env and env.get("WANDB_RUN_ID")) or (path.parent / AS_WRITTEN).exists():
        return tuple(overrides)
    run = read_yaml(path).get("run")
    name = run.get("name") if isinstance(run, dict) else None
    return (*overrides, f"run.name={name or path.stem}-{env['WANDB_RUN_ID']}")


def from_tree(tree: Mapping[str, Any], default_name: str = "run") -> Config:
    """The config that a nested mapping describes; `run.name` is `default_name` where none is given."""
    run = tree.get("run") or {}
    named = {**tree, "run": {"name": default_name, **run} if isinstance(run, dict) else run}
    try:
        return Config.model_validate(named)
    except ValidationError as error:
        raise ConfigError([_sentence(problem) for problem in error.errors()]) from None


def read_yaml(path: Path, begins: str = "task: classify") -> dict[str, Any]:
    """The mapping in a YAML file, of which no key may stand twice. begins: how such a file begins, for who wrote an empty one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config {path} is not a text file in UTF-8") from None
    try:
        tree = yaml.load(text, _OneOfEachKey)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"config {path} is not plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path} holds no keys; it begins with `{begins}`")
    return tree


def to_yaml(config: Config) -> str:
    """The config with every default written out; `load` reads it back as an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def flat(config: Config) -> dict[str, Any]:
    """Dotted key -> value, in the order of the config."""
    return dict(_walk(config.model_dump(mode="json"), ()))


def _walk(tree: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _walk(value, (*above, key))
        else:
            yield ".".join((*above, key)), value


class _OneOfEachKey(yaml.SafeLoader):
    """PyYAML lets the last of two equal keys win in silence; this loader refuses the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))} stands twice in one section (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


def _lay_over(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not key=value, like optim.lr=0.01")
    *sections, last = key.split(".")
    here = tree
    for section in sections:
        if not isinstance(here.get(section), dict):
            here[section] = {}
        here = here[section]
    try:
        here[last] = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        here[last] = value


def _sentence(problem: Mapping[str, Any]) -> str:
    """One pydantic problem in words: the dotted key, what was found, what is allowed."""
    place = tuple(map(str, problem["loc"]))
    key = ".".join(place)
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(place[-1], names := _names(place[:-1]), n=1, cutoff=0.6)
            near = [".".join((*place[:-1], name)) for name in close]
            elsewhere = [full for full in _all_keys() if full.split(".")[-1] == place[-1]]
            meant = near or elsewhere if len(place) > 1 else elsewhere or near  # at the top a section was forgotten
            return f"unknown key {key}; " + (f"did you mean {' or '.join(meant)}?" if meant else f"it has {', '.join(names)}")
        case "invalid_key":
            return f"{'.'.join((*place[:-1], repr(problem['input'])))} is no key; put it in quotes (YAML reads on as True)"
        case "missing":
            return f"{key} is missing"
        case "literal_error":
            return f"{key} = {problem['input']!r}; use {context['expected']}"
        case "model_type" | "model_attributes_type":
            return f"{key} = {problem['input']!r} is a section; its keys are {', '.join(_names(place))}"
        case "value_error":
            return f"{key}: {context['error']}"
        case "string_type":
            return f"{key} = {problem['input']!r} is not a text; put it in quotes (YAML reads no as False and 007 as 7)"
        case _:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            return f"{key} = {problem['input']!r}: {message.replace('input should', 'it should')}"


def _names(place: Sequence[str]) -> list[str]:
    section: type[BaseModel] = Config
    for name in place:
        kind = section.model_fields[name].annotation if name in section.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        section = kind
    return list(section.model_fields)


def _all_keys() -> list[str]:
    return [f"{section}.{key}" for section in Config.model_fields for key in _names([section])]
