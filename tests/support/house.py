"""The source of a package as data: which module imports which, how wide its classes are, what it names.

Read by :mod:`ast`. Nothing is imported, so that what only some need doesn't have to be installed.
"""

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: Module names by the name of the module that imports them.
Graph = Mapping[str, frozenset[str]]
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """``name`` is dotted and begins with the package's; ``path`` is the file."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        """What its relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Identifier:
    """A name that the source uses, and where.

    :param defines: what it is the name of: a module, or a class or function in it, or a method. None where it is only
        used, or the name of something else.
    """

    name: str
    where: str
    defines: Literal["module", "class", "function", "method"] | None


def modules(root: Path) -> dict[str, Module]:
    """All modules of the package whose directory is ``root``, by name."""
    found: dict[str, Module] = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found[name] = Module(name, path, ast.parse(text), len(text.splitlines()))
    return found


def imports(package: Mapping[str, Module]) -> Graph:
    """Which of the modules import which at any time, also within a function. Imports for type checkers don't count."""
    return {name: frozenset(_imported(module, package)) for name, module in package.items()}


def _imported(module: Module, package: Mapping[str, Module]) -> Iterator[str]:
    for node in _at_run_time(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in package)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [_ancestor(module.package, node.level), node.module]))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in package:
                    yield inner
                elif base in package:
                    yield base


def _ancestor(package: str, level: int) -> str:
    """What ``level`` dots stand for in a module of ``package``."""
    parts = package.split(".")
    return ".".join(parts[: len(parts) - level + 1]) if level else ""


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                yield from _at_run_time(other)
        else:
            yield from _at_run_time(child)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def unit(module: str) -> str:
    """The direct child of the package that a module belongs to: a folder, or a module of the root.

    The package's own ``__init__`` is the empty name.
    """
    return module.split(".")[1] if "." in module else ""


def between_units(graph: Graph) -> Graph:
    """Which units import which, without the package's own ``__init__`` as the one that imports."""
    found: dict[str, set[str]] = {}
    for name, targets in graph.items():
        if unit(name):
            found.setdefault(unit(name), set()).update(unit(target) for target in targets)
    return {name: frozenset(targets - {name}) for name, targets in found.items()}


def circles(graph: Graph) -> list[list[str]]:
    """Groups of names that all lead to one another, and names that lead to themselves."""
    reached = {name: _reached(graph, name) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached.get(other, ())))
        for name in graph
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def _reached(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    ahead = [*graph[start]]
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead.extend(graph.get(name, ()))
    return found


def not_downward(graph: Graph, layers: Sequence[Collection[str]]) -> list[str]:
    """Imports between units that don't lead to a lower layer.

    :param layers: the names of the units in each, the lowest first. A unit that is in none may import nothing, and
        nothing may import it.
    """
    height = {name: at for at, names in enumerate(layers) for name in names}
    found: list[str] = []
    for name in sorted(graph):
        found += [
            f"{name} imports {target}"
            for target in sorted(graph[name])
            if unit(name) != unit(target)
            and unit(name)
            and height.get(unit(name), -1) <= height.get(unit(target), len(layers))
        ]
    return found


def widths(package: Mapping[str, Module]) -> dict[str, int]:
    """How many functions each class defines, properties and their setters among them; by module and class."""
    return {
        f"{module}.{node.name}": sum(isinstance(child, _Function) for child in node.body)
        for module, node in classes(package)
    }


def classes(package: Mapping[str, Module]) -> Iterator[tuple[str, ast.ClassDef]]:
    """Every class, also those in functions and classes, with the name of its module."""
    for module in package.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                yield module.name, node


def identifiers(module: Module) -> Iterator[Identifier]:
    """Every name that the module's code uses, and its own. Text and comments are none."""
    yield Identifier(module.name.rpartition(".")[2], f"{module.name}:1", "module")
    functions = {id(node) for node in module.tree.body if isinstance(node, _Function)}
    methods = {id(child) for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef) for child in node.body}
    for node in ast.walk(module.tree):
        defines: Literal["class", "function", "method"] | None = None
        if isinstance(node, ast.ClassDef):
            defines = "class"
        elif isinstance(node, _Function):
            defines = "function" if id(node) in functions else "method" if id(node) in methods else None
        for name in _named(node):
            yield Identifier(name, f"{module.name}:{getattr(node, 'lineno', 1)}", defines)


def _named(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.keyword(arg=str(name)) | ast.ExceptHandler(name=str(name)):
            yield name
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.alias(name=name, asname=alias):
            yield from name.split(".")
            if alias is not None:
                yield alias
