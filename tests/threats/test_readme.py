"""The documentation claims nothing about threats that no test shows."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "pages" / "threats.md"


def rows() -> list[list[str]]:
    """The rows of all tables of the page, without their heads, as cells."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[-1] != "test" and set(row[-1]) != {"-"}]


@cache
def names_of_tests() -> list[str]:
    """The names of all tests that stand beside this one."""
    return [
        node.name
        for path in HERE.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_each_claim_names_a_test_that_exists(row: list[str]) -> None:
    claim, test = row
    assert claim
    assert re.fullmatch(r"`test_\w+`", test)
    assert test.strip("`") in set(names_of_tests())


def test_each_test_is_a_claim_or_belongs_to_one() -> None:
    """Besides those of this file, only one has no row: it says the same as another, of a fixed corpus."""
    claimed = {row[-1].strip("`") for row in rows()}
    here = {name for name in globals() if name.startswith("test_")}

    assert set(names_of_tests()) - claimed - here == {"test_no_path_of_the_corpus_reaches_a_handler_unheard"}


def test_no_two_tests_have_one_name() -> None:
    names = names_of_tests()
    assert sorted(names) == sorted(set(names))
