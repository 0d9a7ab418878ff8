"""What ended an attempt, with which exit code, and whether another attempt is worth its price: from values, without a clock."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.causes import Causes, sort_out
from sft_dist.attempts import Attempt, Failure

IN_A_ROW = 3  # so many attempts without progress are enough
RETRIED = ("infrastructure", "killed", "hang", "memory", "saved")
TO_GO_ON = ("SIGUSR1", "SIGUSR2")  # what a scheduler sends ahead of its time limit; TERM and INT mean that the run shall end
OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|MemoryError|out of (GPU )?memory|can't allocate memory|Cannot allocate memory")

WORDS = {
    "done": "done",
    "saved": "saved and stopped as asked",
    "running": "still going on",
    "user": "user error",
    "machine": "the machine cannot run this",
    "memory": "out of memory",
    "killed": "killed from outside",
    "hang": "a hang",
    "infrastructure": "infrastructure failure",
    "diverged": "the numbers diverged",
    "bug": "an error in code",
    "no progress": "no progress",
    "unknown": "no end is recorded: it still goes on, or was killed as a whole",
}


@dataclass(frozen=True)
class Verdict:
    """kind: a key of WORDS. cause: the kind of this attempt alone, before its history made it `no progress`.

    code: what the agent and the batch script end with. why: whether the same command is worth starting again, in a sentence.
    made: optimizer steps saved by this attempt; None if not known. asked: the signal that asked the run to stop.
    """

    attempt: Attempt
    kind: str
    cause: str
    code: int
    retry: bool
    why: str
    causes: Causes
    made: int | None = None
    asked: str | None = None

    @property
    def root(self) -> Failure | None:
        return self.causes.root


def judge(attempts: Sequence[Attempt], now_ns: int, latest: int | None = None, outcome: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on the last of the attempts, oldest first, of which there is at least one.

    now_ns: to tell a node that vanished from one that still beats. latest: the step of the newest checkpoint. outcome: the
    run's outcome.json, which is heard where it is about this attempt.
    """
    attempt = attempts[-1]
    causes = sort_out(attempt, now_ns)
    cause, code = _kind(attempt, causes, outcome or {})
    if code == 0:  # what went wrong on the way, or while the ranks left, did no harm
        causes = Causes(None, consequences=tuple(attempt.failures))
    asked = next((str(node.ended["asked"]) for node in attempt.nodes if node.ended and node.ended.get("asked")), None)
    made = _made(attempts, len(attempts) - 1, latest)
    stuck = _stuck(attempts, cause, causes, now_ns, latest) if cause in RETRIED and code in (0, 75) else None
    kind, retry, why = ("no progress", False, stuck) if stuck else (cause, *_worth_it(cause, code, asked, causes))
    return Verdict(attempt, kind, cause, 93 if stuck else code, retry, why, causes, made, asked)


def fingerprint(failure: Failure) -> str:
    """What two failures have in common that are the same but for numbers, addresses, processes and paths."""
    first = failure.message.splitlines()[0] if failure.message else ""
    for pattern, short in ((r"0x[0-9a-fA-F]+", "#"), (r"(?<!\w)[\w.~-]*/[^\s:,;'\")]+", "<path>"), (r"\d[\d.:]*", "#")):
        first = re.sub(pattern, short, first)
    return f"{failure.type} in {failure.phase}: {first}"


def worth_another(verdict: Verdict, made_room: bool) -> tuple[bool, str]:
    """Whether a scheduler should start the run again, and why; made_room: it was stopped in favour of another job."""
    if made_room and verdict.kind == "saved":
        return True, f"attempt {verdict.attempt.number}: yes: it made room for another job, and goes on from its checkpoint"
    return verdict.retry, f"attempt {verdict.attempt.number}: {verdict.why}"


def _kind(attempt: Attempt, causes: Causes, outcome: Mapping[str, Any]) -> tuple[str, int]:
    """What this attempt is by itself, and its exit code."""
    about_this = outcome.get("attempt") == attempt.number
    codes = [node.ended.get("code") for node in attempt.nodes if node.ended is not None]
    if about_this and outcome.get("outcome") in ("done", "saved"):
        return str(outcome["outcome"]), 0
    if codes and len(codes) == len(attempt.nodes) and not any(codes):
        return "saved" if any(node.ended and node.ended.get("asked") for node in attempt.nodes) else "done", 0
    if causes.root is not None:
        return _kind_of(causes.root)
    if causes.consequences:
        return "infrastructure", 75
    if codes:
        code = next((code for code in codes if isinstance(code, int) and code), 75)
        return {2: "user", 78: "machine", 75: "infrastructure", 1: "bug"}.get(code, "unknown"), code
    if attempt.nodes:
        return "running", 0
    return ("bug", 1) if about_this and outcome.get("outcome") == "failed" else ("unknown", 75)


def _kind_of(root: Failure) -> tuple[str, int]:
    code = root.code if root.code in (1, 2, 75, 78) else 1
    if OUT_OF_MEMORY.search(f"{root.type}: {root.message}"):
        return "memory", code if code in (75, 78) else 78
    if root.type in ("KeyboardInterrupt", "Abort"):
        return "killed", 1
    if root.told_by == "watchdog":
        return "hang", 75
    if root.signal in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") or root.type == "AllLost":
        return "killed", 75
    if root.type == "DivergedError":
        return "diverged", 1
    return {2: "user", 78: "machine", 75: "infrastructure"}.get(code, "bug"), code


def _worth_it(cause: str, code: int, asked: str | None, causes: Causes) -> tuple[bool, str]:
    if cause == "saved":
        if asked is None or asked in TO_GO_ON:
            return True, "yes: the run was asked to make room, and goes on from its checkpoint"
        return False, f"no: {asked} asked the run to end; the same command goes on when you want it to"
    if cause in RETRIED and code == 75:
        known = "nothing in the run itself is known to be wrong" if causes.root else "the records name no fault of the run itself"
        if cause == "memory":
            known = "memory may be free the next time"
        return True, f"yes: {known}, and it goes on from its checkpoint"
    return False, {
        "done": "no: the run is at its end",
        "running": "no: it is still going on",
        "user": "no: the same mistake would be made again",
        "machine": "no: the same machine would refuse it again",
        "memory": "no: the same batch would need the same memory again",
        "killed": "no: somebody interrupted it by hand",
        "diverged": "no: the same numbers would diverge again",
        "bug": "no: the same code would most likely fail again",
    }.get(cause, "no: how it ended is not recorded")


def _stuck(attempts: Sequence[Attempt], cause: str, causes: Causes, now_ns: int, latest: int | None) -> str | None:
    """Why going on would be in vain, judged by the attempts in a row that nobody had to mend anything after; None if it is not."""
    idle, alike, same, saves = 0, 0, _mark(causes), 0
    counting_idle = counting_alike = True
    for index in range(len(attempts) - 1, -1, -1):
        own = causes if index == len(attempts) - 1 else sort_out(attempts[index], now_ns)
        kind, code = (cause, 75) if own is causes else _kind(attempts[index], own, {})
        if kind not in RETRIED or code not in (0, 75):
            break
        counting_idle = counting_idle and _made(attempts, index, latest) == 0
        counting_alike = counting_alike and same is not None and _mark(own) == same
        if not (counting_idle or counting_alike):
            break
        idle, alike, saves = idle + counting_idle, alike + counting_alike, saves + (counting_idle and kind == "saved")
    if idle >= IN_A_ROW and saves == idle:
        return f"no: the last {idle} attempts were asked to stop before they had made a step; starting up takes all the time they get"
    if idle >= IN_A_ROW:
        return f"no: the last {idle} attempts ended without a checkpoint further than before"
    if alike >= IN_A_ROW and same is not None:
        return f"no: the last {alike} attempts ended with the same error at the same step, {same[1]}"
    return None


def _mark(causes: Causes) -> tuple[str, int] | None:
    return (fingerprint(causes.root), causes.root.step) if causes.root else None


def _made(attempts: Sequence[Attempt], index: int, latest: int | None) -> int | None:
    """Steps that an attempt brought into a checkpoint; None where it is not recorded from which step it began."""
    attempt = attempts[index]
    begin = attempt.about.get("from_step")
    if not isinstance(begin, int):
        return None
    told: list[Any] = [node.ended.get("step") for node in attempt.nodes if node.ended is not None]
    told.append(attempts[index + 1].about.get("from_step") if index + 1 < len(attempts) else latest)
    return max(0, max((step for step in told if isinstance(step, int)), default=begin) - begin)
