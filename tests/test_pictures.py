"""Pictures for a page come from the data set where it can be reached, and from nowhere else."""

import base64
import gzip
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from test_torchvision_sets import write_mnist

from sft_dist import pictures


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_files_of_a_folder_are_shown_small(tmp_path: Path) -> None:
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (400, 200), (250, 10, 10)).save(tmp_path / "val" / "cat" / "1.jpg")
    found = pictures.of({"data.name": "folder", "data.root": str(tmp_path)}, ["val/cat/1.jpg", "val/cat/2.jpg"])
    assert list(found) == ["val/cat/1.jpg"]
    with opened(found["val/cat/1.jpg"]) as image:
        assert (image.size, image.format) == ((128, 64), "JPEG")


def test_an_id_cannot_reach_out_of_the_data_set(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    (root / "link.png").symlink_to(tmp_path / "private.png")
    (root / "notes.png").write_text("no image")
    (root / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    ids = ["../private.png", str(tmp_path / "private.png"), "link.png", "notes.png", "postscript.png", "", "a\0b", "x" * 5000]
    assert pictures.of({"data.name": "folder", "data.root": str(root)}, ids) == {}


def test_digits_are_those_of_scikit_learn() -> None:
    found = pictures.of({"data.name": "digits"}, ["digits/0007", "digits/1797", "digits/x", "7"])
    assert sorted(found) == ["7", "digits/0007"]
    with opened(found["digits/0007"]) as image:
        assert np.array_equal(np.asarray(image)[..., 0], (load_digits().images[7] * 255 // 16).astype(np.uint8))


def test_data_that_cannot_be_reached_has_no_pictures(tmp_path: Path) -> None:
    for config in ({}, {"data.name": "torchvision"}, {"data.name": "folder"}, {"data.name": "folder", "data.root": str(tmp_path / "gone")}):
        assert pictures.of(config, ["a.png"]) == {}


def test_pictures_of_mnist_are_its_own(tmp_path: Path) -> None:
    grey, _ = write_mnist(tmp_path, "MNIST")
    config = {"data.name": "torchvision", "data.dataset": "MNIST", "data.root": str(tmp_path)}
    found = pictures.of(
        config, ["MNIST/test/0000007", "MNIST/train/0000299", "MNIST/train/0000300", "KMNIST/test/0000007", "MNIST/test/-1"]
    )
    assert list(found) == ["MNIST/test/0000007", "MNIST/train/0000299"]
    for uri, place in zip(found.values(), (307, 299), strict=True):
        with opened(uri) as image:
            assert np.array_equal(np.asarray(image)[..., 0], grey[place])


BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def write_cifar(root: Path) -> None:
    """The files of CIFAR-10 with three images each."""
    draws = np.random.default_rng(0)
    (root / "cifar-10-batches-py").mkdir()
    for name in BATCHES:
        batch = {"batch_label": name, "data": draws.integers(0, 256, (3, 3072), np.uint8), "labels": [0, 1, 2], "filenames": ["x.png"] * 3}
        (root / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, 2))
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, 2))


def test_pictures_of_cifar_are_those_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    write_cifar(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda _: True)  # these are not the published files
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    config = {"data.name": "torchvision", "data.dataset": "CIFAR10", "data.root": str(tmp_path)}
    ids = {f"CIFAR10/{split}/{i:07d}": (split, i) for split, i in (("train", 0), ("train", 7), ("test", 2))}
    found = pictures.of(config, [*ids, "CIFAR10/train/0000015", "CIFAR10/val/0000000"])
    assert list(found) == list(ids)
    for sample, (split, i) in ids.items():
        with opened(found[sample]) as image:
            theirs, _ = torchvision.datasets.CIFAR10(str(tmp_path), train=split == "train")[i]
            assert np.array_equal(np.asarray(image), np.asarray(theirs))


def test_cifars_array_may_be_a_string_of_python_2(tmp_path: Path) -> None:
    """As in the published files; Python 3 does not write that opcode any more, so it is put here by hand."""
    image = np.random.default_rng(1).integers(0, 256, (3, 32, 32), np.uint8)
    write_cifar(tmp_path)
    string = b"T" + (3072).to_bytes(4, "little") + image.tobytes()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"\x80\x02}U\x04data" + string + b"s.")
    config = {"data.name": "torchvision", "data.dataset": "CIFAR10", "data.root": str(tmp_path)}
    with opened(pictures.of(config, ["CIFAR10/test/0000000"])["CIFAR10/test/0000000"]) as shown:
        assert np.array_equal(np.asarray(shown).transpose(2, 0, 1), image)


def _touch(path: str) -> None:
    Path(path).touch()


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _touch, (str(self.path),)


def test_a_pickle_is_not_run_for_a_picture(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Payload(tmp_path / "run"), 2))
    config = {"data.name": "torchvision", "data.dataset": "CIFAR10", "data.root": str(tmp_path)}
    assert pictures.of(config, ["CIFAR10/test/0000000"]) == {}
    assert not (tmp_path / "run").exists()
    pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [gzip.compress(b"12345678")[:-9], gzip.compress(b"1")[:10] + b"\xff" * 9], ids=["cut off", "damaged"])
def test_an_archive_that_cannot_be_unpacked_has_no_pictures(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    assert pictures.of({"data.name": "torchvision", "data.dataset": "MNIST", "data.root": str(tmp_path)}, ["MNIST/test/0000000"]) == {}


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"no pickle", b"\x00\x00\x08\x03" + b"\xff" * 12])
def test_a_damaged_array_has_no_pictures(tmp_path: Path, content: bytes) -> None:
    for dataset, file in (("CIFAR10", "cifar-10-batches-py/test_batch"), ("MNIST", "MNIST/raw/t10k-images-idx3-ubyte")):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(content)
        config = {"data.name": "torchvision", "data.dataset": dataset, "data.root": str(tmp_path)}
        assert pictures.of(config, [f"{dataset}/test/0000000"]) == {}
