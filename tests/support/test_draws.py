"""When tests draw from Hypothesis."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

#: What a test function itself draws from, after it has begun.
_DRAWN_FROM: Final = frozenset({"data", "randoms"})


def drawing_coroutine_functions(source: str) -> Iterator[str]:
    """Coroutine functions that draw as they run.

    Hypothesis ends an example from within a draw, by an exception that is no ``Exception``. It would leave a task of
    anyio's behind that nobody asks for its result. asyncio logs that from within the garbage collector, with a
    traceback that CPython parses source for. Where the collector runs while something else is parsed, that fails with
    "AST constructor recursion depth mismatch" (gh-106905, to be had in CPython 3.11.7).
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AsyncFunctionDef):
            calls = (each for decorator in node.decorator_list for each in ast.walk(decorator))
            names = {ast.unparse(call.func).rpartition(".")[2] for call in calls if isinstance(call, ast.Call)}
            if "given" in names and names & _DRAWN_FROM:
                yield node.name


def test_coroutine_functions_have_all_that_they_need_when_they_begin() -> None:
    sources = [path.read_text("utf-8") for path in Path(__file__).parents[1].rglob("*.py")]
    # To parse all of them takes seconds.
    possible = [source for source in sources if any(f"{each}(" in source for each in _DRAWN_FROM)]

    assert possible
    assert [name for source in possible for name in drawing_coroutine_functions(source)] == []


@pytest.mark.parametrize("strategy", ["st.data()", "data()", "st.integers(), st.randoms(use_true_random=False)"])
def test_one_that_draws_as_it_runs_is_found(strategy: str) -> None:
    assert [*drawing_coroutine_functions(f"@given({strategy})\nasync def test_it(data): ...")] == ["test_it"]
    assert [*drawing_coroutine_functions(f"@given({strategy})\ndef test_it(data): ...")] == []
