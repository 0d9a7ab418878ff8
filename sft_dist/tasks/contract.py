"""What a kind of work must bring along, and the values that pass between it and the loop."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from sft_dist.config import Data
from sft_dist.tally import Evidence

Prepare = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""(uint8 image of 3 x any x any, target), as the data set has them -> both as the model takes them; draws from torch's generator."""


class Sample(NamedTuple):
    """One training or validation sample as it was loaded."""

    id: int
    """Position in its split."""
    image: Tensor
    """uint8, 3 x height x width."""
    target: Any
    """What is to be learned of it: a class number, or what the task makes of a mask or of boxes. None if it could not be read."""
    problem: str | None
    """Why it could not be read, if so; the image is black then."""
    draw: int = 0
    """Seed of what a task draws for this sample: a function of (seed, epoch, position), the same on any number of ranks."""


@dataclass(frozen=True)
class Batch:
    """Samples put together; each task adds its fields: tensors, tuples of tensors, and values that stay where they are."""

    ids: Tensor
    """int64 of n: positions in the split."""
    problems: tuple[str, ...]
    """What could not be read, a sentence each."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Self:
        """All tensors on the device; copies from pinned memory overlap with what runs there."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """All tensors in page-locked memory: what a DataLoader calls for a batch of a type that it does not know."""
        return self._each(Tensor.pin_memory)

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        return sum(tensor.nbytes for field in dataclasses.fields(self) for tensor in _tensors(getattr(self, field.name)))

    def _each(self, act: Callable[[Tensor], Tensor]) -> Self:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: _acted(act, value) for name, value in fields.items()})


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        yield from (tensor for each in value for tensor in _tensors(each))


def _acted(act: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return act(value)
    return tuple(_acted(act, each) for each in value) if isinstance(value, tuple) else value


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
    prepare: Callable[[Data, bool], Prepare]
    """(config.data, whether for training) -> what each sample goes through."""
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
    alone: bool = False
    """Whether each image is evaluated in a pass of its own: as large as it is, without padding that would change its features."""

    def better(self, one: float, other: float) -> bool:
        return one > other if self.higher_is_better else one < other
