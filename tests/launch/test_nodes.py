"""Which node an agent is, from Slurm's variables, and what its ranks find in their environment."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from launch import nodes
from launch.nodes import Place
from sft_dist.errors import ConfigError, MachineError

HEAD = Place(0, 2, 4, "127.0.0.1", 29400, Path("runs/a/attempts/3"))


def srun(tasks: int, on: int, procid: int, nodeid: int) -> dict[str, str]:
    """The variables of one task of a step, as Slurm sets them."""
    told = {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": on, "SLURM_PROCID": procid, "SLURM_NODEID": nodeid}
    return {name: str(value) for name, value in told.items()}


@pytest.mark.parametrize(
    ("env", "count", "given", "index"),
    [
        ({}, 1, None, 0),
        (srun(1, 1, 0, 0), 1, None, 0),
        (srun(2, 2, 1, 1), 2, None, 1),
        ({}, 4, 3, 3),
        (srun(8, 2, 5, 1), 2, 0, 0),
    ],
)
def test_a_node_knows_its_number(env: dict[str, str], count: int, given: int | None, index: int) -> None:
    assert nodes.index_of(env, count, given) == index


def test_eight_tasks_a_node_are_refused_with_the_flags_that_start_one() -> None:
    with pytest.raises(MachineError) as refused:
        nodes.index_of(srun(16, 2, 9, 1), 2, None)
    assert str(refused.value) == (
        "srun started 16 tasks on 2 nodes, but one agent a node makes 2: use srun --nodes=2 --ntasks=2 --ntasks-per-node=1; "
        "the agent starts the processes of its node itself"
    )


@pytest.mark.parametrize(
    ("env", "count", "what"),
    [
        (srun(2, 1, 1, 0), 2, "srun started 2 tasks on 1 nodes, but one agent a node makes 2"),
        (srun(8, 1, 3, 0), 1, "srun started 8 tasks on 1 nodes, but one agent a node makes 1"),
        ({}, 2, "--nodes 2 without --node, and srun's variables are not here"),
        ({"SLURM_PROCID": "1"}, 2, "--nodes 2 without --node, and srun's variables are not here"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, 2, "--nodes 2 without --node, and srun's variables are not here"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, 2, "srun started 2 tasks on ? nodes"),
    ],
)
def test_a_step_of_another_shape_is_refused(env: dict[str, str], count: int, what: str) -> None:
    with pytest.raises(MachineError) as refused:
        nodes.index_of(env, count, None)
    assert what in str(refused.value)


@pytest.mark.parametrize("given", [-1, 2])
def test_a_number_outside_the_job_is_the_users_mistake(given: int) -> None:
    with pytest.raises(ConfigError, match=rf"--node {given} is outside the job: its nodes are 0 to 1"):
        nodes.index_of({}, 2, given)


@pytest.mark.parametrize("env", [{"RANK": "0"}, {"WORLD_SIZE": "4"}, {"LOCAL_RANK": "1", "RANK": "1"}])
def test_an_agent_inside_a_rank_is_refused_also_when_only_a_part_is_set(env: dict[str, str]) -> None:
    with pytest.raises(MachineError, match="this is a rank already") as refused:
        nodes.refuse_inside_a_rank(env)
    assert all(f"{name}={value}" in str(refused.value) for name, value in env.items())


def test_empty_variables_of_a_launcher_are_no_launcher() -> None:
    nodes.refuse_inside_a_rank({"RANK": "", "WORLD_SIZE": ""})


def test_a_head_that_refuses_is_reached_and_one_that_is_nowhere_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as open_port:
        port = open_port.getsockname()[1]
        assert nodes.cut_off(replace(HEAD, index=1, port=port)) is None
    assert nodes.cut_off(replace(HEAD, index=1, port=port)) is None
    assert nodes.cut_off(replace(HEAD, index=1, head="no.such.host.invalid", port=port)) == (
        f"node 1 ({socket.gethostname()}) cannot reach the head at no.such.host.invalid:{port}: Name or service not known"
    )


def test_ranks_are_counted_through_over_the_nodes() -> None:
    second = Place(1, 2, 4, "head", 29400, Path("runs/a/attempts/3"))
    assert (second.world, list(second.ranks), second.folder) == (8, [4, 5, 6, 7], Path("runs/a/attempts/3/node-1"))


def test_ranks_find_the_pulse_the_attempt_and_the_world() -> None:
    found = nodes.rank_environment(HEAD, {}, Path("/dev/shm/sft-x"))
    assert found["SFT_EXPECT_WORLD"] == "8"
    assert found["SFT_PULSE"] == "/dev/shm/sft-x"
    assert found["SFT_AGENT"] == str(os.getpid())
    assert found["SFT_ATTEMPT"] == str(Path("runs/a/attempts/3/node-0").absolute())
    assert (found["PYTHONUNBUFFERED"], found["TORCH_FR_BUFFER_SIZE"]) == ("1", "2000")
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("lo", "lo")


@pytest.mark.parametrize(
    ("share", "procs", "threads"),
    [
        ("8", 4, {1: 1, 2: 1, 4: 1, 8: 2}),  # by the processors that this process may really use
        ("2", 1, {1: 1, 2: 2, 4: 2, 8: 2}),
        ("1", 4, {1: 1, 2: 1, 4: 1, 8: 1}),
    ],
)
def test_threads_share_what_slurm_promised_and_this_process_may_use(share: str, procs: int, threads: dict[int, int]) -> None:
    usable = len(os.sched_getaffinity(0))
    place = Place(0, 1, procs, "127.0.0.1", 0, Path("runs/a/attempts/1"))
    found = nodes.rank_environment(place, {"SLURM_CPUS_PER_TASK": share}, Path("/tmp"))
    assert found["OMP_NUM_THREADS"] == str(threads.get(usable, max(1, min(int(share), usable) // procs)))


def test_what_the_user_chose_stays() -> None:
    chosen = {"OMP_NUM_THREADS": "3", "GLOO_SOCKET_IFNAME": "ib0", "TORCH_FR_BUFFER_SIZE": "7", "SFT_EXPECT_WORLD": "16"}
    found = nodes.rank_environment(HEAD, chosen, Path("/tmp"))
    assert not {"OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "TORCH_FR_BUFFER_SIZE"} & set(found)
    assert (found["NCCL_SOCKET_IFNAME"], found["SFT_EXPECT_WORLD"]) == ("lo", "16")


def test_what_another_launcher_left_goes_and_all_else_stays() -> None:
    left = {"RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "PET_NNODES": "2", "GROUP_RANK": "0"}
    own = {"MASTER_PORT": "29500", "RANKING": "1", "PATH": "/bin"}
    assert nodes.without_leaks({**left, **own}) == own


@pytest.mark.parametrize(("address", "wire"), [("127.0.0.1", "lo"), ("no.such.host.invalid", None)])
def test_the_interface_is_that_towards_the_head(address: str, wire: str | None) -> None:
    assert nodes.interface_towards(address) == wire
