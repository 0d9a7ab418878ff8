"""What measuring the time costs a step: `python benchmarks/clock.py`, about a minute on one core.

In one process, steps by turns with and without the marks at the beginnings of phases, each pair a ratio of the processor time of neighbours; then
what a mark costs by itself, and what a step costs that torch's profiler looks at for communication. A small model, so that a cost would show. Prints Markdown tables.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from sft_dist import datasets, loading, machine, optim, parse
from sft_dist.communication import shares, spans
from sft_dist.engine import Engine
from sft_dist.loop import StepResult, train
from sft_dist.plan import World, make_plan
from sft_dist.progress import Progress
from sft_dist.signals import StopRequest
from sft_dist.tasks import TASKS
from sft_dist.timeline import Timeline

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"
WARM = 6


class Off(Timeline):
    """Marks nothing."""

    def at(self, phase: str) -> None:
        pass

    def spent(self) -> dict[str, float]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    pairs = parser.parse_args().pairs
    print(f"Python {platform.python_version()}, torch {version('torch')}\n")
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"run.dir={folder}", "data.size=16", "batch.total=16", "batch.micro=4", "device=cpu", "model.name=mobilenet_v3_small"]
        config = parse.load(CONFIG, [*keys, f"train.duration={WARM + 2 * pairs + 3} steps"])
        with Engine(config, World()) as engine:
            steps = begin(engine, config)
            for _ in range(WARM):
                next(steps)
            on, off = engine.pulse.timeline, Off("data")
            ratios, seconds = [], []
            for pair in range(pairs):
                took = {}
                for line in (on, off) if pair % 2 else (off, on):
                    engine.pulse.timeline = line
                    took[line] = timed(steps)
                ratios.append(took[on] / took[off])
                seconds.append(took[off])
            engine.pulse.timeline = on
            low, middle, high = statistics.quantiles(ratios, n=4)
            print("| pairs | a step, median ms of processor time | with / without: median | quartiles |\n|---|---|---|---|")
            print(f"| {pairs} | {1000 * statistics.median(seconds):.2f} | {middle:.4f} | {low:.3f} to {high:.3f} |\n")
            print(f"A mark: {mark_us():.2f} us; {marks(on, steps)} of them in a step of four passes.\n")
            print("| a step that is looked at | ms of processor time |\n|---|---|")
            for number in (1, 2):
                print(f"| {number} | {1000 * looked_at(steps):.0f} |")


def begin(engine: Engine, config: parse.Config) -> Iterator[StepResult]:
    splits, task = datasets.load(config.data), TASKS[config.task]
    plan = make_plan(config, World(), len(splits.train), len(splits.val))
    module, _ = engine.build(lambda load: task.build(config, splits.classes, weights=load), fresh=True)
    engine.prepare(module, lambda model: optim.build(model, config))
    samples = loading.Samples(splits.train, task.prepare(config.data, True), config.data.size, config.train.seed)
    batches = loading.training_batches(task, samples, plan, 0, 0, 0, False)
    return train(task, batches, engine, plan, config, Progress(), StopRequest())


def timed(steps: Iterator[StepResult]) -> float:
    """Processor time: others may use this machine."""
    began = time.process_time()
    next(steps)
    return time.process_time() - began


def mark_us() -> float:
    line, began = Timeline("data"), time.perf_counter()
    for _ in range(5000):
        line.at("forward")
        line.at("data")
    line.spent()
    return 100 * (time.perf_counter() - began)


def marks(line: Timeline, steps: Iterator[StepResult]) -> int:
    line.spent()
    before, seen = line.at, []
    line.at = lambda phase: (seen.append(phase), before(phase))[1]  # type: ignore[method-assign]
    next(steps)
    del line.at
    return len(seen)


def looked_at(steps: Iterator[StepResult]) -> float:
    began = time.process_time()
    with machine.profiler("cpu") as profiler:
        next(steps)
    shares(*spans(profiler.profiler.kineto_results.events(), "cpu"), seconds=1.0)
    return time.process_time() - began


if __name__ == "__main__":
    main()
