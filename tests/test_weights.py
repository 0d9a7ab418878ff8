"""Weights come from a file, a run or torchvision; what does not fit, or would run code, is refused."""

import json
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torchvision
from given import a_config
from safetensors.torch import save_file
from torch import Tensor

from sft_dist import manifest, models
from sft_dist.errors import ConfigError, MachineError

CLASSES = ("cat", "dog", "eel")
NAME = "mobilenet_v3_small"
HEAD = ("classifier.3.weight", "classifier.3.bias")


@lru_cache
def state_of(name: str = NAME, classes: int = 1000, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return torchvision.models.get_model(name, num_classes=classes).state_dict()


def build(source: object, classes: tuple[str, ...] = CLASSES, **keys: object) -> tuple[dict[str, Tensor], list[str]]:
    model, told = models.build(a_config(**{"model__name": NAME, "model__weights": str(source), **keys}), classes)
    return model.state_dict(), told


def same_but_the_head(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other if name not in HEAD)


WRITERS: dict[str, Callable[[Path], object]] = {
    "w.safetensors": lambda path: save_file(state_of(), path),
    "w.pth": lambda path: torch.save(state_of(), path),
    "w.pt": lambda path: torch.save({"module." + name: tensor for name, tensor in state_of().items()}, path),
    "model.pth": lambda path: torch.save({"model": state_of(), "epoch": 3, "optimizer": {"lr": 0.1}}, path),
    "state_dict.pth": lambda path: torch.save({"state_dict": {f"module.{n}": t for n, t in state_of().items()}}, path),
    "half.safetensors": lambda path: save_file({n: t.half() if t.is_floating_point() else t for n, t in state_of().items()}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_fills_everything_but_the_head(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    built, told = build(tmp_path / name)
    wanted = {n: t.half() if name == "half.safetensors" and t.is_floating_point() else t for n, t in state_of().items()}
    assert same_but_the_head(built, {n: t.to(built[n].dtype) for n, t in wanted.items()})
    assert [tuple(built[part].shape) for part in HEAD] == [(3, 1024), (3,)]
    total = len(state_of())
    assert told == [
        f"{total - 2} of {total} tensors from {tmp_path / name}",
        "new: classifier.3.weight, classifier.3.bias",
        "not used: nothing",
    ]


def test_a_file_without_the_classifier_is_enough(tmp_path: Path) -> None:
    features = {name: tensor for name, tensor in state_of().items() if name not in HEAD}
    save_file(features, tmp_path / "features.safetensors")
    assert same_but_the_head(build(tmp_path / "features.safetensors")[0], features)


def test_the_head_stays_only_if_it_is_asked_for(tmp_path: Path) -> None:
    save_file(state_of(classes=3), tmp_path / "three.safetensors")
    for head, kept in (("auto", False), ("new", False), ("keep", True)):
        built, told = build(tmp_path / "three.safetensors", model__head=head)
        assert torch.equal(built[HEAD[0]], state_of(classes=3)[HEAD[0]]) is kept
        assert told[1] == ("new: nothing" if kept else "new: classifier.3.weight, classifier.3.bias")


def test_a_head_of_another_size_cannot_be_kept(tmp_path: Path) -> None:
    save_file(state_of(), tmp_path / "thousand.safetensors")
    total = len(state_of())
    told = rf"does not fit the model: {total - 2} of {total} tensors match; not in the file or of another shape: classifier.3.weight, classifier.3.bias;"
    with pytest.raises(ConfigError, match=told):
        build(tmp_path / "thousand.safetensors", model__head="keep")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "mobilenet_v2",
            r"does not fit the model: \d+ of 244 tensors match; not in the file or of another shape: features.\S+, .* more; only in the file: ",
        ),
        ("mobilenet_v3_large", r"does not fit the model: \d+ of 244 tensors match"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_counts(tmp_path: Path, source: str, told: str) -> None:
    save_file(state_of(source), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=told):
        build(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("missing", "foreign"), [("features.0.1.running_mean", None), (None, "features.99.weight"), ("features.0.1.bias", "bn.weight")]
)
def test_a_single_tensor_too_few_or_too_many_is_named(tmp_path: Path, missing: str | None, foreign: str | None) -> None:
    state = {name: tensor for name, tensor in state_of().items() if name != missing}
    save_file({**state, **({foreign: torch.zeros(1)} if foreign else {})}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=rf"of another shape: {missing or 'none'}; only in the file: {foreign or 'none'}$"):
        build(tmp_path / "w.safetensors")


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "wrap", [lambda payload: payload, lambda payload: {"model": {**state_of(), "extra": payload}}], ids=["bare", "in a state dict"]
)
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path: Path, wrap: Callable[[object], object], how: str) -> None:
    content, path = wrap(Payload(tmp_path / "ran")), tmp_path / "evil.pth"
    torch.save(content, path) if how == "torch" else path.write_bytes(pickle.dumps(content))
    with pytest.raises(ConfigError, match=r"evil.pth' holds more than tensors, or is damaged, and is not opened: "):
        build(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"\x80<html>not found</html>"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    WRITERS[name](tmp_path / name)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(ConfigError, match=rf"model.weights = '.*{name}' "):
        build(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(3), {1: torch.zeros(3)}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"w.pth' (is not a state dict|does not fit the model)"):
        build(tmp_path / "w.pth")


def test_without_a_network_the_url_and_the_remedy_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    file = "mobilenet_v3_small-047dcff4.pth"
    with pytest.raises(MachineError) as caught:
        build("DEFAULT")
    assert caught.value.problems == (
        f"model.weights = DEFAULT: https://download.pytorch.org/models/{file} cannot be fetched into {tmp_path}/hub or read from there "
        f"([Errno -3] Temporary failure in name resolution); fetch it where there is a network, copy it here, and write "
        f"model.weights: /path/to/{file}",
    )


def test_weights_that_were_fetched_once_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", None)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(state_of(), tmp_path / "hub/checkpoints/mobilenet_v3_small-047dcff4.pth")
    for name in ("DEFAULT", "IMAGENET1K_V1", "MobileNet_V3_Small_Weights.IMAGENET1K_V1"):
        assert same_but_the_head(build(name)[0], state_of())


def test_a_damaged_copy_of_fetched_weights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/mobilenet_v3_small-047dcff4.pth").write_bytes(b"half of it")
    with pytest.raises(MachineError, match=rf"cannot be fetched into {tmp_path}/hub or read from there \("):
        build("DEFAULT")


def test_weights_that_torchvision_does_not_have_are_refused_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"^model.weights = 'IMAGENET1K_V2'; mobilenet_v3_small has IMAGENET1K_V1, DEFAULT$"):
        build("IMAGENET1K_V2")


def a_run(folder: Path, classes: tuple[str, ...] = CLASSES, moments: dict[str, Tensor] | None = None, **pointers: int) -> Path:
    """A run's folder with a checkpoint for each pointer, drawn from its seed, and the same moments in all."""
    for pointer, seed in pointers.items():
        checkpoint = folder / "checkpoints" / f"step-{seed:08d}"
        checkpoint.mkdir(parents=True)
        save_file(state_of(classes=len(classes), seed=seed), checkpoint / "model.safetensors")
        (checkpoint / "state.json").write_text(json.dumps({"classes": classes}))
        if moments:
            save_file(moments, checkpoint / "optim.safetensors")
        manifest.write(checkpoint, seed, {path.name: manifest.entry(path) for path in checkpoint.iterdir()})
        (folder / "checkpoints" / pointer).write_text(f"{checkpoint.name}\n")
    return folder


def test_of_a_run_the_best_checkpoint_counts_and_else_the_latest(tmp_path: Path) -> None:
    both, one = a_run(tmp_path / "both", best=1, latest=2), a_run(tmp_path / "one", latest=2)
    assert same_but_the_head(build(f"run:{both}")[0], state_of(classes=3, seed=1))
    assert same_but_the_head(build(f"run:{one}")[0], state_of(classes=3, seed=2))


def test_of_a_run_with_a_moving_average_the_average_counts(tmp_path: Path) -> None:
    name = "features.0.0.weight"
    average = torch.full_like(state_of()[name], 0.25)
    run = a_run(tmp_path, moments={f"{name}/ema": average, f"{name}/exp_avg": torch.zeros_like(average)}, best=1)
    built, _ = build(f"run:{run}")
    assert torch.equal(built[name], average)
    assert same_but_the_head(built, {n: t for n, t in state_of(classes=3, seed=1).items() if n != name})


@pytest.mark.parametrize(
    ("classes", "head", "kept"),
    [
        (CLASSES, "auto", True),
        (CLASSES, "new", False),
        (("cat", "dog", "fox"), "auto", False),
        (("dog", "cat", "eel"), "auto", False),
        (("cat", "dog"), "auto", False),
    ],
)
def test_the_head_of_a_run_stays_for_the_same_classes_in_the_same_order(
    tmp_path: Path, classes: tuple[str, ...], head: str, kept: bool
) -> None:
    built, _ = build(f"run:{a_run(tmp_path, best=1)}", classes, model__head=head)
    assert same_but_the_head(built, state_of(classes=3, seed=1))
    assert torch.equal(built[HEAD[0]], state_of(classes=3, seed=1)[HEAD[0]]) is kept


def test_a_damaged_or_missing_checkpoint_of_a_run_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path, best=1)
    path = run / "checkpoints/step-00000001/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"its best checkpoint is damaged\n.*model.safetensors has sha256 "):
        build(f"run:{run}")
    with pytest.raises(ConfigError, match=r"neither checkpoints/best nor checkpoints/latest names a checkpoint$"):
        build(f"run:{tmp_path / 'nowhere'}")


def test_with_nothing_to_load_nothing_is_read() -> None:
    assert build("none", model__norm="train", model__train="all")[1] == []
    _, told = models.build(a_config(model__name=NAME, model__weights="/nowhere.pth"), CLASSES, weights=False)
    assert told == []
