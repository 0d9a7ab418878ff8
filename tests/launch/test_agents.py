"""Two agents on this machine, as two nodes: how runs end, what is said of it, and that nothing stays behind."""

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agents import REPOSITORY, Started, end_all, listening, start, still_open
from ranks import free_port, largest_difference, logged, rows
from sick import sick
from waits import WAITS

from launch import why
from sft_dist.rundir import RunDir

pytestmark = pytest.mark.dist

CONFIG = {
    "task": "classify",
    "data": {"name": "digits", "size": 32, "augment": "padded_crop", "flip": 0, "classes": ["1", "7"], "per_class": 16, "workers": 0},
    "model": {"name": "mobilenet_v3_small", "weights": "start.pth", "train": "all", "norm": "frozen", "dropout": "none"},
    "batch": {"total": 10, "micro": 5},
    "optim": {"lr": 0.01},
    "train": {"duration": "9 steps"},
    "eval": {"every": "9 steps"},
    "save": {"every": "4 steps", "background": False},
    "precision": "fp64",
    "device": "cpu",
    "report": {"write": "none"},
}
LONG = ("train.duration=4000 steps", "eval.every=4000 steps", "save.every=4000 steps")
TWO = ("launch", "run", "--nodes", "2", "--simulate", "--procs", "1")
ONE = ("launch", "run", "--procs", "2")
IMPATIENT = {"PET_SHUTDOWN_TIMEOUT": "3"}  # torchrun's own, in seconds
HOSTILE = "a 'b' \"c\" $(touch owned) `touch owned` ${local_rank} $$ $HOME; touch owned"


@dataclass(frozen=True)
class Ended:
    """What came of an attempt: its exit code, its screen, and the commands of those that it left behind."""

    code: int
    screen: str
    left: list[str]
    attempt: Path

    @property
    def cause(self) -> str:
        """The screen from its headline on, without what the ranks had said before."""
        return self.screen[self.screen.index("\nruns/") + 1 :]

    def line(self, begins: str) -> str:
        return line_of(self.screen, begins)


@pytest.fixture(scope="module")
def folder(folder: Path) -> Iterator[Path]:
    import torch
    import torchvision

    torch.manual_seed(1)
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), folder / "start.pth")
    (folder / "config.yaml").write_text(json.dumps(CONFIG))
    yield folder
    end_all()


def line_of(screen: str, begins: str) -> str:
    """The first line of a screen that begins like this, but for what stands before on it."""
    return next(line[line.index(begins) :] for line in screen.splitlines() if begins in line)


def begin(folder: Path, name: str, *overrides: str, command: tuple[str, ...] = TWO, **env: str) -> Started:
    return start(folder, folder / "runs" / name, [*command, "config.yaml", f"run.name={name}", *overrides], env)


def ended(started: Started) -> Ended:
    code = started.end()
    return Ended(code, started.screen, started.left(), started.attempt)


# --- asked to stop, while a save takes its time ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paused:
    """A run that node 1 alone was asked to pause in the midst of a save, or in step 5, where it waits, and the same command again, to the
    end. One process made the same run, meanwhile, as `alone`."""

    first: Ended
    second: Ended
    listened: dict[str, set[str]]


@pytest.fixture(scope="module")
def paused(folder: Path) -> Paused:
    ill = sick(folder / "slow", ("the disk is slow", None, 0), ("waits", 1, 5))
    first = begin(folder, "paused", PYTHONPATH=ill, **IMPATIENT)
    first.until(lambda: logged(first.run, 4), "the save of step 4")
    listened = listening(first.pids)
    os.kill(first.agent(1), signal.SIGUSR1)
    alone = start(folder, folder / "runs" / "alone", ["sft_dist", "train", "config.yaml", "run.name=alone"])  # the slow save leaves time
    stopped = ended(first)
    shutil.copytree(folder / "runs" / "paused", folder / "kept" / "paused")
    assert alone.end() == 0, alone.screen
    return Paused(stopped, ended(begin(folder, "paused", **IMPATIENT)), listened)


def test_a_request_to_one_node_alone_saves_the_same_step_on_all(paused: Paused) -> None:
    first = paused.first
    assert (first.code, first.left) == (0, []), first.screen
    saved = json.loads((first.attempt.parents[1] / "checkpoints" / "step-00000005" / "MANIFEST.json").read_text())
    assert saved["step"] == 5, "the request came after step 4, and is answered after the step that follows"
    assert "saved step 5 and stopped as asked; the same command goes on from there" in first.screen
    ends = [json.loads((first.attempt / f"node-{node}" / "exit.json").read_text()) for node in (0, 1)]
    assert [(end["code"], end["asked"], end["step"]) for end in ends] == [(0, None, 5), (0, "SIGUSR1", 5)]


def test_nobody_is_killed_in_a_slow_save(paused: Paused, saw: Callable[[str], None]) -> None:
    told = [path.name for path in paused.first.attempt.glob("node-*/rank-*") if path.suffix in (".json", ".err", ".stack")]
    assert told == []
    took = [json.loads(line) for line in (paused.first.attempt / "saves.jsonl").read_text().splitlines()]
    assert [save["step"] for save in took] == [4, 5]
    assert all(save["seconds"] > 4 for save in took), "two files of two seconds each"
    saw(f"under agents: saves of {' and '.join(format(save['seconds'], '.0f') for save in took)} s were waited for")
    assert not list(paused.first.attempt.parents[1].glob("checkpoints/.*"))


def test_a_save_longer_than_its_patience_is_warned_of_under_torchrun_and_agents_have_more(
    paused: Paused, folder: Path, saw: Callable[[str], None]
) -> None:
    """The run that saved slowly goes on, from a copy of its folder, under a torchrun that kills three seconds after a TERM."""
    torchrun = ["torch.distributed.run", "--nproc-per-node", "1", "--master-port", str(free_port())]
    command = [*torchrun, str(REPOSITORY / "sft_dist" / "train.py"), "config.yaml", "run.name=paused", "run.dir=kept"]
    run = folder / "kept" / "paused"
    found = ended(start(folder, run, command, IMPATIENT))
    assert found.code == 0, found.screen
    longest_s = max(json.loads(line)["seconds"] for line in (run / "attempts" / "1" / "saves.jsonl").read_text().splitlines())
    warning = found.line("warning  a save of this run took ")
    saw(f"under torchrun: {warning}")
    assert warning == (
        f"warning  a save of this run took {longest_s:.0f} s, but torchrun kills its workers 3 s after a TERM, in the midst of it; "
        f"export PET_SHUTDOWN_TIMEOUT={4 * round(longest_s) + 30}, or start by sft-launch run, which waits for the save"
    )
    assert "resumed at step 5" in found.screen
    assert "a save of this run took" not in paused.second.screen


def test_the_same_command_goes_on_and_its_curve_is_that_of_one_process(paused: Paused, folder: Path) -> None:
    assert (paused.second.code, paused.second.left) == (0, []), paused.second.screen
    assert "resumed at step 5" in paused.second.screen
    assert largest_difference(rows(folder / "runs" / "alone"), rows(folder / "runs" / "paused")) < 1e-9


def test_simulated_nodes_listen_on_this_machine_only_and_no_port_stays_open(paused: Paused) -> None:
    assert paused.listened["beyond"] == set()
    assert paused.listened["own machine"], "the head's store, and gloo's sockets"
    assert still_open(paused.listened["own machine"]) == set()


# --- lost in the midst of a run ----------------------------------------------------------------------------------------------------


def kill_rank(started: Started) -> None:
    os.kill(started.ranks(1)[1]["pid"], signal.SIGKILL)


def stop_rank(started: Started) -> None:
    os.kill(started.ranks(1)[1]["pid"], signal.SIGSTOP)


def kill_agent(started: Started) -> None:
    os.kill(started.agent(1), signal.SIGKILL)


@pytest.fixture(scope="module")
def lost(folder: Path) -> dict[str, Ended]:
    """Four attempts at one run; none of the first three comes as far as a checkpoint."""
    found = {}
    plan: list[tuple[str, Callable[[Started], None]]] = [
        ("killed", kill_rank),
        ("stopped", stop_rank),
        ("killed again", kill_rank),
        ("without agent", kill_agent),
    ]
    for name, hurt in plan:
        started = begin(folder, "lost", *LONG, "watch.step_s=15")
        started.until_step(2, nodes=2)
        hurt(started)
        found[name] = ended(started)
    return found


def test_a_rank_that_is_killed_is_named_with_its_signal(lost: dict[str, Ended], saw: Callable[[str], None]) -> None:
    found = lost["killed"]
    saw(found.line("first cause"))
    assert found.code == 75, found.screen
    assert ": killed from outside, " in found.cause.splitlines()[0]
    assert f"first cause  rank 1 on {socket.gethostname()}, in " in found.cause
    assert "killed by SIGKILL" in found.cause
    assert "1 rank only reports the consequence" in found.cause
    assert "again?  yes: nothing in the run itself is known to be wrong" in found.cause


def test_a_rank_that_stands_still_is_named_with_the_stack_of_the_one_that_waits(lost: dict[str, Ended], saw: Callable[[str], None]) -> None:
    found = lost["stopped"]
    saw(found.line("first cause"))
    assert found.code == 75, found.screen
    assert ": a hang, " in found.cause.splitlines()[0]
    assert f"first cause  rank 1 on {socket.gethostname()} has been in " in found.cause
    assert "the process is stopped (state T, SIGSTOP)" in found.cause
    assert "rank 0 waits in " in found.cause
    assert '|   File "' in found.cause
    assert "train_step" in (found.attempt / "node-0" / "rank-0.stack").read_text()
    assert json.loads((found.attempt / "node-0" / "rank-0.flight.json").read_text())["entries"], "the last collectives"


def test_the_third_attempt_without_a_new_checkpoint_is_the_last(lost: dict[str, Ended]) -> None:
    found = lost["killed again"]
    assert found.code == 93, found.screen
    assert "killed by SIGKILL" in found.cause
    assert "verdict  no progress (exit code 93)" in found.cause
    assert "again?  no: the last 3 attempts ended without a checkpoint further than before" in found.cause


def test_ranks_without_their_agent_save_and_leave_and_the_node_is_named(lost: dict[str, Ended], saw: Callable[[str], None]) -> None:
    found = lost["without agent"]
    saw(found.line("sft-launch: the agent"))
    assert found.code == 75, found.screen
    assert "stopped as asked; the same command goes on from there" in found.screen
    assert "sft-launch: the agent of node 1 was killed by SIGKILL" in found.screen


def test_nothing_of_a_lost_run_is_left(lost: dict[str, Ended]) -> None:
    assert {name: each.left for name, each in lost.items()} == {name: [] for name in lost}


# --- errors of the run itself --------------------------------------------------------------------------------------------------------


def test_a_rank_that_raises_ends_all_with_its_own_code(folder: Path) -> None:
    found = ended(begin(folder, "diverged", "optim.lr=1e200"))
    assert (found.code, found.left) == (1, []), found.screen
    assert re.search(rf"first cause  rank 0 on {socket.gethostname()}, in (exchange|update) of step \d+: DivergedError\n", found.cause)
    assert "again?  no: the same numbers would diverge again" in found.cause


def test_what_only_a_node_can_find_is_the_users_mistake_whatever_its_path_is_called(folder: Path) -> None:
    """An image that cannot be read, below hostile names: they reach the ranks unchanged, and run nothing."""
    from PIL import Image

    data = folder / HOSTILE
    for part in ("train", "val"):
        for label in ("a", "b"):
            (data / part / label).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (40, 40), (number * 40, 90, 10)).save(data / part / label / f"{number}.png")
    for number in range(6):
        (data / "train" / "b" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    where = [f"data.root={HOSTILE}", f"run.dir={HOSTILE}/runs", "data.name=folder", "data.classes=null", "data.per_class=null"]
    command = ["launch", "run", "--nodes", "2", "--simulate", "--procs", "1", "config.yaml", "run.name=hostile", *where]
    started = start(folder, data / "runs" / "hostile", command)
    code = started.end()
    assert (code, started.left()) == (2, []), started.screen
    record = next(json.loads(path.read_text()) for path in sorted(started.attempt.glob("node-*/rank-*.json")))
    assert (record["type"], record["code"], record["phase"], record["step"]) == ("ConfigError", 2, "exchange", 1)
    assert f"{HOSTILE}/train/b/" in record["message"]
    assert "again?  no: the same mistake would be made again" in started.screen
    assert not list(folder.rglob("owned"))


def test_the_same_death_in_the_same_step_is_not_tried_for_ever(folder: Path, saw: Callable[[str], None]) -> None:
    ill = sick(folder / "ill", ("killed in forward", None, 6))
    found = []
    for _ in range(3):  # the first one comes as far as a checkpoint
        started = begin(folder, "same", "save.every=4 steps", command=("launch", "run", "--procs", "1"), PYTHONPATH=ill)
        found.append(ended(started))
    assert [each.code for each in found] == [75, 75, 93], found[-1].screen
    saw(found[2].line("again?"))
    assert "again?  yes: nothing in the run itself is known to be wrong" in found[0].cause
    assert "first cause  rank 0 on " in found[2].cause
    assert "in forward of step 6" in found[2].cause
    assert "again?  no: the last 3 attempts ended with the same error at the same step, 6" in found[2].cause


# --- one node ------------------------------------------------------------------------------------------------------------------------


def test_on_one_node_nothing_listens_beyond_it_and_a_second_interrupt_ends_a_slow_save(folder: Path) -> None:
    ill, apart = sick(folder / "a disk", ("the disk waits", None, 0)), folder / "apart"
    apart.mkdir()
    for name in ("config.yaml", "start.pth"):
        shutil.copy(folder / name, apart)
    (apart / "torch.py").write_text("raise SystemExit('the folder that this was started in has hidden a library')\n")
    started = begin(apart, "one", *LONG, command=ONE, PYTHONPATH=ill)
    started.until_step(2, nodes=1)
    listened = listening(started.pids)
    os.kill(started.process.pid, signal.SIGINT)
    started.until(lambda: WAITS in started.screen, "the save")
    os.kill(started.process.pid, signal.SIGINT)
    found = ended(started)
    assert (found.code, found.left) == (1, []), found.screen
    assert ": killed from outside, " in found.cause.splitlines()[0]
    assert f"first cause  rank 0 on {socket.gethostname()}, in save of step " in found.cause
    assert "KeyboardInterrupt\n               interrupted twice\n" in found.cause
    assert "again?  no: somebody interrupted it by hand" in found.cause
    assert "next  the same command goes on:" in found.cause
    assert listened["beyond"] == set()
    assert listened["own machine"]
    assert still_open(listened["own machine"]) == set()


# --- nodes that do not come together --------------------------------------------------------------------------------------------------


def agent(folder: Path, name: str, node: int, nodes: int, port: int, *more: str, **env: str) -> Started:
    attempt = folder / "runs" / name / "attempts" / "1"
    attempt.mkdir(parents=True, exist_ok=True)
    where = ["--nodes", str(nodes), "--node", str(node), "--port", str(port), "--attempt", str(attempt), *more]
    started = start(folder, folder / "runs" / name, ["launch.node_agent", *where, "config.yaml", f"run.name={name}"], env)
    started.attempt = attempt
    return started


def test_nodes_with_other_code_refuse_to_run_and_say_where_it_differs(folder: Path) -> None:
    other = folder / "other"
    for package in ("sft_dist", "launch"):
        shutil.copytree(REPOSITORY / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "sft_dist" / "loop.py").open("a") as file:
        file.write("# one line more\n")
    port = free_port()
    both = [agent(folder, "mixed", 0, 2, port), agent(folder, "mixed", 1, 2, port, PYTHONPATH=str(other))]
    assert [each.end() for each in both] == [78, 78], both[0].screen
    hashes = [json.loads((each.attempt / f"node-{node}" / "agent.json").read_text())["code"] for node, each in enumerate(both)]
    assert hashes[0] != hashes[1]
    host = socket.gethostname()
    for each in both:
        assert f"  - code: {hashes[1]} on node 1 ({host}), {hashes[0]} on node 0 ({host})" in each.screen
        assert "all nodes must see one installation and one repository" in each.screen
    verdict = why.look(RunDir(folder / "runs" / "mixed"))
    assert (verdict.kind, verdict.code, verdict.retry) == ("machine", 78, False)


def test_a_port_that_is_taken_and_a_head_that_is_not_there_are_named(folder: Path, saw: Callable[[str], None]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port, nobody = taken.getsockname()[1], free_port()
        head = agent(folder, "taken", 0, 1, port)
        lonely = agent(folder, "lonely", 1, 2, nobody, "--patience", "1")
        waiting = agent(folder, "waiting", 0, 2, free_port(), "--patience", "1")
        apart = agent(folder, "apart", 0, 1, 0, "--attempt", str(folder / "elsewhere" / "attempts" / "1"))
        assert [head.end(), lonely.end(), waiting.end()] == [78, 75, 75], head.screen + lonely.screen + waiting.screen
        assert apart.end() == 78
    assert "run.dir must be on a file system that all nodes share" in apart.screen
    assert f"cannot listen on 127.0.0.1:{port} ({socket.gethostname()}): Address already in use" in head.screen
    assert f"node 1 ({socket.gethostname()}) cannot reach the head at 127.0.0.1:{nobody}: " in lonely.screen
    assert "node 1 of 2 did not come to 127.0.0.1:" in waiting.screen
    for each, start_of in ((head, "cannot listen"), (lonely, "node 1 ("), (waiting, "node 1 of 2")):
        saw(line_of(each.screen, start_of))
    kinds = [why.look(RunDir(folder / "runs" / name)).kind for name in ("taken", "lonely", "waiting")]
    assert kinds == ["machine", "infrastructure", "infrastructure"]
    assert not [line for each in (head, lonely, waiting) for line in each.screen.splitlines() if "Traceback" in line]
