"""`sft-launch slurm array` and slurm/array.sh on a real Slurm of two nodes: a run a task, queued again alone, one table at the end."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from home import REPOSITORY
from ranks import largest_difference, rows, wait_for_step
from sick import sick
from waits import GO

pytestmark = pytest.mark.slurm

EXACT = 1e-9
RATES = [0.03, 0.0001, 0.01]  # the last is the reference's
HOSTILE = "a b, 'c' $(touch pwned) 100%j"
DEADLY = """#!/bin/sh
{sbatch} "$@" || exit
case "$*" in *--test-only*) ;; *) kill -KILL $PPID ;; esac
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("array")


@pytest.fixture(scope="module")
def launch(cluster, place):
    """Runs sft-launch slurm as a user would, from a folder of their own."""

    def launch(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "launch", "slurm", *arguments]
        return subprocess.run(command, cwd=place, env={**cluster.env, **env}, capture_output=True, text=True, timeout=120)

    return launch


@pytest.fixture(scope="module")
def files(place, home):
    """A sweep of three rates, the config that it names, and a folder with two configs, of which the second diverges."""
    config = {**json.loads((home.path / "config.yaml").read_text()), "run": {"dir": HOSTILE}}
    (place / "base.yaml").write_text(json.dumps(config))
    (place / "rates.yaml").write_text(yaml.safe_dump({"config": "base.yaml", "grid": {"optim.lr": RATES}}))
    (place / "by-hand").mkdir()
    for number, rate in enumerate((0.01, 1e308)):
        own = {"optim": {"name": "sgd", "lr": rate}, "train": {"duration": "3 steps"}, "run": {"dir": str(place), "name": f"hand-{number}"}}
        (place / "by-hand" / f"{number}.yaml").write_text(json.dumps({**config, **own}))


@pytest.fixture(scope="module")
def by_hand(cluster, files, place):
    job = cluster.sbatch(
        REPOSITORY, "--array=0-1", "--cpus-per-task=1", f"--output={place}/by-hand-%a.log", "slurm/array.sh", f"{place}/by-hand"
    )
    yield job
    cluster.scancel(job)


@pytest.fixture(scope="module")
def array(cluster, by_hand, place, launch):
    """The sweep as a job whose last task is asked half-way to save and to queue again, and whose first is requeued by hand.

    The last task's SLURM_JOB_ID is that of the whole array.
    """
    ill, go = sick(place / "waits", ("waits", 0, 6), when="os.environ['SLURM_ARRAY_TASK_ID'] != '1'"), place / "go"
    done = launch("array", "rates.yaml", "--", "--cpus-per-task=2", PYTHONPATH=ill, **{GO: str(go)})
    assert done.returncode == 0, done.stderr
    job = json.loads((place / HOSTILE / "rates" / "sweep.json").read_text())["job"]
    assert done.stdout.splitlines()[0] == "# task 0  rates-0  optim.lr=0.03"
    assert f"job {job}, tasks 0-2: 1 rank(s) on 1 node(s) each" in done.stdout
    again = launch("array", "rates.yaml")
    assert (again.returncode, again.stderr.count("has a job already")) == (2, 1)
    assert again.stderr.count("use another `name:` in the sweep, or let the new one follow it") == 1
    assert again.stderr.endswith("  - the same of tasks 1, 2: 2 more\n")
    for path in (place / "base.yaml", place / "rates.yaml"):
        path.write_text("this is no config and no sweep\n")

    for task, command in ((2, ("scancel", "--batch", "--signal=USR1")), (0, ("scontrol", "requeue"))):
        wait_for_step(place / HOSTILE / "rates" / f"rates-{task}", 5)
        subprocess.run([*command, f"{job}_{task}"], env=cluster.env, check=True, timeout=60)
    cluster.wait_for_restart(f"{job}_0")
    cluster.assert_nothing_is_left(f"{job}_0")
    go.touch()
    yield job
    cluster.scancel(job)


def test_a_task_that_queues_again_takes_no_other_task_with_it(array, cluster, home, place):
    ended = [cluster.wait(f"{array}_{task}", "COMPLETED") for task in range(3)]
    runs = [place / HOSTILE / "rates" / f"rates-{task}" for task in range(3)]
    assert [job["Restarts"] for job in ended] == ["1", "0", "1"]
    assert [len([path for path in (run / "attempts").iterdir() if path.name.isdigit()]) for run in runs] == [2, 1, 2]
    assert ended[2]["JobId"] == array
    assert largest_difference(rows(home.run("reference")), rows(runs[2])) < EXACT
    assert not list(place.rglob("pwned"))
    for task in range(3):
        cluster.assert_nothing_is_left(f"{array}_{task}")


def test_the_task_that_ends_last_leaves_the_whole_table(array, cluster, place, launch):
    for task in range(3):
        cluster.wait(f"{array}_{task}", "COMPLETED")
    told = json.loads((place / HOSTILE / "rates" / "results.json").read_text())
    assert [(run["state"], run["step"]) for run in told["runs"]] == [("done", 60)] * 3
    scores = {run["varied"]["optim.lr"]: run["best"] for run in told["runs"]}
    kept = {
        run["varied"]["optim.lr"]: json.loads((place / run["run"] / "scores.json").read_text())["best"]["val/top1"] for run in told["runs"]
    }
    assert scores == kept
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert list(scores)[-1] == 0.0001
    table = (place / HOSTILE / "rates" / "table.txt").read_text()
    assert "/rates: 3 of 3 done; best val/top1 first" in table
    for named in (f"{HOSTILE}/rates", array):
        assert launch("status", named).stdout.splitlines()[2:] == table.splitlines()[2:]


def test_a_run_of_a_sweep_is_followed_like_any_other(array, cluster, place, launch):
    cluster.wait(f"{array}_2", "COMPLETED")
    run = f"{HOSTILE}/rates/rates-2"
    assert f"{array}_2 COMPLETED: it ended with exit code 0" in launch("status", run).stdout
    assert "done: all 60 steps are made" in launch("logs", run, "--grep", "done: ").stdout
    assert f"{run}, attempt 2" in launch("status", f"{array}_2").stdout
    begun = json.loads((place / run / "attempts" / "2" / "attempt.json").read_text())
    assert begun["launcher"] == f"Slurm job {array}_2, start 2"
    assert begun["command"][:3] == ["sft-launch", "slurm", "submit"] and begun["command"][-1].endswith("/configs/2.yaml")
    assert f"job {array}_2 has ended already" in launch("cancel", run).stdout
    assert "name one of its runs, like " in launch("logs", f"{HOSTILE}/rates").stderr


def test_an_array_by_hand_makes_the_run_of_each_config_and_a_table(by_hand, cluster, place):
    assert cluster.wait(f"{by_hand}_0", "COMPLETED")["ExitCode"] == "0:0"
    assert cluster.wait(f"{by_hand}_1", "FAILED")["ExitCode"] == "1:0"
    lines = (place / "by-hand" / "table.txt").read_text().splitlines()
    assert [line.split("  ")[0] for line in lines[3:]] == ["0", "1"]
    assert "done" in lines[3] and "the numbers diverged" in lines[4]


def test_a_sweep_that_waits_is_cancelled_run_by_run_or_whole(cluster, home, place, launch):
    (place / "held.yaml").write_text(yaml.safe_dump({"config": home.config, "runs": [{"train.seed": seed} for seed in (1, 2, 3)]}))
    done = launch("array", "held.yaml", f"run.dir={place}/held", "--limit=1", "--sbatch=--hold")
    assert done.returncode == 0, done.stderr
    sweep = place / "held" / "held"
    job = json.loads((sweep / "sweep.json").read_text())["job"]
    told = launch("status", str(sweep)).stdout
    assert told.count("waits in the queue") == 3
    assert f"tasks 0-2: JobHeldUser: you hold it; scontrol release {job}_0" in told
    assert f"job {job}_1 is cancelled" in launch("cancel", str(sweep / "held-1")).stdout
    assert launch("status", str(sweep)).stdout.count("waits in the queue") == 2
    assert launch("cancel", "--save", str(sweep)).stdout.count("nothing to save; cancelled") == 2
    assert "no task of it waits or runs" in launch("cancel", job).stdout
    assert launch("status", str(sweep)).stdout.count("its job is gone; it had not begun") == 3


def test_an_array_whose_submitter_was_killed_before_it_could_note_the_number_is_found_again(cluster, home, place, launch):
    deadly = place / "deadly" / "sbatch"
    deadly.parent.mkdir()
    deadly.write_text(DEADLY.format(sbatch=shutil.which("sbatch")))
    deadly.chmod(0o755)
    (place / "cut.yaml").write_text(yaml.safe_dump({"config": home.config, "grid": {"train.seed": [1, 2]}}))
    command, sweep = ("array", "cut.yaml", f"run.dir={place}/cut"), place / "cut" / "cut"
    assert launch(*command, "--sbatch=--hold", PATH=f"{deadly.parent}:{cluster.env['PATH']}").returncode == -signal.SIGKILL
    assert [json.loads((sweep / name).read_text())["job"] for name in ("sweep.json", "cut-1/job.json")] == [None, None]
    again = launch(*command)
    assert (again.returncode, f"{sweep}/cut-0 has a job already: " in again.stderr) == (2, True)
    assert again.stderr.endswith("  - the same of task 1: 1 more\n")
    assert launch("status", str(sweep)).stdout.count("waits in the queue") == 2
    assert "_1 is cancelled" in launch("cancel", str(sweep / "cut-1")).stdout
    assert "is cancelled, with 1 task(s)" in launch("cancel", str(sweep)).stdout
