"""Checkpoints on the disk: written aside, renamed into place, and only then pointed to; at any instant a whole one exists."""

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from sft_dist import archive, manifest
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError, MachineError
from sft_dist.inventory import DAMAGED, UNFINISHED, delete, steps
from sft_dist.manifest import Entry
from sft_dist.progress import Progress
from sft_dist.rundir import STEP, RunDir, step_name, write_atomically
from sft_dist.sharding import Tensors


@dataclass(frozen=True)
class About:
    """What a checkpoint says of the data that it learned from; a run on other data must not go on from it."""

    classes: tuple[str, ...]
    fingerprint: str


def file_name(part: str, rank: int) -> str:
    """Where a rank writes its `model` or `optim` tensors. One that has none writes no file; readers take what the manifest lists."""
    return f"{part}-{rank:05d}.safetensors" if rank else f"{part}.safetensors"


def begin(run: RunDir, step: int) -> Path:
    """A fresh folder beside the checkpoints, to write the one of this step into. Raises OSError.

    One that is there already belongs to a writer that was stuck, and may come to life again: it is left alone.
    """
    for number in count():
        aside = run.checkpoints / f"{UNFINISHED}{step_name(step)}{f'.{number}' * (number > 0)}"
        with suppress(FileExistsError):
            aside.mkdir()
            break
    return aside


def commit(
    run: RunDir, aside: Path, files: Mapping[str, Entry], progress: Progress, about: About, keep: int, wanted: Callable[[], bool]
) -> bool:
    """Make a checkpoint of a folder in which all ranks have written their files: when this returns it is on the disk, and pointed to.

    wanted: asked before the rename, and before the pointers move; False is returned if it says no. Raises OSError; the
    checkpoints that exist stay as they are.
    """
    state = {
        "format": 1,
        "step": progress.step,
        "classes": about.classes,
        "fingerprint": about.fingerprint,
        "progress": progress.to_json(),
    }
    (aside / "state.json").write_text(json.dumps(state) + "\n")
    manifest.write(aside, progress.step, {**files, "state.json": manifest.entry(aside / "state.json")})
    if not wanted():
        return False
    _move_over(aside, run.checkpoints / step_name(progress.step))
    manifest.fsync(run.checkpoints)
    if not wanted():
        return False
    point(run, progress)
    _delete_old(run, keep)
    return True


def cannot_save(run: RunDir, needed: int, error: OSError) -> str:
    """Why a checkpoint cannot be written, what it needs, and what is safe, for people."""
    try:
        free = f"{shutil.disk_usage(run.checkpoints).free / 2**20:.1f} MiB free"
    except OSError:  # the folder itself is gone
        free = "free space unknown"
    latest = run.pointed_to("latest")
    safe = f"{latest.name} is intact" if latest else "there is no earlier checkpoint"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why, remedy = ("no space is left", "Make room, or use a smaller save.keep,") if full else (str(error), "Mend that")
    needs = f"{needed / 2**20:.1f} MiB needed, " if needed else ""
    return f"cannot save a checkpoint in {run.checkpoints}: {why} ({needs}{free}); {safe}. {remedy} and start the same command again"


def restore(run: RunDir, engine: Engine, about: About, checkpoint: Path | None) -> Progress:
    """Model, optimizer and progress from a checkpoint that `newest` found; a fresh start from None. All ranks take part."""
    if checkpoint is None:
        return Progress()
    if not checkpoint.is_dir():
        raise MachineError(f"{checkpoint} is there for rank 0, but not here; run.dir must be on a file system that all nodes share")
    state = json.loads((checkpoint / "state.json").read_text())
    if (state["fingerprint"], tuple(state["classes"])) != (about.fingerprint, about.classes):
        raise ConfigError(
            f"{run.path} was trained on other data: {len(state['classes'])} classes, fingerprint {state['fingerprint']}; "
            f"the data now has {len(about.classes)} classes, fingerprint {about.fingerprint}. Restore the data, or start another run.name",
            everywhere=True,
        )
    engine.put(Tensors(*archive.shelves(checkpoint)))
    return Progress(**state["progress"])


def newest(run: RunDir) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with the newer ones that are not; those are renamed out of the way."""
    clear_unfinished(run)
    told: list[str] = []
    for folder in reversed(steps(run)):
        problems = archive.verify(folder)
        if not problems:
            latest = run.pointed_to("latest")
            if not told and latest != folder:
                told.append(f"checkpoints/latest does not name {folder.name}, the newest whole checkpoint")
            if told:
                told.append(f"going on from {folder.name}")
            return folder, told
        told += [f"damaged checkpoint: {problem}" for problem in problems]
        _move_over(folder, folder.with_name(f"{DAMAGED}{folder.name}"))
    if any(run.checkpoints.glob(f"{DAMAGED}*")):  # of attempts before, too: a run that lost all it had never starts anew by itself
        raise MachineError(
            [*told, f"no whole checkpoint is left in {run.checkpoints}; restore one from a backup, or start another run.name"]
        )
    return None, []


def named(run: RunDir, name: str) -> Path:
    """The checkpoint called `best`, `latest` or `step-<n>`, verified. Raises ConfigError if there is none, or it is damaged."""
    folder = run.pointed_to(name) if name in ("best", "latest") else run.checkpoints / name if STEP.fullmatch(name) else None
    if folder is None or not folder.is_dir():
        have = ", ".join(path.name for path in steps(run))
        raise ConfigError(f"{run.path} has no checkpoint {name!r}; it has {have or 'none'}")
    if problems := archive.verify(folder):
        raise ConfigError([f"checkpoint {folder} is damaged", *problems])
    return folder


def classes_of(checkpoint: Path) -> tuple[str, ...]:
    """The classes that a checkpoint's model tells apart, by number."""
    return tuple(json.loads((checkpoint / "state.json").read_text())["classes"])


def load_model(checkpoint: Path, engine: Engine) -> None:
    """The weights of a checkpoint, averaged ones where there are, into the model, which must have its shape."""
    engine.put(Tensors(archive.weights(checkpoint), {}))


def point(run: RunDir, progress: Progress) -> None:
    """Make `latest` and `best` name the checkpoints of this progress, and no later ones. A best that was never committed
    leaves the pointer to the best before it."""
    pointers = {"latest": progress.step, "best": progress.best["step"] if progress.best else None}
    for pointer, step in pointers.items():
        now = run.pointed_to(pointer)
        if step and (run.checkpoints / step_name(step)).is_dir():
            write_atomically(run.checkpoints / pointer, step_name(step) + "\n")
        elif not (step and now and now.name <= step_name(progress.step)):
            (run.checkpoints / pointer).unlink(missing_ok=True)


def _move_over(source: Path, target: Path) -> None:
    """Rename a folder, over an existing one if need be. A crash in between leaves the source whole, and `newest` takes it."""
    old = target.with_name(f"{UNFINISHED}old-{target.name}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def clear_unfinished(run: RunDir) -> None:
    """Delete what a crash left half written or half deleted; what lacks nothing but its name gets it."""
    for leftover in sorted(run.checkpoints.glob(f"{UNFINISHED}*")):
        final = run.checkpoints / leftover.name.removeprefix(UNFINISHED).partition(".")[0]
        if STEP.fullmatch(final.name) and not final.exists() and not manifest.verify(leftover):
            leftover.rename(final)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _delete_old(run: RunDir, keep: int) -> None:
    """Delete all but the newest `keep` and the best. What will not go now does at the next start: the new checkpoint is safe already."""
    best = run.pointed_to("best")
    for folder in steps(run)[:-keep]:
        if folder != best:
            with suppress(OSError):
                delete(folder)
