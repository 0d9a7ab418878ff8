"""The machine: processes, device, precision, and every collective. With `sharding` the only room that knows Accelerate."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from sft_dist import machine
from sft_dist.config import Config
from sft_dist.errors import MachineError, SftError
from sft_dist.plan import World, processors, timeout_s
from sft_dist.pulse import Pulse
from sft_dist.sharding import STRATEGIES, Piece, Tensors, shares
from sft_dist.tally import Evidence
from sft_dist.usage import Usage

Result = TypeVar("Result")


class Engine:
    """The processes of one run, from the first handshake to the last. Every rank must make the same calls in the same order."""

    def __init__(self, config: Config, world: World, pulse: Pulse | None = None) -> None:
        """Start up and check that what came is what was asked for. Raises MachineError where it is not."""
        self.pulse = pulse or Pulse()
        self.place, self.rank, self.world = world, world.rank, world.size
        self.config, self.precision, self.strategy = config, config.precision, STRATEGIES[config.shard.strategy]
        kind = machine.choose_device(config, world)
        machine.set_arithmetic(config, kind)
        with self.strategy.start(config, world, kind) as arguments:
            self.accelerator = Accelerator(
                mixed_precision="no",  # bf16 and fp16 are our own autocast, the same on every strategy
                gradient_accumulation_steps=1,
                kwargs_handlers=_among_ranks(kind, timeout_s(config)) if world.size > 1 else [],
                **arguments,
            )
        self.device = self.accelerator.device
        self.usage = Usage(self.device)
        ours = dist.get_world_size() if dist.is_initialized() else 1
        came = (self.accelerator.num_processes, ours, self.device.type, self.accelerator.mixed_precision)
        wanted = (world.size, world.size, kind, "no")
        _compare(("processes", "processes in torch's group", "device", "autocast"), came, wanted)
        self.pulse.timeline.measure_by(machine.clock(self.device))
        if "OMP_NUM_THREADS" not in os.environ:  # after Accelerate, which counts the machine's processors instead of this process's
            torch.set_num_threads(max(1, processors() // world.local_size))

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is None)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def build(self, make: Callable[[bool], Result], fresh: bool) -> Result:
        """Build a model by `make(with its weights)`; without memory (meta device) where it will be filled from rank 0 or a checkpoint."""
        filled = not self.strategy.fills_meta or (fresh and self.is_main)
        with self.together(), nullcontext() if filled else torch.device("meta"):
            return make(fresh and filled)

    def prepare(self, module: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer]) -> None:
        """Move the model to the device and spread it and its optimizer over the ranks. Raises MachineError if that did not come about."""
        if not self.strategy.fills_meta:  # else it goes there tensor by tensor: the whole may not fit
            module.to(self.device)
        module.to(torch.float64 if self.precision == "fp64" else torch.float32)
        machine.set_autocast(module, self.device.type, self.precision)
        self.learning_norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
        asked = shares.of_whole(module)
        self.prepared = self.strategy.prepare(self.accelerator, self.place, module, make_optimizer, self.config)
        with self.together():
            self.shares = shares.check(self.strategy.held(self.prepared), asked, self.config, self.world)

    @property
    def module(self) -> nn.Module:
        """The bare model, with canonical names."""
        return self.prepared.module

    @property
    def wrapped(self) -> nn.Module:
        return self.prepared.wrapped

    @property
    def optimizer(self) -> Optimizer:
        return self.prepared.optimizer

    @contextmanager
    def backward_pass(self, last: bool) -> Iterator[Callable[[Tensor], None]]:
        """One forward and backward pass of a step; gradients meet over the ranks by the last one."""
        self.pulse.at("forward")
        with self.strategy.one_pass(self.prepared, last) as backward:
            yield backward

    def update(self, scale: float | None = None) -> Tensor:
        """Divide the gradient by its scale, clip it, make the step, forget it; returns its global norm before clipping, equal on all
        ranks. With a scale, a step whose norm is not finite is left out."""
        return self.strategy.update(self.prepared, scale)

    def sum(self, values: Sequence[float | Tensor], more: Sequence[float] = ()) -> list[float]:
        """Each value, and each of the numbers in `more`, summed over all ranks, in float64."""
        numbers = [0.0 if isinstance(value, Tensor) else value for value in values]
        message = torch.tensor([*numbers, *more], dtype=torch.float64).to(self.device)  # in one copy: the host waits for each to a GPU
        for place, value in enumerate(values):
            if isinstance(value, Tensor):
                message[place] = value
        if self.world > 1:
            dist.all_reduce(message)
        return message.tolist()

    def exchange(self, values: Sequence[float | Tensor]) -> list[float]:
        """Like `sum`; and in the same message `usage.ranks` comes to hold what each rank uses."""
        told = self.sum(values, self.usage.placed(self.rank, self.world))
        self.usage.hear(told[len(values) :])
        return told[: len(values)]

    def merge(self, evidence: Evidence) -> Evidence:
        """The evidence of all ranks: the sums on every rank, the rows on rank 0 only. Rank 0 must have some."""
        if self.world == 1:
            return evidence
        layout: list[Any] = [[(name, value.shape, value.dtype) for name, value in evidence.sums.items()]]
        dist.broadcast_object_list(layout)  # a rank without a sample has no sums, but must add its zeros
        sums = {name: evidence.sums.get(name, torch.zeros(shape, dtype=dtype, device=self.device)) for name, shape, dtype in layout[0]}
        for value in sums.values():
            dist.all_reduce(value)
        rows: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(evidence.rows, rows)
        return Evidence(sums, sum(rows, ()) if rows else ())

    def on_main(self, act: Callable[[], Result]) -> Result:
        """Let rank 0 act while the others wait; its result, or its error, is everybody's."""
        told: list[Any] = [None, None]
        if self.is_main:
            try:
                told[0] = act()
            except Exception as error:  # passed on to every rank, and raised there
                told[1] = (
                    error if isinstance(error, SftError) or self.world == 1 else RuntimeError(f"rank 0: {type(error).__name__}: {error}")
                )
                told[1].__cause__ = error if told[1] is not error else error.__cause__
        if self.world > 1:
            dist.broadcast_object_list(told)
        if told[1] is not None:
            if isinstance(told[1], SftError):
                told[1].everywhere = True
            raise told[1]
        result: Result = told[0]
        return result

    def agree(self, own: Sequence[str]) -> list[str]:
        """What any rank has to say, on every rank, in the order of the ranks."""
        if self.world == 1:
            return list(own)
        said: list[Any] = [None] * self.world
        dist.all_gather_object(said, list(own))
        return [line for lines in said for line in lines]

    def check_same(self, what: str) -> None:
        """Every rank must have read the same config and data, or the samples of a step would not be the window's."""
        said = self.agree([hashlib.sha256(what.encode()).hexdigest()])
        odd = [str(rank) for rank, other in enumerate(said) if other != said[0]]
        if odd:
            raise MachineError(
                f"rank {', '.join(odd)} reads another config or other data than rank 0; every node needs the same files and the same command",
                everywhere=True,
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one rank refuses within the context, all refuse at its end; the others would wait for it in vain."""
        own: SftError | None = None
        try:
            yield
        except SftError as error:
            own = error
        said: list[SftError | None] = [own]
        if self.world > 1:
            said = [None] * self.world
            dist.all_gather_object(said, own)
        for refusal in filter(None, said):
            refusal.everywhere = True
            raise refusal

    def even_out_statistics(self) -> None:
        """Average the batch-norm statistics that each rank learned on its own samples; frozen ones keep every bit."""
        if self.world == 1:
            return
        for norm in self.learning_norms:
            for statistic in norm.buffers():
                if statistic.is_floating_point():
                    dist.all_reduce(statistic)
                    statistic.div_(self.world)
                else:
                    dist.broadcast(statistic, src=0)  # how many batches; shares of a window may differ by one

    def masters(self) -> Sequence[Tensor]:
        """The tensors that this rank's optimizer updates; the keys of its state."""
        return self.strategy.masters(self.prepared)

    def publish(self) -> None:
        """Let the model compute with what was written into the masters."""
        self.strategy.publish(self.prepared)

    def take(self) -> Iterator[Piece]:
        """What this rank writes into a checkpoint, tensor by tensor; every rank must come to the end."""
        return self.strategy.take(self.prepared)

    def put(self, tensors: Tensors) -> None:
        """Restore model and optimizer from a whole checkpoint; the model alone if it has no optimizer tensors."""
        self.strategy.put(self.prepared, tensors)

    def draw(self, seed: int) -> None:
        """Start dropout and stochastic depth of one pass from a seed."""
        torch.manual_seed(seed)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)  # or torch warns of a guess

    def close(self, wait: bool = True) -> None:
        """Part from the other ranks; after an error without waiting for them."""
        if dist.is_initialized():
            if wait:
                self.barrier()
            self.strategy.end()
        AcceleratorState._reset_state(reset_partial_state=True)


def _among_ranks(kind: str, limit_s: int) -> list[Any]:
    return [
        InitProcessGroupKwargs(backend="gloo" if kind == "cpu" else "nccl", timeout=timedelta(seconds=limit_s)),
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),
    ]


def _compare(names: Sequence[str], came: Sequence[object], wanted: Sequence[object]) -> None:
    if came != wanted:
        told = [f"{name}: {got!r} came, {asked!r} was asked for" for name, got, asked in zip(names, came, wanted, strict=True)]
        raise MachineError(["the libraries set up something else than this run needs", *told])
