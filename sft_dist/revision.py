"""Which commit the code is: what its snapshot has noted, else what git says of a repository that keeps it."""

import subprocess
from pathlib import Path
from typing import Any

from sft_dist.rundir import read_json

NOTE = "COMMIT.json"
"""In a snapshot, beside the packages: a folder that lies in another repository must not be taken for that one's."""


def of(code: Path) -> dict[str, Any]:
    """`commit` and whether it is `dirty`, of the code in a folder; None for what nobody knows."""
    if noted := read_json(code / NOTE):
        return {"commit": noted.get("commit"), "dirty": noted.get("dirty")}
    if _git(code, "ls-files", "--error-unmatch", "sft_dist/revision.py") is None:  # a copy that lies in somebody's repository
        return {"commit": None, "dirty": None}
    edits = _git(code, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(code, "rev-parse", "HEAD"), "dirty": None if edits is None else bool(edits)}


def _git(code: Path, *command: str) -> str | None:
    try:
        return subprocess.run(["git", "-C", code, *command], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
