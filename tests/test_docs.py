"""The documentation says what the code does: generated pages are fresh, links lead somewhere, and what is named exists."""

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from launch import verdict
from sft_dist import errors, parse
from sft_dist.config import Config
from sft_dist.kinds import SCORES
from sft_dist.plan import MAY_CHANGE, Plan

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "slurm").glob("*.md")])
KEYS = set(parse.flat(parse.load(ROOT / "configs" / "quickstart.yaml")))
SECTIONS = sorted({key.split(".")[0] for key in KEYS if "." in key})


def title(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_page_of_config_keys_is_fresh() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.page() == (ROOT / "docs" / "reference" / "config.md").read_text(), "stale; run `make docs`"


def test_the_page_of_config_keys_has_every_key() -> None:
    text = (ROOT / "docs" / "reference" / "config.md").read_text()
    assert set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)) == KEYS


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{title(page)} links to {target}"
        assert not anchor or anchor in anchors(there), f"{title(page)} links to {target}, which is no heading"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_picture_is_there_by_day_and_by_night_and_has_words_that_stand_for_it(page: Path) -> None:
    for block in re.findall(r"<picture>.*?</picture>", text := page.read_text(), re.DOTALL):
        [dark, day] = re.findall(r'src(?:set)?="([^"]+)"', block)
        assert (page.parent / day).is_file() and dark == day.replace(".png", "-dark.png") and (page.parent / dark).is_file(), day
        [words] = re.findall(r'<img [^>]*alt="([^"]*)"', block)
        assert len(words) > 40, day
    assert len(re.findall("<img ", text)) == len(re.findall("<picture>", text)), "a picture without one for the night"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_config_key_that_is_named_exists(page: Path) -> None:
    named = re.findall(rf"(?<![\w./-])((?:{'|'.join(SECTIONS)})\.[a-z_]+)\b(?![(/])", page.read_text())
    files_and_rooms = re.compile(r".*\.(py|safetensors|run|window|json|html|ya?ml)$")
    deliberate_mistakes = {"optim.lrr"}
    unknown = {key for key in named if not files_and_rooms.match(key)} - KEYS - deliberate_mistakes
    assert not unknown, f"{title(page)} names {sorted(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_test_and_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    for file, name in re.findall(r"(tests/\w+\.py)(?:::(\w+))?", text):
        tree = ast.parse((ROOT / file).read_text())
        assert not name or name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
    for file in re.findall(r"`((?:sft_dist|docs|configs|slurm|benchmarks)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / file).exists(), f"{title(page)} names {file}"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_config_that_is_shown_can_be_read(page: Path) -> None:
    for block in blocks(page.read_text(), "yaml"):
        parse.from_tree(yaml.safe_load(block))


def test_the_promises_name_at_least_one_test_each() -> None:
    text = (ROOT / "README.md").read_text()
    rows = [line for line in text[text.index("| promise |") :].split("\n\n")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", row), row


def test_the_quickstart_in_the_readme_is_the_real_one() -> None:
    shown = [block for block in blocks((ROOT / "README.md").read_text(), "yaml") if "quickstart" in block]
    assert shown == [(ROOT / "configs" / "quickstart.yaml").read_text()]


def test_the_readmes_file_tree_names_every_room_and_nothing_else() -> None:
    [tree] = [block for block in blocks((ROOT / "README.md").read_text(), "text") if block.startswith("Makefile")]
    named = set(re.findall(r"^(?:  )?((?:[\w]+(?:\.py|/)\s)+)", tree, re.MULTILINE))
    words = {word.rstrip("/").removesuffix(".py") for line in named for word in line.split()}
    rooms = {path.stem for path in (ROOT / "sft_dist").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}
    folders = {"configs", "sft_dist", "launch", "slurm", "benchmarks", "tests", "docs"}
    assert words == rooms | folders


def test_decisions_are_numbered_without_a_gap_and_have_their_three_parts() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04d}" for number in range(1, len(pages) + 1)]
    for number, page in enumerate(pages, 1):
        text = page.read_text()
        assert text.startswith(f"# {number}. "), page.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], page.name


def test_the_page_of_exit_codes_agrees_with_the_errors() -> None:
    text = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    told = dict(re.findall(r"`(\w+Error)` (\d+)", text))
    assert told == {kind.__name__: str(kind.exit_code) for kind in errors.SftError.__subclasses__()}


def test_the_page_of_the_run_folder_names_every_field_of_a_plan_and_every_score() -> None:
    text = (ROOT / "docs" / "reference" / "run-folder.md").read_text()
    names = {field.name for field in dataclasses.fields(Plan)} | {"samples_per_rank", "passes_per_rank", "epochs"} | set(SCORES["classify"])
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_the_guide_lists_what_may_change_on_resume() -> None:
    text = (ROOT / "docs" / "guides" / "resume-and-stop.md").read_text()
    told = text[text.index("## What may change") :].split("Any other key")[0]
    sections = {name.rstrip(".") for name in MAY_CHANGE if name.endswith(".")}
    single = {name for name in MAY_CHANGE if not name.endswith(".")}
    assert set(re.findall(r"`([\w.]+)`", told)) == sections | single
    assert sections <= set(Config.model_fields)


def first_cells(page: str, head: str) -> list[str]:
    """What stands in backticks in the first column of the table under this head."""
    lines = page[page.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [words for line in lines for words in re.findall(r"`([^`]+)`", line.split(" | ")[0])]


def test_troubleshooting_has_every_verdict_in_its_words() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert set(first_cells(page, "verdict")) == set(verdict.WORDS.values())


@pytest.mark.parametrize("golden", sorted((ROOT / "tests" / "golden" / "doctor").glob("*.txt")), ids=lambda path: path.stem)
def test_troubleshooting_has_every_line_that_the_doctor_says(golden: Path) -> None:
    known = first_cells((ROOT / "docs" / "troubleshooting.md").read_text(), "it says")
    told = [line for line in golden.read_text().splitlines() if line.startswith(("wrong:", "remark:"))]
    assert [line for line in told if not any(words in line for words in known)] == []


def test_troubleshooting_begins_with_hangs() -> None:
    heads = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line.startswith("## ")]
    assert heads[0] == "## Hanging"
