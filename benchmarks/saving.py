"""What a checkpoint costs a step: `python benchmarks/saving.py [FOLDER] [--device cuda]`, about two minutes.

Side by side in one process, on the same model (ResNet-50 and AdamW's moments, about 290 MiB) and the same disk: the time that training
stands still in `Saver.save` with `save.background: true`, in the foreground, and in Accelerate's `save_state`. The three take turns.
Then how long a resume takes at a small and at a large step. Prints Markdown tables.
"""

import argparse
import gc
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from sft_dist import checkpoint, models, optim, parse, rundir
from sft_dist.checkpoint import About
from sft_dist.config import Config
from sft_dist.engine import Engine
from sft_dist.plan import World
from sft_dist.progress import Progress
from sft_dist.saver import Saver

TURNS = 15


def main(folder: Path, device: str) -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "accelerate", "safetensors"))
    print(f"Python {platform.python_version()}, {packages}, {torch.get_num_threads()} threads\n")
    config = settings(folder, device)
    with Engine(config, World()) as engine:
        prepare(engine, config)
        run = rundir.create(config)
        about = About(("a", "b"), "none")
        saver = Saver(run, engine, config.save, about, lambda *_: None)
        behind, before = (config.save.model_copy(update={"background": background}) for background in (True, False))
        engine.accelerator.prepare_optimizer(engine.optimizer)
        seconds: dict[str, list[float]] = {"background": [], "background, first": [], "foreground": [], "save_state": [], "write": []}
        step = 0
        for turn in range(TURNS):
            step += 3
            saver.settings = behind
            stall, until = timed(lambda at=step: saver.save(Progress(step=at))), time.perf_counter()
            seconds["background, first" if turn == 0 else "background"].append(stall)
            saver.finish()
            seconds["write"].append(time.perf_counter() - until)
            saver.settings = before
            seconds["foreground"].append(timed(lambda at=step: saver.save(Progress(step=at + 1))))
            shutil.rmtree(folder / "accelerate", ignore_errors=True)
            seconds["save_state"].append(timed(lambda: engine.accelerator.save_state(str(folder / "accelerate"))))
        base = statistics.median(seconds["save_state"])
        print("| what training waits for | n | min ms | median ms | max ms | of save_state's median |\n|---|---|---|---|---|---|")
        names = {
            "background": "`Saver.save`, background (from the second on)",
            "background, first": "the first one, which takes the memory",
            "foreground": "`Saver.save`, foreground: hashed, on the disk, committed",
            "save_state": "Accelerate's `save_state`: neither hashed nor forced to the disk",
            "write": "not waited for: the write behind the background save",
        }
        for key, name in names.items():
            low, middle, high = (1000 * f(seconds[key]) for f in (min, statistics.median, max))
            print(f"| {name} | {len(seconds[key])} | {low:.0f} | {middle:.0f} | {high:.0f} | {middle / 10 / base:.0f} % |", flush=True)
        resumes(run, engine, saver, about)


def resumes(run: rundir.RunDir, engine: Engine, saver: Saver, about: About) -> None:
    print("\n| resume at step | n | min ms | median ms | max ms |\n|---|---|---|---|---|")
    for step in (1_000, 10_000_000):
        saver.save(Progress(step=step))
        seconds = []
        for _ in range(5):
            found, _told = checkpoint.newest(run)
            seconds.append(timed(lambda at=found: checkpoint.restore(run, engine, about, at)))
        low, middle, high = (1000 * f(seconds) for f in (min, statistics.median, max))
        print(f"| {step:,} | 5 | {low:.0f} | {middle:.0f} | {high:.0f} |", flush=True)


def settings(folder: Path, device: str) -> Config:
    return parse.from_tree(
        {
            "task": "classify",
            "data": {"name": "digits", "size": 32},
            "model": {"name": "resnet50", "weights": "none", "train": "all", "norm": "train"},
            "batch": {"total": 2, "micro": 2},
            "optim": {"name": "adamw", "lr": 0.001},
            "train": {"duration": "1 step"},
            "save": {"keep": 1},
            "device": device,
            "run": {"dir": str(folder), "name": "saved"},
        }
    )


def prepare(engine: Engine, config: Config) -> None:
    module, _ = engine.build(lambda load: models.build(config, [str(i) for i in range(1000)], weights=load), fresh=True)
    engine.prepare(module, lambda model: optim.build(model, config))
    with engine.backward_pass(last=True) as backward:
        backward(engine.wrapped(torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=engine.device)).logsumexp(1).sum())
    engine.update()


def timed(act: Callable[[], object]) -> float:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    os.sync()  # each begins with a quiet disk, not with what the one before left to be written
    before = time.perf_counter()
    act()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--device", default="cpu")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=told.folder) as place:
        main(Path(place), told.device)
