"""What a run still has after an attempt, and what went with it: checkpoints, steps, minutes."""

from contextlib import suppress
from dataclasses import dataclass

from launch.verdict import Verdict
from sft_dist import attempts, inventory, manifest
from sft_dist.errors import ConfigError
from sft_dist.rundir import RunDir, read_json, read_rows

HASHED_BYTES = 4 * 2**30  # a screen may take seconds: of larger checkpoints only the sizes are compared


@dataclass(frozen=True)
class Losses:
    """checkpoint: the newest whole one's name. hashed: whether its content was read again, or its sizes only. damaged: newer ones.

    steps, seconds: made since, and to be made again; None where it is not known.
    """

    checkpoint: str | None
    step: int
    hashed: bool
    damaged: tuple[str, ...]
    steps: int | None
    seconds: float | None


def losses(run: RunDir, verdict: Verdict) -> Losses:
    """Of the run's last attempt, by its checkpoints and by the last step that it logged. Changes nothing."""
    damaged: list[str] = []
    for folder in reversed(inventory.steps(run)):
        hashed = _bytes(run, folder.name) <= HASHED_BYTES
        if manifest.verify(folder) if hashed else _wrong_sizes(run, folder.name):
            damaged.append(folder.name)
            continue
        step = inventory.step_of(folder)
        since_ns = (folder / manifest.NAME).stat().st_mtime_ns
        return Losses(folder.name, step, hashed, tuple(damaged), *_since(run, verdict, step, since_ns))
    return Losses(None, 0, False, tuple(damaged), *_since(run, verdict, 0, 0))


def ended_ns(run: RunDir, verdict: Verdict) -> int | None:
    """When the attempt ended, by its first cause, by its agents, or by what it wrote last."""
    if verdict.root is not None:
        return verdict.root.time_ns
    told = [node.ended.get("time_ns") for node in verdict.attempt.nodes if node.ended]
    told += [failure.time_ns for failure in verdict.causes.consequences]
    if known := [time for time in told if isinstance(time, int)]:
        return max(known) if verdict.code == 0 else min(known)
    with suppress(OSError):
        return max(path.stat().st_mtime_ns for path in (run.outcome, run.metrics, verdict.attempt.path) if path.exists())
    return None


def is_last(run: RunDir, verdict: Verdict) -> bool:
    return attempts.numbers(run)[-1:] == [verdict.attempt.number]


def _since(run: RunDir, verdict: Verdict, step: int, since_ns: int) -> tuple[int | None, float | None]:
    made = _logged(run)
    if verdict.root is not None:
        made = max(made, verdict.root.step - 1)  # a rank counts the step that it works on
    lost = max(0, made - step)
    end, began = ended_ns(run, verdict), verdict.attempt.about.get("started_ns")
    begin = max(since_ns, began if isinstance(began, int) else 0)
    return lost, (end - begin) / 1e9 if lost and end and begin and end > begin else None


def _logged(run: RunDir) -> int:
    with suppress(ConfigError, OSError, UnicodeDecodeError):
        found = [row.get("step") for row in read_rows(run.metrics) if isinstance(row, dict)]
        return max((step for step in found if isinstance(step, int)), default=0)
    return 0


def _files(run: RunDir, name: str) -> dict[str, int]:
    files = read_json(run.checkpoints / name / manifest.NAME).get("files")
    entries = files.items() if isinstance(files, dict) else ()
    return {file: entry["bytes"] for file, entry in entries if isinstance(entry, dict) and isinstance(entry.get("bytes"), int)}


def _bytes(run: RunDir, name: str) -> int:
    return sum(_files(run, name).values())


def _wrong_sizes(run: RunDir, name: str) -> list[str]:
    folder, wrong = run.checkpoints / name, []
    for file, size in _files(run, name).items():
        path = folder / file
        if not manifest.PLAIN.fullmatch(file) or path.is_symlink() or not path.is_file() or path.stat().st_size != size:
            wrong.append(file)
    return wrong
