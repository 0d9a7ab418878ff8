"""The house keeps its own rules: floors, sizes, names. Read from the syntax tree, so that nothing is imported."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sft_dist"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    "errors units redact config parse plan kinds variables refuse schema schedule tally manifest rundir revision scaling progress signals timeline pulse attempts "
    "locks inventory notice history steps",
    "datasets overlaps finale events session remote mirror preflight transforms archive weights blocks families models detector optim tasks loading",
    "machine usage sharding engine",
    "average checkpoint saver programs export evaluate loop communication track beside pictures pages compare report datacheck watch score run",
    "guard ending draft prepare_cli see_cli cli train __main__",
)
ORDER = " ".join(FLOORS).split()
PAPER = FLOORS[0].split()
BANNED_NAMES = {"utils", "util", "common", "helpers", "base", "manager"}
MAY_READ_ENVIRONMENT = {
    "ending",
    "cli",
    "train",
    "__main__",
    "machine",
    "engine",
    "sharding",
    "finale",
    "session",
    "remote",
    "mirror",
    "track",
}

TOO_LONG: dict[str, str] = {  # "file" or "file:function" -> why it is better longer
    "config.py": "the list of all keys, two lines each; two files would make whoever looks for one look twice",
    "plan.py:make_plan": "one argument a line; cutting it apart would hide that every number of a plan is made here",
}


def room(path: Path) -> str:
    """The room that a file belongs to; a package is one room, and the package's own __init__ is none ('')."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def title(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path) -> Iterator[tuple[str, ast.stmt, bool]]:
    """(dotted name, statement, whether it is at module level) for every import of a file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{title(path)}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node, id(node) in top


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {room(path) for path in FILES} - {""}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=title)
def test_imports_run_down_only(path: Path) -> None:
    here = room(path)
    for name, _, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "sft_dist" or len(parts) == 1:
            continue
        there = parts[1]
        if not here:
            pytest.fail(f"sft_dist/__init__.py imports {name}; importing the package must do nothing")
        if there == here:
            inside = PACKAGE / here
            assert inside.is_dir(), f"{title(path)} imports itself"
            if path.name != "__init__.py":
                assert len(parts) > 2 and (inside / f"{parts[2]}.py").exists(), f"{title(path)} imports its own package upward"
        elif there in ORDER:
            assert ORDER.index(there) < ORDER.index(here), f"{title(path)} imports {there}, which stands above it"
        else:
            assert there == "__version__", f"{title(path)} imports {name}, which is no room"


@cache
def neighbours(module: Path) -> list[Path]:
    """The rooms of the same package that one of them imports."""
    parts = [name.split(".") for name, _, _ in imports(module)]
    those = {module.parent / f"{part[2]}.py" for part in parts if part[:2] == ["sft_dist", module.parent.name] and len(part) > 2}
    return [child for child in those if child.exists()]


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PACKAGE], ids=title)
def test_rooms_inside_a_package_do_not_import_in_a_circle(path: Path) -> None:
    def below(module: Path, above: tuple[Path, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join(title(step) for step in (*above, module))}"
        for child in neighbours(module):
            below(child, (*above, module))

    below(path, ())


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in PAPER], ids=title)
def test_paper_stands_on_the_standard_library_pydantic_and_yaml(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "pydantic", "yaml", "sft_dist"}
    for name, _, at_top in imports(path):
        library = name.split(".")[0]
        assert library in allowed or (library == "numpy" and not at_top), f"{title(path)} imports {name}"


@pytest.mark.parametrize(
    ("library", "rooms"), [("accelerate", {"engine", "sharding"}), ("deepspeed", {"sharding"}), ("wandb", {"session", "remote"})]
)
def test_a_library_has_its_room(library: str, rooms: set[str]) -> None:
    found = {room(path) for path in FILES for name, _, _ in imports(path) if name.split(".")[0] == library}
    assert found <= rooms


def test_no_room_bears_a_name_that_says_nothing_or_hides_a_dependency() -> None:
    libraries = {name.lower() for name in importlib.metadata.packages_distributions()} - {"sft_dist"}
    for path in FILES:
        assert path.stem not in BANNED_NAMES
    for path in [*PACKAGE.iterdir()]:  # Hugging Face's `datasets` and `evaluate` are met by sft_dist/train.py, which replaces sys.path[0]
        assert path.stem not in libraries - {"datasets", "evaluate", "__pycache__"}, f"{path.name} has the name of an installed library"


@pytest.mark.parametrize("path", FILES, ids=title)
def test_files_and_functions_fit_on_a_page(path: Path) -> None:
    too_long = []
    if len(path.read_text().splitlines()) > 250:
        too_long.append(title(path))
    for function in functions(path):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        taken = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
        assert taken <= 7, f"{title(path)}: {function.name} takes {taken} parameters"
        if (function.end_lineno or 0) - function.lineno + 1 > 40:
            too_long.append(f"{title(path)}:{function.name}")
    assert [name for name in too_long if name not in TOO_LONG] == []


def test_no_exception_of_length_has_outlived_its_reason() -> None:
    lengths = {title(path): len(path.read_text().splitlines()) for path in FILES}
    for path in FILES:
        lengths |= {f"{title(path)}:{f.name}": (f.end_lineno or 0) - f.lineno + 1 for f in functions(path)}
    for name in TOO_LONG:
        assert lengths.get(name, 0) > (40 if ":" in name else 250), f"{name} fits; take it off the list"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) not in MAY_READ_ENVIRONMENT], ids=title)
def test_the_environment_is_read_at_the_doors_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "environb", "getenv", "putenv"), f"{title(path)}, line {node.lineno}"
    assert not {name for name, _, _ in imports(path)} & {"os.environ", "os.getenv"}


@pytest.mark.parametrize("path", FILES, ids=title)
def test_every_module_says_what_it_is_for_in_a_sentence(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text and text.split("\n\n")[0].endswith("."), title(path)


def test_every_config_key_has_a_docstring() -> None:
    tree = ast.parse((PACKAGE / "config.py").read_text())
    sections = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name not in ("Section", "Config")]
    for section in sections:
        for key, after in zip(section.body, [*section.body[1:], ast.Pass()], strict=True):
            if isinstance(key, ast.AnnAssign):
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
                assert told, f"{section.name}.{ast.unparse(key.target)} has no docstring"


@pytest.mark.parametrize("path", FILES, ids=title)
def test_nothing_is_left_for_later_in_a_comment(path: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())


QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--help"], 0, "Fine-tune a pretrained model"),
        (["train", "no-such.yaml"], 2, "config no-such.yaml: No such file or directory"),
        (["train", QUICKSTART, "optim.lrr=1", "data.bad=skip"], 2, "unknown key optim.lrr; did you mean optim.lr?"),
        (["train", QUICKSTART, "data.bad=skip"], 2, "data.bad = 'skip' is not built yet"),
        (["train", QUICKSTART, "run.expect_world=2"], 78, "run.expect_world = 2, but 1 process came"),
        (["plan", QUICKSTART, "--quick", "--world", "2"], 0, "64 a step = 32 a rank"),
    ],
    ids=["help", "missing file", "unknown key", "not built", "world", "plan --quick"],
)
def test_the_command_line_answers_without_torch(arguments: list[str], code: int, told: str, tmp_path: Path) -> None:
    program = f"""
import atexit, json, sys
atexit.register(lambda: print("HEAVY", json.dumps(sorted({{"torch", "torchvision", "accelerate"}} & set(sys.modules)))))
from sft_dist.cli import main
main({arguments!r})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr
    assert json.loads(done.stdout.rpartition("HEAVY ")[2]) == []
    assert [path.name for path in tmp_path.iterdir()] == []  # and it leaves nothing behind


def test_paper_and_data_sets_can_be_imported_without_torch() -> None:
    names = [f"sft_dist.{name}" for name in (*PAPER, "datasets", "session", "remote", "mirror", "preflight", "cli")]
    program = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_script_door_hides_no_library_behind_the_packages_own_rooms() -> None:
    program = "import sys; sys.argv = ['train.py']; import runpy\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: print(sys.path[0])"
    done = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(ROOT), done.stderr


def test_every_config_in_the_house_is_read_and_names_a_folder_of_its_own() -> None:
    from sft_dist import parse

    folders = [(config.run.dir, config.run.name) for config in map(parse.load, sorted((ROOT / "configs").rglob("*.yaml")))]
    assert folders and len(set(folders)) == len(folders)
