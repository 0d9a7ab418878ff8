"""The machine: processes, device, precision, and every collective. The only room that knows Accelerate."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

from sft_dist.config import Config
from sft_dist.errors import InfrastructureError, MachineError, SftError
from sft_dist.plan import World, processors, timeout_s
from sft_dist.refuse import ON, native_bf16
from sft_dist.sharding import STRATEGIES, Tensors
from sft_dist.tally import Evidence

Result = TypeVar("Result")


class Engine:
    """The processes of one run, from the first handshake to the last. Every rank must make the same calls in the same order."""

    def __init__(self, config: Config, world: World) -> None:
        """Start up and check that what came is what was asked for. Raises MachineError where it is not."""
        self.place, self.rank, self.world = world, world.rank, world.size
        self.strategy = STRATEGIES[config.shard.strategy]
        self.precision = config.precision
        kind = _choose_device(config, world)
        _set_arithmetic(config, kind)
        self.accelerator = Accelerator(
            cpu=kind == "cpu",
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            gradient_accumulation_steps=1,
            kwargs_handlers=_among_ranks(kind, timeout_s(config)) if world.size > 1 else [],
        )
        self.device = self.accelerator.device
        came = (self.accelerator.num_processes, self.device.type, self.accelerator.mixed_precision)
        wanted = (world.size, kind, "bf16" if config.precision == "bf16" else "no")
        if came != wanted:
            names = ("processes", "device", "autocast")
            told = [f"{name}: {got!r} came, {asked!r} was asked for" for name, got, asked in zip(names, came, wanted, strict=True)]
            raise MachineError(["Accelerate set up something else than this run needs", *told])
        if "OMP_NUM_THREADS" not in os.environ:  # after Accelerate, which counts the machine's processors instead of this process's
            torch.set_num_threads(max(1, processors() // world.local_size))

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is None)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def prepare(self, module: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer]) -> nn.Module:
        """Move the model to the device and wrap it for the strategy; `module` and `optimizer` stay within reach, bare."""
        self.module = module.to(self.device, torch.float64 if self.precision == "fp64" else torch.float32)
        self.learning_norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
        self.optimizer = make_optimizer(self.module)
        self.wrapped = self.strategy.prepare(self.accelerator, self.module)
        return self.wrapped

    @contextmanager
    def backward_pass(self, last: bool) -> Iterator[Callable[[Tensor], None]]:
        """One forward and backward pass of a step; gradients meet over the ranks in the last one only."""
        with self.strategy.one_pass(self.accelerator, self.wrapped, last):
            yield self.accelerator.backward

    def clip(self, max_norm: float | None) -> Tensor:
        """Clip the gradient in place; returns its global norm before that, equal on all ranks."""
        return self.strategy.clip(self.module, max_norm)

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """Each value summed over all ranks, in float64."""
        stacked = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        if self.world > 1:
            dist.all_reduce(stacked)
        return stacked.tolist()

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

    def take(self) -> Tensors:
        """What this rank writes into a checkpoint."""
        return self.strategy.take(self.module, self.optimizer, self.rank)

    def put(self, tensors: Tensors) -> None:
        """Restore model and optimizer from a whole checkpoint."""
        self.strategy.put(self.module, self.optimizer, tensors)

    def draw(self, seed: int) -> None:
        """Start dropout and stochastic depth of one pass from a seed."""
        torch.manual_seed(seed)

    def peak_gib(self) -> float | None:
        """Most device memory held so far, in GiB; None on CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else None

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self, wait: bool = True) -> None:
        """Part from the other ranks; after an error without waiting for them."""
        if dist.is_initialized():
            if wait:
                self.barrier()
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def translate(error: BaseException) -> BaseException:
    """An error that has its cause outside the run, as such; any other one unchanged."""
    text = str(error)
    network = r"[Cc]onnection (closed|reset|refused)|[Tt]imed out|[Tt]imeout|Broken pipe|NCCL error|remote process exited|Socket"
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and re.search(network, text)):
        return InfrastructureError(f"another rank was lost or did not answer: {text.splitlines()[0] if text else type(error).__name__}")
    if isinstance(error, torch.OutOfMemoryError):
        return MachineError(f"out of GPU memory: {text.splitlines()[0]}; use a smaller batch.micro (the curve stays the same)")
    return error


def _among_ranks(kind: str, limit_s: int) -> list[Any]:
    return [
        InitProcessGroupKwargs(backend="gloo" if kind == "cpu" else "nccl", timeout=timedelta(seconds=limit_s)),
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),
    ]


def _choose_device(config: Config, world: World) -> str:
    told_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ON
    gpus = torch.cuda.device_count()
    if config.device == "cuda" and not gpus:
        raise MachineError(
            "device = cuda, but torch sees no CUDA device here; use device: cpu, or look at nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    kind = "cuda" if config.device == "cuda" or (config.device == "auto" and gpus and not told_cpu) else "cpu"
    if kind == "cuda" and world.local_size > gpus:
        raise MachineError(f"{world.local_size} processes on this machine, but it has {gpus} GPUs; start one process a GPU")
    if kind == "cuda" and config.precision in ("tf32", "bf16") and torch.cuda.get_device_capability(world.local_rank) < (8, 0):
        raise MachineError(f"precision = {config.precision}, but {torch.cuda.get_device_name(world.local_rank)} does not have it; use fp32")
    if kind == "cpu" and config.model.norm == "sync":
        raise MachineError("model.norm = sync needs GPUs: torch's SyncBatchNorm does not run on CPU; use frozen or train")
    if kind == "cpu" and config.precision == "tf32":
        raise MachineError("precision = tf32 is an arithmetic of GPUs, and there is none here; use fp32")
    if kind == "cpu" and config.precision == "bf16" and not (native_bf16() or config.train.allow_emulated):
        raise MachineError(
            "precision = bf16, but this processor only emulates it, 13 to 18 times slower; use fp32, or train.allow_emulated: true"
        )
    return kind


def _set_arithmetic(config: Config, kind: str) -> None:
    tf32 = config.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.backends.cudnn.benchmark = kind == "cuda" and not config.train.deterministic
