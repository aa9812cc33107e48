"""Which of its routes the router of an app runs for a connection, and whose policy holds there.

The policy of an endpoint is the nearest one: its own, else that of the router or mount that it is in, else that of the
one around this. Where an app within has agents of its own, the policies in it are theirs.
"""

from collections.abc import Callable
from functools import partial
from inspect import ismethod
from typing import Any, Final, NamedTuple

from starlette import routing
from starlette.routing import BaseRoute, Host, Match, Mount
from starlette.types import Scope

from .app_chain import GUARD, AsksAgents, app_chain, attribute
from .marks import ChecksPolicy, PolicyMark, mark_of, own_mark

# Those of these modules decide by path, method and scope type alone; except ``Host``.
_KNOWN_MODULES: Final = frozenset({"starlette.routing", "fastapi.routing"})


class Leaf(NamedTuple):
    """What the router of an app runs.

    ``spelling`` is the full spelling of the route, empty for one that has no pattern. It is None where no route
    matches, and what answers is a fallback. ``mark`` is the nearest one.
    """

    spelling: str | None
    mark: PolicyMark | None


class Around(NamedTuple):
    """What holds for the routes in some place.

    ``mark`` is the nearest one so far. ``ours`` is whether marks further in are for us, and not for agents within.
    """

    mark: PolicyMark | None = None
    ours: bool = True

    def within(self, thing: object) -> "Around":
        """What holds within a router, a route, or a wrapper of an app."""
        mark = own_mark(thing) if self.ours else None
        return self if mark is None else Around(mark)

    def into(self, app: object) -> "Around":
        """What holds for the routes of ``app``, as far as its router, and including that."""
        around = self
        for wrapped in app_chain(app):
            if isinstance(wrapped, BaseRoute):
                break
            if asks_agents(wrapped):
                return Around(around.mark, ours=False)
            around = around.within(wrapped)
            router = attribute(wrapped, "router")
            if isinstance(router, routing.Router):
                return around.within(router)
            if isinstance(wrapped, routing.Router):
                break
        return around

    def mark_at(self, route: object, endpoint: object, method: str | None) -> PolicyMark | None:
        """The mark of an endpoint that is here."""
        if not self.ours or any(asks_agents(wrapped) for wrapped in app_chain(attribute(route, "app"))):
            return self.mark
        return mark_of(endpoint, method) or self.mark


#: Called with a router, and with what holds for its routes.
Enter = Callable[[routing.Router, Around], None]


def asks_agents(app: object) -> bool:
    """Whether an app within has agents of its own, which do what the policies in it say."""
    if isinstance(app, AsksAgents):
        return True
    if GUARD in (attribute(app, "__dict__") or ()):
        return True
    entries = attribute(app, "user_middleware")
    return isinstance(entries, list) and any(_makes_agents(attribute(entry, "cls")) for entry in entries)


def _makes_agents(factory: object) -> bool:
    while isinstance(factory, partial):
        factory = factory.func
    return isinstance(factory, type) and issubclass(factory, AsksAgents)


def copy_of(scope: Scope) -> Scope:
    """A scope to match routes with: some of them write to it."""
    asked = {**scope}
    if isinstance(asked.get("fastapi"), dict):
        asked["fastapi"] = {**asked["fastapi"]}
    return asked


def match(router: routing.Router, scope: Scope, prefix: str, around: Around, enter: Enter | None = None) -> Leaf | None:
    """What a router runs, as Starlette's ``Router`` decides: the first full match. A mount is one, whatever is in it.

    None where it runs nothing: 404, 405, a redirect. ``scope`` is written to.

    :param enter: called with a router within that decides, and with what holds there. None: it is asked here as well.
    """
    chosen = route_of(router, scope)
    if chosen is not None:
        return match_within(*chosen, scope, prefix, around, enter)
    return _fallback(router, scope, around)


def route_of(router: routing.Router, scope: Scope) -> tuple[BaseRoute, Scope] | None:
    """The route that a router runs, and what that adds to the scope; None where it runs none, or one that says 405."""
    partial_match: tuple[BaseRoute, Scope] | None = None
    for route in router.routes:
        matched, child_scope = route.matches(scope)
        if matched is Match.FULL:
            return route, child_scope
        if matched is Match.PARTIAL and partial_match is None:
            partial_match = route, child_scope
    if partial_match is not None and any(is_foreign(partial_match[0], name) for name in ("matches", "handle")):
        # Starlette runs it; its own routes answer 405 then.
        return partial_match
    return None


def match_within(
    route: Any, child_scope: Scope, scope: Scope, prefix: str, around: Around, enter: Enter | None = None
) -> Leaf | None:
    """What a route runs that has matched."""
    path = None
    around = around.within(route)
    while is_included(route):
        included = route
        around = around.within(route.original_router)
        matched, child_scope, route, context = route._match(scope)
        if matched is not Match.FULL:
            return None
        around = around.within(original_of(included, route if context is None else context))
        # A route's own path lacks the prefix with which it was included.
        path = None if context is None or context.starlette_route is not None else context.path
    if path is None and isinstance(route, Mount | Host):
        scope.update(child_scope)
        if isinstance(route, Mount):
            prefix += route.path
        router, root_path = router_of(route.app)
        if root_path:
            scope["root_path"] = root_path
        inner = around.into(route.app)
        if router is not None:
            if enter is not None and inner.ours:
                enter(router, inner)
                return None
            return match(router, scope, prefix, inner, enter)
        return Leaf(
            mounted(prefix) if isinstance(route, Mount) else "", inner.mark_at(None, innermost(route.app), None)
        )
    if path is None:
        path = getattr(route, "path", None)
    method = scope.get("method") if scope["type"] == "http" else None
    mark = around.mark_at(route, attribute(route, "endpoint"), method)
    return Leaf(prefix + path if isinstance(path, str) else "", mark)


def _fallback(router: routing.Router, scope: Scope, around: Around) -> Leaf | None:
    """What a router runs where none of its routes matches, if that may be anything, and has a mark."""
    if attribute(router, "_low_priority_routes") is not None:
        # FastAPI's frontends, of this router and of those that it includes.
        matched, _, route, context = router._match_low_priority(scope)  # type: ignore[attr-defined]
        if matched is not Match.NONE:
            found = _around_frontend(router, route if context is None else context.original_route, around) or around
            return None if found.mark is None else Leaf(None, found.mark)
    if around.mark is not None and (router.default != router.not_found or is_foreign(router, "app")):
        return Leaf(None, around.mark)
    return None


def _around_frontend(router: Any, frontend: object, around: Around) -> Around | None:
    """What holds for one of FastAPI's frontends that a router below ``router`` has; None where none has it."""
    for route in router.routes:
        if is_included(route):
            inner = around.within(route.original_router)
            if any(frontend is one for one in attribute(route.original_router, "_low_priority_routes") or ()):
                return inner
            found = _around_frontend(route.original_router, frontend, inner)
            if found is not None:
                return found
    return None


def router_of(app: object) -> tuple[routing.Router | None, str]:
    """The router of an app, or None; and the root path that FastAPI sets on the way to it."""
    root_path = ""
    for wrapped in app_chain(app):
        if isinstance(wrapped, BaseRoute):
            break
        own = attribute(wrapped, "root_path")
        if not root_path and isinstance(own, str):
            root_path = own
        for router in (attribute(wrapped, "router"), wrapped):
            if isinstance(router, routing.Router):
                return router, root_path
    return None, root_path


def router_around(scope: Scope) -> routing.Router | None:
    """The router of the app that the connection is in, unless that router has sent it here already."""
    app = scope.get("app")
    endpoint = scope.get("endpoint")
    router = None if app is None else router_of(app)[0]
    if endpoint is None or router is None or router_of(endpoint)[0] is router:
        return router
    return None


def innermost(app: object) -> object:
    """What an app wraps in the end."""
    for wrapped in app_chain(app):
        app = wrapped
    return app


def is_included(route: object) -> bool:
    """Whether it is what FastAPI's ``include_router`` leaves in an app: it combines prefix and routes when asked."""
    return hasattr(route, "effective_candidates") and hasattr(route, "_match") and hasattr(route, "original_router")


def original_of(included: Any, candidate: Any) -> object:
    """The route that a candidate of an included router was made of."""
    if not is_included(candidate):
        return candidate.original_route
    # FastAPI makes another of it, with the prefixes of both. They have the same order.
    made = (one for one in included.effective_candidates() if is_included(one))
    routes = (one for one in included.original_router.routes if is_included(one))
    return next((route for one, route in zip(made, routes, strict=False) if one is candidate), candidate)


def is_foreign(route: object, method: str = "matches") -> bool:
    """Whether a route or a router decides in a way of its own, as by a header."""
    module = getattr(getattr(type(route), method, None), "__module__", None)
    own = getattr(route, "__dict__", {}).get(method)
    if isinstance(own, ChecksPolicy):
        # Ours, in the place of the method.
        own = None if ismethod(own.app) else own.app
    return module not in _KNOWN_MODULES or own is not None


def mounted(prefix: str) -> str:
    """The full spelling of a mount, whatever is in it."""
    return prefix + "/{path:path}"
