"""Files are what safetensors itself would read, to the bit; tensors come back one at a time, the average where there is one."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sft_dist import archive, manifest
from sft_dist.archive import DTYPES, Averaged, Shelf

SHAPES = [(), (1,), (7,), (0,), (3, 0, 2), (2, 3), (5, 1, 3, 3), (1, 1, 1, 1, 1)]


def drawn(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bits at all, not-a-numbers and subnormals among them."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(256, (*shape, size), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def header(path: Path) -> dict[str, dict]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)) | {"starts": 8 + length}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safetensors_reads_every_type_and_shape_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {f"t{i}": drawn(dtype, shape, i) for i, shape in enumerate(SHAPES)}
    archive.write(tmp_path / "a.safetensors", tensors)
    assert {name: bits(tensor) for name, tensor in load_file(tmp_path / "a.safetensors").items()} == {
        name: bits(tensor) for name, tensor in tensors.items()
    }


MIXED = some.dictionaries(
    some.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and name.isprintable()),
    some.tuples(some.sampled_from(list(DTYPES)), some.lists(some.integers(0, 5), max_size=4).map(tuple), some.integers(0, 2**20)),
    max_size=8,
)


@given(MIXED)
def test_any_mixture_comes_back_whole_aligned_and_hashed(tmp_path_factory: pytest.TempPathFactory, mixture: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "mixture.safetensors"
    tensors = {name: drawn(*what) for name, what in mixture.items()}
    entry = archive.write(path, tensors)
    assert {name: bits(tensor) for name, tensor in load_file(path).items()} == {name: bits(tensor) for name, tensor in tensors.items()}
    assert entry == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert entry == manifest.entry(path)
    told = header(path)
    assert told["starts"] % 8 == 0
    for name, tensor in tensors.items():
        assert told[name]["data_offsets"][0] % tensor.element_size() == 0


def test_a_file_larger_than_a_chunk_is_hashed_and_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "CHUNK", 1000)
    tensors = {"large": drawn(torch.float32, (33, 41)), "small": drawn(torch.int64, ())}
    entry = archive.write(tmp_path / "a", tensors)
    assert entry == (tmp_path.joinpath("a").stat().st_size, hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest())
    assert bits(load_file(tmp_path / "a")["large"]) == bits(tensors["large"])


def test_a_disk_that_takes_a_little_at_a_time_gets_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(archive.os, "write", lambda handle, data: write(handle, data[:7]))
    tensors = {"a": drawn(torch.float64, (19,)), "b": drawn(torch.uint8, (5,))}
    entry = archive.write(tmp_path / "a", tensors)
    assert entry == manifest.entry(tmp_path / "a")
    assert {name: bits(tensor) for name, tensor in load_file(tmp_path / "a").items()} == {n: bits(t) for n, t in tensors.items()}


def test_a_file_says_that_it_is_torchs(tmp_path: Path) -> None:
    archive.write(tmp_path / "a", {"t": torch.zeros(3)})
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_older_and_longer_file_of_the_name_is_replaced_whole(tmp_path: Path) -> None:
    archive.write(tmp_path / "a", {"t": torch.ones(1000)})
    entry = archive.write(tmp_path / "a", {"t": torch.ones(2)})
    assert entry == manifest.entry(tmp_path / "a")
    assert torch.equal(load_file(tmp_path / "a")["t"], torch.ones(2))


def test_the_entry_is_of_what_was_meant_and_not_of_what_the_disk_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def faulty(handle: int, data: memoryview) -> int:
        """A disk that turns every byte."""
        return write(handle, bytes(byte ^ 1 for byte in data))

    monkeypatch.setattr(archive.os, "write", faulty)
    entry = archive.write(tmp_path / "a", {"t": torch.ones(3)})
    manifest.write(tmp_path, 1, {"a": entry})
    monkeypatch.setattr(archive.os, "write", write)
    [problem] = manifest.verify(tmp_path)
    assert "a has sha256" in problem


def test_a_shelf_reads_one_tensor_at_a_time_across_files(tmp_path: Path) -> None:
    one, two = {"a": torch.arange(3), "b": torch.zeros(2, 0)}, {"c/exp_avg": torch.tensor(2.5, dtype=torch.bfloat16)}
    archive.write(tmp_path / "one", one)
    archive.write(tmp_path / "two", two)
    shelf = Shelf([tmp_path / "one", tmp_path / "two"])
    assert (sorted(shelf), len(shelf), "c/exp_avg" in shelf, "d" in shelf) == (["a", "b", "c/exp_avg"], 3, True, False)
    assert {name: bits(tensor) for name, tensor in shelf.items()} == {name: bits(tensor) for name, tensor in {**one, **two}.items()}
    assert shelf["a"] is not shelf["a"]  # nothing is kept
    with pytest.raises(KeyError, match="d"):
        shelf["d"]


def test_a_shelf_without_files_is_empty() -> None:
    assert dict(Shelf([])) == {}
    assert not Shelf([])


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{"])
def test_a_file_that_is_no_archive_is_refused_when_it_is_opened(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SafetensorError):
        Shelf([tmp_path / "a"])


def test_the_average_stands_in_for_the_weights_that_have_one() -> None:
    model = {"fc.weight": torch.tensor([1.0]), "fc.bias": torch.tensor([2.0]), "norm.running_mean": torch.tensor([3.0])}
    optimizer = {"fc.weight/ema": torch.tensor([10.0]), "fc.weight/exp_avg": torch.tensor([20.0]), "lost/ema": torch.tensor([30.0])}
    averaged = Averaged(model, optimizer)
    assert {name: tensor.item() for name, tensor in averaged.items()} == {"fc.weight": 10.0, "fc.bias": 2.0, "norm.running_mean": 3.0}
    assert len(averaged) == 3


def a_checkpoint(folder: Path) -> Path:
    """Model and optimizer of two ranks, and a file that the manifest does not list."""
    files = {
        "model.safetensors": {"a": torch.tensor([1.0])},
        "model-00001.safetensors": {"b": torch.tensor([2.0])},
        "optim.safetensors": {"a/ema": torch.tensor([3.0])},
        "optim-00001.safetensors": {"b/exp_avg": torch.tensor([4.0])},
    }
    entries = {name: archive.write(folder / name, tensors) for name, tensors in files.items()}
    manifest.write(folder, 1, entries)
    archive.write(folder / "model-00002.safetensors", {"a": torch.tensor([9.0])})
    return folder


def test_a_checkpoint_is_read_from_the_files_that_its_manifest_lists(tmp_path: Path) -> None:
    model, optimizer = archive.shelves(a_checkpoint(tmp_path))
    assert {name: tensor.item() for name, tensor in model.items()} == {"a": 1.0, "b": 2.0}
    assert {name: tensor.item() for name, tensor in optimizer.items()} == {"a/ema": 3.0, "b/exp_avg": 4.0}


def test_the_weights_of_a_checkpoint_are_the_averaged_ones_where_there_are(tmp_path: Path) -> None:
    assert {name: tensor.item() for name, tensor in archive.weights(a_checkpoint(tmp_path)).items()} == {"a": 3.0, "b": 2.0}
