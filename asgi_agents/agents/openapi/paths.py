"""Which operation of a description a request is for, by the paths in it."""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote

from ...protocol import RequestHeadersEvent
from .connection import connection

_PARAMETER: Final = re.compile(r"\{([^{}]*)\}")


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


class TemplatePaths:
    """Those of a description alone. A parameter is one segment of a path, as OpenAPI says.

    :param root_path: what stands before them in the paths of requests. None: that of the connection.
    """

    def __init__(self, paths: Mapping[str, Any], root_path: str | None) -> None:
        self._root_path = None if root_path is None else root_path.rstrip("/")
        self._known = [(_compile(path), path) for path in sorted(paths, key=_concrete_first)]

    def find(self, event: RequestHeadersEvent) -> Matched | None:
        known, root_path = connection(), self._root_path
        if known is not None:
            if known.is_websocket:
                return None
            root_path = known.root_path.rstrip("/") if root_path is None else root_path
        path = path_of(event)
        if root_path and path.startswith(root_path + "/"):
            path = path.removeprefix(root_path)
        for pattern, template in self._known:
            if found := pattern.fullmatch(path):
                return Matched(None, template, dict(zip(_PARAMETER.findall(template), found.groups(), strict=True)))
        return None if is_preflight(event) else Matched()


def path_of(event: RequestHeadersEvent) -> str:
    """The path, decoded as servers do it."""
    return unquote(event.uri.partition("?")[0])


def is_preflight(event: RequestHeadersEvent) -> bool:
    """Whether a browser asks what other sites may do (Fetch, section 3.3.4)."""
    headers = event.headers
    return event.method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _compile(template: str) -> re.Pattern[str]:
    literals = _PARAMETER.sub("{", template).split("{")
    # Python's `$`, with which Starlette ends its patterns, comes before a last line feed as well: /items%0A is /items.
    return re.compile("([^/]+)".join(map(re.escape, literals)) + r"\n?", re.DOTALL)


def _concrete_first(template: str) -> list[tuple[int, str]]:
    """Paths without parameters come before those with, segment by segment (OpenAPI, section 4.8.2)."""
    return [(len(_PARAMETER.findall(segment)), segment) for segment in template.split("/")]
