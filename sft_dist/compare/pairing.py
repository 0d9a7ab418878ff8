"""Two sides over the same samples: what runs answered is lined up by id and by the names of the classes, and told in one shape for all tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.compare.noise import Difference


@dataclass(frozen=True)
class Answers:
    """What one run answered in one evaluation, as its kind of work has it, and what its numbers of classes mean."""

    run: str
    classes: Sequence[str]
    predictions: Any


@dataclass(frozen=True)
class Lined:
    """Samples that all runs were asked about. places: runs x samples, where each run has them. names: of all classes of all runs.

    numbers: for each run the place of each of its classes among the names.
    """

    ids: Sequence[str]
    places: Sequence[NDArray[np.intp]]
    names: Sequence[str]
    numbers: Sequence[NDArray[np.intp]]

    def kept(self, agreed: NDArray[np.bool_]) -> "Lined":
        """Only some of the samples."""
        ids = [sample for sample, same in zip(self.ids, agreed, strict=True) if same]
        return Lined(ids, [places[agreed] for places in self.places], self.names, self.numbers)


@dataclass(frozen=True)
class ClassChange:
    """How one class fares on both sides, over the mean of the runs. scores: what it is told by, the score that counts first -> on each side."""

    name: str
    support: int
    scores: Mapping[str, tuple[float, float]]

    @property
    def change(self) -> float:
        one, other = next(iter(self.scores.values()))
        return other - one


@dataclass(frozen=True)
class Held:
    """What there is to say of two sides. difference: in each score that such runs are judged by.

    better, worse: samples that changed, as their kind of work tells them; each has an `id`.
    """

    samples: int
    difference: Callable[[str], Difference]
    classes: Sequence[ClassChange] = ()
    better: Sequence[Any] = ()
    worse: Sequence[Any] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Kind:
    """What of a comparison depends on the kind of work.

    tested: the scores that runs can be judged by, because there is a test over samples; the headline first. beside: those that are told
    beside the one that decides. hold: both sides -> what there is to say, or in words why there is nothing. columns: of the table of
    classes, a word for each of their scores; caption: what these mean; support: what is counted of a class. brief, lines: a sample that
    changed, for the screen and for the page.
    """

    tested: Sequence[str]
    beside: Sequence[str]
    hold: Callable[[Sequence[Answers], Sequence[Answers]], Held | str]
    columns: Sequence[str]
    caption: str
    support: str
    brief: Callable[[Any], str]
    lines: Callable[[Any], Sequence[str]]


def line_up(everyone: Sequence[Answers], widths: Sequence[int]) -> Lined | str:
    """The samples in common, in the order of the first run; or, in words, why there are none. widths: how many classes each run may name."""
    if silent := [answers.run for answers in everyone if not answers.predictions.ids]:
        return f"no predictions of {', '.join(silent)}"
    places = [{sample: i for i, sample in enumerate(answers.predictions.ids)} for answers in everyone]
    common = [sample for sample in everyone[0].predictions.ids if all(sample in those for those in places[1:])]
    if not common:
        return "not one validation sample in common"
    named = [[_name(answers, i) for i in range(width)] for answers, width in zip(everyone, widths, strict=True)]
    names = list(dict.fromkeys(name for those in named for name in those))
    numbers = {name: number for number, name in enumerate(names)}
    return Lined(
        common,
        [np.array([those[sample] for sample in common]) for those in places],
        names,
        [np.array([numbers[name] for name in those], dtype=np.intp) for those in named],
    )


def notes(everyone: Sequence[Answers], common: int, agreed: int, truth: str) -> list[str]:
    """What is to be said of the pairing. truth: what must be the same on both sides."""
    sizes = sorted({len(answers.predictions.ids) for answers in everyone})
    told = [f"{answers.run}: {problem}" for answers in everyone for problem in answers.predictions.problems]
    if sizes != [common]:
        told.append(f"paired over the {common} samples in common, of {' and '.join(map(str, sizes))}")
    if agreed < common:
        told.append(f"{common - agreed} samples have {truth} on the other side and are left out")
    return told


def _name(answers: Answers, number: int) -> str:
    return answers.classes[number] if number < len(answers.classes) else str(number)
