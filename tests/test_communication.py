"""What messages take of a step: from spans of time, from the profiler's events, and on two ranks for every kind of strategy."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from given import a_config
from ranks import Job, output, run_ranks
from torch.autograd import DeviceType

from sft_dist import parse
from sft_dist.communication import shares, spans

MS = 1_000_000


@dataclass
class Event:
    """As torch's profiler tells them."""

    told: str
    start: int
    lasted: int
    device: DeviceType = DeviceType.CPU
    annotation: bool = False

    def name(self) -> str:
        return self.told

    def device_type(self) -> DeviceType:
        return self.device

    def start_ns(self) -> int:
        return self.start * MS

    def duration_ns(self) -> int:
        return self.lasted * MS

    def is_user_annotation(self) -> bool:
        return self.annotation


@pytest.mark.parametrize(
    ("messages", "work", "total", "exposed"),
    [
        ([], [(0, 50)], 0, 0),
        ([(0, 10)], [], 10, 10),
        ([(10, 30)], [(0, 20)], 20, 10),
        ([(10, 30)], [(0, 50)], 20, 0),
        ([(10, 30), (20, 40)], [(0, 15), (35, 60)], 30, 20),
        ([(10, 20), (60, 70)], [(12, 14), (13, 15), (40, 50)], 20, 17),
    ],
    ids=["none", "nothing else", "half hidden", "hidden", "two at a time", "work in it"],
)
def test_exposed_is_when_messages_are_under_way_and_nothing_is_computed(messages: Any, work: Any, total: float, exposed: float) -> None:
    spans = [[(start * MS, end * MS) for start, end in part] for part in (messages, work)]
    assert shares(*spans, seconds=0.1) == pytest.approx({"speed/communication_pct": total, "speed/exposed_communication_pct": exposed})


def test_on_a_cpu_gloos_threads_are_messages_and_torchs_operators_are_work() -> None:
    events = [Event("gloo:all_reduce", 5, 10), Event("aten::mm", 0, 7), Event("c10d::allreduce_", 4, 12), Event("FSDP::all_gather", 0, 20)]
    assert spans(events, "cpu") == ([(5 * MS, 15 * MS)], [(0, 7 * MS)])


def test_on_a_gpu_kernels_count_and_not_what_the_host_enqueues_or_names() -> None:
    gpu = DeviceType.CUDA
    events = [
        Event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevComm*)", 5, 10, gpu),
        Event("nccl:all_reduce", 5, 10, gpu, annotation=True),
        Event("nccl:all_reduce", 1, 1),
        Event("sm90_xmma_gemm_f32", 0, 7, gpu),
        Event("aten::mm", 0, 1),
    ]
    assert spans(events, "cuda") == ([(5 * MS, 15 * MS)], [(0, 7 * MS)])


STRATEGIES = ("ddp", "fsdp", "zero2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, six steps of a small model, by each kind of strategy; and once without looking."""
    folder = tmp_path_factory.mktemp("communication")
    jobs = []
    for name in (*STRATEGIES, "off"):
        config = a_config(
            run__dir=str(folder),
            run__name=name,
            train__duration="6 steps",
            batch__total=16,
            batch__micro=4,
            eval__every="6 steps",
            shard__strategy=name if name in STRATEGIES else "ddp",
            track__communication=name != "off",
            model={"name": "mobilenet_v3_small", "weights": "none", "train": "all", "norm": "train"},
            data__per_class=10,
            save__every="6 steps",
            device="cpu",
        )
        (folder / f"{name}.yaml").write_text(parse.to_yaml(config))
        jobs.append(Job(str(folder / f"{name}.yaml")))
    assert run_ranks(2, jobs, folder / "log") == [0, 0], output(folder / "log", 2)[-4000:]
    return folder


def training(run: Path) -> list[dict[str, Any]]:
    return [row for line in (run / "metrics.jsonl").read_text().splitlines() if (row := json.loads(line))["kind"] == "train"]


@pytest.mark.dist
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_steps_of_an_attempt_tell_what_messages_took(runs: Path, strategy: str) -> None:
    told = {row["step"]: row["speed/communication_pct"] for row in training(runs / strategy) if "speed/communication_pct" in row}
    assert list(told) == [3, 4, 5] and all(0 < share <= 100 for share in told.values())
    exposed = [row["speed/exposed_communication_pct"] for row in training(runs / strategy) if row["step"] in told]
    assert all(0 <= one <= all_ for one, all_ in zip(exposed, told.values(), strict=True))


@pytest.mark.dist
def test_looking_changes_no_number_of_the_curve(runs: Path) -> None:
    looked, not_looked = (
        [{k: v for k, v in row.items() if k.startswith("train/")} for row in training(runs / name)] for name in ("ddp", "off")
    )
    assert looked == not_looked and len(looked) == 6
    assert not any("speed/communication_pct" in row for row in training(runs / "off"))


@pytest.mark.dist
def test_the_profiler_says_nothing_on_the_screen(runs: Path) -> None:
    said = output(runs / "log", 2)
    assert "profiler" not in said and "gpuGetDeviceCount" not in said
