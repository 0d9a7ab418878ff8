"""The launcher keeps the house's rules too: what it may import, how long its files are, and no torch before a node runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "launch").glob("*.py"))
ON_THE_NODES = {"gang", "logs", "agent", "ward", "doctor_node"}
ORDER = [
    "words",
    "causes",
    "verdict",
    "losses",
    "advice",
    "why",
    "nodes",
    "software",
    "patience",
    "symptoms",
    "doctor",
    "examine",
    "shell",
    "traps",
    "rules",
    "launchers",
    "lint",
    "gang",
    "logs",
    "hold",
    "watch",
    "agent",
    "node_agent",
    "plans",
    "visits",
    "local",
    "remote",
    "lines",
    "way",
    "ssh",
    "ssh_cli",
    "snapshot",
    "flags",
    "queue",
    "slurm",
    "jobs",
    "whose",
    "follow",
    "sweep",
    "results",
    "arrays",
    "slurm_cli",
    "ward",
    "doctor_node",
    "cli",
    "__main__",
]
BELOW = {  # of sft_dist; the paper floor, and what is as light
    *[
        "errors",
        "units",
        "redact",
        "config",
        "parse",
        "plan",
        "refuse",
        "schedule",
        "tally",
        "manifest",
        "rundir",
        "locks",
        "revision",
        "inventory",
        "scaling",
        "progress",
        "signals",
        "pulse",
        "attempts",
        "notice",
    ],
    *("preflight", "guard"),
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, whether at module level)."""
    tree = ast.parse(path.read_text())
    top, found = set(map(id, tree.body)), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def test_every_room_has_a_place_in_the_order() -> None:
    assert {path.stem for path in FILES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_run_down_and_into_the_light_rooms_only(path: Path) -> None:
    for name, _ in imports(path):
        first, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        if first == "launch":
            assert ORDER.index(room) < ORDER.index(path.stem), f"{path.name} imports {name}"
        elif first == "sft_dist":
            assert room in BELOW, f"{path.name} imports {name}"
        elif first == "torch":
            assert path.stem in ON_THE_NODES, f"{path.name} imports {name}"
        else:
            assert first in {*sys.stdlib_module_names, "click", "yaml"}, f"{path.name} imports {name}"


def test_the_package_never_imports_its_launcher() -> None:
    for path in (ROOT / "sft_dist").rglob("*.py"):
        assert not [name for name, _ in imports(path) if name.split(".")[0] == "launch"], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_and_functions_fit_on_a_page(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 250
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text and text.split("\n\n")[0].endswith(".")
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 40, f"{path.name}: {node.name} is too long"
            taken = [argument for argument in [*node.args.args, *node.args.kwonlyargs] if argument.arg not in ("self", "cls")]
            assert len(taken) <= 7, f"{path.name}: {node.name} takes {len(taken)} parameters"


def test_the_login_node_needs_no_torch() -> None:
    rooms = [f"launch.{name}" for name in ORDER if name not in ON_THE_NODES]
    program = f"import importlib, sys\nfor name in {rooms!r}: name.endswith('main__') or importlib.import_module(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_help_reads_no_config() -> None:
    program = "import sys\nfrom launch import cli\ntry: cli.main(['--help'])\nexcept SystemExit: print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().endswith("False")


def test_a_start_does_not_read_what_only_the_end_of_a_run_needs() -> None:
    program = "import sys\nfrom launch import local\nprint([name for name in sys.modules if name.startswith('sft_dist.history')])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
