"""docs/reliability.md tells the result of every row of the matrix, and none failed."""

import ast
import re
from pathlib import Path

import pytest
from table import ELSEWHERE, ORACLE, PAGE, ROWS

HERE = Path(__file__).parent
FUNCTIONS = {
    f"{path.name}::{node.name}"
    for path in [*HERE.glob("test_*.py"), *(HERE.parent / file for file in ELSEWHERE)]
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef)
}


OTHERS = ("test_page.py", "test_many_kills.py", *(Path(file).name for file in ELSEWHERE))


def told() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| (\d+|oracle) \|", line)]
    return {line.split(" | ")[0].removeprefix("| "): re.split(r"(?<!\\)\|", line)[1:-1] for line in lines}


def test_every_row_of_the_matrix_is_in_the_page_and_none_failed() -> None:
    page = told()
    assert set(page) == {"oracle", *(str(number) for number in range(1, 36))}
    assert {number: cells[5].strip() for number, cells in page.items() if cells[5].strip() != "passed"} == {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_a_row_names_the_tests_that_inject_it(row) -> None:
    assert set() < set(row.tests) <= FUNCTIONS
    cells = [cell.strip() for cell in told()["oracle" if row.number == ORACLE else str(row.number)]]
    assert cells[1] == row.fault.replace("|", "\\|"), "stale; run python tests/faults/table.py"
    assert cells[3] == row.must
    assert cells[4], "a row without anything seen"


def test_every_test_of_a_fault_belongs_to_a_row() -> None:
    injecting = {name for name in FUNCTIONS if "::test_" in name and not name.startswith(OTHERS)}
    assert injecting == {test for row in ROWS for test in row.tests if not test.startswith(OTHERS)}
