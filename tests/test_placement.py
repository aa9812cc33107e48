"""protect(): what stands outside and inside of the agents, and what they are asked about."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount
from starlette.routing import Route as AppRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentError,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    ConfigurationError,
    ConfigureEvent,
    HeaderOp,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Route,
    protect,
)
from tests.support.servers import serve

ADDRESS = "alice@example.org"
HTML = {"accept": "text/html"}
BLOCKED = 451


class SubclassedFastAPI(FastAPI):
    """An app with a hook of its own for those who subclass it, and with slots."""

    __slots__ = ("of_its_own",)

    def __init_subclass__(cls, *, registered_as: str) -> None:
        raise AssertionError(f"{registered_as}: nobody has written a subclass")


CLASSES = [FastAPI, Starlette, SubclassedFastAPI]
each_class = pytest.mark.parametrize("cls", CLASSES)


class BlocksEverything(Agent):
    """Refuses what it is asked about as late as it can: a response at its head, a websocket at its handshake."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.responses: list[int] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.heads.append(event.uri)
        return AgentResponse.block(BLOCKED) if event.uri.startswith("/ws") else None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        self.responses.append(event.status)
        return AgentResponse.block(BLOCKED)


class NoAddresses(Agent):
    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return AgentResponse.block(BLOCKED, "an address") if b"@" in event.data else None


class Asks(Agent):
    """Notes the paths that it is asked about, and lets all pass or answers all the same."""

    def __init__(self, answer: AgentResponse | None = None) -> None:
        self.answer = answer
        self.paths: list[str] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.paths.append(event.uri)
        return self.answer


def configured(agent: Agent, agent_id: str = "agent", **options: Any) -> AgentConfig:
    """With a deadline that no machine is too slow for."""
    return AgentConfig(agent_id, agent, **{"timeout": 30.0} | options)


async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers["x-inside"] = "yes"
    return response


class AnswersItself:
    """A middleware that answers one path without the app."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self._path:
            await PlainTextResponse(ADDRESS)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def boom(request: Request) -> Response:
    raise KeyError(ADDRESS)


async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def says_what_it_was(request: Request, exc: Exception) -> Response:
    return JSONResponse({"error": str(exc)}, 500)


def an_app(cls: type[Starlette], static: Path | None = None, **options: Any) -> Starlette:
    routes = [AppRoute("/hello", hello), AppRoute("/boom", boom)]
    app = cls(routes=routes, **options)
    app.router.add_websocket_route("/ws", ws)
    if static is not None:
        (static / "file.txt").write_text("a file")
        app.router.mount("/static", StaticFiles(directory=static))
    app.add_exception_handler(Exception, says_what_it_was)
    return app


def add_middlewares(app: Starlette, when: str) -> None:
    app.add_middleware(GZipMiddleware, minimum_size=1)
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    app.add_middleware(AnswersItself, f"/by-a-middleware-added-{when}")


def instrument(app: Starlette, **options: Any) -> None:
    FastAPIInstrumentor.instrument_app(cast(FastAPI, app), **options)


def uninstrument(app: Starlette) -> None:
    FastAPIInstrumentor.uninstrument_app(cast(FastAPI, app))


@pytest.fixture
def client_of(anyio_backend: Literal["asyncio", "trio"]) -> Callable[..., TestClient]:
    return partial(TestClient, backend=anyio_backend, raise_server_exceptions=False, follow_redirects=False)


def handshake_status(client: TestClient, path: str) -> int:
    """The status of a websocket handshake's answer; 101 if it was accepted."""
    try:
        with client.websocket_connect(path):
            return 101
    except WebSocketDenialResponse as denial:
        return denial.status_code


# What the app answers where nobody guards it.
TARGETS = [
    ("GET", "/hello", 200),
    ("GET", "/nowhere", 404),
    ("POST", "/hello", 405),
    ("GET", "/hello/", 307),
    ("GET", "/boom", 500),
    ("GET", "/static/file.txt", 200),
    ("GET", "/static/nowhere", 404),
    ("GET", "/by-a-middleware-added-before", 200),
    ("GET", "/by-a-middleware-added-after", 200),
]
PAGES = [("GET", "/docs", 200), ("GET", "/redoc", 200), ("GET", "/openapi.json", 200)]


def statuses(app: Starlette, client: TestClient) -> dict[str, int]:
    """What each target is answered with."""
    targets = TARGETS + (PAGES if isinstance(app, FastAPI) else [])
    answers = {
        f"{method} {path}": client.request(method, path, headers=HTML).status_code for method, path, _ in targets
    }
    return {**answers, "websocket": handshake_status(client, "/ws")}


INSTRUMENTED = ["never", "before", "after", "before, then no more", "after, then no more", "no more while serving"]


@pytest.mark.parametrize("debug", [False, True], ids=["handler", "debug"])
@pytest.mark.parametrize("instrumented", INSTRUMENTED)
@each_class
def test_a_block_everything_agent_is_asked_about_every_answer(
    cls: type[Starlette],
    instrumented: str,
    debug: bool,
    client_of: Callable[..., TestClient],
    tmp_path: Path,
) -> None:
    agent = BlocksEverything()
    app = an_app(cls, tmp_path, debug=debug)
    if "before" in instrumented or instrumented == "no more while serving":
        instrument(app)
    add_middlewares(app, "before")
    protect(app, agents=[configured(agent)])
    add_middlewares(app, "after")
    if instrumented.startswith("after"):
        instrument(app)
    if instrumented.endswith("then no more"):
        uninstrument(app)
    client = client_of(app)
    try:
        if instrumented == "no more while serving":
            assert set(statuses(app, client).values()) == {BLOCKED}
            uninstrument(app)
        agent.heads, agent.responses = [], []

        answered = statuses(app, client)
    finally:
        if instrumented in ("before", "after"):
            uninstrument(app)

    assert set(answered.values()) == {BLOCKED}, answered
    targets = TARGETS + (PAGES if isinstance(app, FastAPI) else [])
    assert agent.heads == [*(path for _, path, _ in targets), "/ws"]
    assert agent.responses == [status for _, _, status in targets], "the app was asked, and its own answer judged"


@each_class
def test_what_agents_let_pass_is_what_the_app_answers(
    cls: type[Starlette], client_of: Callable[..., TestClient], tmp_path: Path
) -> None:
    app, bare = an_app(cls, tmp_path), an_app(cls, tmp_path)
    for one in (app, bare):
        add_middlewares(one, "before")
    protect(app, agents=[configured(Asks())])
    for one in (app, bare):
        add_middlewares(one, "after")

    for method, path, status in TARGETS + (PAGES if isinstance(app, FastAPI) else []):
        answered, expected = (client_of(one).request(method, path) for one in (app, bare))
        assert answered.status_code == expected.status_code == status, path
        assert answered.text == expected.text
        assert dict(answered.headers) == dict(expected.headers)
    assert handshake_status(client_of(app), "/ws") == 101


@pytest.mark.parametrize("debug", [False, True], ids=["handler", "debug"])
@each_class
def test_an_address_in_the_500_of_an_exception_handler_does_not_reach_the_client(
    cls: type[Starlette], debug: bool, client_of: Callable[..., TestClient]
) -> None:
    app = an_app(cls, debug=debug)
    protect(app, agents=[configured(NoAddresses())])

    answer = client_of(app).get("/boom")

    assert (answer.status_code, answer.text) == (BLOCKED, "an address")


@pytest.mark.parametrize(
    "options",
    [{"http": "httptools", "loop": "uvloop"}, {"http": "h11", "loop": "asyncio"}],
    ids=["httptools-uvloop", "h11-asyncio"],
)
@each_class
def test_under_a_server_the_500_of_an_exception_handler_is_judged(
    cls: type[Starlette], options: dict[str, Any]
) -> None:
    agent = BlocksEverything()
    app = an_app(cls)
    protect(app, agents=[configured(agent), configured(NoAddresses(), "no-addresses")])

    with serve(app, **options) as url, httpx.Client(base_url=url, trust_env=False) as client:
        answer = client.get("/boom")

    assert answer.status_code == BLOCKED
    assert ADDRESS not in answer.text
    assert agent.responses == [500]


IMPORTED = an_app(FastAPI)
protect(IMPORTED, agents=[configured(NoAddresses())])


def test_a_server_that_imports_the_app_by_its_name_serves_it_guarded() -> None:
    with (
        serve(cast(ASGIApp, f"{__name__}:IMPORTED")) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        assert client.get("/hello").text == "hello"
        assert client.get("/openapi.json").json()["info"]["title"] == "FastAPI"
        # The last one: the exception that follows makes uvicorn close the connection.
        assert client.get("/boom").status_code == BLOCKED


def test_added_with_add_middleware_the_agents_stay_inside_of_the_error_handlers(
    client_of: Callable[..., TestClient],
) -> None:
    agent = BlocksEverything()
    app = an_app(FastAPI)
    app.add_middleware(AgentMiddleware, agents=[configured(agent)])

    assert client_of(app).get("/boom").status_code == 500
    assert client_of(app).get("/hello").status_code == BLOCKED
    assert agent.responses == [200]


@each_class
def test_an_exception_still_reaches_the_server(cls: type[Starlette], anyio_backend: Literal["asyncio", "trio"]) -> None:
    app = an_app(cls)
    protect(app, agents=[configured(BlocksEverything())])

    with pytest.raises(KeyError, match=ADDRESS):
        TestClient(app, backend=anyio_backend).get("/boom")


def test_an_exception_handler_sees_the_headers_that_the_agents_set(client_of: Callable[..., TestClient]) -> None:
    async def names_the_user(request: Request, exc: Exception) -> Response:
        return PlainTextResponse(request.headers.get("x-user", "nobody"), 500)

    app = an_app(FastAPI)
    app.add_exception_handler(Exception, names_the_user)
    alice = AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])
    protect(app, agents=[configured(Asks(alice))])

    assert client_of(app).get("/boom", headers={"x-user": "root"}).text == "alice"


# Placement outside


ORIGIN = "https://shop.example"
PREFLIGHT = {"origin": ORIGIN, "access-control-request-method": "GET"}
CORS = Middleware(CORSMiddleware, allow_origins=[ORIGIN])


@each_class
def test_cors_outside_answers_preflights_and_puts_its_headers_on_denials(
    cls: type[Starlette], client_of: Callable[..., TestClient]
) -> None:
    agent = Asks(AgentResponse.block(401))
    app = an_app(cls)
    protect(app, agents=[configured(agent)], outside=[CORS])
    client = client_of(app)

    preflight = client.options("/hello", headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert agent.paths == []

    denial = client.get("/hello", headers={"origin": ORIGIN})
    assert denial.status_code == 401
    assert denial.headers["access-control-allow-origin"] == ORIGIN
    assert agent.paths == ["/hello"]


def test_cors_outside_puts_its_headers_on_the_500_of_an_exception_handler(client_of: Callable[..., TestClient]) -> None:
    app = an_app(FastAPI)
    protect(app, agents=[configured(Asks())], outside=[CORS])

    answer = client_of(app).get("/boom", headers={"origin": ORIGIN})

    assert (answer.status_code, answer.json()) == (500, {"error": f"'{ADDRESS}'"})
    assert answer.headers["access-control-allow-origin"] == ORIGIN


class Notes:
    """A middleware that notes when it is passed."""

    def __init__(self, app: ASGIApp, name: str, log: list[str]) -> None:
        self.app = app
        self._name = name
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._log.append(self._name)
        await self.app(scope, receive, send)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_the_first_of_those_outside_is_the_outermost(as_tuple: bool, client_of: Callable[..., TestClient]) -> None:
    log: list[str] = []

    class NotesAgent(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
            log.append("agent")
            return None

    outside: Any = [Middleware(Notes, "first", log=log), Middleware(Notes, "second", log)]
    if as_tuple:
        outside = [(Notes, ("first",), {"log": log}), (Notes, ("second", log), {})]
    app = an_app(Starlette)
    protect(app, agents=[configured(NotesAgent())], outside=outside)
    app.add_middleware(Notes, "inside", log)

    client_of(app).get("/hello")

    assert log == ["first", "second", "agent", "inside"]


def test_what_a_class_of_ones_own_answers_before_the_middlewares_is_outside(
    client_of: Callable[..., TestClient],
) -> None:
    class AnswersFirst(FastAPI):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == "/first":
                await PlainTextResponse("first")(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)

    app = an_app(AnswersFirst)
    protect(app, agents=[configured(BlocksEverything())])

    assert client_of(app).get("/first").text == "first"
    assert client_of(app).get("/hello").status_code == BLOCKED


# root_path


def rooted(cls: type[Starlette], root_path: str, change: str | None) -> tuple[Starlette, Asks, list[str]]:
    """An app with a route, an agent that hears its path alone, and who of the two was called."""
    ran: list[str] = []

    def items(request: Request) -> Response:
        ran.append(request.url.path)
        return PlainTextResponse("items")

    options: dict[str, Any] = {"root_path": root_path} if root_path else {}
    app = cls(routes=[AppRoute("/items", items)], **options)
    agent = Asks()
    protect(app, agents=[configured(agent)], routes=[Route("/items", agents=["agent"])])
    if change is not None:
        cast(FastAPI, app).root_path = change
    return app, agent, ran


ROOTS: list[tuple[type[Starlette], str, str | None]] = [
    (Starlette, "", None),
    (FastAPI, "", None),
    (FastAPI, "/v1", None),
    (FastAPI, "", "/v1"),
    (FastAPI, "/v1", "/v2"),
    (FastAPI, "/v1", ""),
]
PREFIXES = ["", "/v1", "/v2", "/sub", "/sub/v1", "/v1/sub", "/sub/sub"]


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("server_root", ["", "/v1", "/sub"])
@pytest.mark.parametrize("mounted", [False, True], ids=["alone", "mounted"])
@pytest.mark.parametrize(("cls", "root_path", "change"), ROOTS)
def test_whenever_the_handler_runs_the_agents_of_its_path_have_been_asked(
    cls: type[Starlette],
    root_path: str,
    change: str | None,
    mounted: bool,
    server_root: str,
    client_of: Callable[..., TestClient],
) -> None:
    app, agent, ran = rooted(cls, root_path, change)
    served = Starlette(routes=[Mount("/sub", app)]) if mounted else app
    client = client_of(served, root_path=server_root)

    answered = {prefix: client.get(f"{prefix}/items").status_code for prefix in PREFIXES}

    assert agent.paths == [f"{prefix}/items" for prefix in PREFIXES if answered[prefix] == 200]
    assert len(ran) == len(agent.paths)
    assert ran or mounted, "the test would show nothing"


def test_agents_of_an_app_hear_what_is_mounted_in_it_and_those_of_the_mounted_app_too(
    client_of: Callable[..., TestClient],
) -> None:
    outer_agent, inner_agent = Asks(), Asks()
    inner, outer = an_app(FastAPI), an_app(FastAPI)
    outer.router.mount("/sub", inner)
    protect(inner, agents=[configured(inner_agent)], routes=[Route("/hello", ["agent"])])
    protect(outer, agents=[configured(outer_agent)], routes=[Route("/sub/hello", ["agent"])])

    assert client_of(outer).get("/sub/hello").text == "hello"
    assert (outer_agent.paths, inner_agent.paths) == (["/sub/hello"], ["/sub/hello"])


def test_the_agents_stand_where_the_app_and_its_router_are_known(client_of: Callable[..., TestClient]) -> None:
    seen: list[object] = []

    class Looks:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                seen.append(scope["app"])
            await self.app(scope, receive, send)

    app = an_app(FastAPI)
    middleware = protect(app, agents=[configured(Asks())], outside=[Middleware(Looks)])
    assert cast(Any, middleware.app).router is app.router

    client_of(app).get("/hello")

    assert seen == [app]
    assert cast(Any, middleware.app).router is app.router


# Lifespan


class Configurable(Agent):
    def __init__(self, log: list[str], refuses: bool = False) -> None:
        self._log = log
        self._refuses = refuses

    async def on_configure(self, event: ConfigureEvent) -> None:
        if self._refuses:
            raise ValueError("not today")
        self._log.append("agent")

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return None


def logging_lifespan(log: list[str]) -> Any:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        log.append("startup")
        yield
        log.append("shutdown")

    return lifespan


@each_class
def test_the_agents_are_configured_before_the_app_starts(
    cls: type[Starlette], client_of: Callable[..., TestClient]
) -> None:
    log: list[str] = []
    app = an_app(cls, lifespan=logging_lifespan(log))
    protect(app, agents=[configured(Configurable(log), require_at_startup=True)], outside=[CORS])

    with client_of(app) as client:
        assert client.get("/hello").text == "hello"

    assert log == ["agent", "startup", "shutdown"]


@each_class
async def test_a_required_agent_that_is_down_keeps_the_app_from_starting(cls: type[Starlette]) -> None:
    log: list[str] = []
    sent: list[Message] = []
    app = an_app(cls, lifespan=logging_lifespan(log))
    protect(app, agents=[configured(Configurable(log, refuses=True), require_at_startup=True)])

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(AgentError, match="is required at startup"):
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert log == []


async def test_a_manager_of_ones_own_is_the_one_that_is_used() -> None:
    manager = AgentManager([configured(Asks())])
    app = an_app(FastAPI)

    assert protect(app, manager=manager).manager is manager
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.example") as client:
        assert (await client.get("/hello")).status_code == 200
        await manager.replace_agent(configured(Asks(AgentResponse.block(BLOCKED))))
        assert (await client.get("/hello")).status_code == BLOCKED


# The app stays what it was


@each_class
def test_the_app_looks_as_before(cls: type[Starlette]) -> None:
    app = an_app(cls)
    before = repr(app)
    protect(app, agents=[configured(Asks())])

    assert repr(app) == before
    assert isinstance(app, cls)
    assert app.middleware_stack is None
    shown = type(app)
    assert (shown.__name__, shown.__qualname__, shown.__module__) == (cls.__name__, cls.__qualname__, cls.__module__)
    assert shown.__doc__ == cls.__doc__
    assert inspect.signature(shown) == inspect.signature(cls)


@each_class
def test_other_apps_of_the_same_class_stay_unguarded(
    cls: type[Starlette], client_of: Callable[..., TestClient]
) -> None:
    app, other = an_app(cls), an_app(cls)
    protect(app, agents=[configured(BlocksEverything())])
    made_of_its_class = an_app(type(app))

    assert client_of(app).get("/hello").status_code == BLOCKED
    for unguarded in (other, made_of_its_class):
        assert client_of(unguarded).get("/hello").status_code == 200
        assert type(unguarded.middleware_stack) is ServerErrorMiddleware


@each_class
def test_a_middleware_that_is_added_after_the_start_is_refused_as_ever(
    cls: type[Starlette], client_of: Callable[..., TestClient]
) -> None:
    app = an_app(cls)
    protect(app, agents=[configured(Asks())])
    client_of(app).get("/hello")

    with pytest.raises(RuntimeError, match="Cannot add middleware after an application has started"):
        app.add_middleware(GZipMiddleware)


def classes_in(stack: object) -> Iterator[type]:
    while stack is not None:
        yield type(stack)
        stack = getattr(stack, "app", None)


def test_those_who_look_through_the_stack_find_every_middleware(client_of: Callable[..., TestClient]) -> None:
    app = an_app(FastAPI)
    protect(app, agents=[configured(Asks())], outside=[CORS])
    app.add_middleware(GZipMiddleware)
    client_of(app).get("/hello")

    found = [cls for cls in classes_in(app.middleware_stack) if not cls.__name__.startswith("_")]

    assert found[:3] == [CORSMiddleware, AgentMiddleware, ServerErrorMiddleware]
    assert GZipMiddleware in found
    assert type(app.router) in found


def test_a_request_to_an_instrumented_app_is_traced_once(client_of: Callable[..., TestClient]) -> None:
    """FastAPI has tracing of its own, which it leaves out if it finds OpenTelemetry's middleware in the stack."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    native = "telemetry" in inspect.signature(FastAPI).parameters
    options: dict[str, Any] = {"telemetry": {"tracer_provider": provider}} if native else {}
    app = an_app(FastAPI, **options)
    protect(app, agents=[configured(Asks())])
    instrument(app, tracer_provider=provider)
    try:
        client_of(app).get("/hello")
    finally:
        uninstrument(app)

    assert [span.kind for span in exporter.get_finished_spans()].count(SpanKind.SERVER) == 1


def test_tracing_outside_has_the_agents_calls_below_its_span(client_of: Callable[..., TestClient]) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = an_app(Starlette)
    protect(
        app,
        agents=[configured(Asks(AgentResponse.block(BLOCKED)))],
        tracer_provider=provider,
        outside=[Middleware(OpenTelemetryMiddleware, tracer_provider=provider)],
    )

    client_of(app).get("/hello")

    spans = exporter.get_finished_spans()
    (call,) = (span for span in spans if span.name == "request_headers agent")
    (server,) = (span for span in spans if span.kind is SpanKind.SERVER)
    assert call.parent is not None
    assert call.parent.span_id == server.context.span_id


@pytest.mark.parametrize("rebuilt", ["reset", "built", "wrapped", "put back"])
def test_whoever_replaces_the_middleware_stack_replaces_what_the_agents_guard(
    rebuilt: str, client_of: Callable[..., TestClient]
) -> None:
    agent = BlocksEverything()
    app = an_app(FastAPI)
    protect(app, agents=[configured(agent)])
    client = client_of(app)
    client.get("/hello")
    agent.heads.clear()

    match rebuilt:
        case "reset":
            app.middleware_stack = None
            app.add_middleware(AnswersItself, "/by-a-middleware")
        case "built":
            app.middleware_stack = app.build_middleware_stack()
        case "wrapped":
            app.middleware_stack = AnswersItself(app.build_middleware_stack(), "/by-a-middleware")
        case "put back":
            stack = app.middleware_stack
            app.middleware_stack = None
            app.middleware_stack = stack

    assert client.get("/boom").status_code == BLOCKED
    assert client.get("/by-a-middleware").status_code == BLOCKED
    assert agent.heads == ["/boom", "/by-a-middleware"]


@pytest.mark.parametrize("wrapped", ["stack", "agents"])
def test_the_guarded_stack_inside_of_itself_is_refused_with_what_would_be_right(
    wrapped: str, client_of: Callable[..., TestClient]
) -> None:
    app = an_app(FastAPI)
    agents = protect(app, agents=[configured(BlocksEverything())])
    client = client_of(app)
    client.get("/hello")
    assert app.middleware_stack is not None

    with pytest.raises(ConfigurationError, match=r"GZipMiddleware\(app\.middleware_stack\).*outside=") as caught:
        app.middleware_stack = GZipMiddleware(agents if wrapped == "agents" else app.middleware_stack)

    assert "build_middleware_stack()" in str(caught.value)
    assert client.get("/hello").status_code == BLOCKED


# What can't work


async def any_asgi_app(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


@pytest.mark.parametrize(
    "other",
    [
        any_asgi_app,
        Starlette().router,
        AgentMiddleware(any_asgi_app, agents=[]),
        GZipMiddleware(Starlette()),
        Starlette,
        "main:app",
        None,
    ],
    ids=lambda other: type(other).__name__,
)
def test_any_other_app_is_refused_with_the_name_of_what_guards_it(other: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a FastAPI or Starlette app.*AgentMiddleware\(app"):
        protect(other, agents=[])


def started(app: Starlette) -> None:
    TestClient(app).get("/hello")


def protected(app: Starlette) -> None:
    protect(app, agents=[])


def protected_and_started(app: Starlette) -> None:
    protected(app)
    started(app)


def given_the_middleware(app: Starlette) -> None:
    app.add_middleware(AgentMiddleware, agents=[])


def given_it_in_parts(app: Starlette) -> None:
    app.add_middleware(partial(AgentMiddleware, agents=[]))


def no_longer_instrumented(app: Starlette) -> None:
    instrument(app)
    uninstrument(app)


@pytest.mark.parametrize(
    ("earlier", "told"),
    [
        (started, r"started already, expected the call before its first connection"),
        (no_longer_instrumented, r"started already.*FastAPIInstrumentor\.uninstrument_app starts it too"),
        (protected, r"protected already, expected one call"),
        (protected_and_started, r"protected already, expected one call"),
        (given_the_middleware, r"an AgentMiddleware already, expected either protect\(app, \.\.\.\) or app\.add"),
        (given_it_in_parts, r"an AgentMiddleware already, expected either"),
    ],
)
@each_class
def test_an_app_that_is_started_or_guarded_already_is_refused(
    cls: type[Starlette], earlier: Callable[[Starlette], None], told: str
) -> None:
    app = an_app(cls)
    earlier(app)

    with pytest.raises(ConfigurationError, match=told):
        protect(app, agents=[])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "no agents, expected"),
    ({"agents": [], "manager": AgentManager([])}, "expected one of them"),
    ({"agents": [], "routes": [Route("/", ["waf"])]}, "routes or default_agents name 'waf'"),
    ({"agents": [], "routes": ["/"]}, r"expected AgentRoute"),
    ({"agents": [], "correlation_header": "a b"}, "correlation_header='a b'"),
    (
        {"agents": [], "outside": [CORSMiddleware]},
        r"outside contains the class CORSMiddleware, .* Middleware\(CORSMiddleware, ",
    ),
    (
        {"agents": [], "outside": [any_asgi_app]},
        r"outside contains the function any_asgi_app, expected objects such as Middleware",
    ),
    ({"agents": [], "outside": [GZipMiddleware(Starlette())]}, "outside contains a GZipMiddleware"),
    ({"agents": [], "outside": ["cors"]}, "outside contains a str, expected"),
    ({"agents": [], "outside": [("cors", (), {})]}, "outside contains a tuple"),
    (
        {"agents": [], "outside": [Middleware(cast(Any, None))]},
        r"outside contains Middleware\(None\)",
    ),
    ({"agents": [], "outside": [Middleware(AgentMiddleware, agents=[])]}, "expected all agents in agents="),
    ({"agents": [], "outside": CORS}, r"outside is a Middleware, expected a list of Middleware"),
    ({"agents": [], "outside": CORSMiddleware}, "outside is the class CORSMiddleware, expected a list of Middleware"),
    ({"agents": [], "outside": None}, "outside is None, expected a list of Middleware"),
]


@pytest.mark.parametrize(("options", "told"), WRONG)
def test_what_cannot_work_is_told_by_the_call_and_leaves_the_app_as_it_was(options: dict[str, Any], told: str) -> None:
    app = an_app(FastAPI)

    with pytest.raises(ConfigurationError, match=told):
        protect(app, **options)

    assert type(app) is FastAPI
    assert TestClient(app).get("/hello").text == "hello"
    right = an_app(FastAPI)
    protect(right, agents=[])


def test_wrong_arguments_of_those_outside_are_told_by_the_call() -> None:
    app = an_app(FastAPI)

    with pytest.raises(TypeError, match="no_such_argument"):
        protect(app, agents=[], outside=[Middleware(cast(Any, CORSMiddleware), no_such_argument=1)])

    assert type(app) is FastAPI


def test_no_message_quotes_the_arguments_of_a_middleware() -> None:
    wrong: list[Any] = [Middleware(cast(Any, GZipMiddleware), secret="s3cret"), [(1, ("s3cret",), {})], ["s3cret"]]
    for outside in wrong:
        with pytest.raises(ConfigurationError) as caught:
            protect(an_app(FastAPI), agents=[], outside=outside)
        assert "s3cret" not in str(caught.value)


async def test_the_middleware_that_is_returned_is_no_app_to_serve() -> None:
    middleware = protect(an_app(FastAPI), agents=[])

    async with httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://app.example") as client:
        with pytest.raises(RuntimeError, match="expected the app to be served"):
            await client.get("/hello")


def test_protect_takes_all_that_agent_middleware_takes() -> None:
    ours, theirs = (inspect.signature(one).parameters for one in (protect, AgentMiddleware))

    # What comes by position beside the app is there to be refused.
    own = {"app", "others"}
    assert {name: ours[name] for name in theirs if name not in own} == {
        name: parameter for name, parameter in theirs.items() if name not in own
    }
    assert set(ours) - set(theirs) == {"outside", "config", "imports", "reload"}
