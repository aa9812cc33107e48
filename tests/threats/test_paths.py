"""Whether a request can reach a handler without the agents of its path."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, WebSocketRoute
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp, Scope
from starlette.websockets import WebSocket

from asgi_agents import Agent, AgentConfig, AgentMiddleware, RequestHeadersEvent, Route, guard_router, guarded_by
from tests.support.asgi import Client
from tests.support.examples import examples
from tests.support.servers import serve

from .raw import get, say, shake_hands

# What is protected. An app's handlers and the routes of agents are written alike.
PATTERNS = [
    "/admin",
    "/api/admin",
    "/items/{id:int}",
    "/files/{path:path}",
    "/users/{name}",
    "/trailing/",
    "/sub/deep/{x}",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "get", "GeT", "FOO"]


class World:
    """Which of the patterns' handlers ran, and which of their agents heard the request; both by pattern."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.heard: list[str | None] = []
        world = self

        class Listening(Agent):
            async def on_request_headers(self, event: RequestHeadersEvent) -> None:
                world.heard.append(event.metadata.route_id)

        self.agents = [AgentConfig("agent", Listening())]

    def guard(self, app: ASGIApp, prefix: str = "", **options: Any) -> AgentMiddleware:
        return AgentMiddleware(app, agents=self.agents, routes=self.routes(prefix), **options)

    def routes(self, prefix: str = "") -> list[Route]:
        return [Route(f"{prefix}{pattern}", ["agent"]) for pattern in PATTERNS]

    def endpoint(self, pattern: str) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            self.ran.append(pattern)
            return PlainTextResponse("handled")

        return handle

    def class_endpoint(self, pattern: str) -> type[HTTPEndpoint]:
        handle = self.endpoint(pattern)

        class Endpoint(HTTPEndpoint):
            async def get(self, request: Request) -> Response:
                response: Response = await handle(request)
                return response

            post = put = delete = get

        return Endpoint

    def websocket(self, pattern: str) -> Callable[[WebSocket], Any]:
        async def handle(websocket: WebSocket) -> None:
            self.ran.append(pattern)
            await websocket.accept()
            await websocket.close()

        return handle

    def starlette_routes(self) -> list[Any]:
        return [
            route
            for pattern in PATTERNS
            for route in (
                WebSocketRoute(pattern, self.websocket(pattern)),
                AppRoute(pattern, self.endpoint(pattern), methods=["GET", "POST"]),
                AppRoute(pattern, self.class_endpoint(pattern)),
            )
        ]

    def fastapi(self, **options: Any) -> FastAPI:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, **options)
        router = APIRouter()
        for pattern in PATTERNS:
            router.add_api_route(
                pattern.replace("{id:int}", "{id:int}"),
                self.endpoint(pattern),
                methods=["GET", "POST"],
                response_model=None,
            )
        app.include_router(router)
        return app


Build = Callable[[World], ASGIApp]


def starlette(world: World) -> ASGIApp:
    return world.guard(Starlette(routes=world.starlette_routes()))


def starlette_inside(world: World) -> ASGIApp:
    app = Starlette(routes=world.starlette_routes())
    app.add_middleware(AgentMiddleware, agents=world.agents, routes=world.routes())
    return app


def starlette_by_host(world: World) -> ASGIApp:
    inner = Starlette(routes=world.starlette_routes())
    return world.guard(Starlette(routes=[Host("{any}.example", inner), Mount("", inner)]))


def starlette_mounted(world: World) -> ASGIApp:
    return world.guard(Starlette(routes=[Mount("/mnt", routes=world.starlette_routes())]), "/mnt")


def starlette_mounted_and_guarded_inside(world: World) -> ASGIApp:
    return Starlette(routes=[Mount("/mnt", world.guard(Starlette(routes=world.starlette_routes())))])


def fastapi(world: World) -> ASGIApp:
    return world.guard(world.fastapi())


def fastapi_with_root_path(world: World) -> ASGIApp:
    return world.guard(GZipMiddleware(CORSMiddleware(world.fastapi(root_path="/outer"))))


def fastapi_mounted(world: World) -> ASGIApp:
    app = FastAPI()
    app.mount("/mnt", world.fastapi())
    return world.guard(app, "/mnt")


def fastapi_with_a_prefix(world: World) -> ASGIApp:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(world.fastapi().router, prefix="/mnt")
    return world.guard(app, "/mnt")


BUILDS: list[Build] = [
    starlette,
    starlette_inside,
    starlette_by_host,
    starlette_mounted,
    starlette_mounted_and_guarded_inside,
    fastapi,
    fastapi_with_root_path,
    fastapi_mounted,
    fastapi_with_a_prefix,
]

PATHS = [
    "/admin",
    "//admin",
    "/./admin",
    "/x/../admin",
    "/api/../admin",
    "/%61dmin",
    "/api%2Fadmin",
    "/api%2fadmin",
    "/api%5Cadmin",
    "/api\\admin",
    "/admin%00",
    "/admin%0A",
    "/admin%0D%0A",
    "/admin%20",
    "/admin%E2%80%A8",
    "/admin%C2%85",
    "/admin;a=b",
    "/admin/",
    "/admin%2F",
    "/ADMIN",
    "/adm%C4%B1n",
    "/admin?x",
    "/trailing",
    "/trailing/",
    "/trailing//",
    "/items/1",
    "/items/%31",
    "/items/1%0A",
    "/items/%D9%A1",  # an arabic digit
    "/items/+1",
    "/items/1.0",
    "/files/",
    "/files",
    "/files//a",
    "/files/../admin",
    "/files/a%0Ab",
    "/files/%2e%2e%2fadmin",
    "/files/%ff%fe",
    "/files/%ED%A0%80",
    "/users/a%2Fb",
    "/users/a%0A",
    "/users/%0A",
    "/mnt/admin",
    "/mnt//admin",
    "/mnt%2Fadmin",
    "/mnt/mnt/admin",
    "/outer/admin",
    "/outer/outer/admin",
    "/outer//admin",
    "/outeradmin",
    "/outer",
    "*",
    "",
    "admin",
    "http://app/admin",
    "HTTP://app/mnt/admin",
]

settled = settings(deadline=None, max_examples=examples(60), suppress_health_check=list(HealthCheck))
piece = st.sampled_from(
    ["admin", "api", "items", "files", "users", "trailing", "mnt", "outer", "1", "-1", "..", ".", "", "x"]
)
joint = st.sampled_from(
    ["/", "/", "/", "//", "%2F", "\\", ";", "%00", "%0A", "\n", "?", "#", "/./", "/../", "\u2215", "%"]
)
paths = st.one_of(
    st.sampled_from(PATHS),
    st.lists(st.tuples(joint, piece), max_size=5).map(lambda parts: "".join(a + b for a, b in parts)),
    st.builds(
        lambda path, at, char: path[:at] + char + path[at:],
        st.sampled_from(PATHS),
        st.integers(0, 9),
        st.characters(exclude_categories=["Cs"]),
    ),
)


def call(app: ASGIApp, target: str, method: str, *, root_path: str, kind: str, host: str) -> None:
    """As a server does it: the path is decoded, the raw path is not."""
    path = unquote(target.partition("?")[0])
    client = Client(method, path, headers=[(b"host", host.encode())])
    client.scope["raw_path"] = target.encode("utf-8", "surrogatepass")
    # Some servers put it before the path, some leave it out, whatever the client has sent.
    client.scope["root_path"] = root_path
    if kind == "websocket":
        del client.scope["method"]
        client.scope.update({"type": "websocket", "subprotocols": []})
        client._inbox.clear()
        client._inbox.append({"type": "websocket.connect"})
    anyio.run(client.call, app)


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
@settled
@given(
    target=paths,
    method=st.sampled_from(METHODS),
    root_path=st.sampled_from(["", "", "/outer", "/mnt", "/admin", "/"]),
    kind=st.sampled_from(["http", "http", "http", "websocket"]),
    host=st.sampled_from(["app", "sub.example", ""]),
)
def test_whenever_a_handler_runs_the_agents_of_its_path_have_heard_it(
    build: Build, target: str, method: str, root_path: str, kind: str, host: str
) -> None:
    world = World()
    call(build(world), target, method, root_path=root_path, kind=kind, host=host)

    for pattern in world.ran:
        assert [heard for heard in world.heard if heard is not None and heard.endswith(pattern)]


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_no_path_of_the_corpus_reaches_a_handler_unheard(build: Build) -> None:
    handled = 0
    world = World()
    app = build(world)
    for target in PATHS:
        for root_path in ("", "/outer", "/mnt"):
            for kind in ("http", "websocket"):
                world.ran.clear()
                world.heard.clear()
                call(app, target, "GET", root_path=root_path, kind=kind, host="app")
                handled += len(world.ran)
                assert [p for p in world.ran if not [h for h in world.heard if h and h.endswith(p)]] == []
    assert handled


@pytest.fixture(scope="module", params=["httptools", "h11"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[World, str]]:
    world = World()
    with serve(starlette(world), http=request.param, loop="asyncio") as url:
        yield world, url


@pytest.mark.parametrize(
    "target", [path.encode() for path in PATHS] + [b"/admin\x80", b"/\xff", b"/admin\x00", b"?/admin"]
)
def test_no_target_on_the_wire_reaches_a_handler_unheard(served: tuple[World, str], target: bytes) -> None:
    world, url = served
    for method in (b"GET", b"HEAD", b"get", b"FOO"):
        for headers in (
            (),
            (b"x-http-method-override: DELETE", b"x-original-url: /admin", b"x-forwarded-prefix: /admin"),
        ):
            world.ran.clear()
            world.heard.clear()
            get(url, target, *headers, method=method)

            assert bool(world.heard) >= bool(world.ran)


def test_an_upgrade_is_no_way_past_the_agents(served: tuple[World, str]) -> None:
    world, url = served
    websocket = (
        b"connection: Upgrade",
        b"upgrade: websocket",
        b"sec-websocket-version: 13",
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    h2c = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    world.ran.clear()
    world.heard.clear()
    for method in (b"GET", b"POST", b"get"):
        for upgrade in (websocket, websocket[:2], websocket[1:], h2c):
            for target in (b"/admin", b"/api%2Fadmin", b"/admin%0A", b"http://app/admin"):
                lines = b"\r\n".join(
                    (b"%b %b HTTP/1.1" % (method, target), b"host: app", *upgrade, b"connection: close")
                )
                say(url, lines + b"\r\n\r\n")
    say(url, preface)

    assert world.ran
    assert len(world.heard) >= len(world.ran)


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_no_request_on_the_wire_is_taken_for_one_to_a_public_handler(http: str) -> None:
    world = World()
    private, public = world.endpoint("/{section}/{name}"), world.endpoint("/files/{rest:path}")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    router = APIRouter()
    router.add_api_route("/{rest:path}", public, methods=["GET"], response_model=None)
    app.include_router(router, prefix="/files")
    app.add_api_websocket_route("/{section}/{name}", world.websocket("/{section}/{name}"))
    app.add_api_route("/{section}/{name}", private, methods=["GET", "HEAD", "POST"], response_model=None)
    routes = [Route("/files/{rest:path}", []), Route("/{section}/{name}", ["agent"])]
    websocket = (
        b"connection: Upgrade",
        b"upgrade: websocket",
        b"sec-websocket-version: 13",
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    with serve(AgentMiddleware(app, agents=world.agents, routes=routes), http=http, loop="asyncio") as url:
        for _ in range(2):
            get(url, b"/files/a")
            assert (world.ran, world.heard) == (["/files/{rest:path}"], [])
            world.ran.clear()
            get(url, b"/files/a%0Ab")
            get(url, b"/files/a", method=b"POST")
            get(url, b"/files/a", method=b"HEAD")
            shake_hands(url, b"/files/a", *websocket)
            assert world.ran == ["/{section}/{name}"] * 4
            assert world.heard == ["/{section}/{name}"] * 4
            world.ran.clear()
            world.heard.clear()


def test_a_path_that_the_app_rewrites_further_in_is_judged_as_it_came() -> None:
    """What is not defended: what stands between the agents and the app's router can send a request elsewhere."""
    world = World()
    app = Starlette(routes=world.starlette_routes())

    async def rewriting(scope: Scope, receive: Any, send: Any) -> None:
        await app({**scope, "path": "/admin"}, receive, send)

    call(world.guard(rewriting), "/elsewhere", "GET", root_path="", kind="http", host="app")

    assert (world.ran, world.heard) == (["/admin"], [])


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_path_that_is_rewritten_leads_to_no_endpoint_with_a_policy(kind: str) -> None:
    world = World()
    ran: list[str] = []

    @guarded_by("auth")
    async def admin(request: Request) -> Response:
        ran.append("admin")
        return Response()

    @guarded_by("auth")
    async def session(websocket: WebSocket) -> None:
        ran.append("session")

    async def plain(request: Request) -> Response:
        ran.append("plain")
        return Response()

    below = guard_router(Mount("/below", routes=[AppRoute("/admin", plain)]), "auth")
    routes = [AppRoute("/admin", admin), WebSocketRoute("/admin", session), below]
    for path in ("/admin", "/below/admin"):
        app = Starlette(routes=routes)

        async def rewriting(scope: Scope, receive: Any, send: Any, app: ASGIApp = app, path: str = path) -> None:
            await app({**scope, "path": path}, receive, send)

        call(world.guard(rewriting), "/elsewhere", "GET", root_path="", kind=kind, host="app")

    assert ran == []
