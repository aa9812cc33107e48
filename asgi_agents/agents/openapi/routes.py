"""Which operation of which FastAPI app a request is for, as the router of the app finds it."""

from typing import Any, Final

from starlette.types import Scope

from ...protocol import RequestHeadersEvent
from ...routing.app_chain import attribute
from .connection import connection
from .leaves import are_answered, is_preflight, leaf_of, scope_of
from .paths import Matched, path_of
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
        scope = scope_of(event, app, path, root_path)
        handshake = known is None and _may_be_handshake(event, scope)
        outside = elsewhere and bool(root_path) and not f"{path}/".startswith(f"{root_path}/")
        leaf = None if outside else leaf_of(app, {**scope})
        if is_preflight(event) and are_answered(leaf, known):
            return None
        if leaf is None:
            return Matched() if elsewhere and not handshake else None
        described = attribute(leaf.route, "path_format") if attribute(leaf.route, "include_in_schema") else None
        if isinstance(described, str):
            # The client alone says that it is a handshake. What a request would run that is described, it is judged by.
            return Matched(leaf.app, described, leaf.values)
        return None if handshake or _is_of_fastapi(leaf.app, attribute(leaf.route, "path")) else Matched()

    def is_answered(self, event: RequestHeadersEvent) -> bool:
        return False


def _may_be_handshake(event: RequestHeadersEvent, scope: Scope) -> bool:
    """Whether it says so and a websocket route takes it, where only events are seen, in a process of its own.

    A server that knows no websockets takes it for a request, as it takes one that only has this header.
    """
    if event.method != "GET" or _HANDSHAKE not in event.headers:
        return False
    leaf = leaf_of(scope["app"], {**scope, "type": "websocket"})
    return leaf is not None and leaf.route is not None


def _is_of_fastapi(app: Any, path: object) -> bool:
    """Whether it is the description itself, or a page that shows it."""
    own = ("openapi_url", "docs_url", "redoc_url", "swagger_ui_oauth2_redirect_url")
    return path is not None and any(attribute(app, name) == path for name in own)
