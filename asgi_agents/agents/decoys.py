"""Paths that no honest client asks for."""

import re
from posixpath import normpath
from typing import Final
from urllib.parse import unquote

from ..errors import ConfigurationError
from ..protocol import RequestHeadersEvent
from ..routing.patterns import colon_syntax
from ..routing.routes import AgentRoute
from .settings import require_strings

# Paths of an app that nobody could mean as decoys: a pattern that matches one of them matches much more.
_ORDINARY: Final = ("/", "/any-page-of-an-app", "/any-page-of-an-app/", "/any-page-of-an-app/and-more")
# Of a path that may be written in a shorter way.
_DETOUR: Final = re.compile(r"//|/\.\.?(/|\Z)")


class Decoys:
    """Patterns of paths for which a client is banned. Raises :class:`ConfigurationError` for what makes none."""

    def __init__(self, patterns: object) -> None:
        self._routes = [_route_of(pattern) for pattern in require_strings("IpBan", "decoys", patterns)]

    def __bool__(self) -> bool:
        return bool(self._routes)

    def find(self, event: RequestHeadersEvent) -> str | None:
        """The pattern that the path matches, decoded as servers do it, or in the shorter spelling."""
        path = unquote(event.uri.partition("?")[0])
        paths = (path, _shortened(path)) if _DETOUR.search(path) else (path,)
        for route in self._routes:
            # What a line break is followed by belongs to the path as well.
            if any(route.across_lines.match(each) for each in paths):
                return route.path
        return None


def _shortened(path: str) -> str:
    """Another spelling of it: ``/a`` of ``//a``, ``/./a`` and ``/b/../a``."""
    short = normpath("/" + path.lstrip("/"))
    return short + "/" if path.endswith("/") and short != "/" else short


def _route_of(pattern: str) -> AgentRoute:
    try:
        route = AgentRoute(pattern, agents=[])
    except ConfigurationError as exc:
        raise ConfigurationError(f"IpBan: decoys: {exc}") from exc
    meant = colon_syntax(pattern)
    if meant is not None:
        raise ConfigurationError(f"IpBan: decoys contains {pattern!r}, where ':' stands for itself, expected {meant!r}")
    if unquote(pattern) != pattern:
        raise ConfigurationError(
            f"IpBan: decoys contains {pattern!r}, which matches nothing, as paths are decoded; expected"
            f" {unquote(pattern)!r}"
        )
    if any(route.across_lines.match(path) for path in _ORDINARY):
        raise ConfigurationError(
            f"IpBan: decoys contains {pattern!r}, which honest clients ask for, expected paths such as '/.env'"
        )
    return route
