"""The way that a connection takes to an endpoint, through every middleware that asks agents: the one around the app,
those of mounted apps, and those of single routes.

Whatever matches is the app's own: ``matches`` of its routes, in the order in which its router tries them.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from inspect import ismethod
from typing import Any, Final, NamedTuple

from starlette.applications import Starlette
from starlette.routing import Host, Match, Mount, Router
from starlette.types import Scope

from ..evaluation.resolved_route import ResolvedRoute
from .app_chain import attribute
from .endpoints import EndpointKey, app_key, endpoint_key
from .finder import RouteFinder
from .matching import is_included, route_of, router_of
from .order_advice import setting_around

#: From a middleware that asks agents to its finder; None of anything else.
FinderOf = Callable[[object], RouteFinder | None]

# No app has so many middlewares around one another, or apps within one another.
_MOST: Final = 64


class FinderStep(NamedTuple):
    """What a middleware found for a connection: whom it asks. ``root`` is the root path that it saw."""

    finder: RouteFinder
    resolved_route: ResolvedRoute
    root: str


class Way(NamedTuple):
    """Whom the middlewares ask on the way, outermost first, and the key of the endpoint that runs, or None."""

    asked: tuple[FinderStep, ...]
    key: EndpointKey | None


def layers(app: Any, *, build: bool) -> Iterator[object]:
    """``app`` and what it wraps, outermost first, down to the router.

    :param build: whether stacks of middlewares are built on the way, as with the first connection of an app.
    """
    router: Router | None = None
    for _ in range(_MOST):
        if ismethod(app):
            app = app.__self__
            if isinstance(app, Router):
                # Its own method stands behind its middlewares.
                yield app
                return
        if app is None:
            break
        if isinstance(app, Router):
            app = app.middleware_stack
            continue
        yield app
        own = attribute(app, "router")
        if isinstance(own, Router):
            router = own
        if isinstance(app, Starlette):
            if app.middleware_stack is None and build:
                app.middleware_stack = app.build_middleware_stack()
            app = app.middleware_stack
        else:
            app = attribute(app, "app")
    if router is not None:
        # A middleware in between hides what it wraps. The app around it says where that leads.
        yield router


def root_path_of(app: object) -> str:
    """The root path that FastAPI puts on the scope before its first middleware; empty where there is none."""
    for layer in layers(app, build=False):
        root_path = attribute(layer, "root_path") if isinstance(layer, Starlette) else None
        if root_path and isinstance(root_path, str):
            return root_path
    return ""


def finders_of(app: object, finder_of: FinderOf) -> Iterator[RouteFinder]:
    """The finders of the middlewares around ``app``, outermost first; not those of what is mounted in it."""
    for layer in layers(app, build=True):
        finder = finder_of(layer)
        if finder is not None:
            yield finder


class Tracer:
    """Follows connections into an app.

    :param finder_of: from a middleware to its finder.
    :param around: an app that serves, or is to be started by somebody else, where ``app`` is in that: then nothing is
        built, remembered or logged. None: all is done that the start of ``app`` and its first connections do.
    """

    def __init__(self, app: object, finder_of: FinderOf, around: object = None) -> None:
        self._app = app
        self._finder_of = finder_of
        self._around = around

    def trace(self, scope: Scope) -> Way:
        """The way of a connection. ``scope`` is written to, as servers and apps do."""
        asked: list[FinderStep] = []
        key: EndpointKey | None = None
        # A route of the app's own may do anything where it is to match.
        with suppress(Exception):
            if self._around is not None:
                scope["app"] = self._around
            innermost = self._ask(self._app, scope, asked)
            if not isinstance(innermost, Router) and self._around is not None:
                # Hidden by a middleware in between.
                innermost = router_of(self._around)[0]
            key = self._through(innermost, scope, "", None, asked)
        return Way(tuple(asked), key)

    def _through(
        self, innermost: object, scope: Scope, prefix: str, host: str | None, asked: list[FinderStep]
    ) -> EndpointKey | None:
        if not isinstance(innermost, Router):
            return app_key(prefix, host)
        chosen = route_of(innermost, scope)
        return None if chosen is None else self._route(*chosen, scope, prefix, host, asked)

    def _ask(self, app: object, scope: Scope, asked: list[FinderStep]) -> object:
        """Ask each finder around an app what it asks; returns what stands innermost."""
        layer: object = app
        for layer in layers(app, build=self._around is None):
            if isinstance(layer, Starlette):
                scope["app"] = layer
                root_path = attribute(layer, "root_path")
                if root_path and isinstance(root_path, str):
                    # FastAPI does so before its first middleware.
                    scope["root_path"] = root_path
            finder = self._finder_of(layer)
            if finder is not None:
                # It sees what the middlewares see, and may not keep it: the scope is written to further on.
                look_up = finder.look_up if self._around is None else finder.ask
                with setting_around({name for step in asked for name in step.finder.headers_set}):
                    found = look_up({**scope})
                asked.append(FinderStep(finder, found, scope.get("root_path", "")))
        return layer

    def _route(
        self, route: Any, child_scope: Scope, scope: Scope, prefix: str, host: str | None, asked: list[FinderStep]
    ) -> EndpointKey | None:
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
            return self._through(self._ask(route.app, scope, asked), scope, prefix, host, asked)
        app = attribute(route, "app")
        if app is not None:
            self._ask(app, scope, asked)
        return endpoint_key(own, route, prefix, host)
