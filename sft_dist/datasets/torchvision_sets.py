"""`torchvision`: the classification sets of torchvision.datasets by name, with their official splits."""

import inspect
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_dist import locks
from sft_dist.config import Data
from sft_dist.datasets.splits import Split, Splits, choose_split, draw_splits
from sft_dist.errors import ConfigError, MachineError

OFFICIAL = {  # data set -> what it calls its (training, validation, test) split
    "Country211": ("train", "valid", "test"),
    "DTD": ("train", "val", "test"),
    "FGVCAircraft": ("train", "val", "test"),
    "Flowers102": ("train", "val", "test"),
    "Food101": ("train", None, "test"),
    "GTSRB": ("train", None, "test"),
    "ImageNet": ("train", "val", None),
    "Imagenette": ("train", "val", None),
    "OxfordIIITPet": ("trainval", None, "test"),
    "PCAM": ("train", "val", "test"),
    "RenderedSST2": ("train", "val", "test"),
    "STL10": ("train", None, "test"),
    "SVHN": ("train", None, "test"),
    "StanfordCars": ("train", None, "test"),
}
BOOLEAN = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")  # train=True and train=False (the test split)
WHOLE = ("EuroSAT", "SEMEION")  # no official split
KNOWN = sorted([*OFFICIAL, *BOOLEAN, *WHOLE])


def check(data: Data) -> None:
    if data.dataset not in KNOWN:
        raise ConfigError(f"data.dataset = {data.dataset!r}; use one of torchvision's {', '.join(KNOWN)}")
    if data.root is None:
        raise ConfigError("data.root is missing; name the folder that torchvision keeps its data sets in")


def load(data: Data) -> Splits:
    check(data)
    with _one_download_at_a_time(data):
        if data.dataset in OFFICIAL:
            sets = [_open(data, split=name) if name else None for name in OFFICIAL[data.dataset]]
        elif data.dataset in BOOLEAN:
            sets = [_open(data, train=True), None, _open(data, train=False)]
        else:
            sets = [_open(data), None, None]
    train = sets[0]
    labels = _labels(train)
    names = getattr(train, "classes", sorted(set(labels)))
    classes = [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]  # ImageNet's are tuples of synonyms
    whole, val, test = (
        _split(part, data, name) if part is not None else None for part, name in zip(sets, ("train", "val", "test"), strict=True)
    )
    assert whole is not None
    return draw_splits(whole, val, test, _told_apart(classes), data)


def load_split(data: Data, name: str, classes: tuple[str, ...]) -> Split:
    return choose_split(load(data), name, classes)


@contextmanager
def _one_download_at_a_time(data: Data) -> Iterator[None]:
    """The first process on a machine downloads, the others wait and then find the files."""
    if not data.download:
        yield
        return
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # Python 3.11 else lets archives write outside (vision#9517)
    root = Path(str(data.root))
    try:
        with locks.one_at_a_time(root):
            yield
    except OSError as error:
        raise MachineError(
            f"data.download into {root}: {error}; fetch {data.dataset} where there is a network and copy the folder"
        ) from error


def _open(data: Data, **split: Any) -> Any:
    import torchvision

    kind = getattr(torchvision.datasets, str(data.dataset))
    if "download" in inspect.signature(kind).parameters:
        split["download"] = data.download
    try:
        return kind(root=str(data.root), **split)
    except ImportError as error:
        raise MachineError(f"data.dataset = {data.dataset} needs a package that is not installed here: {error}") from error
    except (RuntimeError, FileNotFoundError, ValueError, AssertionError) as error:  # torchvision asserts the form of MNIST's files
        told = str(error).split("\n")[0] or type(error).__name__
        if split.get("download"):
            raise MachineError(
                f"data.download: {data.dataset} did not come into {data.root} ({told}); fetch it where there is a network and copy the folder"
            ) from error
        remedy = (
            "use data.download: true" if "download" in split else "torchvision cannot download it, its documentation says where to get it"
        )
        raise ConfigError(f"data.dataset = {data.dataset} cannot be read from data.root = {data.root!r} ({told}); {remedy}") from error


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names of classes, with its number behind one that several bear: ImageNet has two cranes, the bird and the machine."""
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _labels(dataset: Any) -> list[int]:
    for name in ("targets", "_labels", "labels", "y"):
        if hasattr(dataset, name):
            return [int(label) for label in getattr(dataset, name)]
    if hasattr(dataset, "_samples"):
        return [int(label) for _, label in dataset._samples]  # GTSRB, Imagenette, ...: without decoding every image
    return [int(dataset[i][1]) for i in range(len(dataset))]


def _split(dataset: Any, data: Data, name: str) -> Split:
    from torchvision.transforms.v2.functional import pil_to_tensor

    def read(i: int) -> Any:
        try:
            return pil_to_tensor(dataset[i][0].convert("RGB"))
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise ValueError(f"{data.dataset}/{name}/{i:07d} cannot be decoded: {error}") from error

    return Split([f"{data.dataset}/{name}/{i:07d}" for i in range(len(dataset))], _labels(dataset), read)
