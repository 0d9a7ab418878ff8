"""The table of a sweep, best run first: read from the folders of its runs, so that it is right whoever asks, and whenever."""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch import queue, why
from launch.jobs import Job
from launch.verdict import WORDS
from launch.words import aligned, cut, numbered, plain
from sft_dist import attempts, parse
from sft_dist.config import Config
from sft_dist.errors import ConfigError
from sft_dist.progress import HEADLINES
from sft_dist.rundir import RunDir, read_json, write_atomically, write_json

RECORD = "sweep.json"
WIDEST = 32  # characters of a value


@dataclass(frozen=True)
class Line:
    """One run. state: in words. best: its best headline score, made at best_step; test: that of the same checkpoint on the test split."""

    task: int
    run: str
    state: str
    step: int
    total_steps: int | None
    best: float | None
    best_step: int | None
    test: float | None
    varied: Mapping[str, Any]


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in train.seed alone; their best headline scores."""

    varied: Mapping[str, Any]
    runs: int
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Table:
    """folder: where the table is kept. headline: what the runs are sorted by, the best first; those without a score come last."""

    folder: Path
    headline: str
    more_is_better: bool
    lines: tuple[Line, ...]

    @property
    def done(self) -> int:
        return sum(line.state == WORDS["done"] for line in self.lines)


def is_sweep(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def read(told: Path, over: int | None = None, live: Mapping[int, Job] | None = None) -> Table:
    """The table of a sweep, or of a folder with 0.yaml, 1.yaml...; of the latter, relative folders of runs start where this is called.

    over: the task that is at its end, so that it does not run any more whatever its last sign is. live: the tasks that Slurm
    still has; None: it was not asked.
    """
    folder, configs = _place(told)
    settings = _configs(configs.absolute())
    if not settings:
        raise ConfigError(f"{told} is neither the folder of a sweep, nor has it a 0.yaml, 1.yaml...")
    values = {task: parse.flat(config) for task, config in settings.items()}
    varied = [key for key in next(iter(values.values())) if len({json.dumps(flat[key]) for flat in values.values()}) > 1]
    headline, more_is_better = HEADLINES[next(iter(settings.values())).task]
    lines = []
    for task, config in settings.items():
        run = RunDir(folder / config.run.name) if is_sweep(folder) else RunDir.of(config)
        own = {key: values[task][key] for key in varied if key not in ("run.name", "run.dir")}
        lines.append(_line(task, run, headline, own, state(run, task == over, task, live)))
    lines.sort(key=lambda line: (line.best is None, -(line.best or 0) if more_is_better else line.best or 0, line.task))
    return Table(folder, headline, more_is_better, tuple(lines))


def state(run: RunDir, over: bool, task: int, live: Mapping[int, Job] | None) -> str:
    """What a run does, or how it ended, in words."""
    job = live.get(task) if live else None
    if job and job.state not in ("RUNNING", "COMPLETING"):
        return queue.state_in_words(job.state)
    begun = bool(attempts.numbers(run))
    verdict = why.look(run, over=over) if begun else None
    if live is not None and job is None and (verdict is None or verdict.kind == "running"):
        return "its job is gone" if begun else "its job is gone; it had not begun"
    return WORDS[verdict.kind] if verdict else "not begun"


def text(table: Table) -> list[str]:
    """The table for people, and under it the means over the seeds where they vary."""
    keys = list(table.lines[0].varied)
    header = ["task", "run", "state", "step", table.headline, "at step", *(["test"] if _tested(table) else []), *keys]
    rows = [_cells(line, _tested(table)) for line in table.lines]
    told = [f"{plain(str(table.folder))}: {table.done} of {len(table.lines)} done; best {table.headline} first", ""]
    told += aligned([header, *rows])
    if groups := over_seeds(table):
        header = ["runs", f"mean {table.headline}", "lowest", "highest", *groups[0].varied]
        means = [
            [str(each.runs), *map(_score, (each.mean, each.lowest, each.highest)), *map(_value, each.varied.values())] for each in groups
        ]
        told += ["", "over train.seed:", *aligned([header, *means])]
    return told


def waiting(live: Mapping[int, Job]) -> list[str]:
    """Why tasks of a sweep wait, each reason once."""
    reasons: dict[str, list[int]] = {}
    for task, job in live.items():
        if job.state == "PENDING":
            reasons.setdefault(job.reason, []).append(task)
    words = {reason: queue.reason_in_words(reason, live[tasks[0]].number) for reason, tasks in reasons.items()}
    return [cut(f"{numbered('task', tasks)}: {reason}: {words[reason]}") for reason, tasks in reasons.items()]


def over_seeds(table: Table) -> list[Seeds]:
    """The runs with a score that differ in train.seed alone, the best mean first; empty where there are no two such."""
    groups: dict[str, list[float]] = {}
    for line in table.lines:
        if line.best is not None and "train.seed" in line.varied:
            groups.setdefault(json.dumps({key: value for key, value in line.varied.items() if key != "train.seed"}), []).append(line.best)
    found = [
        Seeds(json.loads(varied), len(scores), sum(scores) / len(scores), min(scores), max(scores)) for varied, scores in groups.items()
    ]
    found.sort(key=lambda each: each.mean, reverse=table.more_is_better)
    return found if any(each.runs > 1 for each in found) else []


def write(told: Path, over: int | None = None) -> Table:
    """Write table.txt and results.json into the sweep's folder.

    Each task does so when it ends, without a lock: whoever writes looks once more afterwards, so that of two that end
    together the last to write has seen the other.
    """
    seen = None
    while True:
        table = read(told, over)
        states = [(line.task, line.state) for line in table.lines]
        if states == seen:
            return table
        seen = states
        write_atomically(table.folder / "table.txt", "\n".join([*text(table), ""]))
        runs, seeds = [asdict(line) for line in table.lines], [asdict(each) for each in over_seeds(table)]
        write_json(table.folder / "results.json", {"headline": table.headline, "over_seeds": seeds, "runs": runs})


def _place(told: Path) -> tuple[Path, Path]:
    """Where the table of a folder is kept, and where its configs lie."""
    if is_sweep(told):
        return told, told / str(read_json(told / RECORD).get("configs"))
    return next((parent for parent in told.absolute().parents if is_sweep(parent)), told), told


@functools.cache
def _configs(folder: Path) -> dict[int, Config]:
    """Task -> config; kept, as they are read twice for a table and never change."""
    return {int(path.stem): parse.load(path) for path in folder.glob("*.yaml") if path.stem.isdecimal()}


def _line(task: int, run: RunDir, headline: str, varied: Mapping[str, Any], words: str) -> Line:
    """words: the run's state, which was read first: what a run writes last is how it ended."""
    scores = read_json(run.scores)
    best, test = scores.get("best", {}), scores.get("test", {})
    ended = read_json(run.outcome).get("step")
    return Line(
        task,
        str(run.path),
        words,
        ended if isinstance(ended, int) else max(run.saved_step, _beaten(run)),
        read_json(run.path / "plan.json").get("total_steps"),
        _finite(best.get(headline)),
        best.get("step"),
        _finite(test.get(headline.replace("val/", "test/"))),
        varied,
    )


def _beaten(run: RunDir) -> int:
    """The step that the ranks of the last attempt are at."""
    made = attempts.numbers(run)
    nodes = attempts.read(run, made[-1]).nodes if made else ()
    return max((beat.step for node in nodes for beat in node.beats.values()), default=0)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _tested(table: Table) -> bool:
    return any(line.test is not None for line in table.lines)


def _cells(line: Line, tested: bool) -> list[str]:
    step = f"{line.step}/{line.total_steps}" if line.total_steps else str(line.step or "-")
    at = "-" if line.best_step is None else str(line.best_step)
    scores = [_score(line.best), at, *([_score(line.test)] if tested else [])]
    return [str(line.task), Path(line.run).name, line.state, step, *scores, *map(_value, line.varied.values())]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _value(value: object) -> str:
    told = plain(value if isinstance(value, str) else json.dumps(value))
    return told if len(told) <= WIDEST else f"{told[: WIDEST - 3]}..."
