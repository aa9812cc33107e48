"""Whenever a handler runs, the agents of the route that is spelt like its own have been asked."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Match, Mount, Router, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import AgentMiddleware, Route
from tests.support.asgi import Client, Probe
from tests.support.examples import examples

from .asking import Session, config, protect


class World:
    """Handlers that remember that they ran, behind agents that remember that they were asked."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.asked: list[str] = []

    def route(self, path: str, name: str, methods: Sequence[str] | None = None, kind: type = AppRoute) -> BaseRoute:
        """``methods`` empty: a websocket route."""
        ran = self.ran

        class Endpoint:
            """Not a function, so that Starlette hands it the connection as it is."""

            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                ran.append(name)
                if scope["type"] == "http":
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    await send({"type": "http.response.body"})
                else:
                    await receive()
                    await send({"type": "websocket.close", "code": 1000, "reason": ""})

        if methods is not None and not methods:
            return WebSocketRoute(path, Endpoint())
        route: BaseRoute = kind(path, Endpoint(), methods=methods)
        return route

    def options(self, *routes: Route) -> dict[str, Any]:
        names = sorted({str(reference) for route in routes for reference in route.agents} | {"spare"})
        return {
            "agents": [config(Probe(request_headers=partial(self.evaluate, name)), name) for name in names],
            "routes": routes,
        }

    def evaluate(self, name: str, event: object) -> None:
        self.asked.append(name)

    async def visit(self, app: ASGIApp, kind: str, path: str, host: str = "app.example", **scope: Any) -> None:
        self.ran.clear()
        self.asked.clear()
        headers = [(b"host", host.encode())]
        client: Any = Session(path=path, headers=headers) if kind == "WS" else Client(kind, path, headers=headers)
        client.scope.update(scope)
        await client.call(app)


class ByQuery(AppRoute):
    """Takes only what has a word in its query."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if scope["query_string"] == b"word" else (Match.NONE, {})


Table = Callable[[World], Any]
GET, POST, WS = ["GET"], ["POST"], list[str]()


def table(first: str, second: str = "/{s}/{x}", methods: Any = (GET, GET), wrap: Any = None, **kind: type) -> Table:
    """A public route before a private one that takes as much, or more."""

    def routes(w: World) -> list[BaseRoute]:
        public = w.route(first, "public", methods[0], **kind)
        return [public if wrap is None else wrap(public), w.route(second, "private", methods[1])]

    return routes


def in_fastapi(method: str, *, included: bool) -> Table:
    """FastAPI's GET is no HEAD, as Starlette's is."""

    def make(w: World) -> FastAPI:
        app, inner, outer = FastAPI(), APIRouter(prefix="/a" if included else ""), APIRouter()
        inner.add_api_route("/{x}" if included else "/a/{x}", lambda x: w.ran.append("public"), methods=GET)
        outer.include_router(inner)
        app.include_router(outer)
        app.add_api_route("/{s}/{x}", lambda s, x: w.ran.append("private"), methods=[method])
        return app

    return make


def in_a_mount(w: World) -> list[BaseRoute]:
    return [Mount("/a", routes=table("/b/{x}", methods=(POST, GET))(w))]


OPEN, CLOSED = Route("/a/{x}", []), Route("/{s}/{x}", ["auth"])
OURS, WIDE = [OPEN, CLOSED], [Route("/a/{rest:path}", []), CLOSED]
INNER = [Route("/a/b/{x}", []), Route("/a/{s}/{x}", ["auth"])]
GETS = [Route("/a/{x}", [], methods=GET), CLOSED]
WIDER = [Route("/a/{rest:path}", ["auth"]), Route("/{rest:path}", [])]
TABLES: dict[str, tuple[Table, list[Route], str, str]] = {
    "line break": (table("/a/{rest:path}"), WIDE, "GET", "/a/x\ny"),
    "line breaks at the end": (table("/a/{rest:path}"), WIDE, "GET", "/a/x\n\n"),
    "mount": (table("/{x:path}", wrap=lambda route: Mount("/a", routes=[route])), WIDE, "GET", "/a/x\ny"),
    "in a mount": (in_a_mount, INNER, "GET", "/a/b/x"),
    "method": (table("/a/{x}", methods=(GET, POST)), OURS, "POST", "/a/x"),
    "HEAD": (in_fastapi("HEAD", included=False), GETS, "HEAD", "/a/x"),
    "included": (in_fastapi("POST", included=True), OURS, "POST", "/a/x"),
    "handshake": (table("/a/{x}", methods=(GET, WS)), OURS, "WS", "/a/x"),
    "handshake as GET": (table("/a/{x}", methods=(GET, WS)), GETS, "WS", "/a/x"),
    "no handshake": (table("/a/{x}", methods=(WS, GET)), OURS, "GET", "/a/x"),
    "host": (table("/a/{x}", wrap=lambda route: Host("www.example", app=Router([route]))), OURS, "GET", "/a/x"),
    "custom": (table("/a/{x}", kind=ByQuery), OURS, "GET", "/a/x"),
    "wider than the app's": (table("/p", "/a/b/{x}"), WIDER, "GET", "/a/b/x"),
}


def behind(w: World, made: Any, where: str, routes: Sequence[Route]) -> Any:
    """The app with its agents around it, added to it, outside of a middleware that hides it, or protecting it."""
    app: Any = Starlette(routes=made) if isinstance(made, list) else made
    match where:
        case "around":
            return AgentMiddleware(app, **w.options(*routes))
        case "added":
            app.add_middleware(AgentMiddleware, **w.options(*routes))
        case "hidden":
            app.add_middleware(lambda app: lambda *connection: app(*connection))
            app.add_middleware(AgentMiddleware, **w.options(*routes))
        case _:
            protect(app, **w.options(*routes))
    return app


@pytest.mark.parametrize("where", ["around", "added", "hidden", "protected"])
@pytest.mark.parametrize(("make", "routes", "kind", "path"), TABLES.values(), ids=TABLES)
async def test_a_handler_runs_only_after_the_agents_of_its_own_route(
    make: Table, routes: list[Route], kind: str, path: str, where: str
) -> None:
    w = World()
    app = behind(w, make(w), where, routes)
    for _ in range(2):
        await w.visit(app, kind, path)
        assert (w.ran, w.asked) == (["private"], ["auth"])


@pytest.mark.parametrize("root_path", ["", "/root"])
async def test_what_a_host_or_a_custom_route_decides_is_decided_for_each_request_anew(root_path: str) -> None:
    w = World()
    www = Host("www.example", app=Router([w.route("/h/{x}", "public")]))
    routes = [www, w.route("/t/{x}", "public", kind=ByQuery), w.route("/{s}/{x}", "private")]
    app = AgentMiddleware(Starlette(routes=routes), **w.options(Route("/h/{x}", []), Route("/t/{x}", []), CLOSED))
    visits = [("www.example", "/h/1", b""), ("", "/h/1", b""), ("", "/t/1", b"word"), ("", "/t/1", b"")]
    for host, path, query in visits * 3:
        await w.visit(app, "GET", root_path + path, host, query_string=query, root_path=root_path)
        assert w.asked == {"public": [], "private": ["auth"]}[w.ran[0]]


@pytest.mark.parametrize("kind", ["POST", "WS"])
async def test_where_no_handler_runs_the_first_candidate_is_asked(kind: str) -> None:
    """A method that is not allowed, and a handshake for an HTTP route."""
    w = World()
    app = AgentMiddleware(Router(table("/a/{x}")(w)), **w.options(Route("/a/{x}", ["first"]), CLOSED))
    await w.visit(app, kind, "/a/x")
    assert (w.ran, w.asked) == ([], ["first"])


async def test_finding_the_route_leaves_no_trace_in_the_scope() -> None:
    w, keys = World(), []

    class Between:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            keys.append({"endpoint", "path_params", "route", "router"} & set(scope))
            await self.app(scope, receive, send)

    app = Between(Router(table("/a/{x}", methods=(GET, POST))(w)))
    await w.visit(AgentMiddleware(app, **w.options(*OURS)), "POST", "/a/x")
    assert (keys, w.asked) == ([set()], ["auth"])


def spelling(segments: list[str]) -> str:
    return "".join("/" + segment.replace("p", f"p{index}", 1) for index, segment in enumerate(segments))


SPELLINGS = st.lists(st.sampled_from(["a", "b", "{p}", "{p:int}", "{p:path}"]), min_size=1, max_size=3).map(spelling)
KINDS = st.sampled_from(["GET", "HEAD", "POST", "WS"])
ENTRY = st.tuples(SPELLINGS, KINDS | st.none(), st.sampled_from(["", "", "mount", "host", "include"]))
PATHS = st.lists(st.sampled_from(["a", "b", "1", "x\ny", "", "\n", "m"]), min_size=1, max_size=4)
VISIT = st.tuples(PATHS.map(lambda parts: "/" + "/".join(parts)), KINDS, st.sampled_from(["h", "g"]), st.booleans())


def put(app: FastAPI, own: BaseRoute, inside: str) -> None:
    router = APIRouter()
    router.routes.append(own)
    match inside:
        case "include":
            app.include_router(router, prefix="/m")
        case "mount":
            app.router.routes.append(Mount("/m", routes=[own]))
        case "host":
            app.router.routes.append(Host("h", app=Router([own])))
        case _:
            app.router.routes.append(own)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(ENTRY, min_size=1, max_size=5), st.randoms(use_true_random=False), st.lists(VISIT, min_size=1))
def test_whatever_the_table_and_our_order_a_handler_s_own_agents_are_asked(
    entries: list[tuple[str, str | None, str]], random: Any, visits: list[tuple[str, str, str, bool]]
) -> None:
    w, app = World(), FastAPI(openapi_url=None)
    full = ["/m" + path if inside in ("mount", "include") else path for path, _, inside in entries]
    for name, (path, kind, inside) in zip(full, entries, strict=True):
        put(app, w.route(path, name, None if kind is None else [] if kind == "WS" else [kind]), inside)
    ours = [Route(path, [f"for{number}"]) for number, path in enumerate(dict.fromkeys(full))]
    random.shuffle(ours)
    guarded = AgentMiddleware(app, **w.options(*ours))
    for path, kind, host, prefixed in visits:
        asyncio.run(w.visit(guarded, kind, "/m" * prefixed + path, host))
        for ran in w.ran:
            assert w.asked == [str(route.agents[0]) for route in ours if route.path == ran]
