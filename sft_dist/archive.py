"""Tensors in files: the safetensors format, written without a second copy and without holding Python's lock, read one at a time."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sft_dist import manifest
from sft_dist.manifest import Entry

DTYPES = {  # torch's name -> the format's; https://github.com/huggingface/safetensors, "Format"
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
CHUNK = 16 * 2**20
AVERAGE = "ema"  # the name of the moving average among a parameter's moments


def write(path: Path, tensors: Mapping[str, Tensor]) -> Entry:
    """Write host tensors as one safetensors file and force it to the disk; its size and hash, of what was meant to be written.

    The mapping may read a file at each look-up: at most two of its tensors are held at a time.
    Every large call (hash, write) gives up Python's lock, so that training goes on beside it; safetensors' own `save_file`
    copies everything under the lock first.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps every tensor aligned
    header, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, written = hashlib.sha256(), 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)  # less the umask; the run's folder keeps others out
    try:
        head = (memoryview(len(text).to_bytes(8, "little")), memoryview(text))
        for piece in chain(head, (_bytes(tensors[name]) for name in order)):
            for start in range(0, len(piece), CHUNK):
                chunk = piece[start : start + CHUNK]
                digest.update(chunk)
                while chunk:
                    count = os.write(handle, chunk)
                    chunk, written = chunk[count:], written + count
        os.fsync(handle)
    finally:
        os.close(handle)
    return Entry(written, digest.hexdigest())


def _bytes(tensor: Tensor) -> memoryview:
    assert tensor.device.type == "cpu" and tensor.is_contiguous()
    raw: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


class Shelf(Mapping[str, Tensor]):
    """The tensors of several safetensors files by name. Each look-up reads one tensor, and nothing is kept."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises SafetensorError for a file that is not in the format."""
        self.files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        self.places = {name: file for file in self.files for name in file.keys()}  # noqa: SIM118, not a mapping

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.places[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Averaged(Mapping[str, Tensor]):
    """The weights to use: of each parameter the moving average, where the run kept one."""

    def __init__(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        self.model, self.optimizer = model, optimizer

    @property
    def averaged(self) -> bool:
        """Whether any of them is an average."""
        return any(f"{name}/{AVERAGE}" in self.optimizer for name in self.model)

    def __getitem__(self, name: str) -> Tensor:
        average = f"{name}/{AVERAGE}"
        return self.optimizer[average] if average in self.optimizer else self.model[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.model)

    def __len__(self) -> int:
        return len(self.model)


def verify(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, a sentence each: by its manifest, and with files that match it but hold no tensors."""
    if problems := manifest.verify(checkpoint):
        return problems
    for path in manifest.listed(checkpoint):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except SafetensorError as error:
                problems.append(f"{path} is not a safetensors file, though its manifest has its hash ({error})")
    return problems


def shelves(checkpoint: Path) -> tuple[Shelf, Shelf]:
    """The `model` and the `optim` tensors of a verified checkpoint, from the files that its manifest lists."""
    paths = manifest.listed(checkpoint)
    model, optimizer = (
        Shelf([path for path in paths if path.name.startswith(part) and path.suffix == ".safetensors"]) for part in ("model", "optim")
    )
    return model, optimizer


def weights(checkpoint: Path) -> Averaged:
    """The weights that a verified checkpoint is scored, tested and used with."""
    return Averaged(*shelves(checkpoint))
