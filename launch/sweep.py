"""A sweep: a file that names one config and what varies, and the runs that come of it; nothing is started here."""

import difflib
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.words import numbered, spans
from sft_dist import parse, rundir, units
from sft_dist.config import Config
from sft_dist.errors import ConfigError, MachineError, SftError
from sft_dist.rundir import RunDir

KEYS = ("config", "name", "runs", "grid")
MOST = 1000  # Slurm's own MaxArraySize allows indices up to this one
NOT_VARIED = {
    "run.name": "a sweep numbers its runs, <name>-0 and on; name: in the sweep says the rest",
    "run.dir": "all runs of a sweep lie in its folder; say run.dir in the config, or on the command line",
    "task": "scores of different tasks cannot stand in one table",
}


@dataclass(frozen=True)
class Task:
    """One run of a sweep. number: its index in the array, from 0. varied: dotted key -> value, as the sweep has it."""

    number: int
    varied: Mapping[str, Any]
    settings: Config

    @property
    def run(self) -> RunDir:
        return RunDir(RunDir.of(self.settings).path.absolute())


@dataclass(frozen=True)
class Sweep:
    """Runs that were all checked. config: the file that they share. folder: of the sweep, absolute; the runs lie in it."""

    name: str
    config: Path
    folder: Path
    tasks: tuple[Task, ...]

    @functools.cached_property
    def unfinished(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if rundir.finished(task.settings) is None)


def load(path: Path, overrides: Sequence[str], check: Callable[[Config], None]) -> Sweep:
    """The sweep of a file, with key=value laid over the config of every run. Raises with the problems of all runs at once.

    check: raises SftError for a config that cannot run.
    """
    tree = parse.read_yaml(path, begins="config: configs/x.yaml")
    name = tree.get("name", path.stem)
    points, wrong = _points(tree)
    wrong = [*_own_keys(tree, name), *wrong, *_fixed(points, overrides)]
    if wrong:
        raise ConfigError([f"{path}: {line}" for line in wrong])
    config = Path(tree["config"])
    tasks, found, by_user = [], dict[str, list[int]](), False
    for number, point in enumerate(points):
        try:
            task = Task(number, point, _settings(config, name, number, [*overrides, *_typed(point)]))
            tasks.append(task)
            check(task.settings)
        except SftError as error:
            by_user = by_user or isinstance(error, ConfigError)
            for problem in error.problems:
                found.setdefault(problem, []).append(number)
    alike = _alike(tasks)
    if told := [*alike, *(f"{_who(numbers, points)}: {problem}" for problem, numbers in found.items())]:
        raise ConfigError(told) if by_user or alike else MachineError(told)
    return Sweep(name, config, tasks[0].run.path.parent, tuple(tasks))


def text(value: Any) -> str:
    """A value as YAML in one line, which reads back as the same."""
    told = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9).strip()[1:-1]
    return json.dumps(value, default=str) if "\n" in told else told  # which is YAML too


def indices(tasks: Sequence[Task], limit: int | None = None) -> str:
    """The tasks as sbatch's --array takes them, at most `limit` of them at a time: `0-2,5%2`."""
    return ",".join(spans(task.number for task in tasks)) + (f"%{limit}" if limit else "")


def _own_keys(tree: Mapping[str, Any], name: object) -> list[str]:
    """What is wrong with the sweep's own keys, but for runs and grid."""
    wrong = []
    if of_config := [key for key in tree if key in Config.model_fields]:
        keys = f"{', '.join(of_config)} {'is a key' if len(of_config) == 1 else 'are keys'}"
        wrong.append(f"{keys} of a config, not of a sweep; name the config with `config:`, or submit it: sft-launch slurm submit")
    for key in tree:
        near = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.6)
        if key not in KEYS and key not in Config.model_fields:
            wrong.append(f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else f"it has {', '.join(KEYS)}"))
    if not isinstance(tree.get("config"), str):
        wrong.append("config is missing: the file that all runs share, like `config: configs/x.yaml`")
    if not isinstance(name, str):
        return [*wrong, f"name: {name!r} is no text; put it in quotes"]
    try:
        units.plain_name(name)
    except ValueError as error:
        wrong.append(f"name: {error}")
    return wrong


def _points(tree: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """What varies, a mapping for each run: each of `runs` with each combination of `grid`; and what is wrong with it."""
    runs, grid = tree.get("runs", [{}]), tree.get("grid", {})
    if "runs" not in tree and "grid" not in tree:
        return [], ["nothing varies; write `grid: {train.seed: [0, 1, 2]}`, or `runs:` with a list of key: value"]
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        return [], ["runs is not a list of runs, each of them key: value, like `- {optim.lr: 0.1, train.seed: 1}`"]
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        return [], ["grid is not key: [value, value], like `grid: {train.seed: [0, 1, 2]}`"]
    total = len(runs) * math.prod(map(len, grid.values()))
    if total > MOST:
        return [], [f"{total} runs; a sweep has at most {MOST}"]
    corners = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    both = sorted({str(key) for run in runs for key in run if key in grid})
    return [{**run, **corner} for run in runs for corner in corners], [f"{key} stands in runs and in grid" for key in both]


def _fixed(points: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> list[str]:
    """Keys and values that no run may have."""
    given = {override.removeprefix("--").partition("=")[0] for override in overrides}
    keys = dict.fromkeys(key for point in points for key in point)
    wrong = [f"{key} cannot vary: {why}" for key, why in NOT_VARIED.items() if key in keys]
    wrong += [f"run.name on the command line: {NOT_VARIED['run.name']}"] if "run.name" in given else []
    for key in keys:
        if not isinstance(key, str) or not re.fullmatch(r"\w+(\.\w+)*", key):
            wrong.append(f"{key!r} is no key; write it like optim.lr")
        elif key in given:
            wrong.append(f"{key} varies, and is set on the command line as well")
        elif any(isinstance(point.get(key), dict) for point in points):
            wrong.append(f"{key} is a section; write its keys with dots, like optim.lr: 0.1")
    return wrong


def _settings(config: Path, name: str, number: int, overrides: Sequence[str]) -> Config:
    """The config of a run in the sweep's folder, under its name in the sweep."""
    settings = parse.load(config, [*overrides, f"run.name={text(f'{name}-{number}')}"])
    run = settings.run.model_copy(update={"dir": str(Path(settings.run.dir) / name)})
    return settings.model_copy(update={"run": run})


def _alike(tasks: Sequence[Task]) -> list[str]:
    """Runs that would be the same but for their name."""
    first: dict[str, int] = {}
    wrong = []
    for task in tasks:
        content = parse.to_yaml(task.settings.model_copy(update={"run": task.settings.run.model_copy(update={"name": "x"})}))
        if content in first:
            wrong.append(f"tasks {first[content]} and {task.number} are the same run")
        first.setdefault(content, task.number)
    return wrong


def _who(numbers: Sequence[int], points: Sequence[Mapping[str, Any]]) -> str:
    """The runs that have a problem, with what varies where it is only one."""
    if len(numbers) == 1:
        return f"task {numbers[0]} ({', '.join(_typed(points[numbers[0]])) or 'as the config is'})"
    return "every task" if len(numbers) == len(points) else numbered("task", numbers)


def _typed(point: Mapping[str, Any]) -> list[str]:
    return [f"{key}={text(value)}" for key, value in point.items()]
