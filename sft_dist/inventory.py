"""What checkpoints a run has, whether they are whole, and which of them may go: without torch."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sft_dist import locks, manifest, rundir
from sft_dist.errors import ConfigError
from sft_dist.rundir import STEP, RunDir, read_json, read_rows

UNFINISHED = ".unfinished-"
DAMAGED = "damaged-"
POINTERS = ("best", "latest")


@dataclass(frozen=True)
class Item:
    """A folder among the checkpoints, and what the run knows of it. marks: `best`, `latest`, `damaged`, `unfinished`."""

    name: str
    step: int | None
    epoch: float | None
    bytes: int
    written: str
    scores: dict[str, float]
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """Which checkpoints stay: the newest `keep`, every one at a multiple of `every_nth` steps, and those from step `before` on.

    None sets no such rule; without any of the three all stay. damaged: what a resume set aside as damaged goes.
    """

    keep: int | None = None
    every_nth: int | None = None
    before: int | None = None
    damaged: bool = False

    @property
    def by_step(self) -> bool:
        return (self.keep, self.every_nth, self.before) != (None, None, None)


def find(path: Path) -> RunDir:
    """The run of a folder. Raises ConfigError where there is none, or none with anything among its checkpoints."""
    run = RunDir(path)
    if not run.config.is_file():
        raise ConfigError(f"{path} is not the folder of a run (no config.yaml in it)")
    if not (steps(run) or set_aside(run)):
        raise ConfigError(f"{path} has no checkpoint yet")
    return run


def steps(run: RunDir) -> list[Path]:
    """The folders of the checkpoints that were committed, oldest first."""
    return sorted((path for path in _all(run) if STEP.fullmatch(path.name) and path.is_dir()), key=step_of)


def set_aside(run: RunDir) -> list[Path]:
    """What a save or a resume left beside them: damaged and unfinished folders."""
    return [path for path in _all(run) if path.name.startswith((DAMAGED, UNFINISHED))]


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def items(run: RunDir) -> list[Item]:
    """Every folder among the checkpoints, by step, then what was set aside. Changes nothing."""
    epochs, scores = _known(run)
    pointed = {pointer: run.pointed_to(pointer) for pointer in POINTERS}
    found = [
        _item(
            folder,
            step_of(folder),
            epochs.get(step_of(folder)),
            scores.get(step_of(folder), {}),
            tuple(name for name, to in pointed.items() if to == folder),
        )
        for folder in steps(run)
    ]
    return found + [
        _item(folder, None, None, {}, ("damaged" if folder.name.startswith(DAMAGED) else "unfinished",)) for folder in set_aside(run)
    ]


def describe(found: Sequence[Item]) -> list[str]:
    """A line for each folder, and their total, for people."""
    lines = []
    for item in found:
        epoch = "" if item.epoch is None else f"epoch {item.epoch:.4g}"
        scores = "  ".join(f"{name} {value:.4f}" for name, value in item.scores.items())
        line = f"{item.name}  {epoch:<12}  {item.bytes / 2**20:>10.1f} MiB  {item.written}  {scores}"
        lines.append(f"{line}  ({', '.join(item.marks)})" if item.marks else line.rstrip())
    return [*lines, f"{len(found)} folder{'s' * (len(found) != 1)}, {sum(item.bytes for item in found) / 2**20:.1f} MiB"]


def verify(run: RunDir, name: str | None = None) -> dict[str, list[str]]:
    """What is wrong with each committed checkpoint, or with the one called `best`, `latest` or `step-<n>`. Changes nothing."""
    folders = steps(run)
    if name is not None:
        wanted = run.pointed_to(name) if name in POINTERS else run.checkpoints / name
        folders = [folder for folder in folders if folder == wanted]
    if not folders:
        have = ", ".join(folder.name for folder in steps(run)) or "none"
        raise ConfigError(f"{run.path} has no checkpoint {name!r}; it has {have}" if name else f"{run.path} has no checkpoint to verify")
    return {folder.name: manifest.verify(folder) for folder in folders}


def prune(run: RunDir, rule: Rule, dry_run: bool = False) -> list[Item]:
    """Delete what a rule lets go, and return it. Takes the run's lock, so that nobody trains meanwhile; a dry run only looks.

    Never the best, the latest, or the newest whole one. Raises ConfigError without a rule, or without a whole checkpoint to stay.
    """
    if not (rule.by_step or rule.damaged):
        raise ConfigError("nothing says which checkpoints may go; use --keep, --every-nth, --before or --damaged")
    if dry_run:
        return [_item(folder, None, None, {}, ()) for folder in _doomed(run, rule)]
    with rundir.writing(run.checkpoints), locks.hold(run):
        gone = []
        for folder in _doomed(run, rule):
            gone.append(_item(folder, None, None, {}, ()))
            delete(folder)
    return gone


def describe_gone(gone: Sequence[Item], dry_run: bool) -> list[str]:
    """A line for each folder that was deleted, or would be, and their total."""
    verb = "would delete" if dry_run else "deleted"
    lines = [f"{verb} {item.name}, {item.bytes} bytes" for item in gone]
    return [*lines, f"{verb} {len(gone)} folder{'s' * (len(gone) != 1)}, {sum(item.bytes for item in gone)} bytes"]


def delete(folder: Path) -> None:
    """Rename a folder out of the way, and delete it then: half of one never looks like a checkpoint. Raises OSError."""
    doomed = folder.with_name(f"{UNFINISHED}old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    if doomed.is_symlink():
        doomed.unlink()  # what it leads to is not ours
    else:
        shutil.rmtree(doomed)


def _doomed(run: RunDir, rule: Rule) -> list[Path]:
    folders = steps(run)
    whole = next((folder for folder in reversed(folders) if not manifest.verify(folder)), None)
    if whole is None:
        raise ConfigError(f"{run.path} has no whole checkpoint; nothing is deleted, so that what is left can still be looked at")
    spared = {whole, *(run.pointed_to(pointer) for pointer in POINTERS), *(folders[-rule.keep :] if rule.keep else ())}
    may_go = [
        folder
        for folder in folders
        if folder not in spared
        and (rule.every_nth is None or step_of(folder) % rule.every_nth)
        and (rule.before is None or step_of(folder) < rule.before)
    ]
    damaged = [folder for folder in set_aside(run) if folder.name.startswith(DAMAGED)]
    return [*(may_go if rule.by_step else ()), *(damaged if rule.damaged else ())]


def _all(run: RunDir) -> list[Path]:
    return sorted(run.checkpoints.iterdir()) if run.checkpoints.is_dir() else []


def _known(run: RunDir) -> tuple[dict[int, float], dict[int, dict[str, float]]]:
    """step -> epoch, and step -> scores, from metrics.jsonl; test scores, and those of rows that were lost, from scores.json."""
    epochs: dict[int, float] = {}
    scores: dict[int, dict[str, float]] = {}
    for row in (*read_rows(run.metrics), *(entry for entry in read_json(run.scores).values() if isinstance(entry, dict))):
        step = row.get("step")
        if not isinstance(step, int):
            continue
        if "epoch" in row:
            epochs[step] = row["epoch"]
        own = {name: value for name, value in row.items() if name.startswith(("val/", "test/")) and isinstance(value, float)}
        scores[step] = scores.get(step, {}) | own
    return epochs, scores


def _item(folder: Path, step: int | None, epoch: float | None, scores: dict[str, float], marks: tuple[str, ...]) -> Item:
    size = 0
    for path in folder.rglob("*") if not folder.is_symlink() else ():
        with suppress(OSError):  # of a live run, a file may go while we look
            size += path.lstat().st_size if not path.is_dir() else 0
    with suppress(OSError):
        written = datetime.fromtimestamp(folder.lstat().st_mtime).astimezone().strftime("%Y-%m-%d %H:%M")
        return Item(folder.name, step, epoch, size, written, scores, marks)
    return Item(folder.name, step, epoch, size, "gone", scores, marks)
