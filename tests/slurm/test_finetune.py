"""slurm/finetune.sh keeps what slurm/README.md promises, on a real Slurm of two nodes with one process each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import until
from home import REPOSITORY
from ranks import rows, wait_for_step
from sick import sick
from waits import GO
from wandb_server import serve

pytestmark = pytest.mark.slurm

SCRIPT = "slurm/finetune.sh"
EXACT = 1e-9
STRATEGIES = {"ddp": EXACT, "zero2": 1e-5, "fsdp": EXACT}  # DeepSpeed keeps and reduces in fp32


@pytest.fixture
def submit(cluster, home):
    """Submits the run of a name as a job of two nodes, the way the README says; whatever became of it is cancelled after the test."""
    jobs = []

    def submit(name: str, *overrides: str, partition: str = "main", **env: str) -> str:
        flags = ("--nodes=2", "--cpus-per-task=2", f"--partition={partition}", f"--output={home.path}/{name}.log")
        jobs.append(cluster.sbatch(REPOSITORY, *flags, SCRIPT, home.config, f"run.name={name}", *overrides, **env))
        return jobs[-1]

    yield submit
    cluster.scancel(*jobs)


@pytest.fixture(scope="module")
def array(cluster, home):
    """An array of three runs, each sharded in its own way; the second is asked, half-way, to save and to queue again."""
    script = home.path / "array.sh"
    flags = [line for line in (REPOSITORY / SCRIPT).read_text().splitlines() if line.startswith("#SBATCH")]
    pick = f"strategies=({' '.join(STRATEGIES)}); strategy=${{strategies[$SLURM_ARRAY_TASK_ID]}}"
    ill = sick(home.path / "waits", ("waits", 1, 6), when="os.environ['SLURM_ARRAY_TASK_ID'] == '1'")
    call = f"exec bash {SCRIPT} {home.config} run.name=$strategy shard.strategy=$strategy"
    script.write_text("\n".join(["#!/bin/bash", *flags, pick, call, ""]))
    shape = ("--array=0-2", "--nodes=2", "--cpus-per-task=2")
    job = cluster.sbatch(REPOSITORY, *shape, f"--output={home.path}/array-%a.log", str(script), PYTHONPATH=ill)
    wait_for_step(home.run("zero2"), 5)
    cluster.scancel("--batch", "--signal=USR2", f"{job}_1")  # what --signal=B:USR2@600 sends: some sites need USR1 for themselves
    return job


@pytest.mark.parametrize(("task", "strategy"), list(enumerate(STRATEGIES)))
def test_two_nodes_have_the_curve_of_one_process(array, cluster, home, task, strategy):
    ended = cluster.wait(f"{array}_{task}", "COMPLETED")
    assert (ended["NumNodes"], ended["ExitCode"]) == ("2", "0:0")
    assert home.outcome(strategy)["reason"] == "all 60 steps are made"
    assert home.strays(strategy) < STRATEGIES[strategy]
    cluster.assert_nothing_is_left(f"{array}_{task}")


def test_only_the_task_of_an_array_that_was_asked_is_started_again(array, cluster, home):
    ended = [cluster.wait(f"{array}_{task}", "COMPLETED") for task in range(3)]
    assert [job["Restarts"] for job in ended] == ["0", "1", "0"]
    assert [home.attempts(strategy) for strategy in STRATEGIES] == [1, 2, 1]


def test_a_warning_before_the_time_limit_saves_queues_again_and_goes_on(submit, cluster, home, tmp_path, saw):
    """It stays one run in W&B too, although Slurm signals all processes that the job has."""
    with serve() as wandb:
        tracked = ("track.wandb=online", "track.project=pets", "track.limit_s=100")
        job = submit("limit", *tracked, **wandb.environment(), PYTHONPATH=sick(tmp_path / "waits", ("waits", 1, 6)))
        wait_for_step(home.run("limit"), 5)
        until(lambda: wandb.runs, "W&B has not heard of the run")
        cluster.scancel("--batch", "--signal=USR1", job)
        until(lambda: "USR1: all ranks are asked to save and stop" in cluster.log(job), "the job has not heard the signal")
        cluster.wait_for_restart(job)
        saved = home.outcome("limit")
        assert (saved["outcome"], saved["reason"]) == ("saved", "asked to stop by SIGUSR1")
        cluster.assert_nothing_is_left(job)
        [number] = wandb.runs
        with (home.run("limit") / "attempts" / "1" / "saves.jsonl").open("a") as saves:
            saves.write('{"step": 5, "seconds": 41.0}\n')
        ended = cluster.wait(job, "COMPLETED")
    assert (ended["Restarts"], ended["ExitCode"], home.attempts("limit")) == ("1", "0:0", 2)
    assert home.outcome("limit")["outcome"] == "done"
    assert home.strays("limit") < EXACT
    saw(
        f"saved step {saved['step']}, {saved['reason']}; queued again; COMPLETED after {ended['Restarts']} restart with the curve of one process"
    )
    assert (list(wandb.runs), wandb.steps(number)) == ([number], list(range(1, 61)))
    saw(f"W&B has one run of both attempts, with each of {len(wandb.steps(number))} steps once")
    log = (home.path / "limit.log").read_text()
    assert [log.count(line) for line in ("(attempt 1)", "(attempt 2)", f"resumed at step {saved['step']}\n", "done: ")] == [1, 1, 1, 1]
    assert log.count("warning: a save of this run took 41 s, but after scancel Slurm kills in 30 s (KillWait)") == 1  # row 9
    saw(next(line for line in log.splitlines() if line.startswith("warning: ")))
    cluster.assert_nothing_is_left(job)


@pytest.mark.parametrize("partition", ["main", "patient"])
def test_a_preempted_job_queues_again_and_goes_on(submit, cluster, home, tmp_path, partition):
    """From a partition that ends jobs at once, and from one that gives them time: there the run saves, and its script ends well."""
    name, go = f"preempted-{partition}", tmp_path / "go"
    job = submit(name, partition=partition, PYTHONPATH=sick(tmp_path / "waits", ("waits", 1, 7)), **{GO: str(go)})
    wait_for_step(home.run(name), 6)
    urgent = cluster.sbatch(home.path, "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    cluster.wait(urgent, "COMPLETED")
    go.touch()
    ended = cluster.wait(job, "COMPLETED")
    assert (ended["Restarts"], ended["ExitCode"], home.attempts(name)) == ("1", "0:0", 2)
    assert "resumed at step" in cluster.log(job)
    assert home.strays(name) < EXACT
    cluster.assert_nothing_is_left(job)


@dataclass(frozen=True)
class Lost:
    """Two jobs whose second node's slurmd was killed: of `dead` with all that it had there, of `mute` alone. What mute had made by then,
    and how it ended. Slurm has found out by itself, has put both back into its queue, and the node is there again."""

    dead: str
    mute: str
    made: int
    outcome: dict[str, Any]


@pytest.fixture(scope="module")
def lost(cluster, home):
    def submit(name: str, *overrides: str, **env: str) -> str:
        flags = ("--nodes=2", "--cpus-per-task=2", f"--output={home.path}/{name}.log")
        return cluster.sbatch(REPOSITORY, *flags, SCRIPT, home.config, f"run.name={name}", *overrides, **env)

    go = home.path / "go"
    dead = submit("dead", PYTHONPATH=sick(home.path / "dead waits", ("waits", 1, 7)), **{GO: str(go)})
    mute = submit("mute", "train.duration=100000 steps")
    wait_for_step(home.run("dead"), 6)
    wait_for_step(home.run("mute"), 6)
    cluster.kill_daemon("n2")
    cluster.kill_processes("n2", dead)
    made = max(step for step, _ in rows(home.run("mute")))
    try:
        for job in (dead, mute):
            cluster.wait_for_restart(job)
            cluster.wait(job, "PENDING")
            cluster.assert_nothing_is_left(job)
    finally:
        go.touch()
        cluster.start_node("n2")
        cluster.scancel(mute)
    yield Lost(dead, mute, made, home.outcome("mute"))
    cluster.scancel(dead)


def test_a_job_that_lost_a_node_queues_again_and_goes_on_when_there_are_two(lost, cluster, home, saw):
    ended = cluster.wait(lost.dead, "COMPLETED")
    assert (ended["Restarts"], ended["NumNodes"], home.attempts("dead")) == ("1", "2", 2)
    assert home.strays("dead") < EXACT
    saw(
        f"COMPLETED on {ended['NumNodes']} nodes after {ended['Restarts']} restart, {home.attempts('dead')} attempts counted, with the curve of one process"
    )
    cluster.assert_nothing_is_left(lost.dead)


def test_the_log_of_a_job_that_lost_a_node_names_the_node(lost, cluster):
    log = cluster.log(lost.dead)
    assert log.count("first cause  node 1 (") == 1
    assert "vanished: its agent left no last word" in log


def test_a_run_whose_node_slurm_gives_up_saves_on_all_nodes_and_leaves(lost, cluster, home):
    """Only slurmd had died: the ranks there go on, and nobody but the other ranks can tell them to stop."""
    assert (lost.outcome["outcome"], lost.outcome["reason"]) == ("saved", "asked to stop by SIGTERM")
    assert lost.outcome["step"] > lost.made, "it has gone on while Slurm had not noticed"
    assert (cluster.state(lost.mute)["Restarts"], home.attempts("mute")) == ("1", 1)


def test_a_cancelled_job_saves_and_is_not_queued_again(submit, cluster, home, tmp_path, saw):
    job = submit("cancelled", PYTHONPATH=sick(tmp_path / "waits", ("waits", 1, 6)))
    wait_for_step(home.run("cancelled"), 5)
    cluster.scancel(job)
    ended = cluster.wait(job, "CANCELLED")
    assert ended["Restarts"] == "0"
    told = home.outcome("cancelled")
    assert (told["outcome"], told["reason"]) == ("saved", "asked to stop by SIGTERM")
    saw(f"one save, of step {told['step']}; {told['reason']}; CANCELLED, no process left")
    assert (home.run("cancelled") / "checkpoints" / "latest").read_text().strip() == f"step-{told['step']:08d}"
    cluster.assert_nothing_is_left(job)


def test_a_rank_that_raises_ends_the_job_which_is_not_queued_again(submit, cluster, home):
    job = submit("diverged", "optim.lr=1e200")
    ended = cluster.wait(job, "FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("0", "1:0")
    told = home.outcome("diverged")
    assert (told["outcome"], told["error"]["type"]) == ("failed", "DivergedError")
    assert "first cause  rank" in cluster.log(job) and ": DivergedError" in cluster.log(job)
    assert "its share of the loss is nan" in cluster.log(job)
    cluster.assert_nothing_is_left(job)


def test_a_config_that_cannot_run_is_refused_before_anything_is_started(submit, cluster, home):
    job = submit("refused", "optim.lr=-1")
    ended = cluster.wait(job, "FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("0", "2:0")
    assert "optim.lr = -1" in cluster.log(job)
    assert not Path(home.run("refused")).exists()
