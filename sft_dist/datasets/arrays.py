"""Images of those of torchvision's data sets that lie in a few large arrays, by their number; without torch, and without running a pickle."""

import functools
import gzip
import pickletools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

CIFAR = {
    "CIFAR10": ("cifar-10-batches-py", {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}),
    "CIFAR100": ("cifar-100-python", {"train": ["train"], "test": ["test"]}),
}  # folder, files of each split
MNIST = ("MNIST", "FashionMNIST", "KMNIST")
HEAD = 16  # bytes of an idx file of images: its kind, how many, height, width


def of(dataset: str, root: Path) -> Callable[[str, int], Any] | None:
    """(split, number) -> its pixels as uint8, or None where there are not so many; None for other data sets. Raises OSError and ValueError."""
    read = _cifar if dataset in CIFAR else _mnist if dataset in MNIST else None
    if read is None:
        return None
    arrays = functools.cache(functools.partial(read, dataset, root))

    def pixels(split: str, number: int) -> Any:
        images = arrays(split)
        return images[number] if number < len(images) else None

    return pixels


def _cifar(dataset: str, root: Path, split: str) -> Any:
    """A pickle of Python 2, whose longest string is the array: it is looked for among the opcodes, and nothing is built from them."""
    import numpy as np

    folder, files = CIFAR[dataset]
    batches = []
    for name in files.get(split, ()):
        strings = (argument for _, argument, _ in pickletools.genops((root / folder / name).read_bytes()) if isinstance(argument, str))
        batches.append(np.frombuffer(max(strings, key=len, default="").encode("latin-1"), np.uint8).reshape(-1, 3, 32, 32))
    return np.concatenate(batches).transpose(0, 2, 3, 1) if batches else ()


def _mnist(dataset: str, root: Path, split: str) -> Any:
    import numpy as np

    path = root / dataset / "raw" / f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte"
    packed = path.with_name(f"{path.name}.gz")
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{packed} cannot be unpacked: {error}") from error
    height, width = (int.from_bytes(content[place : place + 4], "big") for place in (8, 12))
    return np.frombuffer(content, np.uint8, offset=HEAD).reshape(-1, height, width)
