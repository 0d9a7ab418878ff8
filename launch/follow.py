"""What `sft-launch slurm status` and `logs` tell: a job in words, how far its run is, and its lines."""

import re
from collections.abc import Iterator
from pathlib import Path

from launch import queue, why
from launch.jobs import FORGOTTEN, Job
from launch.whose import Found
from launch.words import plain, rows
from sft_dist import attempts
from sft_dist.errors import ConfigError
from sft_dist.rundir import RunDir, read_json, read_rows

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def status(found: Found) -> list[str]:
    """The job's state and why it waits, and the run's progress from its own folder."""
    told = [found.stranger] if found.stranger else _job(found.number, found.job) if found.number else []
    lines = rows("job", told) if told else []
    lines += (
        rows("run", _run(found.run, found.job))
        if found.run
        else rows("run", ["not known: this job was not submitted by sft-launch; name its folder instead"])
    )
    return [plain(line) for line in lines]


def log_files(run: RunDir | None, job_log: Path | None, rank: int | None, attempt: int | None) -> list[Path]:
    """The job's log, or what one rank has written in an attempt, by default the last. Raises ConfigError if there is none."""
    if rank is None and attempt is None:
        if job_log is None or not job_log.is_file():
            raise ConfigError(f"there is no log yet{f' at {job_log}' if job_log else ''}: a job begins it when it starts")
        return [job_log]
    if run is None:
        raise ConfigError("this job was not submitted by sft-launch; name its run's folder instead")
    made = attempts.numbers(run)
    chosen = attempt if attempt is not None else max(made, default=0)
    if chosen not in made:
        raise ConfigError(f"{run.path} has no attempt{f' {chosen}; it has {made[0]} to {made[-1]}' if made else ' yet'}")
    which = "*" if rank is None else str(rank)
    folder = attempts.folder(run, chosen)
    files = sorted([*folder.glob(f"node-*/rank-{which}.out"), *folder.glob(f"node-*/rank-{which}.err")], key=_order)
    if not files:
        there = sorted({int(path.stem.removeprefix("rank-")) for path in folder.glob("node-*/rank-*.out")})
        raise ConfigError(
            f"{folder} has nothing of {'any rank' if rank is None else f'rank {rank}'}{f'; it has ranks {there[0]} to {there[-1]}' if there else ''}"
        )
    return files


def lines_of(files: list[Path], text: str | None) -> Iterator[str]:
    """The lines of the files, or those with a text in them; with the file's name before its lines where there are several."""
    for path in files:
        with path.open(errors="replace", newline="\n") as file:
            found = (line.rstrip("\n") for line in file if text is None or text in line)
            first = next(found, None)
            if len(files) > 1 and first is not None:
                yield f"==> {path} <=="
            if first is not None:
                yield _tame(first)
                yield from map(_tame, found)


def _job(number: str | None, job: Job | None) -> list[str]:
    if job is None:
        return [f"{number}: {FORGOTTEN}, and there is no accounting (sacct) that does"]
    restarts = f", started again {job.restarts} time(s)" if job.restarts not in ("", "0") else ""
    lines = [f"{number} {job.state}: it {queue.state_in_words(job.state)}{restarts}"]
    if job.state == "PENDING" or "HOLD" in job.state or job.state == "SPECIAL_EXIT":
        lines.append(f"{job.reason}: {queue.reason_in_words(job.reason, job.number)}")
        lines += [f"Slurm expects it to start at {job.start}"] if job.start not in ("Unknown", "") else []
    elif job.state == "FAILED" and job.exit_code:
        lines.append(f"exit code {job.exit_code.partition(':')[0]}")
    return lines


def _run(run: RunDir, job: Job | None) -> list[str]:
    if not attempts.numbers(run):
        return [str(run.path), "it has not begun yet"]
    verdict = why.look(run)
    screen = [line.strip() for line in why.screen(run, verdict)]
    told = screen if verdict.kind == "running" else screen[:1]
    if verdict.kind == "running" and job is not None and not job.live:
        told = [f"{run.path}: the job is gone, and its last attempt has not said how it ended"]
    return [*told, *_progress(run), *([] if verdict.kind in ("running", "done") else [f"more: sft-launch why {run.path}"])]


def _progress(run: RunDir) -> list[str]:
    whole = [row for row in read_rows(run.metrics) if isinstance(row, dict) and isinstance(row.get("epoch"), int | float)]
    last = {row.get("kind"): row for row in whole}
    total = read_json(run.path / "plan.json").get("total_steps", "?")
    lines = []
    for row in last.values():
        scores = [f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, int | float) and "/" in name]
        lines.append(f"step {row.get('step')} of {total}, epoch {row['epoch']:.2f}: {'  '.join(scores[:6])}")
    return [*lines, f"last checkpoint: step {run.saved_step}" if run.saved_step else "no checkpoint yet"]


def _order(path: Path) -> tuple[int, str]:
    return int(path.stem.removeprefix("rank-")), str(path.with_suffix(".0" if path.suffix == ".out" else ".1"))


def _tame(line: str) -> str:
    """A line that no terminal obeys; of a bar that was drawn over itself, what stood there last."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), line.rstrip("\r").rpartition("\r")[2])
