"""What each rank holds under every strategy, and what it takes to start and to move: `python benchmarks/sharding.py`, about ten minutes.

Starts gloo processes that make one AdamW step and count live tensors: the bytes of the optimizer's moments and of the parameters between
two steps (`hold`). Then (`move`), on two ranks, how far each rank's own memory rises while it builds its model, while it takes its part
of a checkpoint, and while a fresh process puts back one that another strategy wrote. Prints Markdown tables.
"""

import ctypes
import gc
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
WORLDS = (2, 3, 4)
MODELS = ("resnet18", "resnet50")
MOVES = ("ddp", "zero1", "zero3", "fsdp")
MIB = 2**20


def main() -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "accelerate", "deepspeed"))
    print(f"Python {platform.python_version()}, {packages}")
    for part in sys.argv[1:] or ("hold", "move"):
        {"hold": hold, "move": move}[part]()


def hold() -> None:
    """The table of live tensors: ResNet-18, 11 million trained parameters."""
    columns = ("strategy", "ranks", "moments a rank, MiB", "x ranks / whole", "parameters a rank, MiB", "x ranks / whole")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for world in WORLDS:
        for strategy in STRATEGIES:
            found = together(world, "resnet18", strategy, "fresh", "")
            whole = found[0]["whole"]
            moments, parameters = ([rank[what] for rank in found] for what in ("moments", "parameters"))
            print(f"| {strategy} | {world} | {_row(moments, 2 * whole)} | {_row(parameters, whole)} |", flush=True)


def _row(held: list[int], whole: int) -> str:
    """Least and most over the ranks, in MiB, and as a multiple of the even share."""
    mib, even = [count / MIB for count in (min(held), max(held))], whole / len(held)
    return f"{mib[0]:.2f} to {mib[1]:.2f} | {min(held) / even:.3f} to {max(held) / even:.3f}"


def move() -> None:
    """The table of memory that rises: two ranks, from a checkpoint that ddp wrote to every strategy."""
    columns = ("model", "strategy", "start, rank 0", "start, rank 1", "take", "resume: start", "resume: put")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            for strategy in MOVES:
                fresh = together(2, model, strategy, "fresh", folder if strategy == "ddp" else "")
                resumed = together(2, model, strategy, "resume", folder)
                cells = [fresh[0]["start"], fresh[1]["start"], _most(fresh, "take"), _most(resumed, "start"), _most(resumed, "put")]
                print(f"| {model} | {strategy} | {' | '.join(map(_rise, cells))} |", flush=True)


def _most(ranks: list[dict[str, Any]], what: str) -> dict[str, int]:
    most: dict[str, int] = max((rank[what] for rank in ranks), key=lambda rise: rise["peak"])
    return most


def _rise(found: dict[str, int]) -> str:
    return f"{found['peak'] / MIB:.0f} ({found['stays'] / MIB:.0f})"


def together(world: int, model: str, strategy: str, part: str, folder: str) -> list[dict[str, Any]]:
    """What each rank found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1] + 1)
    ranks = []
    for rank in range(world):
        places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        env = {
            **os.environ,
            **{name: str(value) for name, value in places.items()},
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back to the system, and counts no longer
        }
        command = [sys.executable, __file__, "rank", model, strategy, part, folder]
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    outputs = [rank.communicate()[0] for rank in ranks]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def rise(act: Callable[[], None]) -> dict[str, int]:
    """Bytes by which the process's anonymous memory (its own, without pages of mapped files) rises above where it began: at most while
    it acts, looked at every half millisecond, and what of it stays."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, over = _anonymous(), threading.Event()
    seen = [before]

    def look() -> None:
        while not over.wait(0.0005):
            seen.append(_anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    act()
    over.set()
    thread.join()
    gc.collect()
    return {"peak": max(*seen, _anonymous()) - before, "stays": _anonymous() - before}


def _anonymous() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def measure(model: str, strategy: str, part: str, folder: str) -> None:
    """What one rank does: a fresh start and a step, or a resume."""
    from sft_dist.engine import Engine
    from sft_dist.plan import World

    sys.setswitchinterval(0.0005)
    config = _config(model, strategy)
    with Engine(config, World.from_env(os.environ)) as engine:
        found: dict[str, Any] = {"start": rise(lambda: _start(engine, config, part == "fresh"))}
        found |= _after_a_step(engine, folder) if part == "fresh" else {"put": rise(lambda: _put(engine, Path(folder)))}
    print(json.dumps(found))


def _config(model: str, strategy: str) -> Any:
    from sft_dist import parse

    return parse.from_tree(
        {
            "task": "classify",
            "data": {"name": "digits", "size": 32},
            "model": {"name": model, "weights": "none", "train": "all", "norm": "train"},
            "batch": {"total": 8, "micro": 2},
            "optim": {"name": "adamw", "lr": 0.001},
            "train": {"duration": "1 step"},
            "shard": {"strategy": strategy},
            "device": "cpu",
            "run": {"name": "measured"},
        }
    )


def _start(engine: Any, config: Any, fresh: bool) -> None:
    from sft_dist import models, optim

    module, _ = engine.build(lambda load: models.build(config, [str(i) for i in range(10)], weights=load), fresh=fresh)
    engine.prepare(module, lambda model: optim.build(model, config))


def _after_a_step(engine: Any, folder: str) -> dict[str, Any]:
    """Bytes of live tensors, and the rise while this rank takes its part of a checkpoint; it goes into the folder, if there is one."""
    import torch

    with engine.backward_pass(last=True) as backward:
        backward(engine.wrapped(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).logsumexp(1).sum())
    engine.update()

    def live(tensor: Any) -> int:
        local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        return local.nbytes

    def take() -> None:
        for _ in engine.take():
            pass

    parameters = list(engine.module.parameters())
    moments = [value for state in engine.optimizer.state.values() for value in state.values() if value.ndim]
    found: dict[str, Any] = {
        "whole": sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in parameters),
        "moments": sum(map(live, moments)),
        "parameters": sum(live(getattr(p, "ds_tensor", p)) for p in parameters),
    }
    take()  # what the libraries allocate at the first use is not counted
    found["take"] = rise(take)
    if folder:
        _write(engine, Path(folder))
    return found


def _write(engine: Any, folder: Path) -> None:
    from sft_dist import archive

    parts: dict[str, dict[str, Any]] = {}
    for part, name, tensor in engine.take():
        parts.setdefault(part, {})[name] = tensor.cpu().clone()
    for part, tensors in parts.items():
        archive.write(folder / f"{part}-{engine.rank}.safetensors", tensors)


def _put(engine: Any, folder: Path) -> None:
    from sft_dist import archive
    from sft_dist.sharding import Tensors

    engine.put(Tensors(*(archive.Shelf(sorted(folder.glob(f"{part}*"))) for part in ("model", "optim"))))


if __name__ == "__main__":
    measure(*sys.argv[2:]) if sys.argv[1:2] == ["rank"] else main()
