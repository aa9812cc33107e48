"""A connection has one id in this process, however many middlewares and managers it passes."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AuditRecord,
    HeaderOp,
    current_correlation_id,
)
from asgi_agents.observability import correlation
from asgi_agents.observability.correlation import live_ids
from tests.support.asgi import App, Client, body, start

from .test_correlation import HEADER, UUID7, Server

GIVEN = [(HEADER, b"given")]


class Ids(Agent):
    """Remembers under which ids it hears of what."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.request_ids: list[str] = []

    async def on_request_headers(self, event: Any) -> None:
        self.heard.append(("request_headers", event.correlation_id))
        self.request_ids.append(event.metadata.request_id)

    async def on_response_headers(self, event: Any) -> None:
        self.heard.append(("response_headers", event.correlation_id))

    async def on_request_complete(self, event: Any) -> None:
        self.heard.append(("request_complete", event.correlation_id))

    async def on_websocket_frame(self, event: Any) -> None:
        self.heard.append(("websocket_frame", event.correlation_id))

    async def on_guardrail_inspect(self, event: Any) -> None:
        self.heard.append(("guardrail_inspect", event.correlation_id))

    @property
    def ids(self) -> set[str]:
        return {correlation_id for _, correlation_id in self.heard}


class Around(AgentMiddleware):
    """A middleware with a manager of its own; notes its agent's ids and audit records."""

    def __init__(self, app: ASGIApp, manager: AgentManager | None = None, **options: Any) -> None:
        self.agent = Ids()
        self.records: list[AuditRecord] = []
        manager = manager or AgentManager([AgentConfig("a", self.agent)])
        super().__init__(app, manager=manager, on_audit=self.records.append, **options)


def passing(app: ASGIApp) -> ASGIApp:
    return app


def copying(app: ASGIApp) -> ASGIApp:
    async def copy(scope: Scope, receive: Receive, send: Send) -> None:
        await app(dict(scope), receive, send)

    return copy


def in_a_task(app: ASGIApp) -> ASGIApp:
    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            call: Any = app
            tasks.start_soon(call, scope, receive, send)

    return run


def through_starlette(app: ASGIApp) -> ASGIApp:
    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    return BaseHTTPMiddleware(Starlette(routes=[Mount("/", app)]), dispatch)


BETWEEN: list[Callable[[ASGIApp], ASGIApp]] = [passing, copying, in_a_task, through_starlette]


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("headers", [GIVEN, [], [(HEADER, b"no token")]])
@pytest.mark.parametrize("shared", [False, True])
async def test_nested_middlewares_name_a_request_once(
    between: Callable[[ASGIApp], ASGIApp], headers: list[tuple[bytes, bytes]], shared: bool
) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["agents"].correlation_id)
        seen.append(current_correlation_id())
        await PlainTextResponse("x")(scope, receive, send)

    inner = Around(app, expose_correlation_id=True)
    middle = Around(between(inner), manager=inner.manager if shared else None, correlation_header=None)
    outer = Around(between(middle), expose_correlation_id=True)
    client = Client(headers=headers)
    await client.call(outer)

    (name,) = outer.agent.ids
    assert name == "given" if headers == GIVEN else UUID7.match(name)
    for each in (outer, middle, inner):
        assert each.agent.ids <= {name}
        assert [record.correlation_id for record in each.records] == [name]
    assert seen == [name, name]
    assert dict(client.messages[0]["headers"])[HEADER] == name.encode()
    request_ids = {*outer.agent.request_ids, *middle.agent.request_ids, *inner.agent.request_ids}
    assert len(request_ids) == 1
    assert (request_ids == {name}) is (headers != GIVEN)
    assert not live_ids


async def test_an_id_that_an_agent_puts_on_the_request_names_it_no_second_time() -> None:
    class Renames(Agent):
        async def on_request_headers(self, event: Any) -> AgentResponse:
            return AgentResponse.allow(request_headers=[HeaderOp.set("x-request-id", "other")])

    inner = Around(App())
    outer = AgentMiddleware(inner, agents=[AgentConfig("a", Renames())])
    await Client(headers=GIVEN).call(outer)
    assert inner.agent.ids == {"given"}


async def test_the_spans_of_nested_middlewares_have_one_id() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    managers = [AgentManager([AgentConfig(name, Ids())], tracer_provider=provider) for name in ("a", "b")]
    inner = AgentMiddleware(App(), manager=managers[0])
    await Client().call(AgentMiddleware(inner, manager=managers[1]))
    spans = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    assert {span["asgi_agents.agent.id"] for span in spans} == {"a", "b"}
    assert len({span["asgi_agents.correlation_id"] for span in spans}) == 1


async def test_a_websocket_has_one_id_in_nested_middlewares() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        await scope["state"]["agents"].inspect_guardrail("a", "x", inspection_type="pii_detection")
        async for _ in websocket.iter_text():
            await websocket.send_text("y")

    inner = Around(app)
    outer = Around(inner)
    await Server(*GIVEN, frames=2).call(outer)
    assert outer.agent.ids == inner.agent.ids == {"given"}
    assert {kind for kind, _ in inner.agent.heard} >= {"request_headers", "websocket_frame", "guardrail_inspect"}
    assert not live_ids


async def test_an_app_that_is_mounted_with_agents_of_its_own_has_the_id_of_the_connection() -> None:
    inner = Around(Starlette(routes=[AppRoute("/", lambda request: PlainTextResponse("x"))]))
    outer = Around(Starlette(routes=[Mount("/sub", inner)]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://app") as client:
        for _ in range(2):
            assert (await client.get("/sub/", headers={"x-request-id": "given"})).text == "x"
    assert outer.agent.ids == inner.agent.ids == {"given"}


@pytest.mark.parametrize("fails", [ValueError, None])
async def test_an_outer_id_stays_taken_when_an_inner_app_has_ended(fails: type[Exception] | None) -> None:
    taken: list[set[str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if fails is not None:
            raise fails

    inner = Around(app)

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ValueError):
            await inner(scope, receive, send)
        taken.append(set(live_ids))
        await PlainTextResponse("x")(scope, receive, send)

    await Client(headers=GIVEN).call(Around(between))
    assert taken == [{"given"}]
    assert not live_ids


# Other connections


async def test_what_a_handler_calls_in_this_process_is_another_connection() -> None:
    """Whichever manager's agents are asked about it, and though it is sent the id of the first."""
    called = Around(App(start(), body()))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(called), base_url="http://called") as client:
            await client.get("/", headers={"x-request-id": current_correlation_id()})
        await PlainTextResponse("x")(scope, receive, send)

    calling = Around(app)
    await Client(headers=GIVEN).call(calling)
    assert calling.agent.ids == {"given"}
    (other,) = called.agent.ids
    assert UUID7.match(other)


async def test_a_request_that_a_handler_passes_to_another_handler_keeps_its_id() -> None:
    inner = Around(App(start(), body()))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({**scope, "path": "/elsewhere"}, receive, send)

    outer = Around(app)
    await Client(headers=GIVEN).call(outer)
    assert outer.agent.ids == inner.agent.ids == {"given"}


@pytest.mark.parametrize("headers", [GIVEN, []])
async def test_connections_that_a_server_gives_one_state_share_no_id(headers: list[tuple[bytes, bytes]]) -> None:
    """ASGI has servers copy it for each, but not all do."""
    state: dict[str, Any] = {}
    ids: list[str] = []
    go = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ids.append(current_correlation_id())
        if len(ids) == 3:
            go.set()
        await go.wait()

    middleware = Around(app)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                client = Client(headers=headers)
                client.scope["state"] = state
                tasks.start_soon(client.call, middleware)
    assert len(set(ids)) == len(middleware.agent.ids) == 3
    assert not live_ids


async def test_a_connection_that_inherits_the_context_of_an_earlier_one_has_an_id_of_its_own() -> None:
    """Some servers run a client's second request in the context of the first, and give both one state."""
    state: dict[str, Any] = {}
    left: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        left.append(scope["state"]["asgi_agents"])

    middleware = Around(app)
    for _ in range(2):
        client = Client()
        client.scope["state"] = state
        await client.call(middleware)
        correlation.set_current(left[0])
    correlation.set_current("")
    assert len(middleware.agent.ids) == 2
