"""The endpoints of an app, and the way that a connection takes to one of them, through every middleware that asks
agents: the one around the app, those of mounted apps, and those of single routes.

Whatever matches is the app's own: ``matches`` of its routes, in the order in which its router tries them.
"""

from collections.abc import Callable, Iterator
from inspect import ismethod
from typing import Any, Final, Literal, NamedTuple

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Match, Mount, Router, WebSocketRoute
from starlette.types import Scope

from ..evaluation.resolved_route import ResolvedRoute
from .app_chain import attribute
from .finder import RouteFinder
from .matching import is_included, mounted

#: ``app`` is one that is mounted and whose routes can't be read; ``unreadable`` a route without a pattern.
Kind = Literal["http", "websocket", "app", "unreadable"]

#: From a middleware that asks agents to its finder; None of anything else.
FinderOf = Callable[[object], RouteFinder | None]

# No app has so many middlewares around one another, or apps within one another.
_MOST: Final = 64


class FoundEndpoint(NamedTuple):
    """An endpoint.

    ``pattern`` is whole, with the prefixes of mounts and included routers. ``methods`` is None for all, and empty for
    websockets. ``host`` is the pattern of the Host that it is in. ``key`` is the same for the same endpoint.
    """

    kind: Kind
    pattern: str
    methods: frozenset[str] | None
    host: str | None
    name: str
    key: object


class FinderStep(NamedTuple):
    """What a middleware found for a connection: whom it asks. ``root`` is the root path that it saw."""

    finder: RouteFinder
    resolved_route: ResolvedRoute
    root: str


class Way(NamedTuple):
    """Whom the middlewares ask on the way, outermost first, and the key of the endpoint that runs, or None."""

    asked: tuple[FinderStep, ...]
    key: object


def layers(app: Any) -> Iterator[object]:
    """``app`` and what it wraps, outermost first, down to the router. Stacks of middlewares are built on the way."""
    for _ in range(_MOST):
        if ismethod(app):
            app = app.__self__
            if isinstance(app, Router):
                # Its own method stands behind its middlewares.
                yield app
                return
        if app is None:
            return
        if isinstance(app, Router):
            app = app.middleware_stack
            continue
        yield app
        if isinstance(app, Starlette):
            if app.middleware_stack is None:
                app.middleware_stack = app.build_middleware_stack()
            app = app.middleware_stack
        else:
            app = attribute(app, "app")


def finders_of(app: object, finder_of: FinderOf) -> Iterator[RouteFinder]:
    """The finders of the middlewares around ``app``, outermost first; not those of what is mounted in it."""
    for layer in layers(app):
        finder = finder_of(layer)
        if finder is not None:
            yield finder


class Walk:
    """The endpoints of one app.

    :ivar open_ended: routers that answer more than their routes say, as with a fallback of their own, by their prefix.
    """

    def __init__(self, app: object) -> None:
        self.open_ended: list[str] = []
        #: Whether the app has a router at all.
        self.readable = True
        self.leaves = tuple(self._app(app, "", None, ()))

    def _app(self, app: object, prefix: str, host: str | None, around: tuple[object, ...]) -> Iterator[FoundEndpoint]:
        *_, innermost = layers(app)
        if not isinstance(innermost, Router):
            self.readable = self.readable and bool(around)
            yield FoundEndpoint("app", mounted(prefix), None, host, _name(innermost), ("app", mounted(prefix), host))
        elif not any(innermost is router for router in around):  # else an app within itself
            if innermost.default != innermost.not_found or attribute(innermost, "_low_priority_routes"):
                self.open_ended.append(prefix or "/")
            for route in list(innermost.routes):
                yield from self._route(route, prefix, host, (*around, innermost))

    def _route(self, route: Any, prefix: str, host: str | None, around: tuple[object, ...]) -> Iterator[FoundEndpoint]:
        if is_included(route):
            for candidate in route.effective_candidates():
                inner = candidate if is_included(candidate) else candidate.starlette_route
                if inner is not None:
                    yield from self._route(inner, prefix, host, around)
                else:
                    yield _leaf(candidate, candidate.original_route, prefix, host)
        elif isinstance(route, Mount | Host):
            if isinstance(route, Mount):
                prefix += route.path
            else:
                host = route.host
            yield from self._app(route.app, prefix, host, around)
        else:
            yield _leaf(route, route, prefix, host)


class Tracer:
    """Follows connections into an app."""

    def __init__(self, app: object, finder_of: FinderOf) -> None:
        self._app = app
        self._finder_of = finder_of

    def trace(self, scope: Scope) -> Way:
        """The way of a connection. ``scope`` is written to, as servers and apps do."""
        asked: list[FinderStep] = []
        key = self._into(self._app, scope, "", None, asked)
        return Way(tuple(asked), key)

    def _into(self, app: object, scope: Scope, prefix: str, host: str | None, asked: list[FinderStep]) -> object:
        innermost = self._ask(app, scope, asked)
        if not isinstance(innermost, Router):
            return ("app", mounted(prefix), host)
        scope.setdefault("router", innermost)
        for route in innermost.routes:
            match, child_scope = route.matches(scope)
            if match is Match.FULL:
                return self._route(route, child_scope, scope, prefix, host, asked)
        return None

    def _ask(self, app: object, scope: Scope, asked: list[FinderStep]) -> object:
        """Ask each finder around an app what it asks; returns what stands innermost."""
        layer: object = app
        for layer in layers(app):
            if isinstance(layer, Starlette):
                scope["app"] = layer
                root_path = attribute(layer, "root_path")
                if root_path and isinstance(root_path, str):
                    # FastAPI does so before its first middleware.
                    scope["root_path"] = root_path
            finder = self._finder_of(layer)
            if finder is not None:
                # It sees what the middlewares see, and may not keep it: the scope is written to further on.
                asked.append(FinderStep(finder, finder.look_up({**scope}), scope.get("root_path", "")))
        return layer

    def _route(
        self, route: Any, child_scope: Scope, scope: Scope, prefix: str, host: str | None, asked: list[FinderStep]
    ) -> object:
        context = None
        while is_included(route):
            match, child_scope, route, context = route._match(scope)
            if match is not Match.FULL:
                return None
        own = context if context is not None and context.starlette_route is None else route
        scope.update(child_scope)
        if isinstance(route, Mount | Host):
            if isinstance(route, Mount):
                prefix += route.path
            else:
                host = route.host
            return self._into(route.app, scope, prefix, host, asked)
        app = attribute(route, "app")
        if app is not None:
            self._ask(app, scope, asked)
        return _leaf(own, route, prefix, host).key


def _leaf(route: Any, original: BaseRoute, prefix: str, host: str | None) -> FoundEndpoint:
    path = attribute(route, "path")
    endpoint = attribute(route, "endpoint") or attribute(original, "endpoint")
    if not isinstance(path, str):
        return FoundEndpoint("unreadable", prefix, None, host, type(original).__name__, ("unreadable", id(original)))
    kind: Kind = "websocket" if isinstance(original, WebSocketRoute) else "http"
    methods: frozenset[str] | None = frozenset()
    if kind == "http":
        given = attribute(route, "methods")
        methods = None if given is None else frozenset(str(method).upper() for method in given)
    key = (kind, prefix + path, host, id(endpoint), methods)
    return FoundEndpoint(kind, prefix + path, methods, host, _name(endpoint), key)


def _name(endpoint: object) -> str:
    name = attribute(endpoint, "__name__")
    return name if isinstance(name, str) else type(endpoint).__name__
