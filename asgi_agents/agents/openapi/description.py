"""The descriptions that an agent judges by, and the operations in them."""

import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...errors import ConfigurationError
from ...messages.naming import named
from ...protocol import RequestHeadersEvent
from .answers import UNREADABLE_PATH, Violation
from .document import ApiDocument, below, line_of
from .leaves import UnreadablePathError
from .mounts import described_app, described_within
from .operation import Operation
from .paths import Paths, TemplatePaths, methods_of
from .routes import DescribedRoutes

METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace", "query")


class Target(NamedTuple):
    """What a request is for, with the values of the path's parameters. Without operation: nothing that is described.

    :ivar wrong: what is wrong with the path, where nothing can be found by it.
    """

    operation: Operation | None
    values: Mapping[str, Any]
    wrong: Violation | None = None


class Description:
    """Compiled once: routes that are added later are not described.

    :param source: a FastAPI app, or a description, or the path of a file of JSON that has one.
    :raises ConfigurationError: where it can't be used.
    """

    def __init__(self, source: Any, root_path: str | None) -> None:
        self._paths: Paths
        self._operations: dict[tuple[int | None, str, str], Operation] = {}
        try:
            if is_app(source):
                from .pydantic_patterns import AppPattern, as_pydantic_reads

                self._paths = DescribedRoutes(source, root_path)
                for app in described_within(source):
                    self._add(id(app), ApiDocument(as_pydantic_reads(_made_by(app)), {"pattern": AppPattern}))
            else:
                root = source if isinstance(source, Mapping) else _read_file(Path(source))
                document = ApiDocument(root)
                _check_paths(document)
                self._add(None, document)
                self._paths = TemplatePaths([(path, method) for _, path, method in self._operations], root_path)
        except (AttributeError, KeyError, TypeError, RecursionError) as exc:
            # What is no schema has none that it could be held to.
            raise ConfigurationError("OpenApiValidation: the description is not made as OpenAPI says") from exc
        if not self._operations:
            raise ConfigurationError("OpenApiValidation: the description has no operation, expected paths with some")

    def find(self, event: RequestHeadersEvent) -> Target | None:
        """What a request is for; None: the app answers it itself, with 404, 405, a redirect or its own pages."""
        try:
            return self._find(event)
        except UnreadablePathError:
            return Target(None, {}, UNREADABLE_PATH)

    def _find(self, event: RequestHeadersEvent) -> Target | None:
        found = self._paths.find(event)
        if found is None:
            return None
        key = None if found.app is None else id(found.app)
        for method in methods_of(event):
            operation = self._operations.get((key, found.path or "", method))
            if operation is not None:
                return Target(operation, found.values)
        return None if self._paths.is_answered(event) else Target(None, {})

    def _add(self, key: int | None, document: ApiDocument) -> None:
        for path, method, pointer, shared in _operations_of(document):
            self._operations[key, path, method] = Operation(document, pointer, shared)


def is_app(source: object) -> bool:
    """Whether it describes itself, as FastAPI apps do."""
    return described_app(source) is source


def check_source(source: object) -> None:
    """Raise :class:`ConfigurationError` for what can't be a description."""
    if not is_app(source) and not isinstance(source, str | PathLike | Mapping):
        raise ConfigurationError(
            f"OpenApiValidation: source is {named(source)}, expected a FastAPI app, an OpenAPI description or a path"
        )


def _read_file(path: Path) -> Mapping[str, Any]:
    """A description in a file of JSON.

    :raises ConfigurationError: where there is none.
    """
    try:
        root = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigurationError(f"OpenApiValidation: {str(path)!r} can't be read: {line_of(exc)}") from None
    if not isinstance(root, dict):
        raise ConfigurationError(f"OpenApiValidation: {str(path)!r} has {named(root)}, expected an OpenAPI description")
    return root


def _made_by(app: Any) -> Mapping[str, Any]:
    try:
        root = app.openapi()
    except Exception as exc:
        raise ConfigurationError(f"OpenApiValidation: {named(app)} can't describe itself: {exc}") from exc
    if not isinstance(root, Mapping):
        raise ConfigurationError(f"OpenApiValidation: openapi() of {named(app)} is {named(root)}, expected an object")
    return root


def _check_paths(document: ApiDocument) -> None:
    for path in document.root.get("paths", {}):
        if not path.startswith(("/", "x-")):
            raise ConfigurationError(f"OpenApiValidation: the path {path!r} in paths, expected '/{path}'")


def _operations_of(document: ApiDocument) -> Iterator[tuple[str, str, str, str]]:
    for path in document.root.get("paths", {}):
        if path.startswith("x-"):
            continue
        pointer, item = document.resolve(below("#", "paths", path))
        if not isinstance(item, dict):
            raise ConfigurationError(f"OpenApiValidation: {pointer} is {named(item)}, expected an object")
        for method in METHODS:
            if method in item:
                yield path, method, below(pointer, method), below(pointer, "parameters")
