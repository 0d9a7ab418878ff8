"""What stands out in a run, in sentences."""

from collections.abc import Iterator, Sequence

from sft_dist.history.curves import series
from sft_dist.history.records import is_number
from sft_dist.pages import words
from sft_dist.report.answers import FEW, Answer
from sft_dist.report.calibration import Calibration
from sft_dist.report.chronicle import Chapter
from sft_dist.report.study import Study, wilson
from sft_dist.report.times import Times

RISEN = 1.05  # times its lowest: a loss that is worth a word
SURE = 0.02  # of difference between confidence and accuracy, in the mean of a bin or of all, likewise, where chance would not make it
STANDS = {
    "done": "Done",
    "saved": "Saved and stopped, not at its end",
    "failed": "Failed",
    "unfinished": "Unfinished: it still runs, or was killed",
}


def ended(study: Study, chapters: Sequence[Chapter]) -> str:
    """How the run stands: its outcome and, where it left none, the record of its latest attempt."""
    outcome = str(study.record.outcome.get("outcome"))
    return outcome if outcome in STANDS else "failed" if chapters and chapters[-1].failed else "unfinished"


def beginning(study: Study) -> str:
    """What the weights were at the start, after a comma; nothing where the config does not say."""
    weights = study.record.config.get("model.weights")
    return "" if not weights else ", from scratch" if weights == "none" else f", from the weights {weights}"


def verdict(study: Study, how: str) -> str:
    """The run in a sentence: how it stands, and its score with what it rests on."""
    stands = STANDS[how]
    if study.headline is None or study.step is None:
        return f"{stands}. There is no evaluation yet."
    name = words.score(study.record.headline)
    within = _rests_on(study, study.headline)
    total = study.record.plan.get("total_steps")
    of = f" of {total}" if is_number(total) else ""
    return f"{stands}. {name} {study.headline:.4f}{within}, the {study.at} evaluation, at step {study.step}{of}."


def _rests_on(study: Study, headline: float) -> str:
    """How many samples a score is of, and its interval where there is one."""
    if study.images:
        found = f" (95 % interval {study.within[0]:.3f} to {study.within[1]:.3f} over images)" if study.within else ""
        return f" on {len(study.images)} validation images with {study.support:,} {study.kind.support}{found}" if study.support else ""
    if study.support and study.record.task == "classify" and 0 <= headline <= 1:
        low, high = wilson(headline, study.support)
        return f" on {study.support} validation samples (95 % interval {low:.3f} to {high:.3f})"
    return ""


def remarks(study: Study, times: Times | None, chapters: Sequence[Chapter]) -> Iterator[str]:
    """What a person would want to be told, the most important first."""
    name = words.score(study.record.headline)
    if study.test:
        tested = {metric: value for metric, value in study.test.items() if words.score(metric) == name}
        yield from (f"On the test split, which chose nothing: {name} {value:.4f}." for value in tested.values())
    elif study.at == "best" and study.headline is not None:
        yield f"The same samples chose this checkpoint, so {name} flatters it a little; no test split has scored it."
    if study.commonest is not None and study.headline is not None and name == "top1":
        yield f"Always saying the commonest class would score {study.commonest:.4f}."
    if study.rare:
        yield f"The interval cannot be relied on: {words.listed(study.rare, 5)} in fewer than {FEW} images, so that many draws have none."
    yield from _classes(study)
    yield from _trend(study)
    if study.calibration:
        yield sureness(study.calibration)
    if times and times.slow_data:
        yield f"{100 * times.waiting:.0f} % of the time in steps was spent waiting for data: more data.workers, or smaller files, would make it faster."
    if lost := sum(chapter.lost for chapter in chapters):
        yield f"Steps that were lost in interruptions and made again, in {len(chapters)} attempts: {lost}."


def sureness(found: Calibration) -> str:
    """Whether confidence can be taken at its word."""
    gap = found.confidence - found.accuracy
    told = f"Its confidence is {found.confidence:.3f} on average, and it is right in {found.accuracy:.3f} of cases"
    if found.error < max(2 * found.by_chance, SURE):
        return f"{told}: about as sure as it is right, as far as so many samples can tell."
    if abs(gap) < SURE:
        return f"{told}: as sure as it is right on the whole, but too sure of some answers and not sure enough of others."
    return f"{told}: {'surer than it should be' if gap > 0 else 'less sure than it could be'}."


def spent(times: Times) -> str:
    """Where the time went, what took most of it first."""
    most = sorted(times.parts.items(), key=lambda part: -part[1])
    shares = [f"{100 * seconds / times.total:.0f} % {name}" for name, seconds in most if 200 * seconds >= times.total]
    return f"Of {words.duration(times.total)}: {', '.join(shares)}."


def communication(times: Times) -> str | None:
    """What the ranks' messages cost; None where that was not measured."""
    if times.communicating is None or times.exposed is None:
        return None
    return (
        f"Messages among the ranks were under way for {times.communicating:.0f} % of a step, measured in a few early ones; for "
        f"{times.exposed:.0f} % of it nothing was computed meanwhile. They lie within forward, backward, the optimizer and exchanging sums."
    )


def answer(one: Answer) -> str:
    """What a picture of a sample shows."""
    return f"{one.id}: {one.truth}, taken for {one.said}" if not one.right else f"{one.id}: {one.truth}, taken for that"


def _classes(study: Study) -> Iterator[str]:
    kind, scored = study.kind, [score for score in study.classes if score.support]
    if len(scored) > 2:
        weakest = min(scored, key=lambda score: score.lead)
        yield f"The weakest class is {weakest.name}: {kind.columns[kind.lead]} {weakest.lead:.3f} over {weakest.support:,} {kind.support}."
    if study.mistakes:
        most = study.mistakes[0]
        told = f"{kind.counted(most.count)}, {100 * most.share:.0f} % of its {kind.support}"
        yield f"Most often, {most.truth} is taken for {most.said}: {told}."


def _trend(study: Study) -> Iterator[str]:
    """Whether the curves ask for less or for more."""
    losses, scores = (
        [point for point in series(study.curves.rows, metric) if point.step > 0] for metric in ("val/loss", study.record.headline)
    )
    lowest = min(losses, key=lambda point: point.value, default=None)
    if lowest and losses[-1].value > RISEN * lowest.value:
        trained, last = {point.step: point.value for point in series(study.curves.rows, "train/mean_loss")}, losses[-1]
        before, after = trained.get(lowest.step), trained.get(last.step)
        if before is not None and after is not None and after < before:
            yield (
                f"val/loss was lowest, {lowest.value:.4g}, at step {lowest.step} and rose to {last.value:.4g} by step {last.step}, while "
                f"train/mean_loss fell from {before:.4g} to {after:.4g}: it overfits from there on."
            )
    elif len(scores) > 1 and study.record.done and study.record.step("best") == study.record.step("last"):
        yield "The last evaluation is the best: longer training may still gain."
