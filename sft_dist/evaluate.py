"""Evaluation: every sample exactly once, whatever the world size; rank 0 pronounces."""

from collections.abc import Sequence

import torch

from sft_dist import loading
from sft_dist.config import Config
from sft_dist.datasets import Split
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError
from sft_dist.plan import loading_processes
from sft_dist.schedule import Pick
from sft_dist.signals import StopRequest
from sft_dist.tally import Evidence
from sft_dist.tasks import Scores, Task

ROUNDS_PER_LOOK = 8  # how many micro-batches go by between two looks at the stop request


def shares(samples: int, rank: int, world: int, micro: int) -> list[list[int]]:
    """The positions that a rank evaluates, in micro-batches: every position on one rank, none twice."""
    mine = range(rank, samples, world)
    return [list(mine[i : i + micro]) for i in range(0, len(mine), micro)]


@torch.no_grad()
def evaluate(
    task: Task, split: Split, classes: Sequence[str], config: Config, engine: Engine, request: StopRequest
) -> tuple[Scores, Evidence] | None:
    """Score the model on a split: the scores on every rank, the evidence with all its rows on rank 0.

    None if a stop was asked for meanwhile. Raises ConfigError on all ranks if a sample was unreadable on any.
    """
    micro = 1 if task.alone else config.eval.micro or config.batch.micro
    rank, world = (engine.rank, engine.world) if config.eval.where == "all" else (engine.rank, 1)
    samples = loading.Samples(split, task.prepare(config.data, False), config.data.size, config.train.seed)
    mine = shares(len(split), rank, world, micro) if rank < world else []
    workers = loading_processes(config, engine.place) if len(mine) > 1 else 0
    with engine.together():
        batches = iter(loading.evaluation_batches(task, samples, mine, workers, pin=engine.device.type == "cuda"))
    engine.module.eval()
    found, problems = Evidence(), []
    company = None
    for round_ in range(-(-len(split) // (world * micro))):  # as many rounds on each rank, so that all look up together
        engine.pulse.at("evaluation" if rank < world else "waiting for rank 0")
        batch = next(batches, None)
        if batch is not None:
            problems += batch.problems
            company = batch
            found += task.measure(engine.module, batch.to(engine.device))
        elif engine.strategy.params_sharded:  # the others need this rank's part of the parameters
            company = company or task.collate([samples[Pick(0, 0)]])
            task.measure(engine.module, company.to(engine.device))
        if round_ % ROUNDS_PER_LOOK == 0:
            bad, asked = engine.sum([float(len(problems)), float(request.made)])
            if bad:
                raise ConfigError(engine.agree(problems), everywhere=True)
            if asked:
                return None
    if everyone := engine.agree(problems):
        raise ConfigError(everyone, everywhere=True)
    evidence = engine.merge(found)
    return engine.on_main(lambda: task.score(evidence, classes)), evidence
