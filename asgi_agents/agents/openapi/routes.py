"""Which operation of which FastAPI app a request is for, as the router of the app finds it."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from starlette.routing import Match
from starlette.types import Scope

from ...protocol import RequestHeadersEvent
from ...routing.app_chain import attribute
from ...routing.matching import is_included, route_of, router_of
from .connection import connection
from .mounts import described_app, is_mount
from .paths import Matched, is_preflight, path_of
from .start import Beginning

#: Of every websocket handshake (RFC 6455, section 4.1, and RFC 8441, section 5), and of nothing else.
_HANDSHAKE: Final = "sec-websocket-version"


class DescribedRoutes:
    """Those of a FastAPI app, as its own router finds them, mounted apps included.

    :param root_path: of the server, or of what the app is mounted in. None: the app's own, or that of the connection.
    """

    def __init__(self, app: Any, root_path: str | None) -> None:
        self._beginning = Beginning(app, root_path)

    def find(self, event: RequestHeadersEvent) -> Matched | None:
        known = connection()
        if known is not None and known.is_websocket:
            return None
        app, root_path, elsewhere = self._beginning.of(known)
        path = path_of(event)
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "http",
            "method": event.method,
            "path": path,
            "root_path": root_path,
            "query_string": event.uri.partition("?")[2].encode("latin-1"),
            "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, vs in event.headers.items() for v in vs],
            "app": app,
            "state": {},
        }
        if known is None and self._is_handshake(event, scope):
            return None
        outside = elsewhere and bool(root_path) and not f"{path}/".startswith(f"{root_path}/")
        leaf = None if outside else _leaf(app, scope)
        if leaf is None:
            return Matched() if elsewhere and not is_preflight(event) else None
        if leaf.route is None:
            return Matched()
        described = attribute(leaf.route, "path_format") if attribute(leaf.route, "include_in_schema") else None
        if not isinstance(described, str):
            return None if _is_of_fastapi(leaf.app, attribute(leaf.route, "path")) else Matched()
        return Matched(leaf.app, described, leaf.values)

    def _is_handshake(self, event: RequestHeadersEvent, scope: Scope) -> bool:
        """Whether a websocket route takes it, where the agent is served in a process of its own, and sees events alone.

        A server that knows no websockets takes it for a request.
        """
        if event.method != "GET" or _HANDSHAKE not in event.headers:
            return False
        leaf = _leaf(scope["app"], {**scope, "type": "websocket"})
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
    if not is_mount(route):
        own = context is None or context.starlette_route is not None
        return _Leaf(app, route if own else context, child_scope.get("path_params", {}))
    scope.update(child_scope)
    inner = described_app(route.app) or route.app
    if root_path := attribute(inner, "root_path"):
        scope["root_path"] = root_path
    return _leaf(inner, scope)


def _is_of_fastapi(app: Any, path: object) -> bool:
    """Whether it is the description itself, or a page that shows it."""
    own = ("openapi_url", "docs_url", "redoc_url", "swagger_ui_oauth2_redirect_url")
    return path is not None and any(attribute(app, name) == path for name in own)
