"""The story of one run: task, data, plan, engine, folder, model, and then step by step to the end."""

import dataclasses
import socket
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass

from rich.console import Console

from sft_dist import attempts, average, beside, checkpoint, datasets, loading, optim, parse, rundir, signals, tally, track
from sft_dist.checkpoint import About
from sft_dist.communication import measured
from sft_dist.config import Config
from sft_dist.datasets import Splits
from sft_dist.engine import Engine
from sft_dist.errors import ConfigError, DivergedError, MachineError
from sft_dist.evaluate import evaluate
from sft_dist.locks import LEASE_S, hold
from sft_dist.loop import StepResult, train
from sft_dist.plan import Plan, World, describe, loading_processes, make_plan
from sft_dist.progress import Progress, reason_to_end
from sft_dist.pulse import Pulse
from sft_dist.rundir import RunDir, step_name
from sft_dist.saver import Saver
from sft_dist.schedule import due
from sft_dist.signals import StopRequest
from sft_dist.tasks import TASKS, Batch, Task
from sft_dist.track import Tracker, say


@dataclass(frozen=True)
class Parts:
    """What a run is made of, once it is put together. The tracker is rank 0's."""

    task: Task
    splits: Splits
    config: Config
    plan: Plan
    engine: Engine
    folder: RunDir
    attempt: int
    request: StopRequest
    console: Console
    saver: Saver
    tracker: Tracker | None = None


def run(config: Config, world: World, pulse: Pulse | None = None) -> RunDir:
    """Make one run from its config, or go on with it, to its end or to a request to stop; returns its folder."""
    task = TASKS[config.task]
    splits = datasets.load(config.data)
    plan = make_plan(config, world, len(splits.train), len(splits.val))
    console = Console(quiet=world.rank != 0)
    with signals.watch() as request, Engine(config, world, pulse) as engine, _folder(config, plan, engine, splits) as (folder, attempt):
        engine.check_same(f"{parse.to_yaml(config)}{splits.fingerprint}")
        saver = Saver(
            folder, engine, config.save, About(splits.classes, splits.fingerprint), lambda *landed: track.tidy(folder, attempt, *landed)
        )
        parts = Parts(task, splits, config, plan, engine, folder, attempt, request, console, saver)
        progress = _start(parts)
        with _tracking(parts) as parts, saver.landing():
            progress, asked = _pay_debts(parts, progress)
            if not asked and not reason_to_end(progress, plan, config.stop):
                for step in measured(train(task, _batches(parts, progress), engine, plan, config, progress, request), engine, config):
                    progress, asked = _after(parts, step, progress)
                    if asked or reason_to_end(progress, plan, config.stop):
                        break
            _finish(parts, progress, asked)
    return folder


def _after(parts: Parts, step: StepResult, progress: Progress) -> tuple[Progress, bool]:
    """What one step is worth: a row, and where they are due an evaluation and a checkpoint. Also whether to stop here."""
    progress = progress.after_step(step.sums, step.next_scale)
    if step.grad_norm is not None:  # else no update was made
        average.update(parts.engine, parts.config.ema, progress.step)
    parts.saver.poll()
    say(parts.console, *parts.saver.warned())
    if parts.tracker:
        parts.tracker.step(step, parts.engine.usage)
    before, asked = progress, step.stop_asked
    if due(progress.step, parts.plan.eval_every, parts.plan.total_steps) and not asked:
        progress, asked = _evaluate(parts, progress)
    improved = progress.best is not before.best
    ended = reason_to_end(progress, parts.plan, parts.config.stop)
    if asked or improved or ended or due(progress.step, parts.plan.save_every, parts.plan.total_steps):
        _save(parts, progress)
    return progress, asked


def _evaluate(parts: Parts, progress: Progress) -> tuple[Progress, bool]:
    """Score the validation set and judge; unchanged, and True, if a request to stop came in between."""
    parts.engine.even_out_statistics()
    with average.used(parts.engine, parts.config.ema):
        found = evaluate(parts.task, parts.splits.val, parts.splits.classes, parts.config, parts.engine, parts.request)
    if found is None:
        return progress, True
    scores, evidence = found
    headline = parts.task.headline
    improved = progress.best is None or parts.task.better(scores.values[headline], progress.best[headline])
    training = tally.per_count(progress.since_evaluation)
    progress = progress.after_evaluation({"step": progress.step, **scores.values, **scores.details}, improved)

    def write() -> None:
        assert parts.tracker
        parts.tracker.evaluation(progress, training, scores.values, improved)
        track.write_predictions(parts.folder, progress.step, parts.splits.val, evidence)

    parts.engine.on_main(write)
    return progress, False


def _save(parts: Parts, progress: Progress) -> None:
    """A checkpoint; not before the metrics that lead to it are on the disk."""
    if parts.tracker:
        parts.tracker.flush()
    parts.saver.save(progress)
    say(parts.console, *parts.saver.warned())


def _start(parts: Parts) -> Progress:
    """Build the model, and fill it with the newest whole checkpoint or, in a new run, with its pretrained weights."""
    config, engine, folder = parts.config, parts.engine, parts.folder
    found, told = engine.on_main(lambda: checkpoint.newest(folder))
    module, about_weights = engine.build(lambda load: parts.task.build(config, parts.splits.classes, weights=load), fresh=found is None)
    engine.prepare(module, lambda model: optim.build(model, config))
    progress = checkpoint.restore(folder, engine, parts.saver.about, found)

    def go_back() -> None:
        checkpoint.point(folder, progress)
        rundir.rewind(folder, progress.step, progress.evaluated, parts.attempt)

    engine.on_main(go_back)
    say(parts.console, *told, f"   shares  {engine.shares}", *(f"  weights  {line}" for line in about_weights))
    say(parts.console, *([f"resumed at step {progress.step}"] if found else []))
    return progress


def _pay_debts(parts: Parts, progress: Progress) -> tuple[Progress, bool]:
    """Make the evaluation that is due at the step that was resumed, if the attempt before was stopped out of it."""
    owed = progress.evaluated < progress.step and due(progress.step, parts.plan.eval_every, parts.plan.total_steps)
    if not owed:
        return progress, False
    progress, asked = _evaluate(parts, progress)
    if not asked:
        _save(parts, progress)
    return progress, asked


def _batches(parts: Parts, progress: Progress) -> Iterable[Batch]:
    config, engine = parts.config, parts.engine
    samples = loading.Samples(parts.splits.train, parts.task.prepare(config.data, True), config.data.size, config.train.seed)
    workers, pin = loading_processes(config, engine.place), engine.device.type == "cuda"
    with engine.together():
        return loading.training_batches(parts.task, samples, parts.plan, engine.rank, progress.step, workers, pin)


def _finish(parts: Parts, progress: Progress, asked: bool) -> None:
    """The last words: the test of the best checkpoint, scores.json, outcome.json."""
    parts.saver.finish(final=True)
    ended = None if asked else reason_to_end(progress, parts.plan, parts.config.stop)
    test = _test(parts, progress) if ended else None
    parts.engine.pulse.at("end")
    if parts.splits.test is not None and parts.config.eval.test and test is None:
        ended = None  # asked to stop before the test was through
    if not parts.tracker:
        return
    parts.tracker.tail(parts.attempt, parts.engine.pulse.timeline.spent())
    track.write_scores(parts.folder, progress, test)
    outcome = {"outcome": "done" if ended else "saved", "step": progress.step, "attempt": parts.attempt}
    rundir.write_json(parts.folder.outcome, {**outcome, "reason": ended or f"asked to stop by {parts.request.signal or 'another rank'}"})
    if ended:
        say(parts.console, f"done: {ended}", *rundir.summary(parts.folder))
    else:
        say(parts.console, f"saved step {progress.step} and stopped as asked; the same command goes on from there")


def _test(parts: Parts, progress: Progress) -> dict[str, object] | None:
    """The scores of the best checkpoint on the test split; None without such a split, or if a request to stop came in between."""
    split = parts.splits.test
    if split is None or not parts.config.eval.test or not progress.best:
        return None
    weights: AbstractContextManager[None] = nullcontext()
    try:
        best = parts.engine.on_main(lambda: checkpoint.named(parts.folder, "best"))
        checkpoint.load_model(best, parts.engine)
        step = int(best.name.removeprefix("step-"))
    except ConfigError as error:
        say(parts.console, *error.problems, "the best checkpoint cannot be tested; the last one is tested instead")
        step, weights = progress.step, average.used(parts.engine, parts.config.ema)
    with weights:
        found = evaluate(parts.task, split, parts.splits.classes, parts.config, parts.engine, parts.request)
    if found is None:
        return None
    values = {name.replace("val/", "test/"): value for name, value in found[0].values.items()}
    return {"step": step, **values, **found[0].details}


@contextmanager
def _folder(config: Config, plan: Plan, engine: Engine, splits: Splits) -> Iterator[tuple[RunDir, int]]:
    """Rank 0 opens and locks the run's folder for all; what ends the run early is written into it."""
    with ExitStack() as stack:
        folder, attempt = engine.on_main(lambda: _open_folder(config, plan, engine, splits, stack))
        engine.pulse.attempt = engine.pulse.attempt or attempts.folder(folder, attempt)
        try:
            yield folder, attempt
        except BaseException as error:
            step = folder.saved_step
            if isinstance(error, DivergedError):
                error = DivergedError(
                    [*error.problems, f"last good checkpoint: {step_name(step) if step else 'none yet'}"], everywhere=True
                )
            if engine.is_main:
                told = {"type": type(error).__name__, "message": str(error), "rank": engine.rank, "host": socket.gethostname()}
                with suppress(MachineError):  # on a full disk the error itself still reaches the screen
                    rundir.write_json(folder.outcome, {"outcome": "failed", "step": step, "attempt": attempt, "error": told})
            raise error


def _open_folder(config: Config, plan: Plan, engine: Engine, splits: Splits, stack: ExitStack) -> tuple[RunDir, int]:
    rundir.check(config)
    folder = rundir.create(config)
    stack.enter_context(hold(folder, LEASE_S))
    if (made := folder.saved_step) > plan.total_steps:
        raise ConfigError(
            f"train.duration = {config.train.duration} is {plan.total_steps} steps, but {folder.path} has made {made}; ask for more"
        )
    attempt = attempts.begin(folder, engine.pulse.attempt)
    folder.outcome.unlink(missing_ok=True)
    rundir.write_atomically(folder.config, parse.to_yaml(config))
    rundir.write_atomically(folder.path / "plan.json", plan.to_json())
    rundir.write_json(folder.path / "env.json", track.environment(engine.device, splits.fingerprint))
    lines = [*describe(plan, config, engine.device.type), ("run", f"{folder.path} (attempt {attempt})")]
    lines += [("warning", line) for line in (*splits.remarks, *track.little_notice(folder))]
    say(Console(), *(f"{what:>9}  {how_much}" for what, how_much in lines))
    return folder, attempt


@contextmanager
def _tracking(parts: Parts) -> Iterator[Parts]:
    if not parts.engine.is_main:
        yield parts
        return
    with (
        beside.reported(parts.folder, parts.config.report, parts.console),
        beside.mirrored(parts.folder, parts.config.track, parts.console),
        closing(Tracker(parts.folder, parts.plan, parts.console, parts.config.track.tensorboard)) as tracker,
    ):
        yield dataclasses.replace(parts, tracker=tracker)
