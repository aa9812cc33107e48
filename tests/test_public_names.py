"""What public signatures name is public, so that users can annotate what they give and get."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import asgi_agents
from asgi_agents import guardrails

PACKAGE = Path(asgi_agents.__file__).parent
# What users get from StreamTransport and hand to nobody.
INTERNAL = {"AgentClient", "StreamClient"}


@cache
def _defined() -> frozenset[str]:
    """The names of all classes and type aliases of the package."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                found.add(node.targets[0].id)
    return frozenset(found)


def _annotations(node: ast.AST) -> Iterator[ast.expr]:
    """The annotations of what is public in a class or a function."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.AnnAssign) and not ast.unparse(inner.target).startswith("_"):
            yield inner.annotation
        elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(inner.name):
            yield from _annotations_of(inner)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__")


def _annotations_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    arguments = function.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    yield from (each.annotation for each in given if each is not None and each.annotation is not None)
    if function.returns is not None:
        yield function.returns


def _named(annotation: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in asgi_agents.__all__
        if inspect.isclass(getattr(asgi_agents, name)) or inspect.isfunction(getattr(asgi_agents, name))
    ],
)
def test_what_a_public_signature_names_is_public(name: str) -> None:
    source = inspect.getsource(getattr(asgi_agents, name))
    [node] = ast.parse(source).body
    annotations = _annotations_of(node) if isinstance(node, ast.FunctionDef) else _annotations(node)
    named = set().union(*map(_named, annotations))
    private = {each for each in named if each.startswith("_")}
    public = {*asgi_agents.__all__, *guardrails.__all__}
    assert (named & _defined()) - {*public, *INTERNAL} - private == set()
