"""What a GPU is used for and how: arithmetic, memory, waits, refusals, and every door."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from given import a_config
from ranks import Job, note_exits, output, run_ranks
from side_by_side import made

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SHORT = ("train.duration=2 steps", "eval.every=2 steps", "data.per_class=20", "report.write=none")


def keys(folder: Path, name: str, *more: str) -> tuple[str, ...]:
    return (*SHORT, f"run.dir={folder / 'runs'}", f"run.name={name}", *more)


@pytest.fixture
def arithmetic() -> Iterator[None]:
    """Gives torch's switches back."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0.0, 2e-6), ("tf32", 1e-5, 1e-2)])
def test_fp32_is_without_tf32_in_products_and_convolutions(cuda: str, precision: str, least: float, most: float) -> None:
    """TF32 keeps ten bits of each factor: the largest error, beside fp64, is a hundred times that of fp32."""
    import torch

    from sft_dist import machine

    machine.set_arithmetic(a_config(precision=precision), cuda)
    torch.manual_seed(0)
    left, right = torch.randn(2, 512, 512, device=cuda)
    image, kernel = torch.randn(8, 64, 32, 32, device=cuda), torch.randn(64, 64, 3, 3, device=cuda)
    for single, double in (
        (left @ right, left.double() @ right.double()),
        (torch.conv2d(image, kernel), torch.conv2d(image.double(), kernel.double())),
    ):
        assert least < float((single - double).abs().max() / double.abs().max()) < most


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_waits_for_the_gpu_at_its_end_only(cuda: str) -> None:
    """Torch raises at every wait, from the first copy of a batch to the optimizer's step."""
    import torch

    from sft_dist import datasets, loading, optim
    from sft_dist.engine import Engine
    from sft_dist.plan import World, make_plan
    from sft_dist.tasks import TASKS

    config = a_config(model__weights="none", model__train="all", model__norm="train", train__clip=1.0, device=cuda, precision="bf16")
    task, splits = TASKS["classify"], datasets.load(config.data)
    plan = make_plan(config, World(), len(splits.train), len(splits.val))
    with Engine(config, World()) as engine:
        module, _ = engine.build(lambda load: task.build(config, splits.classes, weights=load), fresh=True)
        engine.prepare(module, lambda model: optim.build(model, config))
        seen: list[bool] = []
        module.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last)))
        samples = loading.Samples(splits.train, task.prepare(config.data, True), config.data.size, 0)
        batches = iter(loading.training_batches(task, samples, plan, 0, 0, 0, pin=True))
        for step in range(3):
            batch = next(batches)
            assert batch.images.is_pinned() and batch.labels.is_pinned()
            torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one makes constants
            try:
                with engine.backward_pass(last=True) as backward:
                    backward(task.loss(engine.wrapped, batch.to(engine.device)).total)
                engine.update()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert seen == [True] * 3  # in bf16 its tensor cores want the channels last


def test_fp64_on_zero3_is_refused(cuda: str) -> None:
    from sft_dist import machine
    from sft_dist.errors import MachineError
    from sft_dist.plan import World

    with pytest.raises(MachineError, match="use zero2 or fsdp"):
        machine.choose_device(a_config(precision="fp64", shard__strategy="zero3", device=cuda), World())


def test_deepspeed_stays_on_the_cpu_where_that_was_asked_for(tmp_path: Path, cuda: str) -> None:
    made([[Job(str(QUICKSTART), keys(tmp_path, "cpu", "device=cpu", "shard.strategy=zero2"))]], tmp_path)
    assert json.loads((tmp_path / "runs" / "cpu" / "env.json").read_text())["device"] == "cpu"


def test_auto_takes_the_gpu_and_the_run_tells_what_it_used(tmp_path: Path, cuda: str) -> None:
    import torch

    jobs = [Job(str(QUICKSTART), keys(tmp_path, name, f"model.activation_checkpointing={again}", "batch.micro=64"))
            for name, again in (("plain", "false"), ("again", "true"))]  # fmt: skip
    made([[job] for job in jobs], tmp_path)
    peaks = {}
    for name in ("plain", "again"):
        run = tmp_path / "runs" / name
        assert torch.cuda.get_device_name() in json.loads((run / "env.json").read_text())["device"]
        *_, last, _evaluation = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        peaks[name] = last["memory/peak_gib"]
    assert 0 < peaks["again"] < peaks["plain"]


def short_of_memory(jobs: Sequence[Job]) -> None:
    """The runs of a process that may take a hundredth of the GPU's memory."""
    import torch

    torch.cuda.set_per_process_memory_fraction(0.01)
    note_exits(jobs)


def test_too_little_memory_is_the_machines_fault_and_told_with_a_remedy(tmp_path: Path, cuda: str) -> None:
    job = Job(str(QUICKSTART), keys(tmp_path, "large", "model.name=resnet50", "data.size=224", "batch.total=128", "batch.micro=128"))
    log, exits = tmp_path / "log", str(tmp_path / "exits")
    assert run_ranks(1, [job], log, "test_gpu_machine:short_of_memory", SFT_TEST_EXITS=exits) == [0], output(log, 1)
    [[code, told]] = json.loads(Path(f"{exits}-0").read_text())
    assert code == 78
    assert "out of GPU memory: CUDA out of memory. Tried to allocate" in told
    assert "use a smaller batch.micro" in told
    assert "and 64 more" in told and len(told) < 2000


def test_more_processes_than_gpus_are_refused_on_each_of_them(tmp_path: Path, cuda: str) -> None:
    import torch

    gpus = torch.cuda.device_count()
    exits = str(tmp_path / "exits")
    job = Job(str(QUICKSTART), keys(tmp_path, "many"))
    assert run_ranks(gpus + 1, [job], tmp_path / "log", "ranks:note_exits", SFT_TEST_EXITS=exits) == [0] * (gpus + 1)
    for rank in range(gpus + 1):
        [[code, told]] = json.loads(Path(f"{exits}-{rank}").read_text())
        assert code == 78
        assert f"{gpus + 1} processes on this machine, but it has {gpus} GPU" in told


@pytest.mark.parametrize(
    "door", ["torchrun --standalone --nproc-per-node 1 {script}", "accelerate launch --num_processes 1 {script}", "sft-launch run"]
)
def test_every_door_leads_to_the_gpu(tmp_path: Path, device: str, door: str) -> None:
    command, *rest = door.format(script=ROOT / "sft_dist" / "train.py").split()
    found = shutil.which(command, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, command
    done = started([found, *rest, str(QUICKSTART), *keys(tmp_path, "door", f"device={device}")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"1 rank, ddp, fp32, {device}" in done.stdout + done.stderr
    assert "${" not in done.stdout  # of a template for the beginnings of lines that nobody filled in


def test_the_doctor_reduces_by_nccl_and_finds_nothing_wrong(cuda: str) -> None:
    done = started([sys.executable, "-m", "launch", "doctor", str(QUICKSTART)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "nothing wrong on 1 node"
    assert "Warning" not in done.stderr


def started(command: Sequence[str]) -> Any:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "SFT_"))} | {
        "PYTHONPATH": str(ROOT)
    }
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
