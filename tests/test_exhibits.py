"""What looking found is read back without torch as it was written, and a file that anybody wrote names nothing outside its folder."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from sft_dist.report import exhibits
from sft_dist.report.exhibits import Balance, Cam, Drawn, Drift, Embedding, Exhibits, Map


def some(folder: Path, layer: str = "layer1.0.conv1") -> Exhibits:
    """One exhibit of each kind, with their pictures."""
    (folder / "report").mkdir()
    for number, name in enumerate(("seen-0-0.jpg", "seen-0-1.jpg", "cam-0.jpg", "cam-0-said.jpg", "cam-0-truth.jpg")):
        Image.new("RGB", (128, 128), (40 * number, 90, 90)).save(folder / "report" / name)
    before = Map(points=((0.0, 1.0), (2.0, 3.0), (1.0, -1.0)), explained=(0.7, 0.2), neighbours=0.5)
    return Exhibits(
        step=4,
        start="random weights",
        layer=layer,
        classes=("cat", "dog", "eel"),
        balance=(Balance(name="cat", train=3, val=1), Balance(name="dog", train=0, val=0)),
        augmented=(Drawn(id="0.png", truth="cat", plain="seen-0-0.jpg", drawn=("seen-0-1.jpg",)),),
        drift=(Drift(layer=layer, elements=9, change=0.25, learning=True, fresh=True), Drift(layer="bn1", elements=4, change=0, learning=False, fresh=False)),
        cams=(Cam(id="0.png", truth="cat", said="dog", confidence=0.8, plain="cam-0.jpg", for_said="cam-0-said.jpg", for_truth="cam-0-truth.jpg"),),
        embedding=Embedding(labels=(0, 1, 2), before=before, after=before),
    )  # fmt: skip


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    made = some(tmp_path)
    exhibits.write(tmp_path, made)
    assert exhibits.read(tmp_path) == (made, [])
    assert [drift.moved for drift in made.drift] == [True, False]


def test_pictures_of_an_earlier_time_go_and_other_files_stay(tmp_path: Path) -> None:
    made = some(tmp_path)
    for name in ("cam-9.jpg", "notes.txt"):
        (tmp_path / "report" / name).write_text("old")
    exhibits.write(tmp_path, made)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"exhibits.json", "notes.txt", *exhibits.pictures(made)}


def test_pictures_become_data_uris_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    made = some(tmp_path)
    (tmp_path / "report" / "cam-0.jpg").write_text("<svg onload=alert(1)>")
    (tmp_path / "report" / "seen-0-1.jpg").unlink()
    found = exhibits.uris(tmp_path, exhibits.pictures(made))
    assert list(found) == ["seen-0-0.jpg", "cam-0-said.jpg", "cam-0-truth.jpg"]
    head, _, content = found["seen-0-0.jpg"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (128, 128)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/x.png", "a/b.png", "x.svg", "x.png\n", "", "é.png", "a" * 81 + ".png"])
def test_a_picture_is_a_file_beside_the_exhibits_and_nothing_else(name: str) -> None:
    with pytest.raises(ValidationError):
        Drawn(id="0.png", truth="cat", plain=name, drawn=())


def test_an_embedding_with_too_few_labels_is_left_out_and_told(tmp_path: Path) -> None:
    exhibits.write(tmp_path, some(tmp_path))
    path = tmp_path / "report" / "exhibits.json"
    content = json.loads(path.read_text())
    content["embedding"]["labels"] = [0]
    path.write_text(json.dumps(content))
    found, told = exhibits.read(tmp_path)
    assert found.embedding is None and found.drift and told == ["report/exhibits.json: an embedding of [1, 3] points is none"]


def test_without_exhibits_there_are_none(tmp_path: Path) -> None:
    assert exhibits.read(tmp_path) == (Exhibits(), [])
