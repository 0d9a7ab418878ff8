"""How the nodes of an examination meet and tell each other what they see, while any of them may fall silent."""

import json
import secrets
import sys
import time
from dataclasses import asdict

from torch.distributed import DistError, Store  # type: ignore[attr-defined]

from launch import gang
from launch.nodes import Place
from launch.patience import LateError, within
from launch.symptoms import Report, of_json
from sft_dist.errors import InfrastructureError

SLACK_S = 3.0
"""What the head waits longer than a node may take: a node that is late with one thing can still say so itself."""
ROUNDS = 5


class HeadLostError(InfrastructureError):
    """Node 0 ended or hangs, and with it the store: what is known by now is all that will be."""


class Ward:
    """The nodes that came and still answer, and the last that each of them told.

    limit_s: how long a node may take for a step. present: in their order; it shrinks, on all nodes alike, by the head's word.
    hosts: node -> what it called itself when it came. known: node -> its last report. silent: node -> since when, in words.
    """

    def __init__(self, store: Store, node: int, limit_s: float) -> None:
        self.store, self.node, self.limit_s = store, node, limit_s
        self.present: tuple[int, ...] = ()
        self.hosts: dict[int, str] = {}
        self.token = ""
        self.known: dict[int, Report] = {}
        self.silent: dict[int, str] = {}
        self.heard = time.monotonic()

    def exchange(self, step: str, report: Report, more_s: float = 0.0) -> list[Report]:
        """What each node tells after a step of this name, in their order; one that does not is left out from here on.

        more_s: what this step may take longer than others. Raises HeadLostError, and InfrastructureError on a node that was left out.
        """
        wait_s = self.limit_s + SLACK_S + more_s
        self.known[self.node] = report
        self._write(f"{step}/{self.node}", json.dumps(asdict(report)), step)
        if self.node == 0:
            owing = self._awaited(step, wait_s)
            told = {node: json.loads(self.store.get(f"{step}/{node}")) for node in self.present if node not in owing}
            self.store.set(f"{step}/all", json.dumps(told))
        answers = json.loads(self.read(f"{step}/all", step, 2 * wait_s))
        self.heard = time.monotonic()
        self.silent |= {node: f"no answer within {wait_s:.0f} s while {step}" for node in self.present if str(node) not in answers}
        self.present = tuple(node for node in self.present if str(node) in answers)
        if self.node not in self.present:
            raise InfrastructureError(f"node {self.node} answers too late: the others went on without it after {wait_s:.0f} s ({step})")
        self.known |= {node: of_json(answers[str(node)]) for node in self.present}
        return [self.known[node] for node in self.present]

    def read(self, key: str, step: str, wait_s: float) -> bytes:
        """What the head wrote. Raises as `exchange`: a store whose process is stopped keeps to no time-out of its own."""
        begin = time.monotonic()
        try:
            found: bytes = within(wait_s, lambda: self.store.get(key))
        except (LateError, DistError) as error:
            raise self._without_head(error, step, begin) from error
        return found

    def clock(self, step: str) -> tuple[float, float]:
        """How far this node's clock is before the head's, and how well that is known: half of the quickest round trip."""
        if self.node == 0:
            self._answer_pings()
            return 0.0, 0.0
        best = (float("inf"), 0.0)
        for turn in range(ROUNDS):
            before, begin = time.time_ns(), time.monotonic_ns()
            self._write(f"ping/{self.node}/{turn}", "1", step)
            head = int(self.read(f"pong/{self.node}/{turn}", step, 2 * (self.limit_s + SLACK_S)))
            trip = time.monotonic_ns() - begin
            if turn:  # the first also waits until the head has come this far
                best = min(best, (trip / 2e9, (before + trip // 2 - head) / 1e9))
        return best[1], best[0]

    def part(self) -> None:
        """The head stays until the others have read its last word, as the store is in its process."""
        self._write(f"left/{self.node}", "1", "leaving")
        if self.node == 0:
            self._awaited("left", self.limit_s)

    def _awaited(self, step: str, wait_s: float) -> list[int]:
        """Those of whom the head has nothing after a while."""
        deadline = time.monotonic() + wait_s
        while owing := [node for node in self.present if not self.store.check([f"{step}/{node}"])]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return owing

    def _write(self, key: str, value: str, step: str) -> None:
        begin = time.monotonic()
        try:
            self.store.set(key, value)
        except DistError as error:
            raise self._without_head(error, step, begin) from error

    def _without_head(self, error: Exception, step: str, begin: float) -> InfrastructureError:
        """Which of the two is lost: a node that slept and wakes up after the head has said its last word must not blame it."""
        mine = begin - self.heard
        if mine > self.limit_s + SLACK_S:
            return InfrastructureError(f"node {self.node} answers too late: it took {mine:.0f} s for {step}, and the others went on")
        return HeadLostError(f"{error if isinstance(error, LateError) else 'its process ended'} while {step}")

    def _answer_pings(self) -> None:
        deadline = time.monotonic() + self.limit_s + SLACK_S
        pending = dict.fromkeys(self.present[1:], 0)
        while pending and time.monotonic() < deadline:
            for node, turn in list(pending.items()):
                if self.store.check([f"ping/{node}/{turn}"]):
                    self.store.set(f"pong/{node}/{turn}", str(time.time_ns()))
                    pending[node] += 1
            pending = {node: turn for node, turn in pending.items() if turn < ROUNDS}
            time.sleep(0.0005)


def meet(place: Place, host: str, token: str, patience_s: float, limit_s: float) -> Ward:
    """Meet at the head; who has not come when its patience ends is left behind.

    host: what this node is called. token: what the nodes call their notes by; the head chooses one where it is empty.
    """
    deadline = time.monotonic() + patience_s
    wait_s = patience_s + limit_s
    if place.index == 0:
        ward = Ward(gang.serve(place)[0], 0, limit_s)
    else:
        try:
            ward = Ward(within(wait_s, lambda: gang.reach(place, deadline, _say)), place.index, limit_s)
        except LateError as error:
            raise InfrastructureError(f"{error} from the head at {place.head}:{place.port}: its process hangs") from error
    ward.store.set(f"come/{place.index}", host)
    if place.index == 0:
        ward.present = tuple(range(place.nodes))
        away = ward._awaited("come", max(0.0, deadline - time.monotonic()))
        came = {node: ward.store.get(f"come/{node}").decode() for node in range(place.nodes) if node not in away}
        ward.store.set("present", json.dumps([came, token or secrets.token_hex(8)]))
    told, ward.token = json.loads(ward.read("present", "waiting for all nodes to come", wait_s))
    ward.heard = time.monotonic()
    ward.hosts = {int(node): name for node, name in told.items()}
    ward.present = tuple(ward.hosts)
    if place.index not in ward.present:
        raise InfrastructureError(f"node {place.index} came too late: the head had waited {patience_s:.0f} s")
    return ward


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
