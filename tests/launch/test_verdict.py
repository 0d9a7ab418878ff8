"""The verdict on an attempt: first causes, kinds, exit codes, and whether another attempt is worth it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import END, HOSTS, PEER, at, consequence, failure

from launch.causes import is_consequence, peer
from launch.verdict import Verdict, fingerprint, judge
from sft_dist.attempts import Attempt, Failure, Node
from sft_dist.pulse import Beat

KILL = failure(3, "Killed", "killed by SIGKILL", 75, signal="SIGKILL", told_by="agent")
SEGV = failure(3, "Killed", "killed by SIGSEGV", 1, signal="SIGSEGV", told_by="agent")
BUS = failure(3, "Killed", "killed by SIGBUS", 78, signal="SIGBUS", told_by="agent")
TERM = failure(2, "Killed", "killed by SIGTERM", 75, signal="SIGTERM", told_by="agent")
OOM = failure(1, "Killed", "killed by the kernel: out of memory (cgroup oom_kill went from 0 to 1)", 75, signal="SIGKILL", told_by="agent")
MISTAKE = failure(0, "ConfigError", "a sample cannot be read", 2)
BUG = failure(0, "KeyError", "'beagle'")


def silent(rank: int, phase: str = "backward", step: int = 13, words: str = "300 s without a sign", seconds: float = 0.0) -> Failure:
    return failure(rank, "Silent", words, 75, seconds, told_by="watchdog", phase=phase, step=step)


def node(index: int, beaten: float = 0.5, beats: dict[int, Beat] | None = None, **end: Any) -> Node:
    """One that ended with `end`, or has not, if that is empty."""
    told = {"code": 1, "time_ns": at(1), "asked": None, "step": 10, **end} if end else None
    return Node(index, {"host": HOSTS[index]}, beats or {2 * index: Beat(7, 13, "backward", at(-1), 5)}, at(beaten), told)


def attempt(failures: Sequence[Failure] = (), there: Sequence[Node] = (), number: int = 1, **about: Any) -> Attempt:
    told = {"nodes": 2, "procs": 2, "from_step": 0, **about}
    return Attempt(number, Path("runs/pets/attempts") / str(number), told, tuple(there), tuple(failures))


def verdict(*failures: Failure, nodes: Sequence[Node] | None = None, now: float = 60, **about: Any) -> Verdict:
    there = (node(0, code=1), node(1, code=1)) if nodes is None else nodes
    return judge([attempt(failures, there, **about)], at(now), 10)


@pytest.mark.parametrize(
    ("failures", "kind", "code", "retry", "root"),
    [
        ([MISTAKE, consequence(1)], "user", 2, False, MISTAKE),
        ([failure(1, "MachineError", "cannot write runs: No space left on device", 78)], "machine", 78, False, ...),
        ([failure(1, "MachineError", "out of GPU memory: CUDA out of memory", 78)], "memory", 78, False, ...),
        ([failure(1, "OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB")], "memory", 78, False, ...),
        ([OOM, consequence(0)], "memory", 75, True, OOM),
        ([KILL, consequence(0), TERM], "killed", 75, True, KILL),
        ([SEGV, consequence(0)], "bug", 1, False, SEGV),
        ([BUS, consequence(0)], "machine", 78, False, BUS),
        ([BUG, consequence(1)], "bug", 1, False, BUG),
        ([failure(0, "DivergedError", "step 13: loss nan")], "diverged", 1, False, ...),
        (
            [failure(0, "InfrastructureError", "a data worker died: DataLoader worker (pid 7) is killed", 75)],
            "infrastructure",
            75,
            True,
            ...,
        ),
        ([failure(0, "SystemExit", "137", 137)], "bug", 1, False, ...),
        ([failure(0, "KeyboardInterrupt", "interrupted twice", 1)], "killed", 1, False, ...),
        ([silent(1, "data"), silent(0)], "hang", 75, True, ...),
        ([consequence(0), TERM], "infrastructure", 75, True, None),
        ([TERM], "infrastructure", 75, True, None),
        ([failure(0, "SystemExit", "0", 0)], "bug", 1, False, None),
    ],
)
def test_kind_code_and_retry_follow_from_the_first_cause(failures: list[Failure], kind: str, code: int, retry: bool, root: Any) -> None:
    found = verdict(*failures)
    assert (found.kind, found.code, found.retry) == (kind, code, retry)
    assert found.root == (failures[0] if root is ... else root)


def test_the_earliest_of_two_causes_is_the_first() -> None:
    late = failure(3, "ConfigError", "a sample cannot be read", 2, 30.0)
    assert verdict(late, BUG).root == BUG
    assert verdict(late, KILL).root == KILL
    assert verdict(late, KILL).causes.later == (late,)


def test_within_two_seconds_a_ranks_own_word_comes_before_an_agents() -> None:
    late = failure(0, "KeyError", "'beagle'", 1, 1.9)
    later = failure(0, "KeyError", "'beagle'", 1, 2.1)
    assert verdict(KILL, late).root == late
    assert verdict(KILL, later).root == KILL


def test_within_two_seconds_a_refusal_comes_before_an_exception_that_nobody_knows() -> None:
    strange = failure(1, "AssertionError", "the engine is gone", 1, -0.5)
    assert verdict(strange, MISTAKE).root == MISTAKE


def test_within_two_seconds_an_abort_comes_after_any_other_death() -> None:
    abort = failure(0, "Killed", "killed by SIGABRT", 1, -0.5, signal="SIGABRT", told_by="agent")
    assert verdict(abort, KILL).root == KILL
    assert verdict(abort, consequence(1)).root == abort


def test_what_all_ranks_raise_alike_is_told_by_the_first_rank() -> None:
    alike = [failure(rank, "RuntimeError", "rank 0: OSError: no such file", 1, 0.1 * (3 - rank)) for rank in range(4)]
    found = verdict(*alike)
    assert found.root == alike[0]
    assert {told.rank for told in found.causes.same} == {1, 2, 3}


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("InfrastructureError", PEER, True),
        ("InfrastructureError", "a data worker died: DataLoader worker (pid 7) is killed", False),
        ("InfrastructureError", "another rank was lost or did not answer: NCCL error: ncclInvalidUsage, Duplicate GPU detected", False),
        ("RuntimeError", "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:40123", True),
        ("DistBackendError", "NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a network error", True),
        ("DistBackendError", "NCCL error: unhandled cuda error", False),
        ("InfrastructureError", "the agent that started this rank (process 4711) is gone", True),
        ("DistNetworkError", "The client socket has timed out after 60000ms", True),
        ("RendezvousConnectionError", "The connection to the C10d store has failed.", True),
        ("RendezvousTimeoutError", "", True),
        ("BrokenPipeError", "[Errno 32] Broken pipe", True),
        ("URLError", "<urlopen error [Errno 111] Connection refused>", False),
        ("ValueError", "Connection closed by peer", False),
    ],
)
def test_a_lost_connection_is_a_consequence_and_nothing_else_is(kind: str, message: str, expected: bool) -> None:
    assert is_consequence(failure(0, kind, message, 75)) is expected


def test_a_single_process_has_no_other_rank_to_lose() -> None:
    told = failure(0, "RuntimeError", "Connection reset by peer")
    assert judge([attempt([told], [node(0, code=1)], nodes=1, procs=2)], at(60)).root is None
    alone = judge([attempt([told], [node(0, code=1)], nodes=1, procs=1)], at(60))
    assert alone.root == told


def test_a_consequence_points_to_an_address_or_a_rank() -> None:
    assert peer(consequence(0)) == "[10.0.0.2]:40123"
    assert peer(failure(0, "RuntimeError", "Connection closed by peer node-b:29500, gloo")) == "node-b:29500"
    assert peer(failure(0, "RuntimeError", "no answer from rank 3")) == "rank 3"
    assert peer(failure(0, "RuntimeError", "Broken pipe")) is None


@pytest.mark.parametrize(
    ("records", "behind", "waiting"),
    [
        ([silent(0), silent(1, "data"), silent(2)], [1], [0, 2]),
        ([silent(0, "start-up", 0), silent(1, "data"), silent(2)], [0], [1, 2]),
        ([silent(0, "data"), silent(1, words="300 s without a sign; stopped (state T)"), silent(2)], [1], [0, 2]),
        ([silent(0, "save"), silent(1, "waiting for rank 0"), silent(2, "waiting for rank 0")], [0], [1, 2]),
        ([silent(0, step=13), silent(1, "exchange", 12), silent(2, step=13)], [1], [0, 2]),
        ([silent(0), silent(2), silent(1)], [0, 1, 2], []),
    ],
    ids=["data", "start-up", "stopped", "rank 0 saves", "a step behind", "all alike"],
)
def test_the_culprit_of_a_hang_is_furthest_behind(records: list[Failure], behind: list[int], waiting: list[int]) -> None:
    found = verdict(*records, nodes=[])
    assert sorted(found.causes.behind or {}) == behind
    assert sorted(found.causes.waiting or {}) == waiting
    assert found.root and found.root.rank == behind[0]


def test_a_rank_that_its_watchdog_has_not_judged_is_found_by_its_heartbeat() -> None:
    beats = {2: Beat(9, 13, "data", at(-300), 5), 3: Beat(9, 13, "backward", at(-299), 5)}
    found = verdict(silent(0), silent(1), nodes=[node(0, code=75), node(1, beats=beats, code=75)])
    assert found.root and (found.root.rank, found.root.host, found.root.phase, found.root.type) == (2, "node-b", "data", "Silent")


def test_a_node_that_vanished_is_the_cause_where_nothing_came_before() -> None:
    nodes = [node(0, 14.5, code=75, time_ns=at(15)), node(1, 0.0)]
    found = verdict(consequence(0, 1.0), nodes=nodes, now=20)
    assert found.root and (found.root.type, found.root.node, found.root.message) == (
        "NodeLost", 1, "node 1 (node-b) vanished: its agent left no last word",
    )  # fmt: skip
    assert (found.kind, found.code) == ("infrastructure", 75)
    assert verdict(replace(KILL, time_ns=at(-5)), nodes=nodes, now=20).kind == "killed"


def test_a_node_that_beat_seconds_ago_may_still_end() -> None:
    nodes = [node(0, 2.5, code=75, time_ns=at(3)), node(1, 0.0)]
    assert verdict(consequence(0), nodes=nodes, now=4).root is None
    assert verdict(consequence(0), nodes=nodes, now=11).root is not None


def apart(index: int, host: str) -> Node:
    """A node whose agent could not reach the head when its watchdog had ended its ranks."""
    told = f"node {index} ({host}) cannot reach the head at node-a:20417: timed out"
    found = node(1, 30, {index: Beat(7, 13, "backward", at(-1), 5)}, code=75, time_ns=at(31), cut_off=told)
    return replace(found, index=index, about={"host": host})


def test_a_node_that_lives_but_is_cut_off_is_the_cause_of_the_silence_of_all() -> None:
    nodes = [node(0, 30, code=75, time_ns=at(31), cut_off=None), apart(1, "node-b")]
    found = verdict(silent(0, seconds=-4), silent(1), silent(2), nodes=nodes)
    assert (found.kind, found.code, found.retry) == ("infrastructure", 75, True)
    assert found.root and (found.root.type, found.root.node, found.root.host) == ("LinkLost", 1, "node-b")
    assert found.root.message == (
        "node 1 (node-b) cannot reach the head at node-a:20417: timed out; both live, so the network between them failed"
    )
    assert verdict(replace(BUG, time_ns=at(-9)), silent(1), nodes=nodes).kind == "bug"


def test_a_head_that_no_other_node_reaches_is_the_one_that_is_cut_off() -> None:
    head = node(0, 30, code=75, time_ns=at(31), cut_off=None)
    found = verdict(silent(0), nodes=[head, apart(1, "node-b"), apart(2, "node-c")])
    assert found.root and (found.root.node, found.root.host) == (0, "node-a")
    assert found.root.message == (
        "node 0 (node-a), the head, lives but is cut off from all others: node 1 (node-b) cannot reach the head at node-a:20417: timed out"
    )
    reached = replace(apart(1, "node-b"), ended={"code": 75, "time_ns": at(31), "cut_off": None})
    found = verdict(silent(0), nodes=[head, reached, apart(2, "node-c")])
    assert found.root and (found.root.node, found.root.host) == (2, "node-c")


def test_a_node_that_cannot_reach_a_head_that_vanished_is_not_the_cause() -> None:
    found = verdict(silent(2), nodes=[node(0, 0.0), apart(1, "node-b")])
    assert found.root and (found.root.type, found.root.node) == ("NodeLost", 0)


def test_a_job_whose_agents_all_vanished_was_killed_as_a_whole() -> None:
    found = verdict(nodes=[node(0, 0.0), node(1, 0.4)], now=300)
    assert (found.kind, found.code, found.retry) == ("killed", 75, True)
    assert verdict(nodes=[node(0, 0.0), node(1, 0.4)], now=60).kind == "running"


def test_a_node_that_never_came_explains_only_what_nothing_else_does() -> None:
    waited = failure(0, "RendezvousTimeoutError", "timed out", 75)
    found = verdict(waited, nodes=[node(0, code=75)])
    assert found.root and found.root.message == "node 1 never came: 1 of 2 agents left a sign in runs/pets/attempts/1"
    assert verdict(MISTAKE, nodes=[node(0, code=2)]).root == MISTAKE


def test_of_many_nodes_that_never_came_the_first_are_named() -> None:
    """Whatever number the record holds: it may be damaged, and must not fill the memory of who asks."""
    for nodes in (12, 2**62):
        found = judge([attempt((), [node(0, code=75)], nodes=nodes)], at(60), 10)
        assert found.root
        assert found.root.message.startswith(
            f"node 1, 2, 3, 4, 5, 6, 7, 8 and {nodes - 9} more never came: 1 of {nodes} agents left a sign"
        )


def test_an_end_without_failures_is_done_or_saved() -> None:
    assert verdict(nodes=[node(0, code=0), node(1, code=0)]).kind == "done"
    asked = verdict(nodes=[node(0, code=0, asked="SIGUSR1"), node(1, code=0)])
    assert (asked.kind, asked.code, asked.retry, asked.asked) == ("saved", 0, True, "SIGUSR1")
    assert verdict(nodes=[node(0, code=0, asked="SIGTERM"), node(1, code=0)]).retry is False
    torn = failure(1, "RuntimeError", "Error waiting on exit barrier: Connection reset by peer")
    assert verdict(torn, nodes=[node(0, code=0), node(1, code=0)]).kind == "done"


def test_failures_that_a_restart_mended_are_not_held_against_a_run_that_ended_well() -> None:
    found = verdict(BUG, nodes=[node(0, code=0), node(1, code=0)])
    assert (found.kind, found.code, found.root) == ("done", 0, None)


def test_an_agents_own_refusal_keeps_its_code() -> None:
    found = verdict(nodes=[node(0, code=78), node(1, code=78)])
    assert (found.kind, found.code, found.retry, found.root) == ("machine", 78, False, None)


KILLED = ((KILL,), {})
ASKED: tuple[Sequence[Failure], dict[str, Any]] = ((), {"code": 0, "asked": "SIGUSR1"})


@pytest.mark.parametrize(
    ("ends", "steps", "code", "why"),
    [
        ([KILLED] * 2, [10] * 3, 75, "yes"),
        ([KILLED] * 3, [10] * 4, 93, "no: the last 3 attempts ended without a checkpoint further than before"),
        ([KILLED] * 5, [10] * 6, 93, "no: the last 5 attempts ended without a checkpoint further than before"),
        ([((OOM,), {}), KILLED, ((consequence(0),), {})], [0, 0, 0, 0], 93, "no: the last 3 attempts ended without"),
        ([KILLED, ((MISTAKE,), {}), KILLED], [10] * 4, 75, "yes"),
        ([((replace(KILL, step=step),), {}) for step in (13, 14, 15)], [10, 10, 12, 12], 75, "yes"),
        ([KILLED] * 3, [10, 11, 11, 12], 93, "no: the last 3 attempts ended with the same error at the same step, 13"),
        ([((MISTAKE,), {})] * 3, [10] * 4, 2, "no: the same mistake would be made again"),
        ([ASKED] * 3, [10] * 4, 93, "no: the last 3 attempts were asked to stop before they had made a step"),
        ([ASKED] * 3, [10, 10, 10, 11], 0, "yes"),
        ([KILLED, KILLED, ASKED], [10] * 4, 93, "no: the last 3 attempts ended without"),
    ],
)
def test_no_progress_is_three_attempts_in_a_row_that_nobody_had_to_mend(ends: Any, steps: list[int], code: int, why: str) -> None:
    attempts = [
        attempt(failures, [node(0, **{"code": 75, **end, "step": steps[index + 1]})], index + 1, from_step=steps[index], nodes=1)
        for index, (failures, end) in enumerate(ends)
    ]
    found = judge(attempts, at(60), steps[-1])
    assert (found.code, found.why[: len(why)]) == (code, why)
    assert found.retry is why.startswith("yes")
    assert (found.kind == "no progress") is (code == 93)


def test_without_a_record_of_where_attempts_began_none_of_them_is_held_against_the_run() -> None:
    attempts = [replace(attempt([replace(KILL, step=13 + number)], [], number), about={}) for number in (1, 2, 3)]
    assert judge(attempts, at(60), 10).code == 75


def test_a_fingerprint_forgets_numbers_addresses_and_paths() -> None:
    first = failure(1, "OSError", "[Errno 5] cannot read /data/a/7.jpg at 0x7f00ab (pid 123, 10.0.0.2:40123)\nmore")
    second = failure(2, "OSError", "[Errno 5] cannot read data/b/9.jpg at 0x7f11cd (pid 9, 10.0.0.3:5)\nother")
    assert fingerprint(first) == fingerprint(second) == "OSError in backward: [Errno #] cannot read <path> at # (pid #, #)"
    assert fingerprint(replace(first, phase="data")) != fingerprint(first)


RECORDS = [MISTAKE, BUG, KILL, SEGV, OOM, TERM, silent(1, "data"), silent(0), *(consequence(rank, rank / 3) for rank in range(4))]
CAUSES = [record for record in RECORDS if not is_consequence(record)]


@given(
    st.lists(st.sampled_from(RECORDS), unique=True, min_size=1).flatmap(lambda chosen: st.tuples(st.just(chosen), st.permutations(chosen)))
)
def test_the_order_of_the_records_never_changes_the_verdict(lists: tuple[list[Failure], list[Failure]]) -> None:
    first, second = (judge([attempt(records, [node(0, code=1)])], at(60)) for records in lists)
    assert replace(first, attempt=second.attempt) == second


@given(
    st.lists(st.sampled_from(CAUSES), unique=True, min_size=1),
    st.lists(st.builds(consequence, st.integers(0, 3), st.floats(-5, 100)) | st.just(TERM) | st.just(silent(3, seconds=200))),
)
def test_adding_consequences_never_changes_the_first_cause(causes: list[Failure], more: list[Failure]) -> None:
    before = judge([attempt(causes, [node(0, code=1), node(1, code=1)])], at(600))
    after = judge([attempt([*causes, *more], [node(0, code=1), node(1, code=1)])], at(600))
    assert before.root is not None
    assert (after.root, after.kind, after.code, after.retry) == (before.root, before.kind, before.code, before.retry)


def test_scenes_end_at_the_second_that_the_golden_files_show() -> None:
    assert END == 1_767_330_751_000_000_000
