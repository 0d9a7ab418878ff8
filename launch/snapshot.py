"""The code and the config of a job, put aside in its run's folder: later edits reach no job that waits or is queued again."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from sft_dist import revision
from sft_dist.errors import ConfigError, MachineError
from sft_dist.parse import AS_WRITTEN
from sft_dist.revision import NOTE
from sft_dist.rundir import RunDir, to_json, writing

PARTS = ("sft_dist/**/*.py", "sft_dist/datasets/*.npz", "sft_dist/pages/templates/*", "launch/**/*.py", "slurm/*.sh")
SCRIPT, CONFIG = "slurm/finetune.sh", "config.yaml"
ARRAY, CONFIGS, SWEEP = "slurm/array.sh", "configs", "sweep.yaml"


def contents(repository: Path, config: Path, resolved: str) -> dict[str, bytes]:
    """Path inside the snapshot -> content: the packages' own files, their commit, the config with every key, and as the user wrote it."""
    return {**_code(repository), CONFIG: resolved.encode(), AS_WRITTEN: config.read_bytes()}


def of_sweep(repository: Path, sweep: Path, config: Path, resolved: Sequence[str]) -> dict[str, bytes]:
    """The same for a sweep: the config of task k is `configs/<k>.yaml`."""
    configs = {f"{CONFIGS}/{number}.yaml": text.encode() for number, text in enumerate(resolved)}
    return {**_code(repository), **configs, SWEEP: sweep.read_bytes(), AS_WRITTEN: config.read_bytes()}


def digest(files: Mapping[str, bytes]) -> str:
    """The same for the same names and contents."""
    whole = sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    return whole.hexdigest()[:16]


def place(run: Path, files: Mapping[str, bytes]) -> Path:
    """Where a snapshot of these files lies in a run's folder: the same content, the same folder."""
    return run / "code" / digest(files)


def make(run: RunDir, files: Mapping[str, bytes]) -> Path:
    """Write the snapshot, whole or not at all; one that is there already is used, if nobody has changed it."""
    folder = place(run.path, files)
    with writing(folder):
        folder.parent.mkdir(exist_ok=True)
        if not folder.exists():
            fresh = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))  # no second dot: attempts.begin takes such names away
            try:
                _fill(fresh, files)
                fresh.rename(folder)
            except OSError:
                if not folder.exists():  # else another submission was faster
                    raise
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    changed = [name for name, content in files.items() if not _holds(folder / name, content)]
    if changed:
        raise MachineError(f"{folder} was changed after it was made ({', '.join(changed[:3])}); delete that folder")
    return folder


def _code(repository: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(repository)): path.read_bytes() for part in PARTS for path in sorted(repository.glob(part))}
    if SCRIPT not in found:
        raise ConfigError(f"{repository} has no {SCRIPT}: use sft-launch from a checkout (pip install --editable)")
    return {**found, NOTE: to_json(revision.of(repository)).encode()}


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o444)
    folder.chmod(0o777 & ~_umask())  # mkdtemp's is the owner's alone; the run's folder decides who looks in


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
