"""Which operation of which FastAPI app a request is for, as the router of the app finds it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from starlette.routing import Host, Match, Mount
from starlette.types import Scope

from ..exchange.state import ExchangeState
from ..observability.correlation import current
from ..protocol import RequestHeadersEvent
from ..routing.app_chain import app_chain, attribute
from ..routing.matching import is_included, route_of, router_of
from .openapi_paths import Matched, path_of

#: Of every websocket handshake (RFC 6455, section 4.1, and RFC 8441, section 5), and of nothing else.
_HANDSHAKE: Final = "sec-websocket-version"


class DescribedRoutes:
    """Those of a FastAPI app, as its own router finds them, mounted apps included.

    :param root_path: of the server, or of what the app is mounted in. None: the app's own, or that of the connection.
    """

    def __init__(self, app: Any, root_path: str | None) -> None:
        self._app = app
        self._root_path = root_path

    def find(self, event: RequestHeadersEvent) -> Matched | None:
        connection = current()
        if isinstance(connection, ExchangeState) and connection.is_websocket:
            return None
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "http",
            "method": event.method,
            "path": path_of(event),
            "root_path": self._root_path_of(connection),
            "query_string": event.uri.partition("?")[2].encode("latin-1"),
            "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, vs in event.headers.items() for v in vs],
            "app": self._app,
            "state": {},
        }
        if not isinstance(connection, ExchangeState) and self._is_handshake(event, scope):
            return None
        leaf = _leaf(self._app, scope)
        if leaf is None or leaf.route is None:
            return None if leaf is None else Matched()
        path = attribute(leaf.route, "path_format") if attribute(leaf.route, "include_in_schema") else None
        if not isinstance(path, str):
            return None if _is_of_fastapi(leaf.app, attribute(leaf.route, "path")) else Matched()
        return Matched(leaf.app, path, leaf.values)

    def _root_path_of(self, connection: object) -> str:
        if self._root_path is not None:
            return self._root_path.rstrip("/")
        # FastAPI puts its own in the place of the server's.
        own = str(attribute(self._app, "root_path") or "")
        return own or (connection.root_path if isinstance(connection, ExchangeState) else "")

    def _is_handshake(self, event: RequestHeadersEvent, scope: Scope) -> bool:
        """Whether a websocket route takes it, where the agent is served in a process of its own, and sees events alone.

        A server that knows no websockets takes it for a request.
        """
        if event.method != "GET" or _HANDSHAKE not in event.headers:
            return False
        leaf = _leaf(self._app, {**scope, "type": "websocket"})
        return leaf is not None and leaf.route is not None


class _Leaf(NamedTuple):
    """What runs: a route of an app, or, where ``route`` is None, something without one."""

    app: Any
    route: Any = None
    values: Mapping[str, Any] = {}


def _leaf(app: Any, scope: Scope) -> _Leaf | None:
    """What runs in an app. None: its router answers itself, with 404, 405 or a redirect."""
    router = router_of(app)[0]
    if router is None:
        return _Leaf(app)
    chosen = route_of(router, scope)
    if chosen is None:
        fallback = router.default != router.not_found or attribute(router, "_low_priority_routes")
        return _Leaf(app) if fallback else None
    route: Any = chosen[0]
    child_scope, context = chosen[1], None
    while is_included(route):
        match, child_scope, route, context = route._match(scope)
        if match is not Match.FULL:
            return None
    if not isinstance(route, Mount | Host):
        own = context is None or context.starlette_route is not None
        return _Leaf(app, route if own else context, child_scope.get("path_params", {}))
    scope.update(child_scope)
    inner = described_app(route.app) or route.app
    if root_path := attribute(inner, "root_path"):
        scope["root_path"] = root_path
    return _leaf(inner, scope)


def described_app(app: object) -> Any:
    """The FastAPI app that an app is or wraps, or None."""
    for wrapped in app_chain(app):
        if callable(attribute(wrapped, "openapi")) and attribute(wrapped, "router") is not None:
            return wrapped
    return None


def described_within(app: object) -> Iterator[Any]:
    """The FastAPI apps that an app is, or that are mounted in it, each once."""
    seen: list[object] = []
    todo = [app]
    while todo:
        outer = todo.pop()
        one = described_app(outer) or outer
        if any(one is other for other in seen):
            continue
        seen.append(one)
        if described_app(one) is one:
            yield one
        router = router_of(one)[0]
        todo += [route.app for route in _flat(router.routes if router is not None else ()) if _mounts(route)]


def _mounts(route: object) -> bool:
    return isinstance(route, Mount | Host)


def _flat(routes: Sequence[Any]) -> Iterator[Any]:
    for route in routes:
        if is_included(route):
            yield from _flat(route.original_router.routes)
        else:
            yield route


def _is_of_fastapi(app: Any, path: object) -> bool:
    """Whether it is the description itself, or a page that shows it."""
    own = ("openapi_url", "docs_url", "redoc_url", "swagger_ui_oauth2_redirect_url")
    return path is not None and any(attribute(app, name) == path for name in own)
