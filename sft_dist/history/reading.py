"""Records from run folders, in whatever state those are: what is missing or damaged is left out and told; without torch."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from sft_dist import attempts
from sft_dist.errors import ConfigError
from sft_dist.history import answers, files
from sft_dist.history.records import Curves, Record, Turn, is_number, natural, printable
from sft_dist.rundir import RunDir, step_name

MARKS = {"plan.json", "metrics.jsonl", "outcome.json", "attempts"}  # what a run's folder holds beside its config.yaml
DEEPEST = 4  # folders below one that is named: runs/<project>/<run> and a little more
NESTED = "(nested)"
MOST_KEYS = 10_000  # of a config: a few lines of YAML can name a section a million times


def gather(places: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """The runs among and below folders; and what was passed over, and why."""
    folders, passed = find(places)
    found = [read(folder) for folder in folders]
    return found, [*passed, *(f"{record.name}: {problem}" for record in found for problem in record.problems)]


def find(places: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The folders of runs among and below places, each once; and what was passed over. Raises ConfigError where a place holds none."""
    found: dict[Path, Path] = {}
    passed: list[str] = []
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"{printable(str(place))} is not a folder; name a run's folder, or a folder that holds runs")
        here = list(_below(place.absolute(), DEEPEST, passed))
        if not here:
            raise ConfigError(f"{printable(str(place))} is no run's folder and holds none (a run has a config.yaml and a plan.json)")
        for folder in here:
            found.setdefault(folder.resolve(), place / folder.relative_to(place.absolute()))
    return list(found.values()), passed


def is_run(names: Iterable[str]) -> bool:
    """Whether a folder that holds these names is a run's."""
    return "config.yaml" in (those := set(names)) and bool(MARKS & those)


def _below(folder: Path, depth: int, passed: list[str]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            listed = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError as error:
        passed.append(f"{printable(str(folder))}: {error.strerror or error}")
        return
    if is_run(listed):
        yield folder
        return
    below = sorted((name for name, is_folder in listed.items() if is_folder and not name.startswith(".")), key=natural)
    found = False
    for name in below if depth else ():
        for run in _below(folder / name, depth - 1, passed):
            found = True
            yield run
    if not found and depth == DEEPEST - 1:
        passed.append(f"{printable(folder.name)}: no run in it")


def read(folder: Path) -> Record:
    """The record of a run's folder. What is missing or cannot be read is empty, and told under `problems`."""
    run = RunDir(folder)
    problems: list[str] = []
    plan, env, outcome, scores = (_object(folder / f"{name}.json", problems) for name in ("plan", "env", "outcome", "scores"))
    fingerprint = env.get("data_fingerprint") or _state(run, problems).get("fingerprint")
    config = _config(run.config, problems)
    return Record(
        name=printable(folder.absolute().name),
        place=printable(str(folder.resolve())),
        config=config,
        plan=plan,
        env=env,
        outcome=outcome,
        scores=scores,
        fingerprint=fingerprint if isinstance(fingerprint, str) else None,
        turns=_turns(run),
        when=touched(folder),
        problems=tuple(problems),
        curves=lambda: _curves(run),
        predictions=lambda step: answers.read(config.get("task"), run.predictions / f"{step_name(step)}.jsonl"),
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, as far as it can be read."""
    return list(files.lines(path, []))


def touched(folder: Path) -> float:
    """When a run last wrote of itself, in seconds since 1970; 0 where nothing tells."""
    times = [0.0]
    for name in ("outcome.json", "metrics.jsonl", "config.yaml"):
        with suppress(OSError):
            times.append((folder / name).lstat().st_mtime)
    return max(times)


def _state(run: RunDir, problems: list[str]) -> dict[str, Any]:
    """Of the latest checkpoint, or the best. Runs of before env.json told the data's fingerprint tell it there."""
    with suppress(OSError, UnicodeDecodeError):
        if checkpoint := run.pointed_to("latest") or run.pointed_to("best"):
            return _object(checkpoint / "state.json", problems)
    return {}


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(files.text(path)) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read ({files.first_line(error)})")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no object")
    return content if isinstance(content, dict) else {}


def _config(path: Path, problems: list[str]) -> dict[str, Any]:
    """Dotted key -> value, without holding it to the keys of this version: a run of an older one is compared all the same."""
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        text = files.text(path)
        tree = _tree(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"config.yaml cannot be read ({files.first_line(error)})")
        return {}
    if not isinstance(tree, dict):
        problems.append("config.yaml holds no keys")
    return flat(tree) if isinstance(tree, dict) else {}


def _tree(text: str) -> Any:
    """What the YAML says. The runs of a sweep share most of their sections, and each text of one is read once."""
    if not re.search(r"[&*%]|^(?:---|\.\.\.)", text, re.MULTILINE):  # nothing that reaches from one section into another
        with suppress(yaml.YAMLError):
            sections = [_section(part) for part in re.split(r"^(?=[A-Za-z_])", text, flags=re.MULTILINE) if part]
            if sections and all(isinstance(section, dict) and len(section) == 1 for section in sections):
                return {key: value for section in sections for key, value in section.items()}
    return _yaml(text)


@lru_cache(maxsize=4096)
def _section(text: str) -> Any:
    return _yaml(text)


def _yaml(text: str) -> Any:
    return yaml.load(text, yaml.CSafeLoader) if yaml.__with_libyaml__ else yaml.load(text, yaml.SafeLoader)  # seven times faster


def flat(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Dotted key -> value, of any config: what is nested deeper than one of ours is not followed."""
    return dict(islice(_flat(tree, "", depth=3), MOST_KEYS))


def _flat(tree: Mapping[Any, Any], above: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and depth:
            yield from _flat(value, f"{above}{key}.", depth - 1)
        else:
            parts = value if isinstance(value, list) else [value]
            plain = all(is_number(part) or isinstance(part, str | bool | float | None) for part in parts)
            yield printable(f"{above}{key}"), value if plain else NESTED  # deeper than any config of ours


def _turns(run: RunDir) -> tuple[Turn, ...]:
    turns = []
    with suppress(OSError, RecursionError):
        for attempt in (attempts.read(run, number) for number in attempts.numbers(run)):
            began, nodes, procs = (attempt.about.get(name) for name in ("started_ns", "nodes", "procs"))
            ends = [end for node in attempt.nodes if node.ended and is_number(end := node.ended.get("time_ns"))]
            seconds = (max(ends) - began) / 1e9 if is_number(began) and ends and len(ends) == nodes else None
            turns.append(Turn(int(nodes * procs) if is_number(nodes) and is_number(procs) else None, seconds))
    return tuple(turns)


def _curves(run: RunDir) -> Curves:
    problems: list[str] = []
    places = [run.metrics, *sorted(run.path.glob("attempts/*/rewound.jsonl"))]
    rows, *rewound = [
        [row for row in files.lines(path, problems) if is_number(step := row.get("step")) and isinstance(step, int)] for path in places
    ]
    return Curves(rows, rewound, tuple(problems))
