"""The planted defects fit the source as it is."""

import ast
from functools import cache

import pytest

from tests.fuzz.test_oracle import BREAKS
from tests.fuzz.test_routes import DEFECTS as OF_ROUTES

from .defect import ROOT, Defect
from .defects import DEFECTS
from .of_fuzz import FUZZ


@cache
def functions(path: str) -> frozenset[str]:
    """The test functions of a file; those of a class with its name in front, as pytest has them."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            found.update(f"{node.name}::{each.name}" for each in methods)
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def test_every_defect_has_a_name_of_its_own() -> None:
    names = [defect.name for defect in DEFECTS]
    assert sorted(names) == sorted(set(names))


def test_no_two_defects_are_the_same() -> None:
    changed = [(defect.file, defect.applied((ROOT / defect.path).read_text())) for defect in DEFECTS]
    assert len(changed) == len(set(changed))


def test_the_defects_of_the_fuzz_targets_are_all_there() -> None:
    assert len(FUZZ) == len(BREAKS) + len(OF_ROUTES)


@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
def test_a_defect_can_be_planted(defect: Defect) -> None:
    compile(defect.applied((ROOT / defect.path).read_text()), defect.path, "exec")


def test_the_tests_that_are_to_find_the_defects_are_there() -> None:
    named = {(defect.name, *test.split("::", 1)) for defect in DEFECTS for test in defect.tests}
    assert {name for name, *_ in named} == {defect.name for defect in DEFECTS}
    assert [each for each in named if not (ROOT / each[1]).is_file()] == []
    assert [(name, *test) for name, path, *test in named if test and test[0] not in functions(path)] == []


def test_of_each_defect_a_sentence_says_what_a_user_would_notice() -> None:
    notices = [defect.notice for defect in DEFECTS]
    assert [each for each in notices if not (each[0].isupper() and each.endswith(".") and "\n" not in each)] == []


def test_the_documentation_says_how_many_there_are() -> None:
    page = (ROOT / "docs/pages/how-it-is-tested.md").read_text()
    assert f"`tests/mutation` has {len(DEFECTS)} defects." in page
    assert f"{len(DEFECTS)} of {len(DEFECTS)} defects are found" in page


# What a defect is planted in, and how often its text has to be there.


def planted(old: str, new: str) -> Defect:
    return Defect("planted", "guard.py", old, new, "Nothing.", ())


def test_one_place_is_changed() -> None:
    assert planted("b", "c").applied("a b a") == "a c a"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("x", "y", "planted: its old text is 0 times in asgi_agents/guard.py, expected once"),
        ("a", "y", "planted: its old text is 2 times in asgi_agents/guard.py, expected once"),
        ("b", "b", "planted: its new text is the old one"),
    ],
)
def test_a_defect_that_does_not_fit_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planted(old, new).applied("a b a")
