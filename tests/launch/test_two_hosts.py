"""Two hosts with addresses and names of their own, and a link between them: a run over both, a link that fails for seconds, and for good."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agents import Started, clean_environment, end_all, start
from hosts import Host, Hosts, obstacle
from ranks import free_port, largest_difference, rows, wait_for_step
from sick import sick
from waits import GO

from launch import why
from sft_dist.rundir import RunDir, step_name

pytestmark = pytest.mark.dist

CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 32, "augment": "padded_crop", "flip": 0, "classes": ["1", "7"], "per_class": 16, "workers": 0},
    "model": {"name": "mobilenet_v3_small", "weights": "start.pth", "train": "all", "norm": "frozen", "dropout": "none"},
    "batch": {"total": 10, "micro": 5},
    "optim": {"lr": 0.01},
    "train": {"duration": "40 steps"},
    "eval": {"every": "40 steps"},
    "save": {"every": "4 steps", "background": False},
    "watch": {"step_s": 15},
    "precision": "fp64",
    "device": "cpu",
    "report": {"write": "none"},
}


@dataclass(frozen=True)
class Pair:
    """An attempt at a run, with one agent on each host; alpha is the head, known by its name."""

    agents: list[Started]
    port: int

    @property
    def attempt(self) -> Path:
        return self.agents[0].attempt

    def end(self) -> list[int]:
        return [agent.end() for agent in self.agents]

    def told(self) -> list[Path]:
        """What ranks left that did not end well."""
        return [path for path in self.attempt.glob("node-*/rank-*") if path.suffix != ".out" and path.stat().st_size]


@pytest.fixture(scope="module")
def folder(folder: Path) -> Iterator[Path]:
    import torch
    import torchvision

    torch.manual_seed(1)
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), folder / "start.pth")
    (folder / "config.yaml").write_text(json.dumps(CONFIG))
    yield folder
    end_all()


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """alpha and beta; skipped where there can be none, unless SFT_REQUIRE_NETNS says that there must be."""
    reason = obstacle()
    if reason and os.environ.get("SFT_REQUIRE_NETNS"):
        pytest.fail(f"SFT_REQUIRE_NETNS is set, but {reason}")
    if reason:
        pytest.skip(reason)
    with Hosts(folder / "hosts") as both:
        yield both
        end_all()


def begin(folder: Path, hosts: tuple[Host, Host], name: str, *overrides: str, **env: str) -> Pair:
    run = ["config.yaml", f"run.name={name}", *overrides]
    command = [sys.executable, "-m", "launch", "begin", "--nodes", "2", "--procs", "1", *run]
    begun = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert begun.returncode == 0, begun.stderr
    attempt, port = Path(begun.stdout.strip()), free_port()
    where = ["--nodes", "2", "--head", hosts[0].name, "--port", str(port), "--attempt", str(attempt)]
    agents = []
    for node, host in enumerate(hosts):
        line = ["launch.node_agent", *where, "--node", str(node), *run]
        agents.append(start(folder, folder / "runs" / name, line, env, inside=host.inside(folder)))
        agents[-1].attempt = attempt
    return Pair(agents, port)


def waiting(folder: Path, go: Path) -> dict[str, str]:
    """An environment in which both ranks wait in step 7 until a file is there."""
    return {"PYTHONPATH": sick(folder / f"until-{go.name}", ("waits", None, 7)), GO: str(go)}


# --- a link that fails for two seconds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blinked:
    """A run whose link failed for two seconds in its midst: how it ended, and where each host listened before."""

    pair: Pair
    codes: list[int]
    listened: list[set[tuple[str, int]]]
    left_open: list[set[tuple[str, int]]]


@pytest.fixture(scope="module")
def blinked(folder: Path, hosts: tuple[Host, Host]) -> Blinked:
    go = folder / "go-blinked"
    pair = begin(folder, hosts, "blinked", "watch.step_s=120", **waiting(folder, go))
    wait_for_step(folder / "runs" / "blinked", 6)
    listened = [host.listening() for host in hosts]
    hosts[1].link("down")
    go.touch()
    time.sleep(2)
    hosts[1].link("up")
    codes = pair.end()
    return Blinked(pair, codes, listened, [host.listening() for host in hosts])


def test_a_link_that_fails_for_seconds_costs_nothing(blinked: Blinked, folder: Path) -> None:
    head, other = blinked.pair.agents
    assert blinked.codes == [0, 0], head.screen + other.screen
    assert json.loads((folder / "runs" / "blinked" / "outcome.json").read_text())["reason"] == "all 40 steps are made"
    assert [path.name for path in (folder / "runs" / "blinked" / "attempts").iterdir()] == ["1"]
    assert [path.name for path in blinked.pair.told() if path.suffix == ".json"] == []


def test_hosts_are_told_apart_by_name(blinked: Blinked) -> None:
    head, other = blinked.pair.agents
    assert "alpha:0|     world  2 ranks, ddp, fp64, cpu\n" in head.screen
    assert {line.partition("|")[0] for line in other.screen.splitlines() if "|" in line} <= {"beta:1"}
    told = [agent.told(node, "agent") for node, agent in enumerate(blinked.pair.agents)]
    assert [(about["host"], about["ranks"]) for about in told] == [("alpha", [0]), ("beta", [1])]
    assert why.look(RunDir(head.run)).kind == "done"


def test_two_nodes_listen_on_their_addresses_towards_each_other_only_and_no_port_stays_open(
    blinked: Blinked, hosts: tuple[Host, Host]
) -> None:
    assert [{address for address, _ in ends} for ends in blinked.listened] == [{"10.251.37.1"}, {"10.251.37.2"}]
    assert ("10.251.37.1", blinked.pair.port) in blinked.listened[0]
    assert [len(ends) for ends in blinked.listened] == [2, 1], "the head's store, and gloo's socket of each rank"
    assert blinked.left_open == [set(), set()]


# --- a link that is cut -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """A run whose link was cut in its midst, and the same run again once the link was there. One process made the same run, meanwhile."""

    first: Pair
    codes: list[int]
    lasted_s: float
    left: list[str]
    saved: int
    second: Pair
    codes_again: list[int]


@pytest.fixture(scope="module")
def cut(folder: Path, hosts: tuple[Host, Host]) -> Cut:
    go = folder / "go-cut"
    first = begin(folder, hosts, "cut", **waiting(folder, go))
    wait_for_step(folder / "runs" / "cut", 6)
    hosts[1].link("down")
    go.touch()
    since = time.monotonic()
    alone = start(folder, folder / "runs" / "alone", ["sft_dist", "train", "config.yaml", "run.name=alone"])
    codes, lasted_s = first.end(), time.monotonic() - since
    left = [command for agent in first.agents for command in agent.left()]
    saved = RunDir(folder / "runs" / "cut").saved_step
    hosts[1].link("up")
    assert alone.end() == 0, alone.screen
    second = begin(folder, hosts, "cut")
    return Cut(first, codes, lasted_s, left, saved, second, second.end())


def test_a_cut_link_ends_both_nodes_by_their_watchdogs(cut: Cut) -> None:
    assert (cut.codes, cut.left) == ([75, 75], []), cut.first.agents[0].screen
    assert cut.lasted_s < 400, "15 s of silence, the stacks, and a last look at the network; a collective would wait for half an hour"
    assert sorted(path.name for path in cut.first.told() if path.suffix == ".stack") == ["rank-0.stack", "rank-1.stack"]


def test_the_screen_names_the_node_that_was_cut_off_and_what_is_lost(cut: Cut) -> None:
    screen = cut.first.agents[0].screen
    assert (
        f"first cause  node 1 (beta) cannot reach the head at alpha:{cut.first.port}: Network is unreachable; "
        "both live, so the network between them failed\n" in screen
    )
    assert ": infrastructure failure, " in screen
    assert re.search(rf"\n checkpoint  {step_name(cut.saved)}, verified; (\d steps? (is|are)|no step is) lost", screen)
    assert "again?  yes: nothing in the run itself is known to be wrong, and it goes on from its checkpoint\n" in screen
    assert "sbatch --exclude=beta" in screen


def test_over_the_restored_link_the_run_goes_on_from_its_checkpoint(cut: Cut) -> None:
    screen = cut.second.agents[0].screen
    assert cut.codes_again == [0, 0], screen
    assert cut.saved in range(4, 40, 4)
    assert f"alpha:0| resumed at step {cut.saved}\n" in screen


@pytest.mark.parametrize("name", ["blinked", "cut"])
def test_the_curve_of_two_hosts_is_that_of_one_process_whatever_the_link_did(blinked: Blinked, cut: Cut, folder: Path, name: str) -> None:
    assert largest_difference(rows(folder / "runs" / "alone"), rows(folder / "runs" / name)) < 1e-9
