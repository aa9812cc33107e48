"""Which operation of a description a request is for, by the paths in it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from ...errors import ConfigurationError
from ...protocol import RequestHeadersEvent
from .connection import connection
from .leaves import are_answered, is_preflight, leaf_of, scope_of
from .templates import PARAMETER, Template


class Matched(NamedTuple):
    """What a request is for.

    :ivar app: whose description has the operation; None: there is one description.
    :ivar path: as the description has it, such as ``/items/{item_id}``; None: something that is not described runs.
    :ivar values: of the path's parameters.
    """

    app: Any = None
    path: str | None = None
    values: Mapping[str, Any] = {}


class Paths(Protocol):
    """Finds what a request is for; None: nothing runs, or nothing that a description could have."""

    def find(self, event: RequestHeadersEvent) -> Matched | None: ...

    def is_answered(self, event: RequestHeadersEvent) -> bool:
        """Whether the app answers it itself, where what is found is no operation."""
        ...


class TemplatePaths:
    """Those of a description alone. A parameter is one segment of a path, as OpenAPI says.

    :param operations: the path and the method of each, in lower case. A path may fit several templates: only those
        that have the method of the request count.
    :param root_path: what stands before them in the paths of requests. None: that of the connection.
    :raises ConfigurationError: where one request is always for two operations.
    """

    def __init__(self, operations: Iterable[tuple[str, str]], root_path: str | None) -> None:
        self._root_path = None if root_path is None else root_path.rstrip("/")
        self._known: dict[str, list[Template]] = {}
        shapes: dict[tuple[str, str], str] = {}
        for path, method in sorted(operations, key=lambda operation: _concrete_first(operation[0])):
            other = shapes.setdefault((PARAMETER.sub("{}", path), method), path)
            if other != path:
                raise ConfigurationError(
                    f"OpenApiValidation: the paths {other!r} and {path!r} in paths are one path with two operations for"
                    f" {method.upper()}, expected one: nothing says which of them is run"
                )
            self._known.setdefault(method, []).append(Template(path))

    def find(self, event: RequestHeadersEvent) -> Matched | None:
        known, root_path = connection(), self._root_path
        if known is not None:
            if known.is_websocket:
                return None
            root_path = known.root_path.rstrip("/") if root_path is None else root_path
        path = path_of(event)
        if root_path and path.startswith(root_path + "/"):
            path = path.removeprefix(root_path)
        segments = path.split("/")
        for method in methods_of(event):
            for template in self._known.get(method, ()):
                if (values := template.match(segments)) is not None:
                    return Matched(None, template.text, values)
        return Matched()

    def is_answered(self, event: RequestHeadersEvent) -> bool:
        if not is_preflight(event):
            return False
        known = connection()
        if known is None:
            # Nothing is known of the app, which may answer all of them.
            return True
        leaf = leaf_of(known.app, scope_of(event, known.app, path_of(event), known.root_path))
        return leaf is None or are_answered(leaf, known)


def methods_of(event: RequestHeadersEvent) -> Sequence[str]:
    """The methods that an operation may have that a request is for, in lower case, the best one first."""
    method = event.method.lower()
    return (method, "get") if method == "head" else (method,)


def path_of(event: RequestHeadersEvent) -> str:
    """The path, decoded as servers do it."""
    return unquote(event.uri.partition("?")[0])


def _concrete_first(template: str) -> list[tuple[bool, int]]:
    """Paths without parameters come before those with, segment by segment (OpenAPI, section 4.8.2).

    Of segments with parameters, that comes first which has more text around them: `{name}` fits all that
    `{name}.json` fits.
    """
    return [
        (PARAMETER.search(segment) is not None, -len(PARAMETER.sub("", segment))) for segment in template.split("/")
    ]
