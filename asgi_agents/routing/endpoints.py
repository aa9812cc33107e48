"""Every endpoint of an app, as its router has it, with the policy that holds for it."""

from collections.abc import Iterable, Iterator
from inspect import isclass
from typing import Any, Final, Literal

from msgspec import Struct
from starlette import routing
from starlette.routing import BaseRoute, Host, Mount, WebSocketRoute

from .app_chain import attribute
from .marks import PolicyMark, is_endpoint_class, layers
from .matching import Around, innermost, is_included, mounted, router_of

EndpointKind = Literal["http", "websocket", "app"]

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")


class AppEndpoint(Struct, frozen=True):
    """An endpoint of an app.

    :ivar kind: ``app`` for what is mounted and has no routes that can be read.
    :ivar path: its pattern, with the prefixes of routers and mounts around it.
    :ivar methods: None means all. Empty for websockets.
    :ivar host: the pattern of the Host that it is in, or None.
    :ivar name: of the function or class.
    :ivar mark: the policy that holds for it, or None.
    :ivar within: the routers of the apps that it is in, outermost first, each with the pattern that it has there.
    """

    kind: EndpointKind
    path: str
    methods: frozenset[str] | None
    host: str | None
    name: str
    mark: PolicyMark | None
    within: tuple[tuple[routing.Router, str], ...]


def endpoints_of(router: routing.Router, around: Around) -> tuple[tuple[AppEndpoint, ...], bool]:
    """Every endpoint below a router, in the order in which it looks for them; and whether there is any policy.

    :param around: what holds around the router, and for it.
    """
    walk = _Walk()
    found = tuple(walk.router(router, "", None, around, ()))
    return found, walk.has_policies


class _Walk:
    def __init__(self) -> None:
        self.has_policies = False

    def router(
        self,
        router: routing.Router,
        prefix: str,
        host: str | None,
        around: Around,
        outside: tuple[tuple[routing.Router, str], ...],
    ) -> Iterator[AppEndpoint]:
        self._note(around)
        if any(router is one for one, _ in outside):
            return  # an app within itself
        outside = (*outside, (router, prefix))
        for route in list(router.routes):
            yield from self._route(route, prefix, host, around, outside)

    def _route(
        self,
        route: Any,
        prefix: str,
        host: str | None,
        around: Around,
        outside: tuple[tuple[routing.Router, str], ...],
    ) -> Iterator[AppEndpoint]:
        if is_included(route):
            inner = around.within(route.original_router)
            self._note(inner)
            for candidate in route.effective_candidates():
                if is_included(candidate):
                    yield from self._route(candidate, prefix, host, around.within(route.original_router), outside)
                elif candidate.starlette_route is not None:
                    yield from self._route(candidate.starlette_route, prefix, host, inner, outside)
                else:
                    yield from self._leaf(candidate, candidate.original_route, prefix, host, inner, outside)
        elif isinstance(route, Mount | Host):
            if isinstance(route, Mount):
                prefix += route.path
            else:
                host = route.host
            router, _ = router_of(route.app)
            inner = around.into(route.app)
            if router is not None:
                yield from self.router(router, prefix, host, inner, outside)
                return
            app = innermost(route.app)
            mark = inner.mark_at(None, app, None)
            self.has_policies = self.has_policies or mark is not None
            path = mounted(prefix)
            yield AppEndpoint("app", path, None, host, _name(app), mark, _relative(path, outside))
        else:
            yield from self._leaf(route, route, prefix, host, around, outside)

    def _leaf(
        self,
        route: Any,
        original: BaseRoute,
        prefix: str,
        host: str | None,
        around: Around,
        outside: tuple[tuple[routing.Router, str], ...],
    ) -> Iterator[AppEndpoint]:
        path = attribute(route, "path")
        endpoint = attribute(route, "endpoint")
        if not isinstance(path, str):
            self._note(around)
            self.has_policies = self.has_policies or around.mark_at(original, endpoint, None) is not None
            return
        path = prefix + path
        is_websocket = isinstance(original, WebSocketRoute)
        given = attribute(route, "methods")
        methods = frozenset() if is_websocket else frozenset(map(str.upper, given)) if given else None
        by_mark: dict[PolicyMark | None, set[str] | None] = {}
        handlers = _handlers(endpoint)
        if is_websocket or not handlers:
            method = next(iter(sorted(methods)), None) if methods else None
            by_mark[around.mark_at(original, endpoint, method)] = None
        else:
            for method in handlers if methods is None else [one for one in handlers if one in methods]:
                mark = around.mark_at(original, endpoint, method)
                by_mark[mark] = (by_mark.get(mark) or set()) | {method}
        for mark, own in by_mark.items():
            self.has_policies = self.has_policies or mark is not None
            yield AppEndpoint(
                "websocket" if is_websocket else "http",
                path,
                methods if own is None else frozenset(own),
                host,
                _name(endpoint),
                mark,
                _relative(path, outside),
            )

    def _note(self, around: Around) -> None:
        self.has_policies = self.has_policies or around.mark is not None


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


def _relative(path: str, outside: Iterable[tuple[routing.Router, str]]) -> tuple[tuple[routing.Router, str], ...]:
    return tuple((router, path[len(prefix) :]) for router, prefix in outside)


def _name(endpoint: object) -> str:
    name = attribute(endpoint, "__name__")
    return name if isinstance(name, str) else type(endpoint).__name__
