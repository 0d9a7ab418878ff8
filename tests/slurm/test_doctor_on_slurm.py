"""`sft-launch doctor` inside an allocation examines its nodes, by the names that Slurm knows them by."""

import json
import shlex
import sys

import pytest
from home import REPOSITORY

pytestmark = pytest.mark.slurm


def test_the_nodes_of_an_allocation_are_examined_through_srun(cluster, home):
    line = shlex.join([sys.executable, "-m", "launch", "doctor", home.config, "--json"])
    flags = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--open-mode=append", f"--output={home.path}/doctor.log")
    job = cluster.sbatch(REPOSITORY, *flags, f"--wrap={line}")
    cluster.wait(job, "COMPLETED", limit_s=180)
    told = json.loads(cluster.log(job))
    assert (told["ok"], told["exclude"]) == (True, [])
    assert [(node["host"], node["promised"], node["workers"]) for node in told["nodes"]] == [("n1", 1, 0), ("n2", 1, 0)]
    assert all(node["rates"]["gloo"] > 1e6 for node in told["nodes"])
    cluster.assert_nothing_is_left(job)


def test_an_interrupt_ends_the_examination_on_all_nodes_and_not_the_job(cluster, home):
    asleep = home.path / "asleep"
    asleep.mkdir()
    sleep = "import os, time\nif node := os.environ.get('SLURM_NODEID') if 'SLURM_STEP_NUM_TASKS' in os.environ else None:\n"
    (asleep / "sitecustomize.py").write_text(f"{sleep}    open('{asleep}/node-' + node, 'w').close()\n    time.sleep(1000)\n")
    doctor = shlex.join(
        [
            "env",
            f"PYTHONPATH={asleep}",
            "timeout",
            "--signal=INT",
            "--preserve-status",
            "8",
            sys.executable,
            "-m",
            "launch",
            "doctor",
            home.config,
        ]
    )
    steps = "squeue --noheader --steps --jobs=$SLURM_JOB_ID --format=%i"
    line = f"{doctor}; echo ended $?; for wait in 1 2 3 4 5 6 7 8; do sleep 0.5; done; echo steps $({steps})"
    flags = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--open-mode=append", f"--output={home.path}/interrupted.log")
    job = cluster.sbatch(REPOSITORY, *flags, f"--wrap={line}")
    cluster.wait(job, "COMPLETED", limit_s=120)
    assert [(asleep / f"node-{node}").exists() for node in (0, 1)] == [True, True]
    assert "ended 130" in cluster.log(job)
    assert f"steps {job}.batch\n" in cluster.log(job)
