"""Checkpoints: written aside, verified, renamed into place, and only then pointed to; at any instant a whole one exists."""

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sft_dist import manifest
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError, MachineError
from sft_dist.progress import Progress
from sft_dist.rundir import STEP, RunDir, step_name, write_atomically
from sft_dist.sharding import Tensors

UNFINISHED = ".unfinished-"
DAMAGED = "damaged-"


@dataclass(frozen=True)
class About:
    """What a checkpoint says of the data that it learned from; a run on other data must not go on from it."""

    classes: tuple[str, ...]
    fingerprint: str


def save(run: RunDir, engine: Engine, progress: Progress, about: About, keep: int) -> None:
    """Commit a checkpoint of this step. When it returns, on any rank, the checkpoint is on the disk and pointed to.

    Raises MachineError on all ranks where it cannot be written; the checkpoints that exist stay as they are.
    """
    engine.even_out_statistics()
    tensors = engine.take()
    engine.on_main(lambda: _commit(run, tensors, progress, about, keep))


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
    engine.put(Tensors(load_file(checkpoint / "model.safetensors"), load_file(checkpoint / "optim.safetensors")))
    return Progress(**state["progress"])


def newest(run: RunDir) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with the newer ones that are not; those are renamed out of the way."""
    _clear_unfinished(run)
    told: list[str] = []
    for folder in reversed(_folders(run)):
        problems = manifest.verify(folder)
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
        have = ", ".join(path.name for path in _folders(run)) if run.checkpoints.is_dir() else ""
        raise ConfigError(f"{run.path} has no checkpoint {name!r}; it has {have or 'none'}")
    if problems := manifest.verify(folder):
        raise ConfigError([f"checkpoint {folder} is damaged", *problems])
    return folder


def classes_of(checkpoint: Path) -> tuple[str, ...]:
    """The classes that a checkpoint's model tells apart, by number."""
    return tuple(json.loads((checkpoint / "state.json").read_text())["classes"])


def load_model(checkpoint: Path, engine: Engine) -> None:
    """The weights of a checkpoint into the bare model, which must have its shape."""
    engine.module.load_state_dict(load_file(checkpoint / "model.safetensors"))


def _commit(run: RunDir, tensors: Tensors, progress: Progress, about: About, keep: int) -> None:
    name = step_name(progress.step)
    aside = run.checkpoints / f"{UNFINISHED}{name}"
    needed = sum(t.numel() * t.element_size() for part in tensors for t in part.values())
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        _write(aside / "model.safetensors", tensors.model)
        _write(aside / "optim.safetensors", tensors.optimizer)
        state = {
            "format": 1,
            "step": progress.step,
            "classes": about.classes,
            "fingerprint": about.fingerprint,
            "progress": progress.to_json(),
        }
        (aside / "state.json").write_text(json.dumps(state) + "\n")
        manifest.write(aside, progress.step)
        _move_over(aside, run.checkpoints / name)
        manifest.fsync(run.checkpoints)
        point(run, progress)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise _cannot_save(run, needed, error) from error
    _delete_old(run, keep)


def point(run: RunDir, progress: Progress) -> None:
    """Make `latest` and `best` name the checkpoints of this progress, and no later ones."""
    steps = {"latest": progress.step, "best": progress.best["step"] if progress.best else None}
    for pointer, step in steps.items():
        if step and (run.checkpoints / step_name(step)).is_dir():
            write_atomically(run.checkpoints / pointer, step_name(step) + "\n")
        else:
            (run.checkpoints / pointer).unlink(missing_ok=True)


def _move_over(source: Path, target: Path) -> None:
    """Rename a folder, over an existing one if need be. A crash in between leaves the source whole, and `newest` takes it."""
    old = target.with_name(f"{UNFINISHED}old-{target.name}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _clear_unfinished(run: RunDir) -> None:
    """Delete what a crash left half written or half deleted; what lacks nothing but its name gets it."""
    for leftover in sorted(run.checkpoints.glob(f"{UNFINISHED}*")):
        final = run.checkpoints / leftover.name.removeprefix(UNFINISHED)
        if STEP.fullmatch(final.name) and not final.exists() and not manifest.verify(leftover):
            leftover.rename(final)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _cannot_save(run: RunDir, needed: int, error: Exception) -> MachineError:
    free = shutil.disk_usage(run.checkpoints).free
    latest = run.pointed_to("latest")
    safe = f"{latest.name} is intact" if latest else "there is no earlier checkpoint"
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
    why = "no space is left" if full else str(error)
    return MachineError(
        f"cannot save a checkpoint in {run.checkpoints}: {why} ({needed / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free); {safe}. "
        "Make room, or use a smaller save.keep, and start the same command again"
    )


def _delete_old(run: RunDir, keep: int) -> None:
    """Delete all but the newest `keep` and the best. A folder is renamed first, so that half of one never looks like a checkpoint."""
    best = run.pointed_to("best")
    for folder in _folders(run)[:-keep]:
        if folder != best:
            doomed = folder.with_name(f"{UNFINISHED}{folder.name}")
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _folders(run: RunDir) -> list[Path]:
    found = [path for path in run.checkpoints.iterdir() if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
