"""Where everything of a run lies, how it is written so that a crash leaves no half of it, and how it is read back."""

import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist import manifest, parse
from sft_dist.config import Config
from sft_dist.errors import ConfigError, MachineError
from sft_dist.manifest import fsync
from sft_dist.plan import changed_keys

STEP = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    return f"step-{step:08d}"


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> "RunDir":
        return cls(Path(config.run.dir) / config.run.name)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def outcome(self) -> Path:
        return self.path / "outcome.json"

    @property
    def scores(self) -> Path:
        return self.path / "scores.json"

    def pointed_to(self, pointer: str) -> Path | None:
        """The checkpoint that `checkpoints/latest` or `checkpoints/best` names, or None if there is none."""
        try:
            path = self.checkpoints / pointer
            name = path.read_text().strip() if path.is_file() else ""
        except OSError:
            return None
        return self.checkpoints / name if STEP.fullmatch(name) and (self.checkpoints / name).is_dir() else None

    @property
    def saved_step(self) -> int:
        """The step of the latest checkpoint; 0 if there is none."""
        latest = self.pointed_to("latest")
        return int(latest.name.removeprefix("step-")) if latest else 0


def check(config: Config) -> None:
    """Refuse a folder that holds another run: the keys that shape the curve must be those that it was started with."""
    run = RunDir.of(config)
    there = next(path for path in (run.path, *run.path.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise MachineError(f"run.dir = {config.run.dir!r}: cannot write to {there}; use another run.dir")
    if not run.config.exists():
        if run.path.is_dir() and not _only_begun(run):
            raise ConfigError(f"{run.path} exists and is not a run (no config.yaml in it); use another run.name or run.dir")
        return
    changed = changed_keys(parse.load(run.config), config)
    if changed:
        raise ConfigError(
            [f"{run.path} holds a run of another config; to go on with it, undo the changes, or start another with run.name=...", *changed]
        )


def _only_begun(run: RunDir) -> bool:
    """Whether the folder holds nothing but what a launcher puts there, and what a run leaves that died before its config was written."""
    names = {path.name for path in run.path.iterdir() if not path.name.startswith(".") and not path.match("slurm-*.log")}
    return names <= {"attempts", "checkpoints", "predictions", "outcome.json", "code", "job.json"} and not any(run.checkpoints.glob("*"))


def create(config: Config) -> RunDir:
    """Make the folder, or find it again, and prove that it can be written. Only its owner may look into it, but for `run.shared`."""
    run = RunDir.of(config)
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
        run.path.mkdir(mode=0o700, exist_ok=True)
        for folder in (run.checkpoints, run.predictions, run.path / "attempts"):
            folder.mkdir(exist_ok=True)
        mode = stat.S_IMODE(run.predictions.stat().st_mode) if config.run.shared else 0o700  # the former was made by the umask
        if stat.S_IMODE(run.path.stat().st_mode) != mode:
            run.path.chmod(mode)
        probe = run.path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"run.dir = {config.run.dir!r}: cannot write to {run.path}: {error.strerror or error}") from error
    return run


def begun(run: RunDir) -> bool:
    """Whether there is a checkpoint to go on from, so that the pretrained weights are no longer needed."""
    with suppress(OSError):  # a folder that cannot be looked at: `check` says so
        return any(run.checkpoints.glob(f"step-*/{manifest.NAME}"))
    return False


def finished(config: Config) -> RunDir | None:
    """The folder of a config whose run came to its end and is asked for nothing more, else None."""
    run = RunDir.of(config)
    if read_json(run.outcome).get("outcome") != "done" or not run.config.exists():
        return None
    made = parse.load(run.config)
    return run if (made.train.duration, made.stop, made.eval.test) == (config.train.duration, config.stop, config.eval.test) else None


def told_again(run: RunDir) -> list[str]:
    """What whoever starts a finished run is told."""
    return ["this run is finished; a longer train.duration goes on from its end", *summary(run)]


def summary(run: RunDir) -> list[str]:
    """The scores of a run, a line for each of best, last and test."""
    lines = []
    for name, entry in read_json(run.scores).items():
        values = "  ".join(f"{metric} {value:.4f}" for metric, value in entry.items() if isinstance(value, float))
        lines.append(f"{name:>9}  step {entry['step']}: {values}")
    return [*lines, f"{'run':>9}  {run.path}"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ConfigError(f"{path}, line {number} is not JSON; the file was changed by hand or the disk is damaged") from None
    return rows


def rewind(run: RunDir, step: int, evaluated: int, attempt: int) -> None:
    """Cut metrics.jsonl back to a checkpoint, so that no step appears twice; what is cut moves to the attempt's folder.

    step: the last step whose training row stays. evaluated: the last step whose evaluation row stays.
    """
    last = {"train": step, "eval": evaluated}
    rows = read_rows(run.metrics)
    kept = [row for row in rows if row["step"] <= last[row["kind"]]]
    cut = [row for row in rows if row["step"] > last[row["kind"]]]
    if cut:
        write_atomically(run.path / "attempts" / str(attempt) / "rewound.jsonl", _lines(cut))
    write_atomically(run.metrics, _lines(kept))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an empty one where there is no readable file."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}  # a pipe would be waited for
    except (OSError, ValueError, RecursionError):  # the last of a file of brackets
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, to_json(content))


def to_json(content: Mapping[str, Any]) -> str:
    """An object as JSON with a line for each of its keys: readable, and a confusion matrix does not take a line a number."""
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()) + "\n}\n"


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Replace a file so that every reader, and every crash, sees the old text or the new one, whole; pieces of text are streamed."""
    with writing(path):
        fresh = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")  # in containers many processes have one number
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.writelines([text] if isinstance(text, str) else text)
            fsync(fresh)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        fsync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong with the disk while a file of a run is written is the machine's fault, and is said so."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}; mend that and start the same command again") from error


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
