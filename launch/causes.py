"""Which record of an attempt tells the first cause, and which only report that somebody else was gone."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from sft_dist.attempts import Attempt, Failure, Node
from sft_dist.pulse import PHASES, Beat

SECOND = 10**9
LOST_NS = 10 * SECOND  # agents write once a second
SILENT_NS = 90 * SECOND  # judged by another machine's clock, through a file system that may answer from a cache for a minute
TIE_NS = 2 * SECOND  # the clocks of hosts agree no better, and an agent notices a death later than the others lose its connection
NAMED = 8  # of the nodes that never came; there may be hundreds, and a file may say anything

CARRIERS = {"RuntimeError", "InfrastructureError", "ConnectionResetError", "ConnectionAbortedError", "BrokenPipeError"}
RENDEZVOUS = re.compile(r"Rendezvous\w*Error|Dist\w*Error|SignalException|ChildFailedError")
LOST_PEER = re.compile(
    r"another rank was lost|connection (closed|reset|refused|aborted)|broken pipe|remote (process exited|error)|ncclRemoteError"
    r"|(socket|store|barrier).*time(d )?-?out|timed out waiting|exit barrier|the agent that started this rank",
    re.IGNORECASE,
)
OWN_FAULT = re.compile(r"invalid usage|duplicate GPU|CUDA error|unhandled cuda", re.IGNORECASE)  # NCCL's word for what this rank did itself
EVERYWHERE = {"ConfigError", "MachineError", "InfrastructureError", "DivergedError"}  # may be agreed on, and raised by all ranks alike


@dataclass(frozen=True)
class Causes:
    """The records of an attempt, sorted out.

    root: the first cause; None if no record tells it. same: ranks that raised the very same. consequences: those that only lost
    the others, by time. later: what went wrong by itself, but afterwards. behind, waiting: of a hang, rank -> what it is in.
    """

    root: Failure | None
    same: Sequence[Failure] = ()
    consequences: Sequence[Failure] = ()
    later: Sequence[Failure] = ()
    behind: dict[int, Beat] | None = None
    waiting: dict[int, Beat] | None = None


def sort_out(attempt: Attempt, now_ns: int) -> Causes:
    """The first cause of an attempt's end. The order of its records does not matter, nor how many consequences there are.

    What happens within two seconds counts as the same moment, and is decided by who tells it: what a rank itself refused (2, 78,
    diverged), then any other exception of its own, then a death that an agent saw or the loss of a node (SIGABRT last), then silence.
    """
    records = sorted((failure for failure in attempt.failures if failure.code != 0), key=_by_time)
    alone = attempt.about.get("nodes") == attempt.about.get("procs") == 1
    consequences = [failure for failure in records if is_consequence(failure, alone)]
    silent = [failure for failure in records if failure.told_by == "watchdog"]
    primary = [failure for failure in records if failure.told_by != "watchdog" and not is_consequence(failure, alone)]
    lost = lost_nodes(attempt, now_ns)
    primary += [*lost, *((not lost and cut_off(attempt)) or silent[:1])]
    root = _first(primary) or next(iter(_never_came(attempt)), None)
    if root is None:
        return Causes(None, consequences=tuple(consequences))
    behind: dict[int, Beat] | None = None
    waiting: dict[int, Beat] | None = None
    if root.told_by == "watchdog":
        behind, waiting = _positions(attempt, silent)
        root = _silent_one(attempt, silent, behind)
    rest = [failure for failure in primary if failure != root and failure.told_by != "watchdog"]
    said = (root.type, root.message, "rank")
    same = [failure for failure in rest if (failure.type, failure.message, failure.told_by) == said]
    waiters = [failure for failure in silent if failure != root]
    consequences = sorted([*consequences, *waiters], key=_by_time)
    return Causes(root, tuple(same), tuple(consequences), tuple(f for f in rest if (f.type, f.message, f.told_by) != said), behind, waiting)


def is_consequence(failure: Failure, alone: bool = False) -> bool:
    """Whether a record says no more than that another rank, or the run as a whole, came to its end.

    alone: the run is a single process, which has nobody to lose.
    """
    if failure.signal == "SIGTERM":
        return True  # an agent's, after the first failure; a rank that is asked to stop by it saves, and leaves no record
    if alone or failure.told_by != "rank" or OWN_FAULT.search(failure.message):
        return False
    if RENDEZVOUS.fullmatch(failure.type):
        return True
    return failure.type in CARRIERS and bool(LOST_PEER.search(failure.message))


def peer(failure: Failure) -> str | None:
    """Whom a consequence points to, as far as its message says: an address, or a rank."""
    found = re.search(r"(\[?[\w.:-]*[\w.]\]?:\d{2,5})\b|\b(rank \d+)", failure.message)
    return (found[1] or found[2]) if found else None


def lost_nodes(attempt: Attempt, now_ns: int) -> list[Failure]:
    """A record for each node whose agent fell silent without a word: the machine died, or the agent was killed."""
    lost = [_loss(node) for node in attempt.nodes if _is_lost(node, attempt.nodes, now_ns)]
    if not lost or len(lost) < len(attempt.nodes) or max(lost, key=_by_time).time_ns - min(lost, key=_by_time).time_ns > LOST_NS:
        return lost
    agents = "the agent" if len(lost) == 1 else f"all {len(lost)} agents"
    message = f"{agents} vanished without a last word: the whole job was killed, or the power failed"
    return [replace(min(lost, key=_by_time), type="AllLost", message=message)]


def cut_off(attempt: Attempt) -> list[Failure]:
    """A record for each node that lived but could not reach the head any more; where none of several others could, for the head alone."""
    cut = [(node, str(node.ended["cut_off"])) for node in attempt.nodes if node.ended and node.ended.get("cut_off")]
    if len(cut) > 1 and len(cut) == len(attempt.nodes) - 1:
        head = attempt.nodes[0]
        return [_cut(head, f"node {head.index} ({_host(head)}), the head, lives but is cut off from all others: {cut[0][1]}")]
    return [_cut(node, f"{words}; both live, so the network between them failed") for node, words in cut]


def last_sign(node: Node) -> int:
    return max(_seen_ns(node), _ended_ns(node))


def _seen_ns(node: Node) -> int:
    """When its agent last wrote its ranks' beats, or began."""
    begun = node.about.get("time_ns")
    return node.beaten_ns or (begun if isinstance(begun, int) else 0)


def _is_lost(node: Node, nodes: Sequence[Node], now_ns: int) -> bool:
    if node.ended is not None or not _seen_ns(node):
        return False
    others = [other for other in nodes if other.index != node.index]
    if max(map(last_sign, others), default=0) - _seen_ns(node) > LOST_NS:
        return True
    patience = LOST_NS if any(other.ended is not None for other in others) else SILENT_NS
    return now_ns - _seen_ns(node) > patience


def _loss(node: Node) -> Failure:
    rank, beat = _first_beat(node)
    message = f"node {node.index} ({_host(node)}) vanished: its agent left no last word"
    return Failure(_seen_ns(node), rank, _host(node), beat.step, beat.phase, 75, "NodeLost", message, node.index, told_by="heartbeats")


def _cut(node: Node, message: str) -> Failure:
    """From when its first rank began what it never came to the end of."""
    rank, beat = _first_beat(node)
    since = beat.since_ns or last_sign(node)
    return Failure(since, rank, _host(node), beat.step, beat.phase, 75, "LinkLost", message, node.index, told_by="heartbeats")


def _first_beat(node: Node) -> tuple[int, Beat]:
    rank = min(node.beats, default=-1)
    return rank, node.beats.get(rank, Beat(0, 0, "", 0, 0))


def _host(node: Node) -> str:
    return str(node.about.get("host", "unknown host"))


def _never_came(attempt: Attempt) -> Iterable[Failure]:
    """Nodes that left nothing at all. They explain only what nothing else explains: a failed attempt may end before they arrive."""
    nodes, ended = attempt.about.get("nodes"), [last_sign(node) for node in attempt.nodes if node.ended is not None]
    there = {node.index for node in attempt.nodes}
    if not isinstance(nodes, int) or not ended or len(there) >= nodes or any((node.ended or {}).get("code") == 0 for node in attempt.nodes):
        return
    first = list(islice((index for index in range(nodes) if index not in there), NAMED))
    more = nodes - len(there) - len(first)
    missing = ", ".join(map(str, first)) + (f" and {more} more" if more > 0 else "")
    message = f"node {missing} never came: {len(there)} of {nodes} agents left a sign in {attempt.path}"
    yield Failure(min(ended), -1, "unknown host", 0, "start-up", 75, "NodeMissing", message, nodes - 1, told_by="heartbeats")


def _first(primary: Collection[Failure]) -> Failure | None:
    if not primary:
        return None
    begin = min(failure.time_ns for failure in primary)
    first = min((failure for failure in primary if failure.time_ns - begin <= TIE_NS), key=lambda f: (_weight(f), *_by_time(f)))
    if first.type in EVERYWHERE or first.message.startswith("rank 0: "):  # an error of rank 0 that the others were told
        alike = [f for f in primary if (f.type, f.message, f.told_by) == (first.type, first.message, "rank")]
        return min(alike, key=lambda f: (f.rank, *_by_time(f)), default=first)
    return first


def _weight(failure: Failure) -> int:
    if failure.signal == "SIGABRT":
        return 3  # NCCL's own watchdog aborts a rank that has lost another
    refused = failure.code in (2, 78) or failure.type == "DivergedError"
    return {"rank": 0 if refused else 1, "agent": 2, "heartbeats": 2}.get(failure.told_by, 4)


def _by_time(failure: Failure) -> tuple[int, int, int, str, str]:
    return failure.time_ns, failure.node, failure.rank, failure.type, failure.message


def _positions(attempt: Attempt, silent: Sequence[Failure]) -> tuple[dict[int, Beat], dict[int, Beat]]:
    """Of a hang: who is furthest behind, and who waits for them."""
    beats = {rank: beat for node in attempt.nodes for rank, beat in node.beats.items()}
    known = {failure.rank: Beat(0, failure.step, failure.phase, 0, 0) for failure in reversed(silent)}
    stopped = {failure.rank for failure in silent if re.search(r"\(state T", failure.message)}
    at = {rank: (beats[rank] if rank in beats and _place(beats[rank]) == _place(beat) else beat) for rank, beat in known.items()}
    at = {**{rank: beat for rank, beat in beats.items() if rank not in known and beat.phase != "end"}, **at}
    keys = {rank: (rank not in stopped, *_place(beat)) for rank, beat in at.items()}
    last = min(keys.values())
    behind = {rank: at[rank] for rank in sorted(at) if keys[rank] == last}
    return behind, {rank: at[rank] for rank in sorted(at) if rank not in behind}


def _place(beat: Beat) -> tuple[bool, int, int]:
    """How far a rank is. One that waits for rank 0 is never the one that is waited for."""
    return beat.phase == "waiting for rank 0", beat.step, PHASES.index(beat.phase) if beat.phase in PHASES else len(PHASES)


def _silent_one(attempt: Attempt, silent: Sequence[Failure], behind: dict[int, Beat]) -> Failure:
    """The watchdog's record of the rank that is furthest behind, or one made from its heartbeat."""
    rank = next(iter(behind))
    for failure in silent:
        if failure.rank in behind:
            return failure
    node = next(node for node in attempt.nodes if rank in node.beats)
    beat, said = behind[rank], f"in {behind[rank].phase} all the while"
    return Failure(silent[0].time_ns, rank, _host(node), beat.step, beat.phase, 75, "Silent", said, node.index, told_by="watchdog")


def _ended_ns(node: Node) -> int:
    told = (node.ended or {}).get("time_ns", 0)
    return told if isinstance(told, int) else 0
