"""One screen on how a run ended: the first cause first, what is lost, and what to type next."""

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.advice import advice, command, stack_of
from launch.causes import last_sign, peer
from launch.losses import Losses, ended_ns, is_last, losses
from launch.verdict import IN_A_ROW, WORDS, Verdict, judge
from launch.words import cut, groups, moment, plain, ranks, rows, wrapped
from sft_dist import attempts
from sft_dist.attempts import Attempt, Failure
from sft_dist.errors import ConfigError
from sft_dist.rundir import RunDir, read_json

MESSAGE, TRACEBACK, STACK = 5, 7, 6  # lines of each that are shown without --all
LONG_AFTER_NS = 3600 * 10**9
RECENT = 50  # attempts that are read: the verdict looks back as long as nothing moves
ENDED_WELL = ("done", "saved")
AGREED = {"ConfigError", "MachineError", "DivergedError"}  # say all they know; where they were raised does not help


def find(path: Path) -> RunDir:
    """The run of a folder, also of one that died before its config was written. Raises ConfigError where there is none."""
    run = RunDir(path)
    if not (run.config.is_file() or (path / "job.json").is_file() or attempts.numbers(run)):
        raise ConfigError(f"{path} is not the folder of a run (no config.yaml in it)")
    if not attempts.numbers(run):
        raise ConfigError(f"{path} has no attempt yet")
    return run


def look(run: RunDir, number: int | None = None, now_ns: int | None = None, over: bool = False) -> Verdict:
    """The verdict on an attempt of a run, by default on the last one. Raises ConfigError if there is no such attempt.

    over: nothing of it runs any more, so that an agent that left no last word was killed, however fresh its last sign is.
    """
    there = attempts.numbers(run)
    number = there[-1] if number is None else number
    if number not in there:
        raise ConfigError(f"{run.path} has no attempt {number}; it has {there[0]} to {there[-1]}")
    before = [attempts.read(run, each) for each in [each for each in there if each <= number][-RECENT:]]
    after = there[there.index(number) + 1 :]
    latest = attempts.read(run, after[0]).about.get("from_step", 0) if after else run.saved_step
    now_ns = (time.time_ns() if now_ns is None else now_ns) + over * LONG_AFTER_NS
    return judge(before, now_ns, latest, read_json(run.outcome))


def screen(run: RunDir, verdict: Verdict, everything: bool = False) -> list[str]:
    """The lines of the screen, in plain ASCII whatever the messages hold; at most about 30 without `everything`."""
    lines = [_headline(run, verdict)]
    if verdict.kind == "running":
        lines += _going_on(verdict.attempt)
    else:
        lines += _cause(verdict, everything)
        lines += _hidden(verdict, everything)
        lines += _standing(run, verdict) + _next(run, verdict)
        lines += _history(run, verdict) if everything else []
    return [plain(line) for line in lines]


def to_json(run: RunDir, verdict: Verdict) -> dict[str, Any]:
    """The same for scripts; texts are as they were recorded."""
    standing, root = losses(run, verdict), verdict.root
    return {
        "run": str(run.path),
        "attempt": verdict.attempt.number,
        "kind": verdict.kind,
        "cause": verdict.cause,
        "code": verdict.code,
        "retry": verdict.retry,
        "why": verdict.why,
        "root": asdict(root) if root else None,
        "same": [asdict(failure) for failure in verdict.causes.same],
        "later": [asdict(failure) for failure in verdict.causes.later],
        "consequences": [asdict(failure) for failure in verdict.causes.consequences],
        "behind": sorted(verdict.causes.behind or ()),
        "checkpoint": standing.checkpoint,
        "lost_steps": standing.steps,
        "lost_s": standing.seconds,
        "next": command(run, verdict),
    }


def _headline(run: RunDir, verdict: Verdict) -> str:
    attempt = verdict.attempt
    nodes, procs = attempt.about.get("nodes"), attempt.about.get("procs")
    size = f"{nodes} node{'s' * (nodes != 1)} x {procs} process{'es' * (procs != 1)}"
    started = f", {size}, {attempt.about.get('launcher', 'no launcher')}" if nodes else ""
    words = WORDS[verdict.cause]
    if verdict.cause == "saved" and verdict.asked:
        words = f"saved and stopped after {verdict.asked}"
    end = ended_ns(run, verdict) if verdict.kind != "running" else None
    when = f", {moment(end)}" if end else ""
    return f"{run.path}, attempt {attempt.number}{started}: {words}{when}"


def _going_on(attempt: Attempt) -> list[str]:
    beats = {rank: beat for node in attempt.nodes for rank, beat in node.beats.items()}
    signs = [f"node {node.index} at {moment(last_sign(node), short=True)}" for node in attempt.nodes]
    lines = [f"{who} {beat.phase} of step {beat.step}" for who, beat in groups(beats)]
    return [*rows("ranks", lines[:16]), *rows("last sign", [", ".join(signs)])]


def _cause(verdict: Verdict, everything: bool) -> list[str]:
    root = verdict.root
    if root is None:
        return _no_root(verdict)
    shown = [f"  {line}" for line in wrapped(root.message, None if everything else MESSAGE)]
    where = f", in {root.phase} of step {root.step}" if root.phase else ""
    if root.told_by == "heartbeats":
        last = "nothing has moved since" if root.type == "LinkLost" else "the last sign was at"
        lines = [root.message, f"{last} {moment(root.time_ns, short=True)}{where}"]
    elif verdict.cause == "hang":
        lines = _hang(verdict, root, shown)
    else:
        lines = [f"rank {root.rank} on {root.host}{where}: {root.type}", *shown]
        lines += [cut(f"  | {line}") for line in _traceback(root, everything)]
    return rows("first cause", [*lines, *_order(verdict, root), *_also(verdict)])


def _traceback(root: Failure, everything: bool) -> list[str]:
    """Its last lines with their source; without the message, which is told already, and the marks under the source."""
    if everything:
        return list(root.traceback)
    frames = root.traceback[: -max(1, len(root.message.splitlines()))]
    lines = [line for line in frames if not re.fullmatch(r"[ ~^]*|Traceback \(most recent call last\):", line)]
    return [] if root.type in AGREED else lines[-TRACEBACK:]


def _no_root(verdict: Verdict) -> list[str]:
    consequences = verdict.causes.consequences
    if verdict.cause in ENDED_WELL:
        return []
    if not consequences:
        codes = ", ".join(f"node {node.index} ended with {node.ended.get('code')}" for node in verdict.attempt.nodes if node.ended)
        return rows("first cause", [f"not recorded: {codes + ', and no rank' if codes else 'no agent and no rank'} left a word"])
    first = consequences[0]
    to = f", which points to {peer(first)}" if peer(first) else ""
    lines = ["not recorded: every rank that left a word only lost the others", f"the first was rank {first.rank} on {first.host}{to}:"]
    lines += [f"  {line}" for line in wrapped(f"{first.type}: {first.message}", 2)]
    open_ended = [str(node.index) for node in verdict.attempt.nodes if node.ended is None]
    lines += [f"node {', '.join(open_ended)} has not ended yet; look again in some seconds"] if open_ended else []
    return rows("first cause", lines)


def _hang(verdict: Verdict, root: Failure, message: list[str]) -> list[str]:
    behind, waiting = verdict.causes.behind or {}, verdict.causes.waiting or {}
    lines = []
    for who, beat in groups(behind):
        since = f" since {moment(beat.since_ns, short=True)}" if beat.since_ns else ""
        host, verb = (f" on {root.host}", "has") if len(behind) == 1 else ("", "have")
        lines.append(f"{who}{host} {verb} been in {beat.phase} of step {beat.step}{since}")
    lines += [re.sub(r"^  in [a-z0-9 -]+ since [\d:]+, ", "  ", line) for line in message]
    own = _stack(verdict, root.rank)
    lines += own
    for who, beat in groups(waiting)[:4]:
        lines.append(f"{who} {'wait' if who.startswith('ranks') else 'waits'} in {beat.phase} of step {beat.step}")
    return lines if own or not waiting else [*lines, *_stack(verdict, min(waiting))]


def _stack(verdict: Verdict, rank: int) -> list[str]:
    path = stack_of(verdict, rank)
    return [cut(f"  | {line}") for line in (_main_thread(path) if path else ())]


def _main_thread(path: Path) -> list[str]:
    """The innermost frames of the main thread: faulthandler writes it last, and the latest dump stands at the end."""
    blocks = re.split(r"^(?:Current thread|Thread) .*$", path.read_text(errors="replace"), flags=re.MULTILINE)
    return [line for line in blocks[-1].splitlines() if line.startswith("  File")][:STACK]


def _order(verdict: Verdict, root: Failure) -> list[str]:
    causes = verdict.causes
    others = [other for other in (*causes.consequences, *causes.later) if other.told_by != "watchdog"]
    if not others:
        return []
    following = min(others, key=lambda other: other.time_ns)
    apart = (following.time_ns - root.time_ns) / 1e9
    then = f"rank {following.rank} on {following.host} ({following.type})"
    return [f"{apart:.1f} s before the next failure, of {then}" if apart >= 0 else f"at the same moment as the failure of {then}"]


def _also(verdict: Verdict) -> list[str]:
    lines = []
    if same := verdict.causes.same:
        lines.append(f"{ranks(failure.rank for failure in same)} said the same")
    if later := verdict.causes.later:
        lines.append(f"then also: {', '.join(f'rank {other.rank} ({other.type})' for other in later[:4])}{', ...' * (len(later) > 4)}")
    return lines


def _hidden(verdict: Verdict, everything: bool) -> list[str]:
    consequences = verdict.causes.consequences
    if everything:
        begin = verdict.root.time_ns if verdict.root else min((failure.time_ns for failure in consequences), default=0)
        rest = sorted([*consequences, *verdict.causes.same, *verdict.causes.later], key=lambda failure: failure.time_ns)
        return rows("then", [f"{(failure.time_ns - begin) / 1e9:+.1f} s  {attempts.describe(failure)}" for failure in rest])
    number = len({failure.rank for failure in consequences if failure.told_by != "watchdog"})
    told = f"{number} rank{'s' * (number != 1)} only report{'s' * (number == 1)} the consequence; --all shows {'them' if number != 1 else 'it'}"
    return rows("hidden", [told] if number and verdict.cause not in ENDED_WELL else [])


def _standing(run: RunDir, verdict: Verdict) -> list[str]:
    if not is_last(run, verdict):
        after = attempts.read(run, min(number for number in attempts.numbers(run) if number > verdict.attempt.number))
        return rows("checkpoint", [f"attempt {after.number} went on from step {after.about.get('from_step', '?')}"])
    found = losses(run, verdict)
    if found.checkpoint is None:
        lines = ["none yet; the run begins again from its pretrained weights"]
    else:
        lines = [f"{found.checkpoint}, {'verified' if found.hashed else 'sizes verified (sft-dist ckpt verify reads all of it)'}"]
    lines[0] += "" if verdict.cause in ENDED_WELL else _lost(found)
    return rows("checkpoint", [*lines, *(f"{name} is damaged, and passed over" for name in found.damaged[:3])])


def _lost(found: Losses) -> str:
    if not found.steps:
        return "" if found.steps is None else "; no step is lost"
    seconds = found.seconds or 0.0
    long = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f"; {found.steps} step{'s are' if found.steps != 1 else ' is'} lost{f', about {long}' if found.seconds else ''}"


def _next(run: RunDir, verdict: Verdict) -> list[str]:
    words = f"{WORDS[verdict.kind]} (exit code {verdict.code})"
    lines = rows("verdict", [words]) + rows("again?", [verdict.why])
    return lines + rows("next", [*advice(run, verdict), f"  {command(run, verdict)}"])


def _history(run: RunDir, verdict: Verdict) -> list[str]:
    lines = []
    for number in [number for number in attempts.numbers(run) if number < verdict.attempt.number][-3 * IN_A_ROW :]:
        own = look(run, number)
        lines.append(f"attempt {number}: {WORDS[own.cause]}{f'; {attempts.describe(own.root)}' if own.root else ''}")
    return rows("before", lines)
