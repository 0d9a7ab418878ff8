"""`sft-launch slurm` on a real Slurm of two nodes: a job runs what was submitted, and ends as it is asked to."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import processes
from home import REPOSITORY
from ranks import largest_difference, rows, wait_for_step
from sick import sick

pytestmark = pytest.mark.slurm

EXACT = 1e-9
HOSTILE = "a b, 'c' $(touch pwned) 100%j"


@pytest.fixture
def launch(cluster, tmp_path):
    """Runs sft-launch as a user would, from an empty folder and from the code in `source`."""

    def launch(*arguments: str, source: Path = REPOSITORY, **env: str) -> subprocess.CompletedProcess[str]:
        env = {**cluster.env, "PYTHONPATH": str(source), **env}
        command = [sys.executable, "-P", "-m", "launch", "slurm", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    return launch


@pytest.fixture
def submit(launch, cluster, tmp_path):
    """Submits, and returns the job's number; whatever became of the job is cancelled after the test."""
    jobs = []

    def submit(run: Path, config: Path, *arguments: str, source: Path = REPOSITORY, **env: str) -> str:
        done = launch("submit", str(config), "--nodes=2", *arguments, "--sbatch=--cpus-per-task=2", source=source, **env)
        assert done.returncode == 0, done.stderr
        jobs.append(json.loads((run / "job.json").read_text())["job"])
        assert done.stdout.startswith(f"job {jobs[-1]}: 2 rank(s) on 2 node(s)\n")
        return jobs[-1]

    yield submit
    cluster.scancel(*jobs)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout of the code that may be edited."""
    for part in ("sft_dist", "launch", "slurm"):
        shutil.copytree(REPOSITORY / part, tmp_path / "checkout" / part, ignore=shutil.ignore_patterns("__pycache__"))
    as_somebody = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "--quiet"), ("add", "."), (*as_somebody, "commit", "--quiet", "--message=first")):
        subprocess.run(["git", *command], cwd=tmp_path / "checkout", check=True, timeout=60)
    return tmp_path / "checkout"


def test_a_job_runs_what_was_submitted_whatever_is_edited_while_it_waits(submit, launch, cluster, home, tmp_path, checkout):
    config, run = tmp_path / "mine.yaml", tmp_path / HOSTILE / "mine"
    shutil.copy(home.config, config)
    job = submit(run, config, f"run.dir={HOSTILE}", "--sbatch=--hold", source=checkout)
    told = launch("status", str(run)).stdout
    assert f"{job} PENDING: it waits in the queue" in told
    assert f"JobHeldUser: you hold it; scontrol release {job}" in told
    assert "it has not begun yet" in told
    for path in [*checkout.rglob("*.py"), *checkout.rglob("*.sh"), config]:
        path.write_text("this is no program and no config\n")
    again = launch("submit", home.config, "run.name=mine", f"run.dir={HOSTILE}")
    assert (again.returncode, f"has a job already: {job} waits in the queue" in again.stderr) == (2, True)

    subprocess.run(["scontrol", "release", job], env=cluster.env, check=True, timeout=60)
    ended = cluster.wait(job, "COMPLETED")
    assert (ended["NumNodes"], ended["ExitCode"]) == ("2", "0:0")
    assert largest_difference(rows(home.run("reference")), rows(run)) < EXACT
    assert not list(tmp_path.rglob("pwned"))
    assert [path.name for path in run.glob("slurm-*")] == [f"slurm-{job}.log"]
    begun = json.loads((run / "attempts" / "1" / "attempt.json").read_text())
    assert begun["command"][:3] == ["sft-launch", "slurm", "submit"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True, timeout=60)
    told = json.loads((run / "env.json").read_text())
    assert (told["commit"], told["dirty"]) == (head.stdout.strip(), False)

    assert "done: all 60 steps are made" in launch("logs", job, "--grep", "done: ").stdout
    assert "done: all 60 steps are made" in launch("logs", str(run), "--rank", "0").stdout
    assert "rank 7" in launch("logs", str(run), "--rank", "7").stderr
    told = launch("status", str(run)).stdout
    assert f"{job} COMPLETED: it ended with exit code 0" in told
    assert "step 60 of 60" in told
    cluster.assert_nothing_is_left(job)


def test_a_job_that_is_another_run_s_is_neither_taken_for_one_s_own_nor_cancelled(submit, launch, cluster, home, tmp_path):
    run, other = tmp_path / "runs" / "mine", tmp_path / "runs" / "other"
    job = submit(run, home.config, "run.name=mine", f"run.dir={tmp_path}/runs", "--sbatch=--hold")
    kept = json.loads((run / "job.json").read_text())
    other.mkdir()
    (other / "job.json").write_text(json.dumps({**kept, "name": "other", "code": str(other / "code" / "0")}))
    for verb in (("status",), ("cancel",), ("cancel", "--save")):
        told = launch(*verb, str(other))
        assert f"job {job} is no longer that of {other}: the number was given anew, and makes {run}" in " ".join(
            (told.stdout + told.stderr).split()
        )
    (run / "job.json").write_text(json.dumps({**kept, "cluster": "elsewhere"}))
    told = launch("cancel", str(run))
    assert (told.returncode, f"job {job} was submitted on cluster elsewhere, and this machine's is sft: ask there" in told.stderr) == (
        2,
        True,
    )
    assert cluster.state(job)["JobState"] == "PENDING"

    (run / "job.json").write_text(json.dumps({**kept, "job": None}))  # whoever submitted it died before its number was written
    again = launch("submit", home.config, "--nodes=2", "run.name=mine", f"run.dir={tmp_path}/runs")
    assert (again.returncode, f"has a job already: {job} waits in the queue" in again.stderr) == (2, True)
    (tmp_path / "a link").symlink_to(run)
    assert launch("cancel", "a link").stdout.startswith(f"job {job} is cancelled")
    assert cluster.state(job)["JobState"] == "CANCELLED"


def test_what_slurm_would_never_run_is_refused_and_nothing_is_left(launch, home, tmp_path):
    done = launch("submit", home.config, "--partition=nowhere", "run.name=refused", f"run.dir={tmp_path}/runs")
    assert done.returncode == 2
    assert "Slurm refuses this job: " in done.stderr
    assert "no such partition; `sinfo -s` lists those there are (--partition)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_is_cancelled_with_save_ends_after_its_commit_and_is_not_queued_again(submit, launch, cluster, home, tmp_path):
    run = tmp_path / "runs" / "kept"
    ill = sick(tmp_path / "waits", ("waits", 1, 6))
    job = submit(run, Path(home.config), "run.name=kept", f"run.dir={tmp_path}/runs", "train.duration=9000 steps", PYTHONPATH=ill)
    wait_for_step(run, 5)
    told = launch("status", job).stdout
    assert f"{job} RUNNING: it runs" in told
    assert " of 9000, epoch " in told
    code, rank = f"SFT_CODE={json.loads((run / 'job.json').read_text())['code']}", (f"SLURM_JOB_ID={job}", "RANK=0")
    assert processes(code) and processes(*rank)
    assert not processes(*rank, code)  # else a job that is submitted from inside would run this snapshot
    dry = launch("cancel", "--save", "--dry-run", str(run)).stdout.splitlines()
    assert dry == [
        f"scancel --batch --signal=TERM {job}",
        "# wait for its end, 600 s at most, and only if it has not come:",
        f"scancel {job}",
    ]
    assert launch("cancel", "--dry-run", str(run)).stdout == f"scancel {job}\n"
    done = launch("cancel", "--save", str(run))
    assert done.returncode == 0, done.stderr
    saved = json.loads((run / "outcome.json").read_text())
    assert (saved["outcome"], saved["reason"]) == ("saved", "asked to stop by SIGTERM")
    assert f"saved at step {saved['step']}" in done.stdout
    assert (run / "checkpoints" / "latest").read_text().strip() == f"step-{saved['step']:08d}"
    ended = cluster.wait(job, "COMPLETED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("0", "0:0")
    assert "has ended already" in launch("cancel", "--save", job).stdout
    cluster.assert_nothing_is_left(job)


def test_a_number_that_slurm_does_not_know_is_said_so(launch):
    done = launch("status", "999999999")
    assert (done.returncode, "scontrol forgets a job some minutes after its end (MinJobAge)" in done.stderr) == (2, True)
