"""Ranks that suffer from faults of the fault matrix, whoever starts them."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
SICK = """import os, sys
if "RANK" in os.environ and {when}:
    sys.path[:0] = {paths!r}
    import injections
    for fault in {faults!r}:
        injections.inject(injections.Fault(*fault))
    del sys.path[:2]
"""


def sick(folder: Path, *faults: tuple[str, int | None, int], when: str = "True") -> str:
    """A PYTHONPATH: the ranks that have it suffer from these faults, each with its rank (None: every one) and its step.

    when: a condition in Python, on their `os.environ`.
    """
    folder.mkdir()
    paths = [str(TESTS / "faults"), str(TESTS)]
    (folder / "sitecustomize.py").write_text(SICK.format(paths=paths, faults=faults, when=when))
    return f"{TESTS.parent}:{folder}"
