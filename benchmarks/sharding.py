"""What each rank holds under every strategy: `python benchmarks/sharding.py`, about three minutes on two cores.

Starts gloo processes that make one AdamW step of a ResNet-18 (11 million trained parameters) and count live tensors: the bytes of the
optimizer's moments and of the parameters between two steps. Then every rank takes its part of a checkpoint, and puts a whole one back:
how far its memory rises meanwhile. Prints a Markdown table.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
WORLDS = (2, 3, 4)


def main() -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "accelerate", "deepspeed"))
    print(f"Python {platform.python_version()}, {packages}\n")
    columns = (
        "strategy | ranks | moments a rank, MiB | x ranks / whole | parameters a rank, MiB | x ranks / whole | take, + MiB | put, + MiB"
    )
    print(f"| {columns} |\n{'|---' * 8}|")
    for world in WORLDS:
        for strategy in STRATEGIES:
            found = together(world, strategy)
            moments, parameters = [rank["moments"] for rank in found], [rank["parameters"] for rank in found]
            rises = " | ".join(f"{max(rank[what] for rank in found) / 2**20:.0f}" for what in ("take", "put"))
            columns = f"{_row(moments, found[0]['whole_moments'])} | {_row(parameters, found[0]['whole'])} | {rises}"
            print(f"| {strategy} | {world} | {columns} |", flush=True)


def _row(held: list[int], whole: int) -> str:
    """Least and most over the ranks, in MiB, and as a multiple of the even share."""
    mib, even = [count / 2**20 for count in (min(held), max(held))], whole / len(held)
    return f"{mib[0]:.2f} to {mib[1]:.2f} | {min(held) / even:.3f} to {max(held) / even:.3f}"


def together(world: int, strategy: str) -> list[dict[str, int]]:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        return _start(world, strategy, str(probe.getsockname()[1] + 1), folder)


def _start(world: int, strategy: str, port: str, folder: str) -> list[dict[str, int]]:
    ranks = []
    for rank in range(world):
        places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        env = {
            **os.environ,
            **{name: str(value) for name, value in places.items()},
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        ranks.append(
            subprocess.Popen(
                [sys.executable, __file__, strategy, folder], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
    outputs = [rank.communicate()[0] for rank in ranks]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def rise(act: Callable[[], None]) -> int:
    """How many bytes the process's resident memory rises above where it began, at most, while it acts."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    act()
    return _memory("VmHWM") - before


def _memory(field: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def measure(strategy: str, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from sft_dist import archive, models, optim, parse
    from sft_dist.engine import Engine
    from sft_dist.plan import World
    from sft_dist.sharding import Tensors

    config = parse.from_tree(
        {
            "task": "classify",
            "data": {"name": "digits", "size": 32},
            "model": {"name": "resnet18", "weights": "none", "train": "all", "norm": "train"},
            "batch": {"total": 8, "micro": 2},
            "optim": {"name": "adamw", "lr": 0.001},
            "train": {"duration": "1 step"},
            "shard": {"strategy": strategy},
            "device": "cpu",
            "run": {"name": "measured"},
        }
    )
    with Engine(config, World.from_env(os.environ)) as engine:
        module, _ = engine.build(lambda load: models.build(config, [str(i) for i in range(10)], weights=load), fresh=True)
        engine.prepare(module, lambda model: optim.build(model, config))
        whole = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in engine.module.parameters())
        with engine.backward_pass(last=True) as backward:
            backward(engine.wrapped(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).logsumexp(1).sum())
        engine.update()

        def live(tensor: torch.Tensor) -> int:
            local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            return local.nbytes

        moments = [value for state in engine.optimizer.state.values() for value in state.values() if value.ndim]
        parameters = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
        found = {"moments": sum(map(live, moments)), "whole_moments": 2 * whole, "parameters": sum(map(live, parameters)), "whole": whole}
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optim": {}}

        def take() -> None:
            for _ in engine.take():
                pass

        def put() -> None:
            engine.put(Tensors(*(archive.Shelf(sorted(folder.glob(f"{part}*"))) for part in parts)))

        take()  # what the libraries allocate at the first use is not counted
        found["take"] = rise(take)
        for part, name, tensor in engine.take():
            parts[part][name] = tensor.cpu().clone()
        for part, tensors in parts.items():
            archive.write(folder / f"{part}-{engine.rank}.safetensors", tensors)
        parts = {"model": {}, "optim": {}}
        dist.barrier()
        found["put"] = rise(put)
    print(json.dumps(found))


if __name__ == "__main__":
    measure(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main()
