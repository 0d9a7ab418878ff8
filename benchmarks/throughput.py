"""What a GPU trains beside a bare PyTorch loop: `python benchmarks/throughput.py FOLDER`, some minutes on a GPU.

Side by side in one process, by turns of some steps each: sft_dist's own `train`, and a loop of PyTorch, torchvision and a DataLoader alone, with
the same model, samples, augmentation, workers, optimizer and precision. Then what the steps of a run keep in memory under each strategy,
with and without activation checkpointing. FOLDER: images, as `data.name: folder` reads them. Prints Markdown tables.
"""

import argparse
import gc
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from sft_dist import datasets, loading, optim, parse
from sft_dist.config import Config
from sft_dist.datasets import Splits
from sft_dist.engine import Engine
from sft_dist.loop import train
from sft_dist.plan import World, loading_processes, make_plan
from sft_dist.progress import Progress
from sft_dist.signals import StopRequest
from sft_dist.tasks import TASKS

WARM = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    told = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "accelerate"))
    name = torch.cuda.get_device_name() if told.device == "cuda" else "CPU"
    print(f"{name}, Python {platform.python_version()}, {packages}\n")
    with tempfile.TemporaryDirectory() as runs:
        config = settings(told, runs)
        splits = datasets.load(config.data)
        speed(config, splits, told)
        memory(config, splits, told)


def settings(told: argparse.Namespace, runs: str, **shard: str) -> Config:
    return parse.from_tree(
        {
            "task": "classify",
            "data": {"name": "folder", "root": told.folder, "size": told.size},
            "model": {"name": told.model, "weights": "none", "train": "all", "norm": "train"},
            "batch": {"total": told.batch, "micro": told.batch},
            "optim": {"name": "sgd", "lr": 0.01, "weight_decay": 0.0001},
            "train": {"duration": f"{2 * WARM + told.turns * told.steps} steps"},
            "precision": told.precision,
            "device": told.device,
            "shard": shard,
            "run": {"dir": runs, "name": "bench"},
        }
    )


def speed(config: Config, splits: Splits, told: argparse.Namespace) -> None:
    """Both by turns, so that what changes with time, a GPU's clock and its heat, meets both."""
    samples: dict[str, list[float]] = {"sft_dist": [], "bare": []}
    with Engine(config, World()) as engine:
        ours, bare = begun(engine, config, splits), bare_loop(config, splits, told)
        for steps in (ours, bare):
            turn(steps, WARM, told)
        phases: dict[str, list[float]] = {}
        for number in range(told.turns):
            for name, steps in (("sft_dist", ours), ("bare", bare))[:: -1 if number % 2 else 1]:
                seconds, spent = turn(steps, told.steps, told)
                samples[name].append(told.steps * told.batch / seconds)
                for phase, took in itertools.chain.from_iterable(one.items() for one in spent[1:]):  # the first waits for the other loop
                    phases.setdefault(phase, []).append(1000 * took)
        ours.close()
        bare.close()
    ratios = [one / other for one, other in zip(samples["sft_dist"], samples["bare"], strict=True)]
    workers = loading_processes(config, World())
    print(f"{told.model}, {told.precision}, {told.batch} images of {told.size} pixels a step, {workers} workers each\n")
    print(f"| images/s, {told.turns} turns of {told.steps} steps | min | median | max |\n|---|---|---|---|")
    for name, found in samples.items():
        print(f"| {name} | {min(found):.0f} | {statistics.median(found):.0f} | {max(found):.0f} |")
    print(f"| sft_dist / bare, turn by turn | {min(ratios):.3f} | {statistics.median(ratios):.3f} | {max(ratios):.3f} |")
    print(
        "\nA step of sft_dist by phase, ms: " + ", ".join(f"{name} {statistics.median(took):.2f}" for name, took in phases.items()) + "\n",
        flush=True,
    )


def turn(steps: Iterator[Any], count: int, told: argparse.Namespace) -> tuple[float, list[Any]]:
    """Seconds of so many steps, to the end of what the GPU does."""
    began = time.perf_counter()
    found = [getattr(step, "spent", {}) for step in itertools.islice(steps, count)]
    if told.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


def begun(engine: Engine, config: Config, splits: Splits) -> Iterator[Any]:
    task = TASKS[config.task]
    plan = make_plan(config, World(), len(splits.train), len(splits.val))
    module, _ = engine.build(lambda load: task.build(config, splits.classes, weights=load), fresh=True)
    engine.prepare(module, lambda model: optim.build(model, config))
    samples = loading.Samples(splits.train, task.prepare(config.data, True), config.data.size, config.train.seed)
    batches = loading.training_batches(task, samples, plan, 0, 0, loading_processes(config, World()), engine.device.type == "cuda")
    yield from train(task, batches, engine, plan, config, Progress(), StopRequest())


class Images(torch.utils.data.Dataset[Any]):
    """The bare loop's data: Pillow, torchvision's transforms, uint8."""

    def __init__(self, splits: Splits, size: int) -> None:
        self.split = splits.train
        self.augment = v2.Compose([v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> Any:
        return self.augment(self.split.read(i)), self.split.labels[i]


def bare_loop(config: Config, splits: Splits, told: argparse.Namespace) -> Iterator[None]:
    device = torch.device(told.device)
    model = torchvision.models.get_model(told.model, num_classes=len(splits.classes)).to(device).train()
    decay, rest = ([p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
    optimizer = torch.optim.SGD([{"params": decay, "weight_decay": 1e-4}, {"params": rest}], lr=0.01, momentum=0.9, fused=True)
    mean, std = (torch.tensor(three, device=device).view(3, 1, 1) for three in (config.data.mean, config.data.std))
    layout = torch.channels_last if told.device == "cuda" and told.precision in ("bf16", "fp16") else torch.contiguous_format
    model.to(memory_format=layout)
    loader = DataLoader(
        Images(splits, told.size), told.batch, shuffle=True, drop_last=True, pin_memory=told.device == "cuda",
        num_workers=loading_processes(config, World()), persistent_workers=True, multiprocessing_context="fork",
    )  # fmt: skip
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(told.precision, torch.float32)
    while True:
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with torch.autocast(told.device, dtype, enabled=dtype != torch.float32):
                logits = model(((images.float() / 255 - mean) / std).contiguous(memory_format=layout))
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield


def memory(config: Config, splits: Splits, told: argparse.Namespace) -> None:
    if told.device != "cuda":
        return
    print("| strategy | activations | peak GiB | images/s |\n|---|---|---|---|")
    for strategy, again in itertools.product(("ddp", "fsdp"), (False, True)):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model = config.model.model_copy(update={"activation_checkpointing": again})
        chosen = config.model_copy(update={"model": model, "shard": config.shard.model_copy(update={"strategy": strategy})})
        with Engine(chosen, World()) as engine:
            steps = begun(engine, chosen, splits)
            turn(steps, WARM, told)
            seconds, _ = turn(steps, 20, told)
            steps.close()
            peak = torch.cuda.max_memory_allocated() / 2**30
            print(f"| {strategy} | {'computed again' if again else 'kept'} | {peak:.2f} | {20 * told.batch / seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
