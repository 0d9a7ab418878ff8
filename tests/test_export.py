"""What is exported is one whole file and what goes before it; plain torchvision computes from it what the run's model computes."""

import json
import os
import runpy
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given import a_config
from given_boxes import saved
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional

from sft_dist import archive, manifest, models, parse, rundir, transforms
from sft_dist.config import Config
from sft_dist.datasets import images, masks
from sft_dist.datasets.boxes import Boxes
from sft_dist.errors import ConfigError
from sft_dist.export import export, preprocessing
from sft_dist.rundir import RunDir
from sft_dist.tasks import TASKS

CLASSES = ("cat", 'dog "or" {wolf}', "Éléphant")
KEYS: dict[str, Any] = {"model__weights": "none", "model__train": "all", "model__norm": "train", "data__size": 64, "device": "cpu"}


def made(tmp_path: Path, name: str = "mobilenet_v3_small", files: int = 1, average: bool = False, **keys: Any) -> tuple[RunDir, Config]:
    """A run with one checkpoint, of a drawn model, in as many files; its moving average is another draw."""
    config = a_config(run__dir=str(tmp_path), model__name=name, **{**KEYS, **keys})
    run = rundir.create(config)
    run.config.write_text(parse.to_yaml(config))
    folder = run.checkpoints / "step-00000400"
    folder.mkdir()
    model, _ = TASKS[config.task].build(config, CLASSES)
    state = model.state_dict()
    parts = [{key: state[key].contiguous() for key in list(state)[i::files]} for i in range(files)]
    entries = {f"model-{i:05d}.safetensors": archive.write(folder / f"model-{i:05d}.safetensors", part) for i, part in enumerate(parts)}
    moments = {f"{key}/ema": (p * 0.5).detach().clone() for key, p in model.named_parameters()} if average else {}
    entries["optim.safetensors"] = archive.write(folder / "optim.safetensors", {**moments, "classifier.3.bias/exp_avg": torch.zeros(3)})
    (folder / "state.json").write_text(json.dumps({"classes": CLASSES}))
    manifest.write(folder, 400, {**entries, "state.json": manifest.entry(folder / "state.json")})
    for pointer in ("best", "latest"):
        (run.checkpoints / pointer).write_text(folder.name + "\n")
    run.scores.write_text(json.dumps({"best": {"step": 400, "val/top1": 0.875}, "test": {"step": 400, "test/top1": 0.8125}}))
    return run, config


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A real photograph, lying on its side as cameras store them."""
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(load_sample_image("china.jpg")).save(path, exif=exif)
    return path


def ours(run: RunDir, config: Config, photo: Path) -> Tensor:
    model, _ = models.build(config, CLASSES, weights=False)
    model.load_state_dict(dict(archive.weights(run.checkpoints / "step-00000400")))
    with torch.inference_mode():
        return model.eval()(transforms.evaluation(config.data)(images.read(photo))[None])[0]


def theirs(folder: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The logits of the exported lines, which know nothing of us."""
    source = (folder / "predict.py").read_text()
    assert "sft" not in source
    monkeypatch.setattr(sys, "argv", ["predict.py", str(photo)])
    logits: Tensor = runpy.run_path(str(folder / "predict.py"))["logits"]
    return logits


@pytest.mark.parametrize(
    ("name", "files", "average", "keys"),
    [
        ("mobilenet_v3_small", 1, False, {}),
        ("mobilenet_v3_small", 3, True, {"data__augment": "none", "data__mean": [0.5, 0.4, 0.3], "data__std": [0.2, 0.3, 0.4]}),
        ("resnet18", 2, False, {"data__resize": 100, "model__dropout": "none", "model__activation_checkpointing": True}),
    ],
)
def test_plain_torchvision_gives_the_logits_of_the_runs_model(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, files: int, average: bool, keys: dict[str, Any],
) -> None:  # fmt: skip
    run, config = made(tmp_path, name, files, average, **keys)
    export(run, "best")
    wanted, found = ours(run, config, photo), theirs(run.path / "export", photo, monkeypatch)
    assert wanted.std() > 1e-4  # three equal numbers would prove nothing
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    told = f"{CLASSES[int(wanted.argmax())]} {wanted.softmax(0).max():.4f}"
    assert capsys.readouterr().out.strip() == told


def test_plain_torchvision_reads_16_bits_of_grey_as_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = made(tmp_path, "resnet18")
    export(run, "best")
    xray = tmp_path / "xray.png"
    Image.fromarray(load_sample_image("china.jpg")[..., 1].astype(np.uint16) * 257).save(xray)
    torch.testing.assert_close(theirs(run.path / "export", xray, monkeypatch), ours(run, config, xray), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "mobilenet_v2", "vit_b_16", "convnext_tiny", "swin_t"])
def test_every_family_has_the_names_and_shapes_that_the_export_asks_torchvision_for(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        plain = torchvision.models.get_model(name, weights=None, num_classes=3).state_dict()
        config = a_config(**{**KEYS, "model__name": name, "data__size": 224})
        own, _ = models.build(config, CLASSES, weights=False)
    assert {key: tensor.shape for key, tensor in own.state_dict().items()} == {key: tensor.shape for key, tensor in plain.items()}


def test_the_moving_average_is_what_is_exported_from_however_many_files(tmp_path: Path) -> None:
    run, _ = made(tmp_path, files=3, average=True)
    export(run, "latest")
    source = archive.weights(run.checkpoints / "step-00000400")
    state = load_file(run.path / "export" / "model.safetensors")
    assert set(state) == set(source)
    assert all(torch.equal(state[name], source[name]) for name in source)
    plain = archive.shelves(run.checkpoints / "step-00000400")[0]
    assert torch.equal(state["classifier.3.weight"], plain["classifier.3.weight"] * 0.5)
    assert "the moving average" in (run.path / "export" / "README.md").read_text()


def test_the_export_holds_what_is_needed_elsewhere_and_can_be_verified(tmp_path: Path) -> None:
    run, config = made(tmp_path)
    told = export(run, "best", tmp_path / "elsewhere" / "made")
    folder = tmp_path / "elsewhere" / "made"
    assert sorted(path.name for path in folder.iterdir()) == [
        "MANIFEST.json", "README.md", "classes.json", "config.yaml", "model.safetensors", "predict.py", "preprocessing.json"
    ]  # fmt: skip
    assert manifest.verify(folder) == []
    assert json.loads((folder / "classes.json").read_text()) == list(CLASSES)
    assert parse.load(folder / "config.yaml") == config
    how = json.loads((folder / "preprocessing.json").read_text())
    assert (how["resize"], how["crop"], how["mean"], how["std"]) == (73, 64, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    card = (folder / "README.md").read_text()
    assert "| `val/top1` | 0.8750 |\n| `test/top1` | 0.8125 |" in card
    assert (folder / "predict.py").read_text() in card
    assert told[0].startswith(f"step-00000400 is exported to {folder} (")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_preprocessing_is_that_of_the_evaluation() -> None:
    default = preprocessing(a_config(data__size=224))
    assert (default["resize"], default["crop"]) == (256, 224)
    padded = preprocessing(a_config(data__augment="padded_crop", data__size=32))
    assert (padded["resize"], padded["crop"]) == (32, 32)


def test_an_export_of_ours_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    export(run, "best")
    first = (run.path / "export" / "model.safetensors").stat().st_ino
    export(run, "best")
    assert (run.path / "export" / "model.safetensors").stat().st_ino != first
    assert not [path for path in run.path.iterdir() if path.name.startswith(".unfinished")]
    (run.path / "export" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds what is not of an export \(notes\.txt\); nothing is overwritten; use another --to"):
        export(run, "best")
    assert (run.path / "export" / "notes.txt").read_text() == "mine"
    (tmp_path / "a_file").write_text("mine")
    (tmp_path / "a_link").symlink_to(run.path / "export")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text("mine")  # a name of ours alone proves nothing
    for target in (tmp_path / "a_file", tmp_path / "a_link", tmp_path / "theirs", run.path, tmp_path):
        with pytest.raises(ConfigError, match="nothing is overwritten"):
            export(run, "best", target)
    (tmp_path / "empty").mkdir()
    export(run, "best", tmp_path / "empty")
    assert manifest.verify(tmp_path / "empty") == []


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    path = run.checkpoints / "step-00000400" / "model-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"step-00000400 is damaged\n.*model-00000.safetensors has sha256"):
        export(run, "best")
    assert not (run.path / "export").exists()


@pytest.mark.parametrize(("shared", "mode"), [(False, 0o700), (True, 0o755)])
def test_an_export_is_as_private_as_its_run(tmp_path: Path, shared: bool, mode: int) -> None:
    before = os.umask(0o022)  # whatever a test before has left
    try:
        run, _ = made(tmp_path, run__shared=shared)
        export(run, "best", tmp_path / "out")
        export(run, "best", tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == mode


def test_an_exported_network_for_masks_answers_as_ours_does_and_writes_them(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    keys = {"task": "segment", "data__name": "masks", "data__resize": 72}
    run, config = made(tmp_path, "lraspp_mobilenet_v3_large", **keys)
    assert export(run, "best")[1] == f"python {run.path / 'export' / 'predict.py'} IMAGE MASK.png"
    model, _ = TASKS["segment"].build(config, CLASSES, weights=False)
    model.load_state_dict(dict(archive.weights(run.checkpoints / "step-00000400")))
    image = images.read(photo)
    with torch.inference_mode():
        logits = model.eval()(transforms.whole(config.data)(image)[None])["out"]
        expected = functional.interpolate(logits, size=image.shape[1:], mode="bilinear", align_corners=False)[0]
    monkeypatch.setattr(sys, "argv", ["predict.py", str(photo), str(tmp_path / "mask.png")])
    found = runpy.run_path(str(run.path / "export" / "predict.py"))["logits"]
    assert torch.allclose(found, expected, atol=1e-5)
    assert np.array_equal(masks.decode(tmp_path / "mask.png"), found.argmax(0).numpy())
    told = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in told] == list(CLASSES)
    assert sum(float(share) for _, share in told) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("bits", [8, 16])
def test_an_exported_detector_finds_what_ours_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """In a square, which is not padded: our padding is rounded to a colour, and a random network's answers hang on less than that."""
    photo, pixels = tmp_path / "photo.png", load_sample_image("china.jpg")[:400, :400]
    Image.fromarray(pixels if bits == 8 else pixels[..., 1].astype(np.uint16) * 257).save(photo)
    weights = saved(tmp_path / "random.safetensors", classes=len(CLASSES))
    keys = {"task": "detect", "data__name": "voc", "model__weights": str(weights), "model__head": "keep"}
    run, config = made(tmp_path, "fasterrcnn_mobilenet_v3_large_320_fpn", **keys)
    export(run, "best")
    model, _ = TASKS["detect"].build(config, CLASSES, weights=False)
    model.load_state_dict(dict(archive.weights(run.checkpoints / "step-00000400")))
    seen, scene = TASKS["detect"].prepare(config.data, False)(images.read(photo), Boxes((), (), (), (), None))
    with torch.inference_mode():
        [expected] = model.eval()(seen[None], sizes=[scene.size])
    monkeypatch.setattr(sys, "argv", ["predict.py", str(photo)])
    found = runpy.run_path(str(run.path / "export" / "predict.py"))["found"]
    assert len(expected["boxes"]) > 10
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)
