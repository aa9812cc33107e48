"""What the router of an app runs for a request."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from starlette.types import Scope

from ...exchange.state import ExchangeState
from ...protocol import RequestHeadersEvent
from ...routing.app_chain import app_chain, attribute
from ...routing.matching import is_included, route_of, router_of
from .mounts import described_app, is_mount


class Running(NamedTuple):
    """What runs: a route of an app, or, where ``route`` is None, something without one.

    :ivar answers_preflights: whether an app on the way to it answers them itself.
    """

    app: Any
    route: Any = None
    values: Mapping[str, Any] = {}
    answers_preflights: bool = False


def scope_of(event: RequestHeadersEvent, app: Any, path: str, root_path: str) -> Scope:
    """A scope to find routes with."""
    return {
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


class UnreadablePathError(Exception):
    """The app's own router, or a converter of it, can't read the path: the app would fail by it."""


def leaf_of(app: Any, scope: Scope) -> Running | None:
    """What runs in an app. None: its router answers itself, with 404, 405 or a redirect. ``scope`` is written to.

    :raises UnreadablePathError: where the router fails, as ``{n:int}`` does for thousands of digits.
    """
    try:
        return _leaf_of(app, scope)
    except Exception as exc:
        raise UnreadablePathError from exc


def _leaf_of(app: Any, scope: Scope) -> Running | None:
    router = router_of(app)[0]
    if router is None:
        return Running(app, answers_preflights=answers_preflights(app))
    chosen = route_of(router, scope)
    if chosen is None:
        fallback = router.default != router.not_found or attribute(router, "_low_priority_routes")
        return Running(app, answers_preflights=answers_preflights(app)) if fallback else None
    route: Any = chosen[0]
    child_scope, context = chosen[1], None
    while is_included(route):
        match, child_scope, route, context = route._match(scope)
        if match is not Match.FULL:
            return None
    if not is_mount(route):
        own = context is None or context.starlette_route is not None
        values = child_scope.get("path_params", {})
        return Running(app, route if own else context, values, answers_preflights(app))
    scope.update(child_scope)
    inner = described_app(route.app) or route.app
    if root_path := attribute(inner, "root_path"):
        scope["root_path"] = root_path
    leaf = _leaf_of(inner, scope)
    around = answers_preflights(app) or answers_preflights(route.app)
    return leaf if leaf is None or not around else leaf._replace(answers_preflights=True)


def is_preflight(event: RequestHeadersEvent) -> bool:
    """Whether it looks as if a browser asked what other sites may do (Fetch, section 3.3.4)."""
    headers = event.headers
    return event.method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def are_answered(leaf: Running | None, known: ExchangeState | None) -> bool:
    """Whether preflights get no further than to what answers them: what looks like one could run anything else."""
    return (leaf is not None and leaf.answers_preflights) or (known is not None and answers_preflights(known.app))


def answers_preflights(app: object) -> bool:
    """Whether an app, or what it wraps as far as its router, answers all preflights itself."""
    return any(map(_answers_preflights, app_chain(app)))


def _answers_preflights(wrapped: object) -> bool:
    if isinstance(wrapped, CORSMiddleware):
        return True
    entries = attribute(wrapped, "user_middleware")
    made = [attribute(entry, "cls") for entry in entries] if isinstance(entries, list) else []
    return any(isinstance(one, type) and issubclass(one, CORSMiddleware) for one in made)
