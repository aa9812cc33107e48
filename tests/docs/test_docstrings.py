"""Docstrings become Markdown, for the reference."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest

from .pages import ROOT


@pytest.fixture
def docstrings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The extension of mkdocstrings, which only the site needs: what is tested here does without griffe."""
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Object=object))
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_roles_are_links_where_the_name_is_public(docstrings: ModuleType) -> None:
    given = "An :class:`~asgi_agents.Agent`, its :meth:`Guard.call`."
    assert docstrings.markdown_of(given) == "An [`Agent`][asgi_agents.Agent], its `call`."


def test_tables_are_blocks(docstrings: ModuleType) -> None:
    given = "One::\n\n    code\n\n===  ===\na    b\n===  ===\n1    2\n===  ===\n\nmore"
    shown = "One:\n\n    code\n\n```text\n===  ===\na    b\n===  ===\n1    2\n===  ===\n```\n\nmore"
    assert docstrings.markdown_of(given) == shown


def test_what_stands_behind_the_fields_goes_before_them(docstrings: ModuleType) -> None:
    given = "First.\n\n:param a: one\n    line\n:param b: two\n\nRaises an error.\n"
    assert docstrings.prose_first(given).split("\n") == [
        "First.",
        "",
        "",
        "Raises an error.",
        "",
        ":param a: one",
        "    line",
        ":param b: two",
        "",
    ]
