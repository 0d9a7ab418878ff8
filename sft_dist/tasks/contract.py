"""What a kind of work must bring along, and the values that pass between it and the loop."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from sft_dist.tally import Evidence

Record = TypeVar("Record")


class Sample(NamedTuple):
    """One training or validation sample as it was loaded."""

    id: int
    """Position in its split."""
    image: Tensor
    """uint8, 3 x height x width."""
    label: int
    problem: str | None
    """Why it could not be read, if so; the image is black then."""


class Batch(Protocol):
    """A frozen dataclass of tensors (moved to the device field by field) and other values."""

    problems: tuple[str, ...]
    """What could not be read, a sentence each."""

    def __len__(self) -> int: ...

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU copies from by itself. DataLoader asks for this method; a batch without it stays as it is."""


class Losses(NamedTuple):
    """A forward pass in training: the loss as a SUM over what the task counts, and sums for the training scores."""

    total: Tensor
    """Scalar with gradient."""
    sums: Mapping[str, Tensor]
    """Name -> detached scalar; logged as train/<name> after the division."""


class Scores(NamedTuple):
    """What an evaluation found."""

    values: Mapping[str, float]
    """Metric name -> number, for curves and decisions."""
    details: Mapping[str, Any]
    """Per-class figures and tables, as JSON can hold them."""


@dataclass(frozen=True)
class Task:
    """A kind of work. Functions only: a task keeps no state."""

    name: str
    headline: str
    """The metric that decides which checkpoint is best."""
    higher_is_better: bool
    build: Callable[..., tuple[nn.Module, list[str]]]
    """(config, classes, weights=True) -> the model with the right head, and what there is to say of its weights."""
    collate: Callable[[Sequence[Sample]], Any]
    """Samples -> Batch."""
    count: Callable[[Any], int] | None
    """Batch -> what the loss is a sum over, or None where that is samples, which are known before anything is loaded."""
    loss: Callable[[nn.Module, Any], Losses]
    """(model, batch) -> Losses."""
    measure: Callable[[nn.Module, Any], Evidence]
    """(model, batch) -> Evidence: what adds, and rows keyed by sample id for what does not."""
    score: Callable[[Evidence, Sequence[str]], Scores]
    """(all evidence, classes) -> Scores; called once, on rank 0."""

    def better(self, one: float, other: float) -> bool:
        return one > other if self.higher_is_better else one < other


def with_tensors(record: Record, act: Callable[[Tensor], Tensor]) -> Record:
    """A dataclass with something done to each of its tensors."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    return dataclasses.replace(record, **{name: act(value) for name, value in values.items() if isinstance(value, Tensor)})  # type: ignore[type-var]
