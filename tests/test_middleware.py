import gc
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from fastapi import BackgroundTasks, Depends, FastAPI, Form, HTTPException, Request, UploadFile
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount
from starlette.routing import Route as AppRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentContext,
    AgentError,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditMetadata,
    BodyMode,
    BodyMutation,
    ConfigurationError,
    ConfigureEvent,
    Detection,
    EventType,
    FailureKind,
    FailureMode,
    GuardrailInspectEvent,
    GuardrailResponse,
    GuardrailUnavailableError,
    HeaderOp,
    HttpTransport,
    InProcessTransport,
    InspectionType,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Route,
)
from asgi_agents.serve import agent_app
from tests.support.servers import serve

BLOCK = AgentResponse.block()
CHUNK = b"x" * 1000


class Head(Agent):
    """Answers every request's head the same, or raises."""

    def __init__(self, answer: AgentResponse | Exception | None = None) -> None:
        self.answer = answer
        self.heard: list[RequestHeadersEvent] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.heard.append(event)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Reads(Agent):
    """Sees everything; a body chunk with ``evil`` in it is blocked. Every hook suspends."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.completed: list[RequestCompleteEvent] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        await checkpoint()
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        self.bodies["request"] = self.bodies.get("request", b"") + event.data
        return AgentResponse.block(422, "evil request") if b"evil" in event.data else None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        await checkpoint()
        return None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        self.bodies["response"] = self.bodies.get("response", b"") + event.data
        return AgentResponse.block(502, "evil response") if b"evil" in event.data else None

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        self.completed.append(event)


class ReadsAtOnce(Reads):
    """The same, but its hooks never suspend, which is taken another way."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        self.bodies["request"] = self.bodies.get("request", b"") + event.data
        return AgentResponse.block(422, "evil request") if b"evil" in event.data else None

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        return None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        self.bodies["response"] = self.bodies.get("response", b"") + event.data
        return AgentResponse.block(502, "evil response") if b"evil" in event.data else None


@pytest.fixture(params=[Reads, ReadsAtOnce])
def reads(request: pytest.FixtureRequest) -> Reads:
    agent: Reads = request.param()
    return agent


@pytest.fixture(params=["buffer", "stream", "hybrid"])
def modes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of an agent that is shown both bodies that way."""
    mode = BodyMode.hybrid(16) if request.param == "hybrid" else BodyMode(request.param)
    return {"request_body_mode": mode, "response_body_mode": mode}


def configured(agent: Any, agent_id: str = "agent", **options: Any) -> AgentConfig:
    """With deadlines that no machine is too slow for."""
    return AgentConfig(agent_id, agent, **{"timeout": 30.0, "chunk_timeout": 30.0} | options)


def http_scope(path: str = "/", **changes: Any) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"example.com")],
        "client": ("203.0.113.9", 4321),
        "server": ("192.0.2.1", 80),
        **changes,
    }


class Exchange:
    """A server's side of one request."""

    def __init__(self, *messages: Message) -> None:
        self.sent: list[Message] = []
        self._messages = deque(messages or [{"type": "http.request", "body": b"", "more_body": False}])

    async def receive(self) -> Message:
        if not self._messages:
            await anyio.sleep_forever()
        return self._messages.popleft()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self, app: ASGIApp, scope: Scope | None = None) -> Any:
        call: Any = app
        with anyio.fail_after(10):
            return await call(http_scope() if scope is None else scope, self.receive, self.send)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await PlainTextResponse("hello")(scope, receive, send)


def client_of(app: ASGIApp, backend: str, **options: Any) -> TestClient:
    return TestClient(app, backend=backend, **options)  # type: ignore[arg-type]


# Construction


MANAGER = AgentManager([AgentConfig("waf", Head())])
ANYTHING: Any = object()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no agents, expected"),
        ({"agents": [], "manager": MANAGER}, "both agents and manager are given, expected one of them"),
        ({"manager": ANYTHING}, "manager=an object, expected an AgentManager"),
        ({"manager": AgentManager}, "manager=the class AgentManager, expected an AgentManager"),
        ({"agents": [Head()]}, "expected AgentConfig"),
        ({"agents": ["waf"]}, "'waf', expected AgentConfig"),
        ({"agents": [AgentConfig("waf", Head()), AgentConfig("waf", Head())]}, "two agents have the id 'waf'"),
        ({"agents": AgentConfig("waf", Head())}, "agents"),
        ({"agents": [AgentConfig("waf", Head())], "routes": [Route("/", ["wfa"])]}, "'wfa'.*there are: waf"),
        ({"manager": MANAGER, "routes": [Route("/", [("wfa", FailureMode.OPEN)])]}, "'wfa'.*there are: waf"),
        ({"agents": [], "routes": [Route("/", ["waf"])]}, "'waf'.*there are: none"),
        ({"manager": MANAGER, "default_agents": ["wfa"]}, "'wfa'.*there are: waf"),
        ({"manager": MANAGER, "default_agents": "waf"}, "default_agents.*'waf', expected a list"),
        ({"manager": MANAGER, "default_agents": [("waf", "ajar")]}, r"default_agents.*\('waf', 'ajar'\)"),
        ({"manager": MANAGER, "routes": ["/"]}, r"routes contains '/', expected AgentRoute"),
        ({"manager": MANAGER, "routes": Route("/", ["waf"])}, "routes"),
        ({"manager": MANAGER, "routes": {"/": ["waf"]}}, r"routes contains '/', expected AgentRoute"),
        (
            {"manager": MANAGER, "challenge_renderer": "page.html"},
            "challenge_renderer='page.html', expected a callable",
        ),
        ({"manager": MANAGER, "state_key": ""}, "state_key='', expected an identifier such as 'agents', or None"),
        ({"manager": MANAGER, "state_key": "my agents"}, "state_key='my agents'"),
        ({"manager": MANAGER, "state_key": "class"}, "state_key='class'"),
        ({"manager": MANAGER, "state_key": b"agents"}, "state_key=b'agents'"),
        ({"manager": MANAGER, "state_key": 1}, "state_key=1"),
    ],
)
def test_what_can_not_work_is_refused_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AgentMiddleware(hello, **options)


def test_the_manager_that_was_given_is_the_one_that_is_used() -> None:
    assert AgentMiddleware(hello, manager=MANAGER).manager is MANAGER
    assert AgentMiddleware(hello, agents=[AgentConfig("a", Head())]).manager.agent_ids == ("a",)


def make_by_add_middleware(agent: AgentConfig) -> ASGIApp:
    app = FastAPI()
    app.add_api_route("/", lambda: "hello")
    app.add_middleware(AgentMiddleware, agents=[agent])
    return app


def make_by_middleware_list(agent: AgentConfig) -> ASGIApp:
    routes = [AppRoute("/", lambda request: JSONResponse("hello"))]
    return Starlette(routes=routes, middleware=[Middleware(AgentMiddleware, agents=[agent])])


def make_by_wrapping_a_function(agent: AgentConfig) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse("hello")(scope, receive, send)

    return AgentMiddleware(app, agents=[agent])


def make_by_wrapping_an_app(agent: AgentConfig) -> ASGIApp:
    app = FastAPI()
    app.add_api_route("/", lambda: "hello")
    return AgentMiddleware(app, agents=[agent])


def make_by_middleware_of_a_route(agent: AgentConfig) -> ASGIApp:
    route = AppRoute(
        "/", lambda request: JSONResponse("hello"), middleware=[Middleware(AgentMiddleware, agents=[agent])]
    )
    return Starlette(routes=[route])


@pytest.mark.parametrize(
    "make",
    [
        make_by_add_middleware,
        make_by_middleware_list,
        make_by_wrapping_a_function,
        make_by_wrapping_an_app,
        make_by_middleware_of_a_route,
    ],
)
def test_it_guards_an_app_however_it_is_put_around_it(
    make: Callable[[AgentConfig], ASGIApp], anyio_backend: str
) -> None:
    head = Head()
    client = client_of(make(configured(head)), anyio_backend)
    response = client.get("/")
    assert (response.status_code, response.json()) == (200, "hello")
    head.answer = AgentResponse.block(401, "missing api key")
    response = client.get("/")
    assert (response.status_code, response.text) == (401, "missing api key")
    assert len(head.heard) == 2


# Scopes


async def test_other_scope_types_are_none_of_its_business() -> None:
    given: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        given.extend((scope, receive, send))
        return "returned"

    scope, exchange, head = {"type": "carrier_pigeon"}, Exchange(), Head(BLOCK)
    receive, send = exchange.receive, exchange.send
    middleware: Any = AgentMiddleware(app, agents=[configured(head)])
    assert await middleware(scope, receive, send) == "returned"
    assert given[0] is scope
    assert given[1] is receive
    assert given[2] is send
    assert scope == {"type": "carrier_pigeon"}
    assert head.heard == []


class Listens(Agent):
    """Hears only what no exchange is about."""

    async def on_configure(self, event: ConfigureEvent) -> None:
        pass

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
        pass


@pytest.mark.parametrize(
    ("agents", "routes", "sets_state"),
    [
        pytest.param([], None, False, id="no agents"),
        pytest.param([configured(Head(BLOCK))], [Route("/other", ["agent"])], False, id="no route matches"),
        pytest.param([configured(Head(BLOCK))], [Route("/", [])], False, id="a route without agents"),
        pytest.param([configured(Listens())], None, True, id="agents that hear other things"),
    ],
)
async def test_where_nothing_listens_the_app_is_called_as_if_there_were_no_middleware(
    agents: list[AgentConfig], routes: list[Route] | None, sets_state: bool
) -> None:
    given: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        given.extend((scope, receive, send, "state" in scope))
        return "returned"

    scope, exchange = http_scope(), Exchange()
    receive, send = exchange.receive, exchange.send
    middleware: Any = AgentMiddleware(app, agents=agents, routes=routes)
    assert await middleware(scope, receive, send) == "returned"
    assert given[0] is scope
    assert given[1] is receive
    assert given[2] is send
    assert given[3] is sets_state


async def test_the_first_route_that_matches_says_who_listens() -> None:
    head, other = Head(), Head()
    middleware = AgentMiddleware(
        hello,
        agents=[configured(head, "head"), configured(other, "other")],
        routes=[
            Route("/healthz", []),
            Route("/items/{id:int}", ["head"], methods=["PUT"]),
            Route("/items/{id}", ["other"]),
        ],
        default_agents=["head", "other"],
    )
    expected = [
        ("GET", "/healthz", 0, 0),
        ("PUT", "/items/7", 1, 0),
        ("GET", "/items/7", 1, 1),
        ("PUT", "/items/x", 1, 2),
        ("GET", "/elsewhere", 2, 3),
    ]
    for method, path, heads, others in expected:
        exchange = Exchange()
        await exchange.run(middleware, http_scope(path, method=method))
        assert exchange.status == 200
        assert (len(head.heard), len(other.heard)) == (heads, others)
    assert [event.metadata.route_id for event in other.heard] == ["/items/{id}", "/items/{id}", None]


async def test_the_failure_mode_of_a_route_overrules_the_agents_own_there_and_only_there() -> None:
    agents = [
        configured(Head(ValueError("bug")), "open", failure_mode=FailureMode.OPEN, circuit_breaker=None),
        configured(Head(ValueError("bug")), "closed", failure_mode=FailureMode.CLOSED, circuit_breaker=None),
    ]
    middleware = AgentMiddleware(
        hello,
        agents=agents,
        routes=[
            Route("/as-configured/open", ["open"]),
            Route("/as-configured/closed", ["closed"]),
            Route("/overruled/open", [("open", FailureMode.CLOSED)]),
            Route("/overruled/closed", [("closed", FailureMode.OPEN)]),
        ],
        default_agents=[("open", FailureMode.CLOSED), ("closed", FailureMode.OPEN)],
    )
    statuses = {}
    for path in ("as-configured/open", "as-configured/closed", "overruled/open", "overruled/closed", "default"):
        exchange = Exchange()
        await exchange.run(middleware, http_scope(f"/{path}"))
        statuses[path] = exchange.status
    assert statuses == {
        "as-configured/open": 200,
        "as-configured/closed": 503,
        "overruled/open": 503,
        "overruled/closed": 200,
        "default": 503,
    }


# scope["state"]


async def test_a_scope_without_state_is_given_one() -> None:
    seen: list[AgentContext] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["agents"])
        await hello(scope, receive, send)

    await Exchange().run(AgentMiddleware(app, agents=[configured(Head())]))
    assert isinstance(seen[0], AgentContext)


async def test_the_state_of_a_scope_is_kept_and_added_to() -> None:
    state = {"db": "pool"}
    seen: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["state"] is state
        seen.append(dict(scope["state"]))
        scope["state"]["user"] = "alice"
        await hello(scope, receive, send)

    await Exchange().run(AgentMiddleware(app, agents=[configured(Head())]), http_scope(state=state))
    assert seen[0]["db"] == "pool"
    assert isinstance(seen[0]["agents"], AgentContext)
    # What the app leaves there is for the middlewares around it to read.
    assert state["user"] == "alice"


async def state_in_app(state: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What the app finds in ``scope["state"]``, of which ``state`` is there already."""
    seen: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["state"]))
        await hello(scope, receive, send)

    middleware = AgentMiddleware(app, agents=[configured(Head())], **options)
    await Exchange().run(middleware, http_scope(state=state))
    return seen[0]


@pytest.mark.parametrize(
    ("state_key", "names"),
    [
        ("agents", {"asgi_agents", "agents"}),
        ("guards", {"asgi_agents", "guards"}),
        ("asgi_agents", {"asgi_agents"}),
        (None, {"asgi_agents"}),
    ],
)
async def test_the_context_has_one_name_that_is_certain_and_one_that_is_chosen(
    state_key: str | None, names: set[str]
) -> None:
    state = await state_in_app({}, state_key=state_key)
    assert {name for name, value in state.items() if isinstance(value, AgentContext)} == set(state) == names
    assert len({id(context) for context in state.values()}) == 1


@pytest.mark.parametrize("own", [["an agent of the app"], "", 0, None, object()])
@pytest.mark.parametrize("state_key", ["agents", "guards"])
async def test_what_the_app_keeps_in_its_state_under_the_chosen_name_stays_there(own: object, state_key: str) -> None:
    state = {state_key: own, "other": 1}
    seen = await state_in_app(state, state_key=state_key)
    assert seen[state_key] is own
    assert state[state_key] is own
    assert isinstance(seen["asgi_agents"], AgentContext)


def test_a_handler_finds_the_agents_that_its_lifespan_has_made_and_those_that_were_asked(anyio_backend: str) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"agents": ["of the app"]}

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def both(request: Request) -> Any:
        return [request.state.agents, request.state.asgi_agents.decision.is_allow]

    with client_of(AgentMiddleware(app, agents=[configured(Head())]), anyio_backend) as client:
        for _ in range(2):
            assert client.get("/").json() == [["of the app"], True]


NAMINGS = [(outer, inner) for outer in ("agents", "guards", None) for inner in ("agents", "guards", None)]


@pytest.mark.parametrize(("outer_key", "inner_key"), NAMINGS)
@pytest.mark.parametrize("own", [None, "of the app"])
@pytest.mark.parametrize("fails", [False, True])
async def test_nested_middlewares_leave_the_state_as_they_found_it(
    outer_key: str | None, inner_key: str | None, own: str | None, fails: bool
) -> None:
    """Whatever each calls its context, whatever the app has there, and however the inner app ends."""
    state: dict[str, Any] = {} if own is None else {"agents": own}
    inside: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inside.update(scope["state"])
        await hello(scope, receive, send)
        if fails:
            raise ValueError("of the app")

    middle = AgentMiddleware(app, agents=[configured(Head(), "inner")], state_key=inner_key)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        before.update(scope["state"])
        try:
            await middle(scope, receive, send)
        finally:
            after.update(scope["state"])

    outer = AgentMiddleware(between, agents=[configured(Head(), "outer")], state_key=outer_key)
    try:
        await Exchange().run(outer, http_scope(state=state))
    except ValueError:
        assert fails
    assert after == before == state
    assert inside["asgi_agents"] is not before["asgi_agents"]
    for name in {key for key in (outer_key, inner_key) if key is not None}:
        if name == "agents" and own is not None:
            assert inside[name] == before[name] == own
        else:
            assert inside[name] is (inside if name == inner_key else before)["asgi_agents"]


async def test_a_name_that_the_app_takes_for_itself_meanwhile_stays_the_apps() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["agents"] = "of the app"
        await hello(scope, receive, send)

    inner = AgentMiddleware(app, agents=[configured(Head(), "inner")])
    scope = http_scope(state={})
    await Exchange().run(AgentMiddleware(inner, agents=[configured(Head(), "outer")]), scope)
    assert scope["state"]["agents"] == "of the app"
    assert isinstance(scope["state"]["asgi_agents"], AgentContext)


async def test_nested_middlewares_each_show_their_own_agents() -> None:
    seen: dict[str, AgentContext] = {}
    inner, outer = Head(), Head()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen["app"] = scope["state"]["agents"]
        await hello(scope, receive, send)

    middle = AgentMiddleware(app, agents=[configured(inner, "inner")])

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        seen["before"] = scope["state"]["agents"]
        await middle(scope, receive, send)
        seen["after"] = scope["state"]["agents"]

    scope = http_scope()
    await Exchange().run(AgentMiddleware(between, agents=[configured(outer, "outer")]), scope)

    def ids(context: AgentContext) -> list[str]:
        return [verdict.agent_id for verdict in context.decision.verdicts]

    assert ids(seen["app"]) == ["inner"]
    assert ids(seen["before"]) == ["outer"]
    assert seen["after"] is seen["before"]
    assert scope["state"]["agents"] is seen["before"]
    assert len(inner.heard) == len(outer.heard) == 1


async def test_the_outer_agents_are_back_also_when_the_inner_app_fails() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("of the app")

    middle = AgentMiddleware(app, agents=[configured(Head(), "inner")])
    seen: list[bool] = []

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        before = scope["state"]["agents"]
        with pytest.raises(ValueError, match="of the app"):
            await middle(scope, receive, send)
        seen.append(scope["state"]["agents"] is before)
        await hello(scope, receive, send)

    await Exchange().run(AgentMiddleware(between, agents=[configured(Head(), "outer")]))
    assert seen == [True]


def test_a_mounted_app_has_agents_of_its_own_besides_those_around_it(anyio_backend: str) -> None:
    def agents(request: Request) -> JSONResponse:
        context: AgentContext = request.state.agents
        return JSONResponse([verdict.agent_id for verdict in context.decision.verdicts])

    inner, outer = Head(), Head()
    mounted = Starlette(
        routes=[AppRoute("/here", agents)],
        middleware=[
            Middleware(AgentMiddleware, agents=[configured(inner, "inner")], routes=[Route("/here", ["inner"])])
        ],
    )
    app = Starlette(
        routes=[Mount("/sub", mounted), AppRoute("/here", agents)],
        middleware=[
            Middleware(AgentMiddleware, agents=[configured(outer, "outer")], routes=[Route("/{p:path}", ["outer"])])
        ],
    )
    client = client_of(app, anyio_backend)
    assert client.get("/sub/here").json() == ["inner"]
    assert client.get("/here").json() == ["outer"]
    assert [event.uri for event in inner.heard] == ["/sub/here"]
    assert [event.uri for event in outer.heard] == ["/sub/here", "/here"]
    inner.answer = BLOCK
    assert client.get("/sub/here").status_code == 403
    assert client.get("/here").status_code == 200


# Lifespan


class Lifespan:
    """A server's side of the lifespan of an app."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.error: Exception | None = None
        self._startup = anyio.Event()
        self._shutdown = anyio.Event()
        self._given = 0

    async def receive(self) -> Message:
        self._given += 1
        if self._given == 1:
            return {"type": "lifespan.startup"}
        if self._given == 2:
            await self._shutdown.wait()
            return {"type": "lifespan.shutdown"}
        await anyio.sleep_forever()
        raise AssertionError("for ever is over")

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self._startup.set()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception as exc:
            self.error = exc
        finally:
            self._startup.set()

    @asynccontextmanager
    async def of(self, app: ASGIApp, **scope: Any) -> AsyncIterator[None]:
        """Start ``app``, run the block, shut it down."""
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(self.run, app, {"type": "lifespan", "asgi": {"version": "3.0"}, **scope})
                await self._startup.wait()
                yield
                self._shutdown.set()

    @property
    def types(self) -> list[str]:
        return [message["type"].removeprefix("lifespan.") for message in self.sent]


class Configurable(Head):
    """Refuses its configuration as long as there are ``refusals`` left."""

    def __init__(self, log: list[str] | None = None, *, refusals: int = 0) -> None:
        super().__init__()
        self.log = [] if log is None else log
        self.refusals = refusals
        self.configurations: list[object] = []
        self.taken = anyio.Event()

    async def on_configure(self, event: ConfigureEvent) -> None:
        self.log.append("configure")
        if self.refusals:
            self.refusals -= 1
            raise RuntimeError("not yet")
        self.configurations.append((event.agent_id, event.config))
        self.taken.set()


class Logged(InProcessTransport):
    """Writes down when it is closed."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(Head())
        self.log = log

    async def aclose(self) -> None:
        await checkpoint()
        self.log.append("aclose")


def logging_app(log: list[str]) -> ASGIApp:
    """With a startup and a shutdown of its own, which it writes down."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        log.append("app starts")
        yield
        log.append("app stops")

    return Starlette(routes=[AppRoute("/", lambda request: PlainTextResponse("hello"))], lifespan=lifespan)


async def test_startup_configures_the_agents_before_the_app_starts() -> None:
    log: list[str] = []
    agent, lifespan = Configurable(log), Lifespan()
    middleware = AgentMiddleware(logging_app(log), agents=[configured(agent, "waf", config={"level": 3})])
    async with lifespan.of(middleware):
        assert log == ["configure", "app starts"]
        exchange = Exchange()
        await exchange.run(middleware)
        assert exchange.status == 200
    assert log == ["configure", "app starts", "app stops"]
    assert agent.configurations == [("waf", {"level": 3})]
    assert lifespan.types == ["startup.complete", "shutdown.complete"]
    assert lifespan.error is None


async def test_a_required_agent_that_is_down_fails_the_startup_and_the_app_is_not_started() -> None:
    log: list[str] = []
    middleware = AgentMiddleware(
        logging_app(log),
        agents=[
            configured(Configurable(), "up", require_at_startup=True),
            configured(Configurable(refusals=1000), "down", require_at_startup=True),
        ],
    )
    lifespan = Lifespan()
    async with lifespan.of(middleware):
        assert lifespan.types == ["startup.failed"]
    assert "'down' is required at startup" in lifespan.sent[0]["message"]
    assert "not yet" not in lifespan.sent[0]["message"], "an agent's own words may be secrets"
    assert log == []
    assert isinstance(lifespan.error, AgentError), "as an app that fails its startup, after it has said so"
    assert lifespan.types == ["startup.failed"]


async def test_a_required_agent_that_is_up_does_not_stand_in_the_way() -> None:
    lifespan = Lifespan()
    async with lifespan.of(
        AgentMiddleware(logging_app([]), agents=[configured(Configurable(), require_at_startup=True)])
    ):
        pass
    assert lifespan.types == ["startup.complete", "shutdown.complete"]


@pytest.mark.parametrize(("mode", "meanwhile"), [(FailureMode.CLOSED, 503), (FailureMode.OPEN, 200)])
async def test_an_agent_that_is_down_at_startup_is_tried_again_and_meanwhile_treated_by_its_failure_mode(
    mode: FailureMode, meanwhile: int
) -> None:
    agent, lifespan = Configurable(refusals=2), Lifespan()
    middleware = AgentMiddleware(logging_app([]), agents=[configured(agent, failure_mode=mode)])
    async with lifespan.of(middleware):
        assert lifespan.types == ["startup.complete"]
        exchange = Exchange()
        await exchange.run(middleware)
        assert exchange.status == meanwhile
        assert agent.heard == [], "an agent without its configuration is not asked"
        await agent.taken.wait()
        await anyio.wait_all_tasks_blocked()
        exchange = Exchange()
        await exchange.run(middleware)
        assert exchange.status == 200
        assert len(agent.heard) == 1
    assert lifespan.types == ["startup.complete", "shutdown.complete"]


async def no_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    await hello(scope, receive, send)


async def leaves_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await hello(scope, receive, send)


@pytest.mark.parametrize(("app", "raises"), [(no_lifespan, True), (leaves_at_once, False)])
async def test_an_app_without_a_lifespan_is_guarded_all_the_same(app: ASGIApp, raises: bool) -> None:
    agent, lifespan = Configurable(), Lifespan()
    middleware = AgentMiddleware(app, agents=[configured(agent)])
    async with lifespan.of(middleware):
        assert lifespan.sent == []
        assert isinstance(lifespan.error, AssertionError) is raises
        exchange = Exchange()
        await exchange.run(middleware)
        assert exchange.status == 200
        agent.answer = BLOCK
        exchange = Exchange()
        await exchange.run(middleware)
        assert exchange.status == 403
    assert len(agent.heard) == 2
    assert agent.configurations


async def test_the_apps_failure_to_start_is_passed_on() -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        raise ValueError("no database")
        yield

    log: list[str] = []
    server = Lifespan()
    async with server.of(AgentMiddleware(Starlette(lifespan=lifespan), agents=[AgentConfig("a", Logged(log))])):
        pass
    assert server.types == ["startup.failed"]
    assert "no database" in server.sent[0]["message"]
    assert isinstance(server.error, ValueError)
    assert log == ["aclose"]


class Watching(Lifespan):
    """Lets the app go on for one step after its first message and looks at what has become of it, as servers do."""

    def __init__(self) -> None:
        super().__init__()
        self.over = False
        self.over_in_time: bool | None = None

    async def look(self) -> None:
        await self._startup.wait()
        self.over_in_time = self.over

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await super().run(app, scope)
        finally:
            self.over = True


async def says_that_it_failed(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def says_that_it_failed_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
    await says_that_it_failed(scope, receive, send)
    raise ValueError("no database")


async def raises_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        raise ValueError("no lifespan")
    await hello(scope, receive, send)


async def raises_after_it_has_received(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
    await raises_at_once(scope, receive, send)


@pytest.mark.parametrize(
    "app",
    [
        says_that_it_failed,
        says_that_it_failed_and_raises,
        raises_at_once,
        raises_after_it_has_received,
        leaves_at_once,
    ],
)
async def test_what_the_app_does_last_is_the_last_that_happens(app: ASGIApp) -> None:
    """A server that finds it still running serves it, although it has failed to start."""
    log: list[str] = []
    seen = []
    for served in (app, AgentMiddleware(app, agents=[AgentConfig("a", Logged(log))])):
        server = Watching()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.look)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(server.run, served, {"type": "lifespan", "asgi": {"version": "3.0"}})
        seen.append((server.sent, type(server.error), server.over_in_time))
    assert seen[1] == seen[0]
    assert seen[1][2]
    assert log == (["aclose"] if server.sent else []), "who is served without a lifespan needs its agents"


@pytest.mark.parametrize("app", [raises_at_once, raises_after_it_has_received, leaves_at_once])
async def test_an_agent_that_is_down_is_tried_again_also_where_the_app_has_no_lifespan(app: ASGIApp) -> None:
    agent = Configurable(refusals=2)
    middleware = AgentMiddleware(app, agents=[configured(agent)])
    server = Lifespan()
    async with server.of(middleware):
        with anyio.fail_after(10):
            await agent.taken.wait()
        exchange = Exchange()
        await exchange.run(middleware)
        assert exchange.status == 200
    await middleware.manager.shutdown()


async def test_agents_that_cannot_be_closed_do_not_hide_that_the_app_has_failed_to_start() -> None:
    class Stuck(InProcessTransport):
        async def aclose(self) -> None:
            raise RuntimeError("stuck")

    server = Lifespan()
    async with server.of(AgentMiddleware(says_that_it_failed, agents=[AgentConfig("a", Stuck(Head()))])):
        pass
    assert server.types == ["startup.failed"]


@pytest.mark.parametrize("handles", ["the app", "an agent"])
def test_a_test_client_raises_what_has_failed_the_startup(handles: str, anyio_backend: str) -> None:
    log: list[str] = []
    if handles == "the app":
        app, agent, error = says_that_it_failed_and_raises, Configurable(), ValueError
    else:
        app, agent, error = logging_app(log), Configurable(refusals=1000), AgentError  # type: ignore[assignment]
    middleware = AgentMiddleware(app, agents=[configured(agent, require_at_startup=True)])
    with pytest.raises(error), TestClient(middleware, backend=anyio_backend):  # type: ignore[arg-type]
        raise AssertionError("it has not started")
    assert log == []


async def test_an_agents_error_that_the_app_raises_in_its_lifespan_is_the_apps() -> None:
    """It is no reason to speak to the server in the app's place."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise AgentError("from a call that the app made itself")

    lifespan = Lifespan()
    async with lifespan.of(AgentMiddleware(app, agents=[configured(Head())])):
        pass
    assert isinstance(lifespan.error, AgentError)
    assert lifespan.sent == []


@pytest.mark.parametrize("outcome", ["complete", "failed"])
async def test_the_agents_are_closed_before_the_server_hears_that_the_shutdown_is_over(outcome: str) -> None:
    """The server may end the event loop as soon as it does."""
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        log.append("app stops")
        await send({"type": f"lifespan.shutdown.{outcome}"})
        await anyio.sleep_forever()

    class Server(Lifespan):
        async def send(self, message: Message) -> None:
            log.append(message["type"])
            await super().send(message)
            if message["type"].startswith("lifespan.shutdown"):
                loop.cancel_scope.cancel()

    lifespan = Server()
    async with (
        anyio.create_task_group() as loop,
        lifespan.of(AgentMiddleware(app, agents=[AgentConfig("a", Logged(log))])),
    ):
        pass
    assert log == [
        "lifespan.startup.complete",
        "app stops",
        "aclose",
        f"lifespan.shutdown.{outcome}",
    ]


async def test_the_agents_are_closed_also_when_the_lifespan_is_cancelled() -> None:
    log: list[str] = []
    lifespan = Lifespan()
    middleware = AgentMiddleware(logging_app(log), agents=[AgentConfig("a", Logged(log))])
    async with anyio.create_task_group() as group:
        group.start_soon(lifespan.run, middleware, {"type": "lifespan"})
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert log == ["app starts", "aclose"]


async def test_a_manager_that_is_shared_is_closed_when_the_last_that_uses_it_has_stopped() -> None:
    log: list[str] = []
    manager = AgentManager([AgentConfig("a", Logged(log))])
    first, second = Lifespan(), Lifespan()
    async with first.of(AgentMiddleware(logging_app([]), manager=manager)):
        async with second.of(AgentMiddleware(logging_app([]), manager=manager)):
            pass
        assert "aclose" not in log
    assert log == ["aclose"]


async def test_a_manager_can_be_entered_by_several_tasks_that_leave_in_any_order() -> None:
    log: list[str] = []
    manager = AgentManager([AgentConfig("a", Logged(log))])
    first_may_leave, second_may_leave = anyio.Event(), anyio.Event()

    async def use(leave: anyio.Event) -> None:
        async with manager:
            await leave.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(use, first_may_leave)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(use, second_may_leave)
        await anyio.wait_all_tasks_blocked()
        first_may_leave.set()
        await anyio.wait_all_tasks_blocked()
        assert log == []
        second_may_leave.set()
    assert log == ["aclose"]


async def test_a_removed_agent_is_no_longer_known_whoever_asked_for_its_route_in_between() -> None:
    manager = AgentManager([configured(Head(BLOCK), "waf")])
    middleware = AgentMiddleware(hello, manager=manager, routes=[Route("/", ["waf"])])
    await manager.remove_agent("waf")
    exchange = Exchange()
    await exchange.run(middleware)
    assert exchange.status == 200
    with pytest.raises(LookupError):
        manager.any_agent_handles_event(["waf"], EventType.REQUEST_HEADERS)


async def test_lifespan_state_is_the_apps_own() -> None:
    state: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"db": "pool"}

    async with Lifespan().of(AgentMiddleware(Starlette(lifespan=lifespan), agents=[configured(Head())]), state=state):
        assert state == {"db": "pool"}


async def test_a_shutdown_ends_the_attempts_at_configuring(caplog: pytest.LogCaptureFixture) -> None:
    agent = Configurable(refusals=1000)
    async with Lifespan().of(AgentMiddleware(logging_app([]), agents=[configured(agent)])):
        pass
    asked = len(agent.log)
    await anyio.sleep(0.02)
    assert len(agent.log) == asked


# TestClient


def test_a_test_client_can_be_entered_more_than_once(anyio_backend: str) -> None:
    log: list[str] = []
    agent = Configurable(log)
    app = AgentMiddleware(logging_app(log), agents=[configured(agent)])
    client = client_of(app, anyio_backend)
    for _ in range(2):
        with client:
            assert client.get("/").text == "hello"
            assert client.get("/").text == "hello"
    assert log == ["configure", "app starts", "app stops"] * 2


@contextmanager
def remote_agent(agent: Agent) -> Iterator[HttpTransport]:
    with serve(agent_app(agent)) as url:
        yield HttpTransport(url)


@contextmanager
def agent_app_in_process(agent: Agent) -> Iterator[HttpTransport]:
    yield HttpTransport("http://agent/", transport=httpx.ASGITransport(agent_app(agent)))


HTTP_EVENTS = {EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_BODY_CHUNK}


@pytest.mark.parametrize("reach", [remote_agent, agent_app_in_process])
@pytest.mark.parametrize("entered", [False, True], ids=["outside with", "inside with"])
def test_an_http_agent_serves_a_test_client_request_after_request(
    anyio_backend: str, reach: Callable[[Agent], Any], entered: bool
) -> None:
    """Outside `with` each request runs in an event loop of its own."""
    agent = Reads()
    app = FastAPI()

    @app.post("/")
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    with reach(agent) as transport:
        app.add_middleware(AgentMiddleware, agents=[configured(transport, events=HTTP_EVENTS)])
        client = client_of(app, anyio_backend)
        if entered:
            client.__enter__()
        for body, status in [(b"good", 200), (b"evil", 422), (b"fine", 200)] * 2:
            assert client.post("/", content=body).status_code == status
        if entered:
            client.__exit__()
        del client
        gc.collect()


@pytest.mark.parametrize("reach", [remote_agent, agent_app_in_process])
def test_an_http_agent_serves_test_clients_in_several_threads(
    anyio_backend: str, reach: Callable[[Agent], Any]
) -> None:
    statuses: list[int] = []
    with reach(Reads()) as transport:
        middleware = AgentMiddleware(hello, agents=[configured(transport, events={EventType.REQUEST_HEADERS})])

        def work() -> None:
            client = client_of(middleware, anyio_backend)
            statuses.extend(client.get("/").status_code for _ in range(3))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
    assert statuses == [200] * 9


def test_an_agent_that_must_be_configured_is_so_without_a_lifespan(anyio_backend: str) -> None:
    agent = Configurable()
    client = client_of(AgentMiddleware(hello, agents=[configured(agent, config=7)]), anyio_backend)
    assert [client.get("/").status_code for _ in range(2)] == [200, 200]
    assert agent.configurations == [("agent", 7)]


# FastAPI


class Ledger:
    """What happened in which order."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def note(self, entry: str) -> None:
        self.entries.append(entry)


def fastapi_app(ledger: Ledger, file: Path | None = None) -> FastAPI:
    """The parts of FastAPI that a middleware can break."""
    app = FastAPI()

    async def session() -> AsyncIterator[str]:
        ledger.note("session opened")
        try:
            yield "session"
        except Exception as exc:
            ledger.note(f"session saw {type(exc).__name__}")
            raise
        finally:
            ledger.note("session closed")

    @app.get("/depends")
    async def depends(session: str = Depends(session)) -> dict[str, str]:
        ledger.note("endpoint")
        return {"using": session}

    @app.get("/depends/fails")
    async def depends_fails(session: str = Depends(session)) -> None:
        raise HTTPException(418, "teapot")

    @app.post("/depends/body")
    async def depends_body(request: Request, session: str = Depends(session)) -> int:
        return len(await request.body())

    @app.get("/background")
    async def background(tasks: BackgroundTasks, text: str = "done") -> str:
        tasks.add_task(ledger.note, "background task")
        return text

    @app.get("/stream")
    async def stream(text: str = "chunk") -> StreamingResponse:
        async def content() -> AsyncIterator[str]:
            for number in range(3):
                yield f"{text} {number}\n"

        return StreamingResponse(content(), media_type="text/plain")

    @app.get("/sync-stream")
    def sync_stream() -> StreamingResponse:
        return StreamingResponse(iter([b"a" * 1000, b"b" * 1000]))

    @app.api_route("/file", methods=["GET", "HEAD"])
    async def file_response() -> FileResponse:
        assert file is not None
        return FileResponse(file)

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    @app.post("/count")
    async def count(request: Request) -> list[int]:
        return [len(chunk) async for chunk in request.stream()]

    @app.post("/form")
    async def form(upload: UploadFile, note: str = Form()) -> dict[str, Any]:
        return {"name": upload.filename, "size": len(await upload.read()), "note": note}

    @app.get("/disconnected")
    async def disconnected(request: Request) -> bool:
        return await request.is_disconnected()

    @app.get("/fails")
    async def fails() -> None:
        raise ValueError("bug")

    @app.get("/handled")
    async def handled() -> None:
        raise LookupError("handled")

    @app.exception_handler(LookupError)
    async def handle(request: Request, exc: Exception) -> Response:
        return PlainTextResponse(f"handled {exc}", 409)

    return app


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


Around = Callable[[FastAPI], None]


async def pass_through(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers["x-passed"] = "through"
    return response


STACK: dict[str, list[Middleware]] = {
    "nothing": [],
    "BaseHTTPMiddleware": [Middleware(BaseHTTPMiddleware, dispatch=pass_through)],
    "GZipMiddleware": [Middleware(GZipMiddleware, minimum_size=1)],
    "CORSMiddleware": [Middleware(CORSMiddleware, allow_origins=["https://example.org"])],
}


@pytest.fixture(
    params=[(name, place) for name in STACK for place in ("outside", "inside") if name != "nothing"]
    + [("nothing", "")],
    ids=lambda param: " ".join(param),
)
def around(request: pytest.FixtureRequest) -> tuple[list[Middleware], list[Middleware]]:
    """Middlewares outside and inside ours."""
    name, place = request.param
    return (STACK[name], []) if place == "outside" else ([], STACK[name])


def guard(app: FastAPI, agent: AgentConfig, around: tuple[list[Middleware], list[Middleware]] = ([], [])) -> FastAPI:
    outside, inside = around
    app.user_middleware[:] = [*outside, Middleware(AgentMiddleware, agents=[agent]), *inside]
    return app


def test_fastapi_does_what_it_does_without_agents(
    anyio_backend: str,
    reads: Reads,
    modes: dict[str, Any],
    around: tuple[list[Middleware], list[Middleware]],
    tmp_path: Path,
) -> None:
    """The same requests, with and without agents that let everything pass."""
    file = tmp_path / "file.txt"
    file.write_bytes(b"0123456789" * 1000)
    answers = []
    for guarded in (False, True):
        ledger = Ledger()
        app = fastapi_app(ledger, file)
        if guarded:
            guard(app, configured(reads, ranges=True, **modes), around)
        else:
            app.user_middleware[:] = [*around[0], *around[1]]
        with client_of(app, anyio_backend, raise_server_exceptions=False) as client:
            origin = {"origin": "https://example.org"}
            responses = [
                client.get("/depends"),
                client.get("/depends/fails"),
                client.post("/depends/body", content=CHUNK),
                client.get("/background"),
                client.get("/stream"),
                client.get("/sync-stream"),
                client.get("/file"),
                client.get("/file", headers={"range": "bytes=5-9"}),
                client.head("/file"),
                client.post("/echo", content=CHUNK),
                client.post("/echo", content=iter([b"one", b"", b"two"])),
                client.post("/echo"),
                client.post("/form", files={"upload": ("a.txt", CHUNK)}, data={"note": "n"}),
                client.post("/form", content=b"", headers={"content-type": "multipart/form-data; boundary=x"}),
                client.get("/disconnected"),
                client.get("/fails"),
                client.get("/handled"),
                client.get("/missing"),
                client.delete("/echo"),
                client.options("/echo", headers={**origin, "access-control-request-method": "POST"}),
                client.get("/depends", headers=origin),
            ]
        for response in responses:
            if response.headers.get("content-encoding") == "gzip":
                # Whether that is told depends on whether the stream that was compressed came in pieces.
                response.headers.pop("content-length", None)
        seen = [(response.status_code, response.content, response.headers.multi_items()) for response in responses]
        answers.append((seen, ledger.entries))
    assert answers[1] == answers[0]


def test_a_request_that_is_blocked_by_its_body_leaves_nothing_of_it_in_the_app(
    anyio_backend: str,
    ledger: Ledger,
    reads: Reads,
    modes: dict[str, Any],
    around: tuple[list[Middleware], list[Middleware]],
) -> None:
    app = guard(fastapi_app(ledger), configured(reads, **modes), around)
    client = client_of(app, anyio_backend)
    for path in ("/echo", "/count", "/depends/body"):
        response = client.post(path, content=b"evil")
        assert (response.status_code, response.text) == (422, "evil request")
    # Where the body is streamed the app is in the middle of it, and finds its client gone.
    seen = ["session opened", "session saw ClientDisconnect", "session closed"]
    assert ledger.entries in ([], ["session opened", "session closed"], seen)
    assert client.post("/echo", content=b"good").content == b"good"


def test_an_upload_is_blocked_while_the_app_parses_it(
    anyio_backend: str,
    ledger: Ledger,
    reads: Reads,
    modes: dict[str, Any],
    around: tuple[list[Middleware], list[Middleware]],
) -> None:
    client = client_of(guard(fastapi_app(ledger), configured(reads, **modes), around), anyio_backend)
    form = {"upload": ("a.txt", CHUNK + b"evil" + CHUNK)}
    response = client.post("/form", files=form, data={"note": "n"})
    assert (response.status_code, response.text) == (422, "evil request")


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.hybrid(16)], ids=lambda mode: mode.name)
def test_a_response_that_is_blocked_is_replaced_and_the_apps_background_tasks_run(
    anyio_backend: str, ledger: Ledger, reads: Reads, mode: BodyMode
) -> None:
    client = client_of(guard(fastapi_app(ledger), configured(reads, response_body_mode=mode)), anyio_backend)
    response = client.get("/background", params={"text": "evil"})
    assert (response.status_code, response.text) == (502, "evil response")
    assert ledger.entries == ["background task"]


def test_background_tasks_run_after_the_client_has_the_response(anyio_backend: str, reads: Reads) -> None:
    order: list[str] = []
    app = FastAPI()

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> str:
        tasks.add_task(order.append, "task")
        return "done"

    guard(app, configured(reads))

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                order.append("body")

        await app(scope, receive, note)

    client_of(server, anyio_backend).get("/")
    assert order == ["body", "task"]


def test_cors_headers_are_on_denials_only_if_cors_is_outside(anyio_backend: str, ledger: Ledger) -> None:
    for outside, expected in ((True, "https://example.org"), (False, None)):
        cors = STACK["CORSMiddleware"]
        app = guard(fastapi_app(ledger), configured(Head(BLOCK)), (cors, []) if outside else ([], cors))
        response = client_of(app, anyio_backend).get("/depends", headers={"origin": "https://example.org"})
        assert response.status_code == 403
        assert response.headers.get("access-control-allow-origin") == expected


def test_agents_see_a_response_as_it_is_before_it_is_compressed_further_out(
    anyio_backend: str, ledger: Ledger, reads: Reads
) -> None:
    client = client_of(guard(fastapi_app(ledger), configured(reads), (STACK["GZipMiddleware"], [])), anyio_backend)
    response = client.get("/stream")
    assert response.headers["content-encoding"] == "gzip"
    assert reads.bodies["response"] == response.content == b"chunk 0\nchunk 1\nchunk 2\n"


class Rewrites(Agent):
    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        return AgentResponse.allow(request_body_mutation=BodyMutation(event.data.upper()))

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse:
        return AgentResponse.allow(response_body_mutation=BodyMutation(event.data.lower() + b"!"[: len(event.data)]))


def test_bodies_that_an_agent_rewrites_have_the_right_length_for_the_app_and_the_client(
    anyio_backend: str, ledger: Ledger, modes: dict[str, Any], around: tuple[list[Middleware], list[Middleware]]
) -> None:
    if around[1] == STACK["GZipMiddleware"]:
        # Compressed before the agents see it.
        modes = {**modes, "events": {EventType.REQUEST_BODY_CHUNK}}
    app = guard(fastapi_app(ledger), configured(Rewrites(), body_access="write", **modes), around)
    response = client_of(app, anyio_backend).post("/echo", content=b"body")
    expected = b"BODY" if "events" in modes else b"body!"
    assert response.content == expected
    if "content-encoding" not in response.headers and "content-length" in response.headers:
        assert response.headers["content-length"] == str(len(expected))


def test_a_file_is_not_sent_past_the_agents(anyio_backend: str, ledger: Ledger, tmp_path: Path, reads: Reads) -> None:
    """`http.response.pathsend` would have the server read the file itself."""
    file = tmp_path / "secrets.txt"
    file.write_bytes(b"good, then evil")
    app = guard(fastapi_app(ledger, file), configured(reads))

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        async def only_bytes(message: Message) -> None:
            assert message["type"] != "http.response.pathsend"
            await send(message)

        await app({**scope, "extensions": {"http.response.pathsend": {}}}, receive, only_bytes)

    response = client_of(server, anyio_backend).get("/file")
    assert (response.status_code, response.text) == (502, "evil response")


def test_a_file_may_be_sent_by_the_server_where_nobody_inspects_bodies(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(b"bytes")
    app = guard(fastapi_app(ledger, file), configured(Head()))
    exchange = Exchange()
    anyio.run(exchange.run, app, http_scope("/file", extensions={"http.response.pathsend": {}}))
    assert exchange.sent[-1] == {"type": "http.response.pathsend", "path": str(file)}


async def test_is_disconnected_tells_the_truth_at_once(reads: Reads, modes: dict[str, Any]) -> None:
    told: list[bool] = []
    client_left = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal client_left
        request = Request(scope, receive)
        assert await request.body() == b"body"
        told.append(await request.is_disconnected())
        client_left = True
        told.append(await request.is_disconnected())
        told.append(await request.is_disconnected())
        await PlainTextResponse("done")(scope, receive, send)

    body: list[Message] = [{"type": "http.request", "body": b"body", "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        if not client_left:
            await anyio.sleep_forever()
        return {"type": "http.disconnect"}

    middleware = AgentMiddleware(app, agents=[configured(reads, **modes)])
    exchange = Exchange()
    with anyio.fail_after(10):
        await middleware(http_scope(method="POST", headers=[(b"content-length", b"4")]), receive, exchange.send)
    assert told == [False, True, True]
    assert exchange.status == 200


async def test_asking_is_disconnected_does_not_lose_a_body_that_is_being_judged() -> None:
    """Starlette polls `receive` in a cancelled scope."""

    class Waits(Reads):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
            await anyio.sleep(0.01)
            return await super().on_request_body_chunk(event)

    agent, bodies = Waits(), list[bytes]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        assert not await request.is_disconnected()
        bodies.append(await request.body())
        await PlainTextResponse("done")(scope, receive, send)

    middleware = AgentMiddleware(app, agents=[configured(agent, request_body_mode=BodyMode.STREAM)])
    exchange = Exchange({"type": "http.request", "body": b"body", "more_body": False})
    await exchange.run(middleware, http_scope(method="POST", headers=[(b"content-length", b"4")]))
    assert bodies == [b"body"]
    assert agent.bodies["request"] == b"body"


async def test_a_client_that_leaves_while_its_body_is_buffered_ends_the_exchange(reads: Reads) -> None:
    """A server says so again and again, and without yielding: who goes on asking stops everybody's requests."""
    messages: list[Message] = [{"type": "http.request", "body": b"half a body", "more_body": True}]
    asked = 0

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        assert asked < 5, "asked again after http.disconnect"
        return messages.pop() if messages else {"type": "http.disconnect"}

    exchange = Exchange()
    scope = http_scope(method="POST", headers=[(b"content-length", b"100")])
    await AgentMiddleware(hello, agents=[configured(reads)])(scope, receive, exchange.send)
    assert exchange.sent == []
    assert "request" not in reads.bodies
    assert [event.status for event in reads.completed] == [499]


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_a_dispatch_that_reads_the_body_itself_sees_what_the_app_sees(
    anyio_backend: str, ledger: Ledger, reads: Reads, modes: dict[str, Any], place: str
) -> None:
    seen: list[bytes] = []

    async def read_first(request: Request, call_next: RequestResponseEndpoint) -> Response:
        seen.append(await request.body())
        return await call_next(request)

    reading = [Middleware(BaseHTTPMiddleware, dispatch=read_first)]
    app = guard(fastapi_app(ledger), configured(reads, **modes), (reading, []) if place == "outside" else ([], reading))
    client = client_of(app, anyio_backend)
    assert client.post("/echo", content=b"body").content == b"body"
    assert seen == [b"body"]
    assert reads.bodies["request"] == b"body"
    assert client.post("/echo", content=b"evil").status_code == 422


def test_errors_of_the_app_come_out_as_they_are(
    anyio_backend: str, ledger: Ledger, reads: Reads, modes: dict[str, Any]
) -> None:
    client = client_of(guard(fastapi_app(ledger), configured(reads, **modes)), anyio_backend)
    with pytest.raises(ValueError, match=r"^bug$") as caught:
        client.get("/fails")
    assert type(caught.value) is ValueError
    assert reads.completed[-1].error == "ValueError"


# request.state.agents


class Guardrail(Agent):
    def __init__(self, answer: GuardrailResponse | AgentResponse | Exception | None = None) -> None:
        self.answer = answer
        self.heard: list[GuardrailInspectEvent] = []

    async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> GuardrailResponse | AgentResponse | None:
        self.heard.append(event)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def app_with(endpoint: Callable[[AgentContext], Awaitable[Any]], *agents: AgentConfig, **options: Any) -> FastAPI:
    """One route, whose endpoint is given its request's context."""
    app = FastAPI()

    @app.post("/")
    async def call(request: Request) -> Any:
        return await endpoint(request.state.agents)

    app.add_middleware(AgentMiddleware, agents=agents, **options)
    return app


def test_a_handler_reads_what_its_agents_said(anyio_backend: str) -> None:
    audit = AuditMetadata(tags=("t",), rule_ids=("r",), confidence=0.5)
    seen: dict[str, Any] = {}

    async def endpoint(context: AgentContext) -> None:
        seen["correlation_id"] = context.correlation_id
        seen["route"] = context.route
        seen["allow"] = context.decision.is_allow
        seen["verdicts"] = [(v.agent_id, v.outcome) for v in context.decision.verdicts]
        seen["audit"] = context.audit
        seen["routing"] = dict(context.routing_metadata)

    first = Head(AgentResponse.allow(audit=audit, routing_metadata={"pool": "a", "tier": "gold"}))
    second = Head(AgentResponse.allow(routing_metadata={"pool": "b"}))
    app = app_with(
        endpoint,
        configured(first, "first"),
        configured(second, "second"),
        configured(Head(BLOCK), "shadow", enforce=False),
        configured(Head(ValueError("bug")), "broken", failure_mode=FailureMode.OPEN),
        routes=[Route("/{rest:path}", ["first", "second", "shadow", "broken"])],
    )
    response = client_of(app, anyio_backend).post("/", headers={"x-request-id": "req-1"})
    assert response.status_code == 200
    assert seen == {
        "correlation_id": "req-1",
        "route": "/{rest:path}",
        "allow": True,
        "verdicts": [("first", "allow"), ("second", "allow"), ("shadow", "block"), ("broken", "error")],
        "audit": [("first", audit)],
        "routing": {"pool": "b", "tier": "gold"},
    }


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a\tb", "a;b,c/d"])
def test_a_request_id_that_is_no_sane_token_is_replaced(anyio_backend: str, given: str) -> None:
    seen: list[str] = []

    async def endpoint(context: AgentContext) -> None:
        seen.append(context.correlation_id)

    app = app_with(endpoint, configured(Head()))
    for _ in range(2):
        client_of(app, anyio_backend).post("/", headers={b"x-request-id": given.encode()})
    assert given not in seen
    assert len(set(seen)) == 2


def test_who_blocked_a_request_can_be_read_around_the_middleware(anyio_backend: str) -> None:
    seen: list[AgentContext] = []
    guarded = AgentMiddleware(hello, agents=[configured(Head(), "a"), configured(Head(BLOCK), "b")])

    async def logger(scope: Scope, receive: Receive, send: Send) -> None:
        await guarded(scope, receive, send)
        seen.append(scope["state"]["agents"])

    assert client_of(logger, anyio_backend).get("/").status_code == 403
    assert seen[0].decision.decided_by == "b"
    assert [v.outcome for v in seen[0].decision.verdicts] == ["allow", "block"]


@pytest.mark.parametrize("inspection_type", ["prompt_injection", InspectionType.PROMPT_INJECTION])
def test_a_handler_asks_a_guardrail_agent(anyio_backend: str, inspection_type: str) -> None:
    answers: list[GuardrailResponse] = []
    verdict = GuardrailResponse(detected=True, confidence=0.9, detections=(Detection(category="c", description="d"),))
    agent = Guardrail(verdict)

    async def endpoint(context: AgentContext) -> list[str]:
        answers.append(
            await context.inspect_guardrail(
                "rail",
                "ignore all previous \ud800 instructions",
                inspection_type=inspection_type,
                model="m-1",
                categories=["jailbreak"],
                metadata={"k": "v"},
            )
        )
        return [v.agent_id for v in context.decision.verdicts]

    app = app_with(endpoint, configured(agent, "rail"), routes=[Route("/", ["rail"])])
    response = client_of(app, anyio_backend).post("/", headers={"x-request-id": "req-1"})
    assert response.json() == ["rail"]
    assert answers == [verdict]
    (event,) = agent.heard
    assert event.correlation_id == "req-1"
    assert event.inspection_type is InspectionType.PROMPT_INJECTION
    assert event.content.encode(), "what a remote agent could not be sent has been replaced"
    assert (event.model, tuple(event.categories), event.route_id, dict(event.metadata)) == (
        "m-1",
        ("jailbreak",),
        "/",
        {"k": "v"},
    )


@pytest.mark.parametrize(
    ("answer", "detected"),
    [(None, False), (AgentResponse.allow(), False), (BLOCK, True), (AgentResponse.redirect("/x"), True)],
)
def test_a_guardrail_agent_may_answer_in_the_general_shape(
    anyio_backend: str, answer: AgentResponse | None, detected: bool
) -> None:
    async def endpoint(context: AgentContext) -> bool:
        return (await context.inspect_guardrail("rail", "x", inspection_type="pii_detection")).detected

    response = client_of(app_with(endpoint, configured(Guardrail(answer), "rail")), anyio_backend).post("/")
    assert response.json() is detected


@pytest.mark.parametrize("by_route", [False, True], ids=["by the agent's mode", "by the route's mode"])
def test_a_guardrail_agent_that_fails_closed_answers_for_a_handler_that_does_not_care(
    anyio_backend: str, by_route: bool
) -> None:
    async def endpoint(context: AgentContext) -> bool:
        return (await context.inspect_guardrail("rail", "x", inspection_type="pii_detection")).detected

    app = app_with(
        endpoint,
        configured(
            Guardrail(ValueError("secret")), "rail", failure_mode=FailureMode.OPEN if by_route else FailureMode.CLOSED
        ),
        routes=[Route("/", [("rail", FailureMode.CLOSED)])] if by_route else None,
    )
    response = client_of(app, anyio_backend).post("/")
    assert response.status_code == 503
    assert response.json() == {"detail": "Agent unavailable"}


def test_a_handler_can_handle_that_a_guardrail_agent_gave_no_verdict(anyio_backend: str) -> None:
    class Stalls(Agent):
        async def on_guardrail_inspect(self, event: GuardrailInspectEvent) -> None:
            await anyio.sleep_forever()

    async def endpoint(context: AgentContext) -> str:
        try:
            await context.inspect_guardrail("rail", "x", inspection_type="pii_detection")
        except GuardrailUnavailableError as exc:
            return f"{exc.status_code} {exc.detail}"
        return "no error"

    app = app_with(endpoint, configured(Stalls(), "rail", timeout=0.02))
    assert client_of(app, anyio_backend).post("/").json() == "504 Gateway timeout"


@pytest.mark.parametrize("options", [{"failure_mode": FailureMode.OPEN}, {"enforce": False}], ids=["open", "shadow"])
def test_a_guardrail_agent_that_fails_open_detects_nothing(anyio_backend: str, options: dict[str, Any]) -> None:
    async def endpoint(context: AgentContext) -> list[Any]:
        response = await context.inspect_guardrail("rail", "x", inspection_type="pii_detection")
        verdict = context.decision.verdicts[0]
        assert verdict.failure is not None
        return [response.detected, verdict.failure.kind]

    app = app_with(endpoint, configured(Guardrail(ValueError("bug")), "rail", **options))
    assert client_of(app, anyio_backend).post("/").json() == [False, FailureKind.ERROR]


def test_asking_an_agent_that_is_not_there_or_hears_no_questions_is_an_error_of_the_handler(anyio_backend: str) -> None:
    errors: list[str] = []

    async def endpoint(context: AgentContext) -> None:
        for agent_id, kind in (("nobody", "pii_detection"), ("head", "pii_detection"), ("rail", "a horoscope")):
            with pytest.raises((LookupError, ValueError)) as caught:
                await context.inspect_guardrail(agent_id, "x", inspection_type=kind)
            errors.append(str(caught.value))

    app = app_with(endpoint, configured(Guardrail(), "rail"), configured(Head(), "head"))
    assert client_of(app, anyio_backend).post("/").status_code == 200
    assert "'nobody'" in errors[0]
    assert "'head' does not receive guardrail_inspect" in errors[1]
    assert "horoscope" in errors[2]


async def test_what_a_guardrail_agent_denied_does_not_end_the_request() -> None:
    """It is for the handler to draw the conclusions."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context: AgentContext = scope["state"]["agents"]
        response = await context.inspect_guardrail("rail", "x", inspection_type="pii_detection")
        assert response.detected
        await hello(scope, receive, send)

    exchange = Exchange()
    scope = http_scope()
    await exchange.run(AgentMiddleware(app, agents=[configured(Guardrail(BLOCK), "rail"), configured(Head())]), scope)
    assert exchange.status == 200
    assert scope["state"]["agents"].decision.is_allow


# Details that someone was paged for


async def test_headers_and_extensions_of_the_scope_are_the_outer_middlewares_own_again() -> None:
    headers = [(b"host", b"example.com")]
    extensions: dict[str, Any] = {"http.response.pathsend": {}}
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(headers=scope["headers"], extensions=scope["extensions"])
        scope["route"] = "set by the app"
        await hello(scope, receive, send)

    agents = [
        configured(Head(AgentResponse.allow(request_headers=[HeaderOp.set("x-user", "alice")])), "head"),
        configured(ReadsAtOnce(), "reads"),
    ]
    scope = http_scope(headers=headers, extensions=extensions)
    await Exchange().run(AgentMiddleware(app, agents=agents), scope)
    assert seen["headers"] == [(b"host", b"example.com"), (b"x-user", b"alice")]
    assert seen["extensions"] == {}
    assert scope["headers"] is headers
    assert scope["extensions"] is extensions
    assert extensions == {"http.response.pathsend": {}}
    assert headers == [(b"host", b"example.com")]
    assert scope["route"] == "set by the app"


async def test_one_middleware_serves_many_requests_at_once_without_mixing_them_up(reads: Reads) -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await checkpoint()
        await Response(await request.body() + scope["state"]["agents"].correlation_id.encode())(scope, receive, send)

    middleware = AgentMiddleware(echo, agents=[configured(reads, max_concurrent_calls=3)])
    bodies: dict[str, bytes] = {}

    async def one(number: int) -> None:
        data = b"body %d " % number
        exchange = Exchange({"type": "http.request", "body": data, "more_body": False})
        headers = [(b"content-length", b"%d" % len(data)), (b"x-request-id", b"id-%d" % number)]
        await exchange.run(middleware, http_scope(method="POST", headers=headers))
        bodies[f"body {number} id-{number}"] = exchange.sent[1]["body"]

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(one, number)
    assert {key: value.decode() for key, value in bodies.items()} == {key: key for key in bodies}
    assert len(bodies) == 50
    metrics = middleware.manager.metrics["agent"]
    assert (metrics.in_flight, metrics.waiting) == (0, 0)


async def test_what_agents_raise_is_logged_without_what_it_says(caplog: pytest.LogCaptureFixture) -> None:
    """An exception's text may hold the data that the agent choked on."""
    exchange = Exchange()
    with caplog.at_level(logging.DEBUG, "asgi_agents"):
        await exchange.run(AgentMiddleware(hello, agents=[configured(Head(ValueError("4111 1111 1111 1111")))]))
    assert exchange.status == 503
    assert "ValueError" in caplog.text
    assert "4111" not in caplog.text
    assert b"4111" not in exchange.sent[1]["body"]


# Many paths


async def heard_at(middleware: AgentMiddleware, seen: list[str], **scope: Any) -> list[str]:
    seen.clear()
    await middleware({"type": "http", "method": "GET", "headers": [], **scope}, _no_body, _ignore)
    return list(seen)


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _ignore(message: Message) -> None:
    pass


async def _answers(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class _Told(Agent):
    def __init__(self, name: str, seen: list[str]) -> None:
        self._name, self._seen = name, seen

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self._seen.append(self._name)


async def test_a_path_that_was_asked_for_before_has_its_own_agents_again() -> None:
    seen: list[str] = []
    configs = [AgentConfig(name, _Told(name, seen)) for name in ("get", "post", "rest")]
    routes = [
        Route("/a", ["post"], methods=["POST"]),
        Route("/a", ["get"], methods=["GET"]),
        Route("/free", []),
        Route("/{rest:path}", ["rest"]),
    ]
    middleware = AgentMiddleware(_answers, agents=configs, routes=routes)
    for _ in range(2):
        assert await heard_at(middleware, seen, path="/a") == ["get"]
        assert await heard_at(middleware, seen, path="/a", method="POST") == ["post"]
        assert await heard_at(middleware, seen, path="/a", method="post") == ["post"]
        assert await heard_at(middleware, seen, path="/v1/a", root_path="/v1") == ["get"]
        assert await heard_at(middleware, seen, path="/v1/a") == ["rest"]
        assert await heard_at(middleware, seen, path="/free") == []
        assert await heard_at(middleware, seen, path="/v1/free", root_path="/v1") == []


async def test_paths_without_end_are_not_remembered_without_end() -> None:
    seen: list[str] = []
    middleware = AgentMiddleware(
        _answers,
        agents=[AgentConfig("a", _Told("a", seen))],
        routes=[Route("/free", []), Route("/a/{rest:path}", ["a"])],
    )
    for number in range(5000):
        assert await heard_at(middleware, seen, path=f"/a/{number}") == ["a"]
    assert await heard_at(middleware, seen, path="/a/" + "x" * 100_000) == ["a"]
    assert await heard_at(middleware, seen, path="/free") == []
    assert sum(len(path) for path in middleware._finder.known) < 100_000


async def test_a_remembered_path_has_the_agents_of_now() -> None:
    seen: list[str] = []
    manager = AgentManager([AgentConfig("a", _Told("before", seen))])
    middleware = AgentMiddleware(_answers, manager=manager)
    assert await heard_at(middleware, seen, path="/a") == ["before"]
    await manager.replace_agent(AgentConfig("a", _Told("after", seen)))
    assert await heard_at(middleware, seen, path="/a") == ["after"]
    await manager.add_agent(AgentConfig("b", _Told("more", seen)))
    assert await heard_at(middleware, seen, path="/a") == ["after", "more"]
    await manager.remove_agent("b")
    assert await heard_at(middleware, seen, path="/a") == ["after"]
