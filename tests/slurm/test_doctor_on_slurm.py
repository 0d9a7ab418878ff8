"""`sft-launch doctor` inside an allocation examines its nodes, by the names that Slurm knows them by."""

import json
import os
import shlex
import signal
import sys

import pytest
from cluster import until
from home import REPOSITORY

pytestmark = pytest.mark.slurm


def test_the_nodes_of_an_allocation_are_examined_through_srun(cluster, home):
    line = shlex.join([sys.executable, "-m", "launch", "doctor", home.config, "--json"])
    flags = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--open-mode=append", f"--output={home.path}/doctor.log")
    job = cluster.sbatch(REPOSITORY, *flags, f"--wrap={line}")
    cluster.wait(job, "COMPLETED")
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
            "timeout",  # as a terminal does, it hands the signal to all that it has started
            "--preserve-status",
            "600",
            sys.executable,
            "-m",
            "launch",
            "doctor",
            home.config,
        ]
    )
    steps = "squeue --noheader --steps --jobs=$SLURM_JOB_ID --format=%i"
    gone = f'for wait in $(seq 60); do [ "$({steps})" = $SLURM_JOB_ID.batch ] && break; sleep 0.5; done'
    line = f"sh -c 'echo $$ > {asleep}/doctor; exec {doctor}'; echo ended $?; {gone}; echo steps $({steps})"
    flags = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--open-mode=append", f"--output={home.path}/interrupted.log")
    job = cluster.sbatch(REPOSITORY, *flags, f"--wrap={line}")
    until(lambda: all((asleep / f"node-{node}").exists() for node in (0, 1)), "not both nodes are examined")
    os.kill(int((asleep / "doctor").read_text()), signal.SIGINT)
    cluster.wait(job, "COMPLETED")
    assert "ended 130" in cluster.log(job)
    assert f"steps {job}.batch\n" in cluster.log(job)
