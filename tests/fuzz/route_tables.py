"""Apps with routers of every kind, our routes for their handlers, and which of ours is to hold for a connection."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import FastAPIError
from msgspec import Struct
from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Mount, WebSocketRoute, compile_path
from starlette.routing import Route as AppRoute
from starlette.routing import Router as AppRouter
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketClose

from asgi_agents import Route

from .choices import Choices

# Such as match one another's paths; %d keeps parameters of different depths apart.
_PATTERNS = (
    *("/{a%d}", "/a", "/a/{rest%d:path}", "/{a%d}/{b%d}", "/{rest%d:path}", "/a/{b%d}", "/{n%d:int}", "/", "/a/b"),
    *("/{other%d}/{b%d}", "/{a%d}.b", "/a/{rest%d:path}/b"),
)
_PREFIXES = ("/a", "", "/{m%d}", "/m", "/{m%d:path}", "/a/b")
_INCLUDED = ("", "/a", "/{i%d}", "/a/b")
_LITERALS = ("a", "api", "", "a.b", "é", "A", "-", "x$", "(y)", "[z]", "%0a", ".*", "\\d", "^", "|", "\n", "a\n")
_PARAMETERS = ("", "{%s}", "{%s:str}", "{%s:int}", "{%s:float}", "{%s:uuid}", "{%s:path}", "{%s:nope}", "{", "}", "{1}")
_VALUES = (
    *("1", "x", "1.5", "", "a/b", "a\nb", "\n", "\r", "/", "..", "\u2028", "٣", "\x00", "\x85", "%2f"),
    *("123e4567-e89b-12d3-a456-426614174000", "9" * 400, "1.", ".5"),
)
_SEGMENTS = ("a", "b", "m", "1", "x", "", "a\nb", "\n", "a.b")
_ENDS = ("", "", "", "/", "\n", "\n\n", "/\n", "?x", "\x00")
_METHODS = (["GET"], None, ["POST"], ["HEAD"], ["GET", "POST"])
_ROOTS = ("", "", "", "/root", "/root/", "/a")
_SIBLINGS = ("GET", "POST", "HEAD", "OPTIONS")
_HOSTS = ("a.example", "b.example", "")

Spelt = tuple[str, Sequence[str] | None]


class Table(Struct):
    """An app and our routes for it.

    ``handlers`` has the full spelling and the methods of each handler. ``mounts`` are the spellings among them that are
    those of mounted apps without routes. ``ran`` grows by the full spelling of every handler that runs.
    """

    app: ASGIApp
    routes: list[Route]
    default: list[str] | None
    handlers: list[Spelt]
    mounts: set[str]
    ran: list[str]
    examples: list[str]

    def holder(self, scope: Scope, root_path: str = "") -> Route | None:
        """The route that is to hold for a connection after which ``ran`` is complete; None for the default agents.

        ``root_path`` is what the app puts into the scope.
        """
        path = get_route_path({**scope, "root_path": root_path or scope.get("root_path", "")})
        path = path if path.startswith("/") else "/" + path
        method = scope.get("method", "GET").upper()
        ours = [route for route in self.routes if route.methods is None or method in route.methods]
        matching = [route for route in ours if compile_path(route.path)[0].match(path)]
        held = matching[0] if matching else None
        if self.ran:
            [ran] = self.ran
            own = [route for route in ours if route.path == ran]
            own = own or [route for route in ours if ran and shape(route.path) == shape(ran)]
            among = [route for route in ours if route in matching or route in own]
            left = [route for route in among if route in own or not self.has(route)] or among
            held = left[0] if left else None
        # A catch-all of ours also stands for paths with line breaks, if it adds agents.
        wanted = set(self.agents_of(held))
        for route in ours:
            if route is held:
                break
            wide = re.compile(compile_path(route.path)[0].pattern, re.DOTALL)
            if route not in matching and wide.match(path) and not self.has(route) and wanted <= set(route.agents):
                return route
        return held

    def agents_of(self, route: Route | None) -> list[Any]:
        """The agents that hear what ``route`` holds for."""
        return [*(self.default or ())] if route is None else [*route.agents]

    def has(self, route: Route) -> bool:
        """Whether a handler is spelt like the route."""
        shapes = {shape(spelling) for spelling in self.mounts}
        spellings = {spelling for spelling, _ in self.handlers if spelling not in self.mounts}
        return route.path in spellings or shape(route.path) in shapes


def shape(spelling: str) -> str:
    """A spelling without the names of its parameters."""
    return re.sub(r"\{[a-zA-Z_][a-zA-Z0-9_]*(:[a-zA-Z_][a-zA-Z0-9_]*)?\}", r"{\1}", spelling).replace("{:str}", "{}")


def table(choices: Choices) -> Table:
    """Any of them. Raises AssertionError or ValueError for patterns that there can't be."""
    made = Table(Starlette(), [], choices.pick((None, ["default"])), [], set(), [], [])
    made.app = _app(choices, made, "", 0)
    for number, (spelling, methods) in enumerate(made.handlers):
        if choices.one_in(8):
            continue
        if spelling in made.mounts:
            spelling = spelling.replace("{path:path}", choices.pick(("{rest:path}", "{path:path}")))
        agents: list[str] = choices.pick(([f"agent-{number}"], [f"agent-{number}"], [], ["shared"]))
        ours = choices.pick((None, None, methods, ["GET"]))
        made.routes.insert(choices.below(len(made.routes) + 1), Route(spelling, agents, methods=ours))
    for pattern in ("/{all:path}", "/a/{all:path}", "/{one}/{two}"):
        if choices.one_in(8):
            place = choices.below(len(made.routes) + 1)
            made.routes.insert(place, Route(pattern, choices.pick((["all"], [], ["shared", "default"]))))
    return made


def connection(choices: Choices, made: Table) -> Scope:
    """Any connection, often one that some handler is for."""
    if choices.flag() and made.examples:
        path = choices.pick(made.examples)
    else:
        path = "".join("/" + choices.pick(_SEGMENTS) for _ in range(1 + choices.below(4)))
    path += choices.pick(_ENDS)
    root = choices.pick(_ROOTS)
    if root and not choices.one_in(4):
        path = root + path
    scope: Scope = {
        "type": "http",
        "path": path,
        "root_path": root,
        "query_string": b"",
        "headers": [(b"host", choices.pick(_HOSTS).encode())],
        "server": ("server", 80),
        "scheme": "http",
        "http_version": "1.1",
    }
    if choices.one_in(4):
        return {**scope, "type": "websocket", "subprotocols": []}
    return {**scope, "method": choices.pick(("GET", "HEAD", "POST", "OPTIONS", "get"))}


def sibling(choices: Choices, scope: Scope) -> Scope:
    """A connection for the same path as ``scope``, that differs from it in method, type, root path or host."""
    scope = {**scope, "headers": [*scope["headers"]]}
    match choices.below(4):
        case 0 | 1 if scope["type"] == "http":
            method = scope["method"]
            scope["method"] = choices.pick([other for other in _SIBLINGS if other != method])
        case 2:
            root = choices.pick(_ROOTS)
            path = scope["path"].removeprefix(scope["root_path"])
            scope |= {"root_path": root, "path": root + path}
        case 3:
            scope["headers"] = [(b"host", choices.pick(_HOSTS).encode())]
        case _ if scope["type"] == "http":
            del scope["method"]
            scope |= {"type": "websocket", "subprotocols": []}
        case _:
            del scope["subprotocols"]
            scope |= {"type": "http", "method": "GET"}
    return scope


async def run(app: ASGIApp, scope: Scope) -> None:
    """One connection of a client that says nothing more. What an app raises is its own affair."""
    first = {"type": "http.request"} if scope["type"] == "http" else {"type": "websocket.connect"}
    unread = [{"type": "http.disconnect"}, first]

    async def receive() -> dict[str, Any]:
        return unread.pop() if unread else {"type": "websocket.disconnect"}

    async def send(message: object) -> None: ...

    # A convertor may be unable to convert what its pattern matches: nothing runs then.
    with suppress(ValueError, OverflowError):
        await app({**scope}, receive, send)


def _app(choices: Choices, made: Table, prefix: str, depth: int) -> ASGIApp:
    """An app of any kind below ``prefix``."""
    if choices.flag():
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        _fill(choices, made, app.router, prefix, depth)
        if depth and choices.one_in(8):
            app.root_path = choices.pick(("/a", prefix, "/root"))
        return app
    routes = [_route(choices, made, prefix, depth) for _ in range(1 + choices.below(3))]
    return Starlette(routes=routes) if choices.flag() else AppRouter(routes)


def _fill(choices: Choices, made: Table, router: APIRouter, prefix: str, depth: int) -> None:
    """Put routes of every kind into FastAPI's ``router``."""
    for _ in range(1 + choices.below(3)):
        match choices.below(5):
            case 0 | 1:
                pattern = _pattern(choices, made, prefix, depth)
                methods = choices.pick((["GET"], ["POST"], ["GET", "HEAD"]))
                endpoint = _Handler(made, prefix + pattern, methods).http
                router.add_api_route(pattern, endpoint, methods=methods, response_model=None)
            case 2:
                pattern = _pattern(choices, made, prefix, depth)
                router.add_api_websocket_route(pattern, _Handler(made, prefix + pattern, None).websocket)
            case 3 if depth < 3:
                included = APIRouter()
                # The app's, in the end: `include_router` puts it before each of the router's routes.
                added = _named(choices.pick(_INCLUDED), depth)
                _fill(choices, made, included, prefix + added, depth + 1)
                try:
                    router.include_router(included, prefix=added)
                except FastAPIError as exc:
                    raise ValueError(str(exc)) from exc
            case _:
                router.routes.append(_route(choices, made, prefix, depth))
                router._mark_routes_changed()


def _route(choices: Choices, made: Table, prefix: str, depth: int) -> BaseRoute:
    kind = choices.below(8)
    if kind >= 5 and depth < 3:
        if kind == 7:
            return Host(choices.pick(_HOSTS[:2]), _leaf_or_app(choices, made, prefix, depth, mounted=False))
        mount = _named(choices.pick(_PREFIXES), depth)
        return Mount(mount, app=_leaf_or_app(choices, made, prefix + mount, depth, mounted=True))
    pattern = _pattern(choices, made, prefix, depth)
    if kind == 4:
        return WebSocketRoute(pattern, _Handler(made, prefix + pattern, None).websocket)
    methods = choices.pick(_METHODS)
    handler = _Handler(made, prefix + pattern, methods)
    # A class is an ASGI app, and takes every method unless it says otherwise.
    return AppRoute(pattern, handler.http if methods else handler, methods=methods)


def _leaf_or_app(choices: Choices, made: Table, prefix: str, depth: int, *, mounted: bool) -> ASGIApp:
    # FastAPI mounts the app of an included host at the prefix.
    if choices.one_in(4) and (mounted or not prefix):
        if not mounted:
            return _Handler(made, "", None)
        made.mounts.add(f"{prefix}/{{path:path}}")
        made.examples.append(f"{_filled(prefix)}/x")
        return _Handler(made, f"{prefix}/{{path:path}}", None)
    return _app(choices, made, prefix, depth + 1)


class _Handler:
    """Notes that it has run."""

    def __init__(self, made: Table, spelling: str, methods: Sequence[str] | None) -> None:
        self._ran = made.ran
        self._spelling = spelling
        if spelling:
            made.handlers.append((spelling, methods))

    async def http(self, request: Request) -> Response:
        self._ran.append(self._spelling)
        return Response()

    async def websocket(self, websocket: WebSocket) -> None:
        self._ran.append(self._spelling)
        await websocket.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._ran.append(self._spelling)
        await (Response() if scope["type"] == "http" else WebSocketClose())(scope, receive, send)


def _named(pattern: str, depth: int) -> str:
    return pattern.replace("%d", str(depth))


def _filled(pattern: str) -> str:
    """A path that the pattern may match."""
    return re.sub(r"\{[^}]*int\}", "1", re.sub(r"\{[a-z][^}]*(?<!int)\}", "b", pattern))


def _pattern(choices: Choices, made: Table, prefix: str, depth: int) -> str:
    if not choices.one_in(4):
        pattern = _named(choices.pick(_PATTERNS), depth)
        made.examples.append(_filled(prefix + pattern))
        return pattern
    pattern, path = "", _filled(prefix)
    for index in range(1 + choices.below(3)):
        before, after = choices.pick(_LITERALS), choices.pick(_LITERALS)
        parameter = choices.pick(_PARAMETERS)
        pattern += f"/{before}{parameter % f'p{depth}_{index}' if '%s' in parameter else parameter}{after}"
        path += f"/{before}{choices.text() if choices.one_in(8) else choices.pick(_VALUES)}{after}"
    made.examples.append(path)
    return pattern
