"""What tests leave on disk: nothing, unless one failed; the checkpoints of the whole suite would be 11 GB."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def tidied(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """Takes away what comes into a folder meanwhile, unless a test fails meanwhile, or pytest keeps what passed tests leave as well."""
    before, failures = set(folder.iterdir()), request.session.testsfailed
    yield folder
    if request.session.testsfailed > failures or request.config.getini("tmp_path_retention_policy") == "all":
        return
    for path in set(folder.iterdir()) - before:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # pytest tries again at the end of the session
        else:
            path.unlink()
