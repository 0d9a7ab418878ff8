"""A whole folder can be told from a broken one, whatever broke it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_dist import manifest
from sft_dist.manifest import Entry


def entries(folder: Path) -> dict[str, Entry]:
    return {path.name: manifest.entry(path) for path in folder.iterdir() if path.name != "MANIFEST.json"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "step-00000400"
    made.mkdir()
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (made / "state.json").write_text('{"step": 400}')
    (made / "empty").touch()
    manifest.write(made, 400, entries(made))
    return made


def test_a_folder_that_was_just_written_is_whole(folder: Path) -> None:
    assert manifest.verify(folder) == []


def test_the_manifest_has_the_form_that_others_read(folder: Path) -> None:
    content = json.loads((folder / "MANIFEST.json").read_text())
    assert (content["format"], content["step"], sorted(content["files"])) == (1, 400, ["empty", "model.safetensors", "state.json"])
    assert content["files"]["empty"] == {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}


def test_writing_it_again_in_another_order_gives_the_same_bytes(folder: Path) -> None:
    first = (folder / "MANIFEST.json").read_bytes()
    manifest.write(folder, 400, dict(reversed(entries(folder).items())))
    assert (folder / "MANIFEST.json").read_bytes() == first


def test_an_entry_is_the_size_and_the_hash_of_a_file(folder: Path) -> None:
    (folder / "abc").write_text("abc")
    assert manifest.entry(folder / "abc") == (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_what_was_meant_is_listed_and_not_what_lies_there(folder: Path) -> None:
    meant = entries(folder)
    flip(folder / "model.safetensors", 5)
    manifest.write(folder, 400, meant)
    [problem] = manifest.verify(folder)
    assert "model.safetensors has sha256" in problem


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "first bit flipped": ("model.safetensors", lambda path: flip(path, 0), "model.safetensors has sha256"),
    "last bit flipped": ("model.safetensors", lambda path: flip(path, -1), "model.safetensors has sha256"),
    "cut short": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "has 10239 bytes, its manifest says 10240"),
    "emptied": ("state.json", lambda path: path.write_bytes(b""), "state.json has 0 bytes, its manifest says 13"),
    "grown": ("empty", lambda path: path.write_bytes(b"x"), "empty has 1 bytes, its manifest says 0"),
    "gone": ("state.json", lambda path: path.unlink(), "state.json is missing"),
    "a folder": ("state.json", lambda path: (path.unlink(), path.mkdir()), "state.json is missing"),
    "a link to the right content": ("state.json", replace_by_link, "state.json is missing"),
    "hash changed": ("MANIFEST.json", lambda path: change(path, "e3b0c4", "e3b0c5"), "empty has sha256 e3b0c44298fc..., its manifest says e3b0c5"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told_with_the_file(folder: Path, name: str, damage: Callable[[Path], object], told: str) -> None:
    damage(folder / name)
    [problem] = manifest.verify(folder)
    assert told in problem
    assert str(folder) in problem


def test_all_damage_is_told_at_once(folder: Path) -> None:
    (folder / "state.json").unlink()
    flip(folder / "model.safetensors", 7)
    assert len(manifest.verify(folder)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[]", "7", '"text"', "{}", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 1, "files": {"a": 1}}', '{"format": 1, "files": {"a": {}}}',
        '{"format": 1, "files": {"a": {"bytes": null, "sha256": ""}}}', '{"format": 1, "files": {"a": {"bytes": 1e999, "sha256": ""}}}',
        '{"files": {"a": {"bytes": 1, "sha256": ""}}}', "[" * 100_000, "\0" * 300,
    ],
)  # fmt: skip
def test_a_garbled_manifest_is_a_problem_and_not_a_crash(folder: Path, text: str) -> None:
    (folder / "MANIFEST.json").write_text(text)
    [problem] = manifest.verify(folder)
    assert problem.startswith(f"{folder / 'MANIFEST.json'} cannot be read (")


def test_a_flipped_bit_anywhere_in_the_manifest_is_a_problem_unless_it_only_changes_the_step(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    sound = path.read_bytes()
    step = range(sound.index(b'"step"'), sound.index(b'"files"'))
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :])
        assert manifest.verify(folder) or at in step, f"byte {at}"


def test_a_manifest_that_is_missing_is_a_problem(folder: Path) -> None:
    (folder / "MANIFEST.json").unlink()
    assert "MANIFEST.json cannot be read (FileNotFoundError" in manifest.verify(folder)[0]
    assert "MANIFEST.json cannot be read (FileNotFoundError" in manifest.verify(folder / "no-such-folder")[0]


@pytest.mark.parametrize("form", [0, 2, "1", None])
def test_another_format_is_refused_by_its_number(folder: Path, form: object) -> None:
    content = json.loads((folder / "MANIFEST.json").read_text())
    (folder / "MANIFEST.json").write_text(json.dumps({**content, "format": form}))
    assert manifest.verify(folder) == [f"{folder / 'MANIFEST.json'} has format {form!r} with 3 files; this version reads format 1"]


def test_a_manifest_of_no_files_proves_nothing(folder: Path) -> None:
    (folder / "MANIFEST.json").write_text('{"format": 1, "step": 400, "files": {}}')
    assert manifest.verify(folder) == [f"{folder / 'MANIFEST.json'} has format 1 with 0 files; this version reads format 1"]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/file", ".", "..", "", ".hidden", "a\0b", "a b"])
def test_a_manifest_cannot_name_a_file_elsewhere(folder: Path, name: str) -> None:
    (folder.parent / "outside").touch()
    entry = {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    (folder / "MANIFEST.json").write_text(json.dumps({"format": 1, "step": 1, "files": {name: entry}}))
    assert manifest.verify(folder) == [f"{folder / 'MANIFEST.json'} names {name!r}, which is not a plain file name"]


def test_a_file_that_the_system_refuses_to_open_is_a_problem_and_not_a_crash(folder: Path) -> None:
    (folder / "MANIFEST.json").write_text(json.dumps({"format": 1, "step": 1, "files": {"a" * 300: {"bytes": 0, "sha256": ""}}}))
    [problem] = manifest.verify(folder)
    assert problem.endswith("cannot be read (File name too long)")
