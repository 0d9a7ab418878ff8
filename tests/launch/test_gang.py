"""How an agent meets its head: whoever else may listen where the head should be is named, and not waited for without end."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launch import gang
from launch.nodes import Place
from sft_dist.errors import InfrastructureError


@contextmanager
def listener(answer: bytes) -> Iterator[Place]:
    """The place of node 1 whose head is something else, on a port of this machine: it gives each that comes the answer, or none if it is
    empty, and lets nobody go."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):  # closed at the end of the test
                while True:
                    kept.append(server.accept()[0])
                    kept[-1].sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield Place(1, 2, 1, "127.0.0.1", server.getsockname()[1], Path("runs/a/attempts/1"))
        server.shutdown(socket.SHUT_RDWR)
    for each in kept:
        each.close()


def refusal_of(place: Place, said: list[str]) -> tuple[str, float]:
    begun = time.monotonic()
    with pytest.raises(InfrastructureError) as refused:
        gang.reach(place, begun + 3, said.append)
    return str(refused.value), time.monotonic() - begun


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang, "ANSWER_S", 0.5)
    monkeypatch.setattr(gang, "TOLD_AFTER_S", 0)


def test_a_port_that_takes_connections_and_never_answers_is_named_and_not_waited_for() -> None:
    """A firewall's tarpit, or another service that waits for its client to speak a language of its own."""
    said: list[str] = []
    with listener(b"") as place:
        told, lasted_s = refusal_of(place, said)
    where = f"node 1 ({socket.gethostname()}) cannot reach the head at 127.0.0.1:{place.port}: "
    assert told == f"{where}somebody listens there, but does not answer as a head does; is it up, and can the nodes reach each other there?"
    assert said[0] == f"waiting: {where}somebody listens there, but does not answer as a head does"
    assert lasted_s < 10


def test_who_waits_for_an_answer_leaves_as_soon_as_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As srun asks the other nodes to when the head has found its port taken."""
    monkeypatch.setattr(gang, "ANSWER_S", 60)
    begun = time.monotonic()
    with listener(b"") as place, pytest.raises(InfrastructureError, match="asked to stop before all nodes had come: node 1 "):
        gang.reach(place, begun + 100, lambda _: None, asked=lambda: time.monotonic() > begun + 0.5)
    assert time.monotonic() - begun < 20


def test_a_port_where_something_else_answers_is_named() -> None:
    said: list[str] = []
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as place:
        told, lasted_s = refusal_of(place, said)
    assert f"cannot reach the head at 127.0.0.1:{place.port}: " in told
    assert lasted_s < 20


def test_nodes_of_two_runs_that_share_a_port_do_not_take_each_other_for_their_own() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    problems = {}

    def meet(index: int, run: str, patience_s: float) -> None:
        place = Place(index, 2, 1, "127.0.0.1", port, Path(f"runs/{run}/attempts/1"))
        try:
            gang.Gang(place, {"host": "h"}, patience_s, lambda _: None, lambda: None).next_rendezvous()
        except InfrastructureError as error:
            problems[run] = str(error)

    nodes = [threading.Thread(target=meet, args=who) for who in ((0, "one", 6.0), (1, "other", 3.0))]  # the head stays longer
    for node in nodes:
        node.start()
    for node in nodes:
        node.join()
    assert {run: told.partition(" did not come")[0] for run, told in problems.items()} == {"one": "node 1 of 2", "other": "node 0 of 2"}
