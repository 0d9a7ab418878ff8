"""Batches hold what the schedule says, whoever loads them; what is unreadable is told and does not raise."""

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from given import a_config
from PIL import Image

from sft_dist import datasets, loading
from sft_dist.config import Config, Data
from sft_dist.datasets import Split
from sft_dist.errors import MachineError
from sft_dist.plan import Plan, World, make_plan
from sft_dist.schedule import Pick, window
from sft_dist.tasks import TASKS, Sample, Task
from sft_dist.tasks.classify import Labelled

CLASSIFY = TASKS["classify"]


def plan_of(world: int = 1, samples: int = 20, **keys: object) -> Plan:
    config: Config = a_config(**{"batch__total": 7, "batch__micro": 3, "train__duration": "6 steps", **keys})
    return make_plan(config, World(size=world), samples, 5)


def samples_of(split: Split, size: int = 8) -> loading.Samples:
    data = Data(name="digits", size=size, augment="none")
    return loading.Samples(split, CLASSIFY.prepare(data, True), size, seed=0)


def digits(count: int = 20) -> Split:
    return datasets.load(Data(name="digits")).train.subset(range(count))


@pytest.mark.parametrize("start", [0, 4, 6])
@pytest.mark.parametrize(("world", "rank"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_windows_are_the_schedules_from_a_step_on(world: int, rank: int, start: int) -> None:
    plan = plan_of(world)
    windows = loading.Windows(plan, rank, start)
    assert list(windows) == [micro for step in range(start, 6) for micro in window(step, rank, plan)]
    assert len(windows) == len(list(windows))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_hold_the_picks_in_order(workers: int) -> None:
    plan, split = plan_of(), digits()
    batches = list(loading.training_batches(CLASSIFY, samples_of(split), plan, rank=0, start=2, workers=workers, pin=False))
    picked = [[pick.position for pick in micro] for step in range(2, 6) for micro in window(step, 0, plan)]
    assert [batch.ids.tolist() for batch in batches] == picked
    assert [batch.labels.tolist() for batch in batches] == [[split.labels[i] for i in micro] for micro in picked]
    assert all(torch.equal(batch.images[0], split.read(int(batch.ids[0]))) for batch in batches)


def test_evaluation_batches_are_the_shares() -> None:
    batches = list(loading.evaluation_batches(CLASSIFY, samples_of(digits()), [[4, 1], [0]], workers=0, pin=False))
    assert [batch.ids.tolist() for batch in batches] == [[4, 1], [0]]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_is_a_problem_of_its_batch(tmp_path: Path, workers: int) -> None:
    for name in ("train/cat/a.jpg", "train/cat/b.jpg", "train/dog/c.png", "val/cat/d.png", "val/dog/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), "white").save(tmp_path / name)
    (tmp_path / "train/cat/b.jpg").write_bytes((tmp_path / "train/cat/b.jpg").read_bytes()[:40])
    split = datasets.load(Data(name="folder", root=str(tmp_path))).train
    (tmp_path / "train/dog/c.png").unlink()
    [batch] = loading.evaluation_batches(CLASSIFY, samples_of(split), [[0, 1, 2]], workers=workers, pin=False)
    told = [problem.split(": ")[:2] for problem in batch.problems]
    assert told == [["data", "unreadable sample train/cat/b.jpg"], ["data", "unreadable sample train/dog/c.png"]]
    assert str(tmp_path / "train/cat/b.jpg") in batch.problems[0]
    assert batch.images.amax((1, 2, 3)).tolist() == [255, 0, 0]


def test_a_mistake_of_ours_is_not_taken_for_an_unreadable_sample() -> None:
    def read(i: int) -> torch.Tensor:
        raise KeyError(i)

    with pytest.raises(KeyError):
        samples_of(Split(["a"], [0], read))[Pick(0, 0)]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_workers_ignore_the_signals_that_stop_a_run_and_leave_with_it() -> None:
    def slowly(i: int) -> torch.Tensor:
        time.sleep(0.01)
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

    split = Split([str(i) for i in range(40)], [0] * 40, slowly)
    loader = loading.evaluation_batches(CLASSIFY, samples_of(split), [[i] for i in range(40)], workers=2, pin=False)
    batches = iter(loader)
    ids = [next(batches).ids.tolist(), next(batches).ids.tolist()]  # both workers have started
    processes = [worker.pid for worker in batches._workers]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        for process in processes:
            os.kill(process, number)
    ids += [batch.ids.tolist() for batch in batches]
    assert ids == [[i] for i in range(40)]
    del batches
    assert not any(is_running(process) for process in processes)


def test_a_batch_moves_with_its_tensors_and_keeps_the_rest() -> None:
    batch = Labelled(torch.arange(2), ("a problem",), torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([1, 0]))
    moved = batch.to(torch.device("meta"))
    assert {moved.ids.device.type, moved.images.device.type, moved.labels.device.type} == {"meta"}
    assert (moved.problems, moved.images.dtype) == (("a problem",), torch.uint8)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")
def test_evaluation_batches_that_shared_memory_cannot_hold_are_refused_too() -> None:
    share = range(10**14)  # 17 PiB
    with pytest.raises(
        MachineError, match=r"^shared memory \(/dev/shm\) has .* but 1 data workers pass on batches of 59509277343\.8 MiB; make"
    ):
        loading.evaluation_batches(CLASSIFY, samples_of(digits()), [share], workers=1, pin=False)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_batch_can_be_pinned(task: Task) -> None:
    """A DataLoader passes over a batch without this method in silence, and each copy of it to a GPU would be waited for."""
    batch = task.collate([Sample(0, torch.zeros(3, 8, 8, dtype=torch.uint8), None, "unreadable")])
    moved = list(tensors(batch.to(torch.device("meta"))))
    assert callable(batch.pin_memory) and {tensor.device.type for tensor in moved} == {"meta"}
    assert sum(tensor.nbytes for tensor in moved) == batch.bytes >= 3 * 8 * 8


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        yield from (tensor for each in value for tensor in tensors(each))
    elif dataclasses.is_dataclass(value):
        yield from (tensor for field in dataclasses.fields(value) for tensor in tensors(getattr(value, field.name)))
