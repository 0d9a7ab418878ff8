"""Sizes and hashes of a folder's files: written last, read first, so that a whole checkpoint can be told from a broken one."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

NAME = "MANIFEST.json"
FORMAT = 1
PLAIN = re.compile(r"\w[\w.-]*")  # no slash, no dots alone: a manifest names files in its own folder only


class Entry(NamedTuple):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


def write(folder: Path, step: int, files: Mapping[str, Entry]) -> None:
    """Write the folder's manifest; it and the folder are on the disk when this returns. The files must be there already, in full."""
    content = {"format": FORMAT, "step": step, "files": {name: entry._asdict() for name, entry in sorted(files.items())}}
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n")
    fsync(folder / NAME)
    fsync(folder)


def entry(path: Path) -> Entry:
    """Size and hash of a file, which is on the disk when this returns."""
    fsync(path)
    return Entry(path.stat().st_size, sha256(path))


def verify(folder: Path) -> list[str]:
    """What is wrong with the folder, a sentence each; empty if every file is there, with its size and its hash."""
    if folder.is_symlink():
        return [f"{folder} is a link; what it leads to is not opened"]
    try:
        content = json.loads((folder / NAME).read_text())
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()}
        form = content["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        return [f"{folder / NAME} cannot be read ({type(error).__name__}: {error})"]
    if form != FORMAT or not files:
        return [f"{folder / NAME} has format {form!r} with {len(files)} files; this version reads format {FORMAT}"]
    return [problem for name, (size, digest) in files.items() if (problem := _problem(folder, name, size, digest))]


def listed(folder: Path) -> list[Path]:
    """The files that the manifest of a verified folder names. None of them lies elsewhere: ValueError, should it have changed since."""
    paths = [folder / name for name in json.loads((folder / NAME).read_text())["files"]]
    for path in paths:
        if path.parent != folder or not PLAIN.fullmatch(path.name) or path.is_symlink():
            raise ValueError(f"{folder / NAME} names {str(path)!r}, which is not a plain file in its folder")
    return paths


def _problem(folder: Path, name: str, size: int, digest: str) -> str | None:
    path = folder / name
    if not PLAIN.fullmatch(name):
        return f"{folder / NAME} names {name!r}, which is not a plain file name"
    try:
        if path.is_symlink() or not path.is_file():
            return f"{path} is missing"
        if (found := path.stat().st_size) != size:
            return f"{path} has {found} bytes, its manifest says {size}"
        if (actual := sha256(path)) != digest:
            return f"{path} has sha256 {actual[:12]}..., its manifest says {digest[:12]}..."
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Force a file or a folder to the disk: without it a rename can survive a power cut that the content does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
