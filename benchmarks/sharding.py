"""What each rank holds under every strategy: `python benchmarks/sharding.py`, about three minutes on two cores.

Starts gloo processes that make one AdamW step of a ResNet-18 (11 million trained parameters) and count live tensors: the bytes of the
optimizer's moments and of the parameters between two steps. Prints a Markdown table.
"""

import json
import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import version

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
WORLDS = (2, 3, 4)


def main() -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "accelerate", "deepspeed"))
    print(f"Python {platform.python_version()}, {packages}\n")
    print("| strategy | ranks | moments a rank, MiB | of the whole x ranks | parameters a rank, MiB | of the whole x ranks |\n|---|---|---|---|---|---|")
    for world in WORLDS:
        for strategy in STRATEGIES:
            found = together(world, strategy)
            moments, parameters = [rank["moments"] for rank in found], [rank["parameters"] for rank in found]
            print(f"| {strategy} | {world} | {_row(moments, found[0]['whole_moments'])} | {_row(parameters, found[0]['whole'])} |", flush=True)


def _row(held: list[int], whole: int) -> str:
    """Least and most over the ranks, in MiB, and as a multiple of the even share."""
    mib, even = [count / 2**20 for count in (min(held), max(held))], whole / len(held)
    return f"{mib[0]:.2f} to {mib[1]:.2f} | {min(held) / even:.3f} to {max(held) / even:.3f}"


def together(world: int, strategy: str) -> list[dict[str, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = []
    for rank in range(world):
        places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        env = {**os.environ, **{name: str(value) for name, value in places.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen([sys.executable, __file__, strategy], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    outputs = [rank.communicate()[0] for rank in ranks]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def measure(strategy: str) -> None:
    import torch

    from sft_dist import models, optim, parse
    from sft_dist.engine import Engine
    from sft_dist.plan import World

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
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            return local.untyped_storage().nbytes() if local.untyped_storage().nbytes() < local.nbytes else local.nbytes

        moments = [value for state in engine.optimizer.state.values() for value in state.values() if value.ndim]
        parameters = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
        found = {"moments": sum(map(live, moments)), "whole_moments": 2 * whole, "parameters": sum(map(live, parameters)), "whole": whole}
    print(json.dumps(found))


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
