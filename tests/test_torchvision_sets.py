"""Torchvision's sets are opened by name, offline where they are there, and refused with the remedy where they are not."""

import gzip
import inspect
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from sft_dist import datasets
from sft_dist.config import Data
from sft_dist.datasets import torchvision_sets
from sft_dist.errors import ConfigError, MachineError

OPENED = [
    (name, arguments)
    for name in torchvision_sets.KNOWN
    for arguments in (
        [{"split": split} for split in torchvision_sets.OFFICIAL[name] if split]
        if name in torchvision_sets.OFFICIAL
        else [{"train": True}, {"train": False}]
        if name in torchvision_sets.BOOLEAN
        else [{}]
    )
]


def write_idx(path: Path, numbers: np.ndarray) -> None:
    """A file in the format of MNIST: magic number, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">I{numbers.ndim}I", 0x0800 | numbers.ndim, *numbers.shape) + numbers.astype(np.uint8).tobytes())


def write_mnist(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits in the files of MNIST, blown up to 28 pixels: 300 to train, 50 to test."""
    digits = load_digits()
    grey, labels = np.kron(digits.images[:350] * 15, np.ones((1, 3, 3))), digits.target[:350]
    grey = np.pad(grey, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    for part, of in (("train", slice(0, 300)), ("t10k", slice(300, 350))):
        write_idx(root / name / "raw" / f"{part}-images-idx3-ubyte", grey[of])
        write_idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", labels[of])
    return grey, labels


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_a_set_that_is_there_is_read_with_its_official_test_split(tmp_path: Path, name: str) -> None:
    grey, labels = write_mnist(tmp_path, name)
    splits = datasets.load(Data(name="torchvision", dataset=name, root=str(tmp_path), val_fraction=0.1))
    assert splits.test is not None
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (300, 50)
    assert splits.test.labels == labels[300:].tolist()
    assert splits.test.names[7] == f"{name}/test/0000007"
    assert (splits.test.read(7).numpy() == grey[307]).all()
    assert splits.classes[:2] == (("0 - zero", "1 - one") if name == "MNIST" else ("T-shirt/top", "Trouser"))


def test_held_out_samples_keep_their_names_and_labels(tmp_path: Path) -> None:
    grey, labels = write_mnist(tmp_path, "MNIST")
    splits = datasets.load(Data(name="torchvision", dataset="MNIST", root=str(tmp_path), classes=("7 - seven", "1 - one")))
    numbers = [int(name.removeprefix("MNIST/train/")) for name in splits.val.names]
    assert [(7, 1)[label] for label in splits.val.labels] == labels[numbers].tolist()
    assert (splits.val.read(0).numpy() == grey[numbers[0]]).all()


def test_the_names_of_a_class_are_joined_and_images_stay_unread(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            (tmp_path / "imagenette2" / split / wnid).mkdir(parents=True)
            (tmp_path / "imagenette2" / split / wnid / "a.JPEG").write_bytes(b"not looked into")
    Image.new("RGB", (9, 9), (200, 0, 0)).save(tmp_path / "imagenette2/val/n02102040/a.JPEG")
    splits = datasets.load(Data(name="torchvision", dataset="Imagenette", root=str(tmp_path)))
    assert splits.classes == ("tench, Tinca tinca", "English springer, English springer spaniel")
    assert (splits.train.labels, splits.val.labels, splits.test) == ([0, 1], [0, 1], None)
    assert splits.val.read(1).shape == (3, 9, 9)


def test_classes_of_the_same_name_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    """Scores by class are kept by name, and the names tell what the numbers of predictions mean."""
    names = {"n01440764": ("tench", "Tinca tinca"), "n02012849": ("crane",), "n03126707": ("crane",)}
    torch.save((names, ["n01440764"]), tmp_path / "meta.bin")  # as torchvision keeps what it has read of ImageNet's devkit
    for split in ("train", "val"):
        for wnid in names:
            (tmp_path / split / wnid).mkdir(parents=True)
            (tmp_path / split / wnid / "a.JPEG").write_bytes(b"not looked into")
    splits = datasets.load(Data(name="torchvision", dataset="ImageNet", root=str(tmp_path)))
    assert (splits.classes, splits.train.labels) == (("tench, Tinca tinca", "crane (1)", "crane (2)"), [0, 1, 2])


@pytest.mark.parametrize("name", torchvision_sets.KNOWN)
def test_a_set_that_is_not_there_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        datasets.load(Data(name="torchvision", dataset=name, root=str(tmp_path)))
    [told] = caught.value.problems
    assert told.startswith(f"data.dataset = {name} cannot be read from data.root = {str(tmp_path)!r} (")
    assert told.endswith(
        "torchvision cannot download it, its documentation says where to get it" if name == "ImageNet" else "use data.download: true"
    )


@pytest.mark.parametrize(("name", "arguments"), OPENED)
def test_torchvision_has_every_set_and_takes_its_splits(tmp_path: Path, name: str, arguments: dict[str, object]) -> None:
    kind = getattr(torchvision.datasets, name)
    downloads = {"download": False} if "download" in inspect.signature(kind).parameters else {}
    with pytest.raises((RuntimeError, FileNotFoundError)):  # nothing there; a split that it does not have is a ValueError
        kind(root=str(tmp_path), **arguments, **downloads)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "StanfordCars"])
def test_a_download_that_fails_is_the_machines_fault(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(MachineError, match=f"^data.download.* {name} .*copy the folder$|^data.download into .*fetch {name} where"):
        datasets.load(Data(name="torchvision", dataset=name, root=str(tmp_path / "new"), download=True))


def test_files_that_are_there_are_not_downloaded_again(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    assert len(datasets.load(Data(name="torchvision", dataset="MNIST", root=str(tmp_path), download=True)).train) == 240


@pytest.mark.parametrize("damage", [gzip.compress, lambda content: content[: len(content) // 2]], ids=["still packed", "cut short"])
def test_a_damaged_file_of_a_set_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"data.dataset = MNIST cannot be read from data.root"):
        datasets.load(Data(name="torchvision", dataset="MNIST", root=str(tmp_path)))


def test_unknown_names_and_a_missing_root_are_refused_before_torch_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"data.dataset = 'Cifar10'; use one of torchvision's CIFAR10, CIFAR100, Country211, "):
        datasets.check(Data(name="torchvision", dataset="Cifar10", root="data"))
    with pytest.raises(ConfigError, match=r"data.root is missing; name the folder that torchvision keeps its data sets in"):
        datasets.check(Data(name="torchvision", dataset="CIFAR10"))
