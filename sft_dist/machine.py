"""What this machine can compute with, the refusal of what it does not have, and its failures in words."""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sft_dist.config import Config
from sft_dist.errors import InfrastructureError, MachineError
from sft_dist.plan import World
from sft_dist.refuse import SLOW_FP16, native_bf16
from sft_dist.timeline import HOST, Clock, by_events
from sft_dist.variables import ON

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(config: Config, world: World) -> str:
    """`cuda` or `cpu`. Raises MachineError for what a config asks of a machine that cannot do it."""
    told_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ON
    gpus = torch.cuda.device_count()
    if config.device == "cuda" and not gpus:
        raise MachineError(
            "device = cuda, but torch sees no CUDA device here; use device: cpu, or look at nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    kind = "cuda" if config.device == "cuda" or (config.device == "auto" and gpus and not told_cpu) else "cpu"
    if kind == "cuda" and world.local_size > gpus:
        raise MachineError(
            f"{world.local_size} processes on this machine, but it has {gpus} GPU{'s' * (gpus > 1)}; start one process a GPU"
        )
    if kind == "cuda" and config.precision in ("tf32", "bf16") and torch.cuda.get_device_capability(world.local_rank) < (8, 0):
        raise MachineError(f"precision = {config.precision}, but {torch.cuda.get_device_name(world.local_rank)} does not have it; use fp32")
    if config.precision == "fp64" and config.shard.strategy == "zero3" and (kind == "cuda" or _multiplies_fp16()):
        raise MachineError("precision = fp64 with shard.strategy = zero3: DeepSpeed 0.19 refuses it on this device; use zero2 or fsdp")
    if kind == "cpu" and config.model.norm == "sync":
        raise MachineError("model.norm = sync needs GPUs: torch's SyncBatchNorm does not run on CPU; use frozen or train")
    if kind == "cpu" and config.shard.offload != "none" and not config.train.allow_emulated:
        raise MachineError(
            f"shard.offload = {config.shard.offload} moves from GPUs to host memory, and there is no GPU here; use none, or "
            "train.allow_emulated: true to try it out"
        )
    if kind == "cpu" and config.precision == "tf32":
        raise MachineError("precision = tf32 is an arithmetic of GPUs, and there is none here; use fp32")
    if kind == "cpu" and config.precision == "bf16" and not (native_bf16() or config.train.allow_emulated):
        raise MachineError(
            "precision = bf16, but this processor only emulates it, 13 to 18 times slower; use fp32, or train.allow_emulated: true"
        )
    if kind == "cpu" and config.precision == "fp16" and not config.train.allow_emulated:
        raise MachineError(SLOW_FP16)
    return kind


def _multiplies_fp16() -> bool:
    """Whether this processor does (avx512_fp16); DeepSpeed asks the same."""
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def title(device: torch.device) -> str:
    """`cpu`, or a GPU with its model, on which speed and last digits hang."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def set_arithmetic(config: Config, kind: str) -> None:
    """TF32 and determinism, as the config has them, whatever was set before. cuDNN tries out its ways of convolving in fp32 and tf32, where
    that pays; in bf16 it took 13 s for each new shape of a batch, and found nothing quicker (docs/benchmarks/gpu.md). Where masks are
    evaluated, or boxes looked into, nearly every pass has a new shape."""
    tf32 = config.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.train.deterministic)
    pays = config.task == "classify" and config.precision in ("fp32", "tf32")
    torch.backends.cudnn.benchmark = kind == "cuda" and pays and not config.train.deterministic


def set_autocast(module: nn.Module, kind: str, precision: str) -> None:
    """With bf16 and fp16, products in that format, weights and outputs in float32; inside the model, so that every wrapper of it
    computes alike. On a GPU the images come with their channels last, which its tensor cores want: docs/benchmarks/gpu.md."""
    if precision in AUTOCAST:
        if kind == "cuda":
            module.register_forward_pre_hook(_channels_last, prepend=True)  # before they are normalised, while they are bytes
        module.forward = torch.autocast(kind, AUTOCAST[precision])(module.forward)
        module.register_forward_hook(lambda *passed: _as_float32(passed[-1]))


def _as_float32(output: Any) -> Any:
    """What a model answers, tensors by themselves, by name or in a list, in float32; class numbers stay as they are."""
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, Mapping):
        return {name: _as_float32(each) for name, each in output.items()}
    return [_as_float32(each) for each in output]


def _channels_last(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (args[0].contiguous(memory_format=torch.channels_last),)


def clock(device: torch.device) -> Clock:
    """What measures the phases of a step: on a GPU its own events, because kernels run when the host has long gone on."""
    if device.type != "cuda":
        return HOST
    return by_events(lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]


def profiler(kind: str) -> profile:
    """Torch's, over what processor and device do."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch 2.14's tells of its starts, and of a missing GPU, on the screen
    return profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if kind == "cuda" else [])], acc_events=True
    )  # false makes 2.11 warn


def translate(error: BaseException) -> BaseException:
    """An error that has its cause outside the run, as such; any other one unchanged."""
    text = str(error)
    first, where = text.splitlines()[0] if text else type(error).__name__, getattr(error, "__notes__", [])
    network = r"[Cc]onnection (closed|reset|refused)|[Tt]imed out|[Tt]imeout|Broken pipe|NCCL error|remote process exited|Socket"
    if isinstance(error, RuntimeError) and re.search(r"shared memory|Bus error", text):
        return MachineError(
            [f"shared memory (/dev/shm) is full: {first}; make it larger, or use fewer data.workers (0 needs none of it)", *where]
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return InfrastructureError([f"a data worker died: {first}; if memory is short, use fewer data.workers", *where])
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and re.search(network, text)):
        plain = re.sub(r"\[/\S+\] | This is typically .*", "", first)  # gloo tells a path of torch's build machine, and jokes
        return InfrastructureError(f"another rank was lost or did not answer: {plain}")
    if isinstance(error, torch.OutOfMemoryError):
        smaller = "use a smaller batch.micro (more passes add up to a step, and the curve stays the same)"
        told = first.partition(" If reserved")[0]  # torch goes on with fragmentation, which is rarely the cause, and with a link
        return MachineError([f"out of GPU memory: {told}; {smaller}", *where])
    return error
