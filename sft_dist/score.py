"""Scoring a run again, on its own data or on other: the same exact evaluation, without training and without writing."""

from typing import Any

from sft_dist import checkpoint, datasets, optim, signals
from sft_dist.config import Config
from sft_dist.engine import Engine
from sft_dist.errors import InfrastructureError
from sft_dist.evaluate import evaluate
from sft_dist.plan import World
from sft_dist.rundir import RunDir
from sft_dist.tasks import TASKS


def score(folder: RunDir, config: Config, world: World, split: str, name: str) -> dict[str, Any]:
    """The scores of a checkpoint (`best`, `latest`, or its folder's name) on a split of the config's data, on every rank."""
    task = TASKS[config.task]
    with signals.watch() as request, Engine(config, world) as engine:
        found = engine.on_main(lambda: checkpoint.named(folder, name))
        classes = checkpoint.classes_of(found)
        samples = datasets.load_split(config.data, split, classes)
        module, _ = task.build(config, classes, weights=False)
        engine.prepare(module, lambda model: optim.build(model, config))
        checkpoint.load_model(found, engine)
        scored = evaluate(task, samples, classes, config, engine, request)
    if scored is None:
        raise InfrastructureError(f"asked to stop by {request.signal or 'another rank'} before the scores were complete")
    values = {metric.replace("val/", f"{split}/"): value for metric, value in scored[0].values.items()}
    return {"run": str(folder.path), "checkpoint": found.name, **values, **scored[0].details}
