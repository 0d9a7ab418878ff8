"""What the launcher would start is what it prints, whatever the names in it hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from given import a_config

from launch import plans, software
from launch.plans import Launch
from sft_dist.errors import ConfigError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "launch_dry_run.txt"
ENV = {"PATH": "/usr/bin", "RANK": "3", "TORCHELASTIC_RUN_ID": "x", "PYTHONPATH": "/opt/lib", "WANDB_API_KEY": "0123456789abcdef"}
HOSTILE = [
    "data.root=two words",
    "data.root=it's",
    'data.root=a "quoted" one',
    "data.root=$(touch owned)",
    "data.root=`touch owned`",
    "data.root=$HOME and $$",
    "data.root=${local_rank}",
    "data.root=a;touch owned & b | c > d",
    "data.root=back\\slash",
    "data.root=*",
    "data.root=!!",
    "data.root=Ärzte/图像",
    "data.root=",
    "-x=--",
]


def launch(*overrides: str, nodes: int = 2, config: str = "configs/a.yaml", python: str = "python", port: int = 29511) -> Launch:
    return Launch(Path(config), overrides, nodes, 4, Path("/data/runs/a/attempts/3"), "node-a", port, python)


def test_the_dry_run_shows_everything_and_no_secret() -> None:
    """A change of this file changes what people copy; look at it, then write it anew."""
    told = "\n".join(plans.describe(launch("optim.lr=0.1", "run.name=a"), ENV)).replace(str(software.REPOSITORY), "<repository>") + "\n"
    assert told == GOLDEN.read_text()
    assert "0123456789abcdef" not in told


def test_a_secret_that_would_be_set_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "environment", lambda *_: {"HF_TOKEN": "hf_secret"})
    told = "\n".join(plans.describe(launch(), {}))
    assert "export HF_TOKEN=..." in told
    assert "hf_secret" not in told


def test_an_agent_is_told_its_node_or_asks_slurm() -> None:
    head = ["python", "-P", "-m", "launch.node_agent", "--nodes", "2", "--procs", "4", "--head", "node-a", "--port", "29511"]
    tail = ["--attempt", "/data/runs/a/attempts/3", "configs/a.yaml", "optim.lr=0.1"]
    assert plans.agent(launch("optim.lr=0.1"), 1) == [*head, "--node", "1", *tail]
    assert plans.agent(launch("optim.lr=0.1")) == [*head, *tail]


def test_the_environment_is_this_one_less_another_launchers_with_the_code_in_front() -> None:
    assert plans.environment(launch(), ENV) == {
        "PATH": "/usr/bin",
        "WANDB_API_KEY": "0123456789abcdef",
        "SFT_EXPECT_WORLD": "8",
        "PYTHONPATH": f"{software.REPOSITORY}:/opt/lib",
        "PYTHONUNBUFFERED": "1",
    }


def test_the_code_stands_on_the_path_once() -> None:
    found = plans.environment(launch(), {"PYTHONPATH": f"/opt/lib::{software.REPOSITORY}"})
    assert found["PYTHONPATH"] == f"{software.REPOSITORY}:/opt/lib"


def test_other_launchers_start_as_many_ranks() -> None:
    script = f"{software.REPOSITORY}/sft_dist/train.py configs/a.yaml optim.lr=0.1"
    torchrun, accelerate = plans.by_hand(launch("optim.lr=0.1"))
    assert torchrun == (
        "SFT_EXPECT_WORLD=8 torchrun --nnodes 2 --node-rank 0 --nproc-per-node 4 --master-addr node-a --master-port 29511 " + script
    )
    assert accelerate == (
        "SFT_EXPECT_WORLD=8 accelerate launch --num_processes 8 --num_machines 2 --machine_rank 0 --multi_gpu "
        "--main_process_ip node-a --main_process_port 29511 " + script
    )


@pytest.mark.parametrize("part", ["data.root=a\nb", "data.root=a\x1b[2J", "run.name=a\rb", "a\x00b", "a\x7fb", "a\tb"])
def test_control_characters_are_refused_and_shown_escaped(part: str) -> None:
    with pytest.raises(ConfigError, match="holds a control character") as refused:
        plans.plain(["configs/a.yaml", part])
    assert repr(part) in str(refused.value)
    assert not any(ord(letter) < 32 for letter in str(refused.value))


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A folder with programs that only print the arguments they were given."""
    folder = tmp_path / "b in"
    folder.mkdir()
    for name in ("python", "torchrun", "accelerate"):
        (folder / name).write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
        (folder / name).chmod(0o755)
    return folder


def through_bash(line: str, folder: Path, tmp_path: Path) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, text=True, timeout=20, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


def test_what_is_printed_gives_bash_the_same_arguments_and_runs_nothing(echo: Path, tmp_path: Path) -> None:
    hostile = launch(*HOSTILE, nodes=1, config="my configs/$(touch owned)/it's ${local_rank}.yaml", python=str(echo / "python"))
    lines = plans.describe(hostile, {})
    agent = next(line for line in lines if "launch.node_agent" in line)
    assert through_bash(agent, echo, tmp_path) == plans.agent(hostile, 0)[1:]
    for line in lines[-2:]:
        assert line.startswith("# SFT_EXPECT_WORLD=4 ")
        given = through_bash(line.removeprefix("# "), echo, tmp_path)
        assert given[-len(HOSTILE) - 1 :] == ["my configs/$(touch owned)/it's ${local_rank}.yaml", *HOSTILE]
    assert [path.name for path in tmp_path.iterdir()] == ["b in"]


@pytest.mark.parametrize(
    ("device", "env", "processes"),
    [
        ("cpu", {"CUDA_VISIBLE_DEVICES": "0,1"}, 1),
        ("auto", {"CUDA_VISIBLE_DEVICES": "0,1,5"}, 3),
        ("auto", {"CUDA_VISIBLE_DEVICES": "GPU-8932f937,"}, 1),
        ("cuda", {"CUDA_VISIBLE_DEVICES": ""}, 1),
        ("auto", {"CUDA_VISIBLE_DEVICES": "-1"}, 1),
    ],
)
def test_one_process_is_started_for_each_gpu_that_is_visible(device: str, env: dict[str, str], processes: int) -> None:
    assert plans.processes_here(a_config(device=device), env) == processes


def test_the_command_to_type_again_asks_for_the_same_machines() -> None:
    env = {
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_GPUS_PER_NODE": "8",
        "SLURM_JOB_PARTITION": "gpu",
        "SLURM_CPUS_PER_TASK": "64",
        "HOME": "/home/me",
    }
    assert plans.sbatch(env) == ["sbatch", "--nodes=4", "--partition=gpu", "--gpus-per-node=8", "--cpus-per-task=64"]
    assert plans.sbatch({"SFT_PROCS_PER_NODE": "2"}) == ["env", "SFT_PROCS_PER_NODE=2", "sbatch"]
