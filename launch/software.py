"""What must be equal on all nodes before they start one run: versions, and the code itself."""

import importlib.metadata
import platform
from hashlib import sha256
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "torchvision", "accelerate", "deepspeed")


def software() -> dict[str, str]:
    """Versions by name, `absent` where a library is not installed, and under `code` a hash of all that is about to run."""
    files = sorted(path for package in ("sft_dist", "launch") for path in (REPOSITORY / package).rglob("*.py"))
    code = sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}, "code": code[:16]}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
