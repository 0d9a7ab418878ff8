"""How the agents of a job find each other: a store on the head node, reachable there alone, and the same code on all nodes."""

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from launch.nodes import Place, unreached
from sft_dist.errors import InfrastructureError, MachineError

Say = Callable[[str], None]
Result = TypeVar("Result")
TOLD_AFTER_S = 5
ANSWER_S = 10.0
"""How long the head's store may take to answer its first question; it is asked again until the nodes' patience is over."""
STORE_LIMIT = timedelta(minutes=2)
"""For each later question: all nodes are there by then, and ask at the same time."""


class Gang(RendezvousHandler):
    """All nodes or none: every agent waits for every other one, and none may join later.

    torchrun's own static rendezvous does the same, but its store listens on all interfaces, even on one node (pytorch#173909); it
    says for minutes nothing of a head that cannot be reached; and it starts whatever each node has installed.
    """

    def __init__(self, place: Place, about: Mapping[str, str], patience_s: float, say: Say, asked: Callable[[], object]) -> None:
        """about: what must be the same on all nodes, by name, and `host`. patience_s: how long nodes may take to come. asked: to leave."""
        self.place, self.about, self.patience_s, self.say, self.asked = place, about, patience_s, say, asked
        self.info: RendezvousInfo | None = None

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return "static"

    def next_rendezvous(self) -> RendezvousInfo:
        """Raises InfrastructureError where a node does not come, MachineError where the port is taken or the nodes differ."""
        if self.info is None:
            deadline = time.monotonic() + self.patience_s
            place = self.place
            self.server, port = serve(place) if place.index == 0 else (reach(place, deadline, self.say, self.asked), place.port)
            store = PrefixStore(self.get_run_id(), self.server)
            store.set(f"about/{place.index}", json.dumps(dict(self.about)))
            _compare(_patiently(deadline, lambda: _gather(store, place), self.say, self.asked), place)
            self.info = RendezvousInfo(store, place.index, place.nodes, RendezvousStoreInfo(place.head, port))
        return self.info

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody joins later, so there is nothing to close."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        """Nodes of two jobs that share a port by accident must not take each other for their own."""
        return f"{self.place.attempt.absolute().parents[1].name}/{self.place.attempt.name}"

    def shutdown(self) -> bool:
        return True


def listen(head: str, port: int, alone: bool) -> socket.socket:
    """A socket on the head's own address. Raises MachineError, with host and port, where it cannot be had.

    alone: this is the only node. Else a name that means loopback on its own host (Debian's 127.0.1.1) means all addresses.
    """
    where = f"{head}:{port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(head, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise MachineError(
            f"the head's name {head} does not resolve on {socket.gethostname()}: {error.strerror}; give --head an address"
        ) from error
    if not alone and str(address[0]).startswith("127.") and not head.startswith("127."):
        address = ("", port)
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise MachineError(
            f"cannot listen on {where} ({socket.gethostname()}): {error.strerror}; "
            "--head must be an address of node 0, and --port one that nobody uses"
        ) from error
    return listener


def serve(place: Place) -> tuple[TCPStore, int]:
    """The store, and the port on which it listens: the given one, or with 0 a free one."""
    listener = listen(place.head, place.port, alone=place.nodes == 1)
    port: int = listener.getsockname()[1]
    store = TCPStore(place.head, port, is_master=True, wait_for_workers=False, timeout=STORE_LIMIT, master_listen_fd=listener.detach())
    return store, port


def reach(place: Place, deadline: float, say: Say, asked: Callable[[], object] = lambda: None) -> TCPStore:
    """The head's store, as the other nodes see it. Raises InfrastructureError where it cannot be reached before the deadline."""

    def knock() -> TCPStore | str:
        try:
            socket.create_connection((place.head, place.port), timeout=5).close()
            return _client(place, asked)
        except (OSError, DistError) as error:
            return unreached(place, error)

    return _patiently(deadline, knock, say, asked)


def _client(place: Place, asked: Callable[[], object]) -> TCPStore:
    """Raises TimeoutError where somebody listens who does not answer: torch 2.14's TCPStore would wait for ever, whatever its time-out."""
    came: SimpleQueue[TCPStore | DistError] = SimpleQueue()

    def ask() -> None:
        try:
            came.put(TCPStore(place.head, place.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ANSWER_S)))
        except DistError as error:
            came.put(error)

    threading.Thread(target=ask, daemon=True).start()  # one that waits for ever must not keep the process from its end
    found, deadline = None, time.monotonic() + 2 * ANSWER_S
    while found is None and time.monotonic() < deadline and not asked():
        with suppress(Empty):
            found = came.get(timeout=0.2)
    if found is None:
        raise TimeoutError("somebody listens there, but does not answer as a head does")
    if isinstance(found, DistError):
        raise found
    found.set_timeout(STORE_LIMIT)
    return found


def _gather(store: PrefixStore, place: Place) -> list[dict[str, Any]] | str:
    """What each node says of itself, by node."""
    keys = [f"about/{node}" for node in range(place.nodes)]
    missing = ", ".join(str(node) for node, key in enumerate(keys) if not store.check([key]))
    if missing:
        return f"node {missing} of {place.nodes} did not come to {place.head}:{place.port} yet"
    return [json.loads(store.get(key)) for key in keys]


def _patiently(deadline: float, attempt: Callable[[], Result | str], say: Say, asked: Callable[[], object]) -> Result:
    """Try until there is something else than a problem in words, which is told after seconds. Raises InfrastructureError
    when it was long enough, or where somebody asked this node to leave."""
    told = time.monotonic() + TOLD_AFTER_S
    while isinstance(found := attempt(), str):
        if asked():
            raise InfrastructureError(f"asked to stop before all nodes had come: {found}")
        if time.monotonic() > deadline:
            raise InfrastructureError(f"{found}; is it up, and can the nodes reach each other there?")
        if time.monotonic() > told:
            say(f"waiting: {found}")
            told += 30
        time.sleep(0.2)
    return found


def _compare(nodes: list[dict[str, Any]], place: Place) -> None:
    """Raises MachineError where nodes would run different code; every one of them raises the same."""
    head = nodes[0]
    odd = [
        f"{name}: {told.get(name)} on node {index} ({told['host']}), {head[name]} on node 0 ({head['host']})"
        for index, told in enumerate(nodes)
        for name in head
        if name != "host" and told.get(name) != head[name]
    ]
    if odd:
        if place.index == 0:
            time.sleep(1.0)  # the others still read from this process's store
        raise MachineError(
            ["the nodes do not have the same software", *odd, "all nodes must see one installation and one repository"], everywhere=True
        )
