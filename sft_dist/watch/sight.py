"""How a run stands right now, from the files of its folder alone: on any machine that sees them, while it trains."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from sft_dist import attempts
from sft_dist.attempts import Attempt, Node
from sft_dist.history import curves, reading
from sft_dist.history.records import is_number, printable
from sft_dist.pulse import Beat
from sft_dist.rundir import STEP, RunDir, read_json
from sft_dist.schedule import marks
from sft_dist.watch.rows import HEADS, Rows, whole

RECENT = 30  # training rows that speak of the present
QUIET_S = 120.0  # without a sign of life
LONGEST_NS = 10**18  # thirty years: more is no time but a damaged file


@dataclass(frozen=True)
class Ranks:
    """Ranks of one node that do the same. longest_s: of them, in this phase, when their agent last wrote; told_s: how long ago that was."""

    host: str
    step: int
    phase: str
    ranks: tuple[int, ...]
    longest_s: float
    told_s: float

    @property
    def silent_s(self) -> float:
        """Since the first of them began what it does, if that is long enough for a sign to be missed; else 0."""
        return since if (since := self.longest_s + self.told_s) >= QUIET_S else 0.0


@dataclass(frozen=True)
class Left:
    """What is still to come. seconds: with the evaluations; evaluation_s: of one; measured: whether that was seen, or is what training takes."""

    seconds: float
    evaluations: int
    evaluation_s: float
    measured: bool


@dataclass(frozen=True)
class Sight:
    """One run. state: running, silent, done, saved or failed. quiet_s: since the last sign of life. None: not known (yet)."""

    name: str
    state: str
    reason: str
    attempt: int | None
    step: int
    total: int | None
    epoch: float | None
    epochs: float | None
    quiet_s: float
    score: float | None
    headline: str
    left: Left | None
    samples_per_s: float | None
    data_wait_pct: float | None
    curves: Mapping[str, Sequence[float]]
    ranks: Sequence[Ranks]

    @property
    def over(self) -> bool:
        return self.state in ("done", "saved", "failed")


def look(folder: Path, rows: Rows, now: float) -> Sight:
    """now: seconds since 1970. Whatever the folder holds or lacks, this returns."""
    run = RunDir(folder)
    plan = read_json(folder / "plan.json")
    seen = rows.look()
    headline = next((name for name in HEADS if any(name in row for row in seen)), HEADS[0])
    attempt = _last_attempt(run)
    trained = [row for row in seen if row["kind"] == "train"]
    recent = trained[-RECENT:]
    step = int(seen[-1]["step"]) if seen else 0
    quiet_s = max(0.0, now - _sign_of_life(run, attempt))
    ended, reason = _end(read_json(run.outcome), attempt)
    total, speed = whole(plan.get("total_steps")), _middle(recent, "speed/samples_per_s")
    state = ended or ("running" if quiet_s < QUIET_S else "silent")
    return Sight(
        name=printable(folder.absolute().name),
        state=state,
        reason=reason,
        attempt=attempt.number if attempt else None,
        step=step,
        total=total,
        epoch=seen[-1].get("epoch") if seen else None,
        epochs=float(plan["epochs"]) if is_number(plan.get("epochs")) else None,
        quiet_s=quiet_s,
        score=_score(run, seen, headline),
        headline=headline,
        left=_left(plan, step, speed, _evaluation_s(seen, _landed(run, rows))) if state in ("running", "silent") else None,
        samples_per_s=speed,
        data_wait_pct=_middle(recent, "speed/data_wait_pct"),
        curves={name: values for name in ("train/loss", "val/loss", headline, "train/lr") if (values := _curve(seen, name))},
        ranks=list(_ranks(attempt, now)) if attempt and state in ("running", "silent") else [],
    )


def _end(outcome: Mapping[str, Any], attempt: Attempt | None) -> tuple[str, str]:
    """How the last attempt ended, `done`, `saved` or `failed`, and its first failure; two empty texts while it goes on.

    A run that is started again has its last outcome until its ranks are up, and one whose rank 0 was killed has none.
    """
    state, number, error = (outcome.get(name) for name in ("outcome", "attempt", "error"))
    earlier = attempt is not None and isinstance(number, int) and number != attempt.number
    codes = _codes(attempt) if attempt else []
    if (earlier or not state) and any(codes):
        state, error = "failed", None
    elif earlier and not codes:
        state = None
    if state not in ("done", "saved", "failed"):
        return "", ""
    told = str(error.get("message", "")) if isinstance(error, dict) else ""
    if state == "failed" and attempt and attempt.failures:
        told = attempts.describe(attempt.failures[0])
    return str(state), printable(next(iter(told.splitlines()), ""))


def _codes(attempt: Attempt) -> list[object]:
    """The exit codes of all its agents; empty while one of them goes on, and where there is none."""
    codes = [node.ended.get("code") for node in attempt.nodes if node.ended]
    return codes if len(codes) == attempt.about.get("nodes") else []


def _score(run: RunDir, rows: Sequence[Mapping[str, Any]], headline: str) -> float | None:
    """The latest, also where it lies before the rows that were read."""
    if values := _curve(rows, headline):
        return values[-1]
    last = read_json(run.scores).get("last")
    value = last.get(headline) if isinstance(last, dict) else None
    return float(value) if is_number(value) else None


def _left(plan: Mapping[str, Any], step: int, speed: float | None, evaluation_s: float | None) -> Left | None:
    """The steps at the present speed, and the evaluations at what those so far took; else at what training on as many samples takes."""
    total, batch, samples = (whole(plan.get(name)) for name in ("total_steps", "global_batch", "val_samples"))
    if not speed or speed < 0 or total is None or batch is None or samples is None:
        return None
    coming = _evaluations(step, total, plan.get("eval_every"))
    each = samples / speed if evaluation_s is None else evaluation_s
    return Left(float(max(0, total - step)) * float(batch) / speed + float(coming) * each, coming, each, evaluation_s is not None)


def _evaluations(step: int, total: int, every: object) -> int:
    """How many are due after this step; the end of training always is."""
    with suppress(ValueError, ZeroDivisionError):
        period = Fraction(str(every))
        if period > 0 and step < total:
            return min(total - step, marks(total - 1, period) - marks(step, period) + 1)  # several marks may fall into one step
    return 0


def _landed(run: RunDir, rows: Rows) -> list[tuple[int, float]]:
    """The checkpoints since the last attempt wrote down what it runs on, by the file server's clock: before it lies time in which nobody ran."""
    for path in run.checkpoints.glob("step-*"):
        if (found := STEP.fullmatch(path.name)) and (when := _touched(path / "MANIFEST.json")):
            rows.landed[int(found[1])] = when
    begun = _touched(run.path / "env.json") or 0.0
    return sorted((step, when) for step, when in rows.landed.items() if when >= begun)


def _evaluation_s(rows: Sequence[Mapping[str, Any]], landed: Sequence[tuple[int, float]]) -> float | None:
    """Seconds of an evaluation, with what else goes on between steps: the time between two checkpoints less that of the steps between them."""
    spent = {point.step: point.seconds for point in curves.series(rows, "train/loss")}
    evaluated = [row["step"] for row in rows if row["kind"] == "eval"]
    each = []
    for (one, earlier), (other, later) in pairwise(landed):
        before, after = spent.get(one), spent.get(other)
        count = sum(one < step <= other for step in evaluated)
        if before is not None and after is not None and count:
            each.append(max(0.0, later - earlier - (after - before)) / count)
    return median(each) if each else None


def _ranks(attempt: Attempt, now: float) -> Iterator[Ranks]:
    for node in attempt.nodes:
        told_s = max(0.0, now - (_told(attempt, node) or now))
        same: dict[tuple[int, str], list[int]] = {}
        for rank, beat in sorted(node.beats.items()):
            same.setdefault((beat.step, printable(beat.phase)), []).append(rank)
        for (step, phase), ranks in same.items():
            longest_s = max(_lasted_s(node, node.beats[rank]) for rank in ranks)
            yield Ranks(printable(str(node.about.get("host", f"node {node.index}"))), step, phase, tuple(ranks), longest_s, told_s)


def _last_attempt(run: RunDir) -> Attempt | None:
    with suppress(OSError, RecursionError):
        if numbers := attempts.numbers(run):
            return attempts.read(run, numbers[-1])
    return None


def _sign_of_life(run: RunDir, attempt: Attempt | None) -> float:
    """When the run last wrote, or a rank last began a phase: that an agent writes says nothing of ranks that hang."""
    if not attempt:
        return reading.touched(run.path)
    begun = [
        (_told(attempt, node) or 0.0) - min((_lasted_s(node, beat) for beat in node.beats.values()), default=0.0) for node in attempt.nodes
    ]
    return max(reading.touched(run.path), _touched(attempt.path) or 0.0, *begun)


def _told(attempt: Attempt, node: Node) -> float | None:
    """When a node's agent last wrote what its ranks do, by the clock of whoever keeps the files."""
    return _touched(attempts.node_folder(attempt.path, node.index) / "heartbeats.json")


def _lasted_s(node: Node, beat: Beat) -> float:
    """How long a rank was in its phase when its agent last wrote; both by the node's own clock."""
    return min(max(0, node.beaten_ns - beat.since_ns), LONGEST_NS) / 1e9


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if name in row]


def _middle(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _curve(rows, name)
    return median(values) if values else None


def _touched(path: Path) -> float | None:
    with suppress(OSError):
        return path.lstat().st_mtime
    return None
