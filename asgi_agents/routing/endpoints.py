"""Every endpoint of an app, as its router has it, with the policies that hold for it.

This is the one walk over the routes of an app. Who is asked on each endpoint is found out elsewhere, by asking
(:mod:`asgi_agents.routing.survey`).
"""

from collections.abc import Sequence
from inspect import isclass
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct
from starlette import routing
from starlette.routing import BaseRoute, Host, Mount, WebSocketRoute

from .app_chain import attribute
from .marks import PolicyMark, is_endpoint_class, layers
from .matching import Around, innermost, is_foreign, is_included, mounted, original_of, router_of

#: ``app`` is what is mounted and has no routes that can be read, ``unreadable`` a route without a pattern.
EndpointKind = Literal["http", "websocket", "app", "unreadable"]

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")

#: The routers of the apps that something is in, outermost first, each with the pattern that it has there.
Within = tuple[tuple[routing.Router, str], ...]


class EndpointKey(NamedTuple):
    """What is the same for the same endpoint, and for no other. ``path`` is whole, ``methods`` are None for all."""

    kind: EndpointKind
    path: str
    host: str | None
    methods: frozenset[str] | None
    identity: int


class HeldPolicy(NamedTuple):
    """The policy that holds for an endpoint, or for some of its methods. No mark: the routes decide."""

    mark: PolicyMark | None
    methods: frozenset[str] | None


class AppEndpoint(Struct, frozen=True):
    """An endpoint of an app.

    :ivar name: of the function or class.
    :ivar policies: one, or several where the methods of an HTTPEndpoint have different ones.
    :ivar within: the routers of the apps that it is in, outermost first, each with the pattern that it has there.
    """

    key: EndpointKey
    name: str
    policies: tuple[HeldPolicy, ...] = ()
    within: Within = ()

    @property
    def kind(self) -> EndpointKind:
        """What it is."""
        return self.key.kind

    @property
    def path(self) -> str:
        """Its pattern, with the prefixes of routers and mounts around it."""
        return self.key.path

    @property
    def methods(self) -> frozenset[str] | None:
        """None means all. Empty for websockets."""
        return self.key.methods

    @property
    def host(self) -> str | None:
        """The pattern of the Host that it is in, or None."""
        return self.key.host


class AppWalk:
    """All that is below the router of an app.

    :param around: what holds around the router, and for it.
    :ivar endpoints: in the order in which the app looks for them.
    :ivar has_policies: whether there is a policy anywhere.
    :ivar open_ended: the prefixes of routers that answer more than their routes say: by a fallback, or by the pages of
        a frontend, for which FastAPI looks when no route matches.
    :ivar mounts: the spellings of mounts whose app has no routes that can be read.
    :ivar volatile: whether something other than path, method and scope type has a say.
    :ivar shifts: whether a mounted app sets a root path of its own, so that its router may see any part of the path.
    :ivar lists: the routes of every router as they are now.
    :ivar apps: every app in a mount, with its router and root path.
    :ivar error: why not all of it could be read; None: it could.
    """

    def __init__(self, router: routing.Router, around: Around) -> None:
        self.endpoints: list[AppEndpoint] = []
        self.has_policies = False
        self.open_ended: dict[str, None] = {}
        self.mounts: set[str] = set()
        self.volatile = False
        self.shifts = False
        self.lists: dict[int, tuple[routing.Router, Sequence[BaseRoute]]] = {}
        self.apps: list[tuple[object, routing.Router | None, str]] = []
        self.error: Exception | None = None
        try:
            self._router(router, "", None, around, ())
        except Exception as exc:
            # Of an app like none that is known.
            self.volatile = self.has_policies = True
            self.error = exc

    def _router(self, router: routing.Router, prefix: str, host: str | None, around: Around, outside: Within) -> None:
        self._note(around)
        if any(router is one for one, _ in outside):
            return  # an app within itself
        self.volatile = self.volatile or is_foreign(router, "app")
        if router.default != router.not_found:
            self.open_ended[prefix or "/"] = None
        outside = (*outside, (router, prefix))
        for route in self._routes_of(router, prefix):
            self._route(route, prefix, host, around, outside)

    def _routes_of(self, router: routing.Router, prefix: str) -> Sequence[BaseRoute]:
        routes = router.routes[:]
        self.lists[id(router)] = (router, routes)
        if attribute(router, "_low_priority_routes"):
            self.open_ended[prefix or "/"] = None
        return routes

    def _route(self, route: Any, prefix: str, host: str | None, around: Around, outside: Within) -> None:
        self.volatile = self.volatile or isinstance(route, Host) or is_foreign(route)
        around = around.within(route)
        if is_included(route):
            self._included(route, prefix, host, around, outside)
        elif isinstance(route, Mount | Host):
            self._mounted(route, prefix, host, around, outside)
        else:
            self._leaf(route, route, prefix, host, around, outside)

    def _included(self, route: Any, prefix: str, host: str | None, around: Around, outside: Within) -> None:
        router = route.original_router
        self.volatile = self.volatile or is_foreign(router)  # it may have a `matches` of its own
        self._routes_of(router, prefix + (attribute(attribute(route, "include_context"), "prefix") or ""))
        around = around.within(router)
        self._note(around)
        for candidate in route.effective_candidates():
            original: Any = original_of(route, candidate)
            inner = around.within(original)
            if is_included(candidate):
                self._included(candidate, prefix, host, inner, outside)
                continue
            self.volatile = self.volatile or is_foreign(original)
            if candidate.starlette_route is not None:
                self._route(candidate.starlette_route, prefix, host, inner, outside)
            else:
                self._leaf(candidate, original, prefix, host, inner, outside)

    def _mounted(self, route: Mount | Host, prefix: str, host: str | None, around: Around, outside: Within) -> None:
        if isinstance(route, Mount):
            prefix += route.path
        else:
            host = route.host
        router, root_path = router_of(route.app)
        self.apps.append((route.app, router, root_path))
        self.shifts = self.shifts or root_path != ""
        around = around.into(route.app)
        if router is not None:
            self._router(router, prefix, host, around, outside)
            return
        if isinstance(route, Mount):
            self.mounts.add(mounted(prefix))
        app = innermost(route.app)
        policies = (HeldPolicy(around.mark_at(None, app, None), None),)
        self._add(AppEndpoint(app_key(prefix, host), name_of(app), policies, _relative(mounted(prefix), outside)))

    def _leaf(
        self, route: Any, original: BaseRoute, prefix: str, host: str | None, around: Around, outside: Within
    ) -> None:
        self._note(around)
        key = endpoint_key(route, original, prefix, host)
        name = type(original).__name__ if key.kind == "unreadable" else name_of(_endpoint_of(route, original))
        policies = tuple(_policies(route, original, key, around))
        self._add(AppEndpoint(key, name, policies, _relative(key.path, outside)))

    def _add(self, endpoint: AppEndpoint) -> None:
        self.endpoints.append(endpoint)
        self.has_policies = self.has_policies or any(policy.mark is not None for policy in endpoint.policies)

    def _note(self, around: Around) -> None:
        self.has_policies = self.has_policies or around.mark is not None


def endpoint_key(route: Any, original: BaseRoute, prefix: str, host: str | None) -> EndpointKey:
    """The key of what a route leads to that is neither a mount nor a Host.

    :param route: the route, or what FastAPI has made of it where it is included.
    :param original: the route itself.
    """
    path = attribute(route, "path")
    if not isinstance(path, str):
        return EndpointKey("unreadable", prefix, host, None, id(original))
    identity = id(_endpoint_of(route, original))
    if isinstance(original, WebSocketRoute):
        return EndpointKey("websocket", prefix + path, host, frozenset(), identity)
    given = attribute(route, "methods")
    methods = frozenset(str(method).upper() for method in given) if given else None
    return EndpointKey("http", prefix + path, host, methods, identity)


def app_key(prefix: str, host: str | None) -> EndpointKey:
    """The key of an app without routes that can be read, which is mounted there."""
    return EndpointKey("app", mounted(prefix), host, None, 0)


def name_of(endpoint: object) -> str:
    """The name of a function or class, or of the class of anything else."""
    name = attribute(endpoint, "__name__")
    return name if isinstance(name, str) else type(endpoint).__name__


def _endpoint_of(route: object, original: object) -> object:
    return attribute(route, "endpoint") or attribute(original, "endpoint")


def _policies(route: Any, original: BaseRoute, key: EndpointKey, around: Around) -> Sequence[HeldPolicy]:
    endpoint = attribute(route, "endpoint")
    handlers = _handlers(endpoint)
    if key.kind != "http" or not handlers:
        method = min(key.methods) if key.methods else None
        return [HeldPolicy(around.mark_at(original, endpoint, method), key.methods)]
    by_mark: dict[PolicyMark | None, set[str]] = {}
    for method in handlers if key.methods is None else [one for one in handlers if one in key.methods]:
        by_mark.setdefault(around.mark_at(original, endpoint, method), set()).add(method)
    return [HeldPolicy(mark, frozenset(methods)) for mark, methods in by_mark.items()]


def _handlers(endpoint: object) -> list[str]:
    """The methods that an HTTPEndpoint has handlers for; none of anything else."""
    for layer in layers(endpoint):
        if isclass(layer) and is_endpoint_class(layer, "HTTPEndpoint"):
            return [
                method
                for method in _METHODS
                if hasattr(layer, method.lower()) or (method == "HEAD" and hasattr(layer, "get"))
            ]
    return []


def _relative(path: str, outside: Within) -> Within:
    return tuple((router, path[len(prefix) :]) for router, prefix in outside)
