"""What ranks use of their machines is told for each of them, as shares of the time that has gone by."""

import math
import time
from pathlib import Path

import pytest
import torch

from sft_dist import usage
from sft_dist.usage import Ranks, Usage


def test_a_process_knows_its_memory_and_the_processor_time_of_a_step() -> None:
    own = Usage(torch.device("cpu"))
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    own.waited_s += 0.5
    waited_s, cpu_s, memory_gib, gpu_gib = own.told()
    assert waited_s == 0.5 and 0.2 <= cpu_s < 2
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert memory_gib == pytest.approx(int(status["VmRSS"].split()[0]) / 2**20, rel=0.1)
    assert math.isnan(gpu_gib)
    own.begin()
    assert own.told()[:2] == [0.0, pytest.approx(0.0, abs=0.1)]


def test_a_row_has_the_means_since_the_row_before_and_leaves_out_what_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    assert ranks.row() == {}
    ranks.add([[0.5, 1.0, 2.0, math.nan], [0.0, 3.0, 4.0, 8.0]], seconds=1.0)
    ranks.add([[0.5, 0.0, 3.0, math.nan], [0.0, 3.0, 5.0, 9.0]], seconds=3.0)
    assert ranks.row() == {
        "system/rank0/data_wait_pct": 25.0, "system/rank0/cpu_pct": 25.0, "system/rank0/memory_gib": 3.0,
        "system/rank1/data_wait_pct": 0.0, "system/rank1/cpu_pct": 150.0, "system/rank1/memory_gib": 5.0, "system/rank1/gpu_memory_gib": 9.0,
    }  # fmt: skip
    ranks.add([[2.0, 0.0, 3.0, math.nan], [0.0, 0.0, 5.0, 9.0]], seconds=2.0)
    assert ranks.row() == {}, "a row was told just now"
    monkeypatch.setattr(usage, "ROW_S", 0.0)
    ranks.add([[0.0, 0.0, 3.0, math.nan], [0.0, 0.0, 5.0, 9.0]], seconds=2.0)
    assert ranks.row()["system/rank0/data_wait_pct"] == 50.0
