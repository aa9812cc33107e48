"""Beside OpenTelemetry's own instrumentation, around the middleware and inside of it."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    Event,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseAborted,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Route,
    WebSocketFrameEvent,
)
from tests.exchange.test_websocket import App as SocketApp
from tests.exchange.test_websocket import Server, accept, run, send_frame
from tests.support.asgi import App, Client, Held, Probe, SlowProbe, body, settle, start
from tests.support.servers import serve

from .spans import (
    ALL,
    CLIENTS_TRACEPARENT,
    DENIED,
    STREAM,
    Spans,
    assert_cancelled,
    attributes,
    context_of,
    each_probe,
    is_child,
    parent_id,
)

each_mode = pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM, BodyMode.hybrid(2)], ids=lambda mode: mode.name)


def config(agent_id: str, agent: Any, mode: BodyMode = BodyMode.BUFFER) -> AgentConfig:
    modes: dict[str, Any] = {"request_body_mode": mode, "response_body_mode": mode}
    return AgentConfig(agent_id, agent, timeout=30.0, chunk_timeout=30.0, **modes)


def guarded(spans: Spans, app: Any, *agents: AgentConfig, **options: Any) -> AgentMiddleware:
    return AgentMiddleware(app, agents=agents, tracer_provider=spans.provider, **options)


def instrumented(spans: Spans, app: Any) -> ASGIApp:
    middleware: ASGIApp = OpenTelemetryMiddleware(app, tracer_provider=spans.provider)
    return middleware


def outside(spans: Spans, app: Any, *agents: AgentConfig) -> ASGIApp:
    """The instrumentation around the middleware."""
    return instrumented(spans, guarded(spans, app, *agents))


def inside(spans: Spans, app: Any, *agents: AgentConfig) -> ASGIApp:
    """The middleware around the instrumentation."""
    return guarded(spans, instrumented(spans, app), *agents)


each_order = pytest.mark.parametrize("order", [outside, inside])


def server_span(spans: Spans) -> ReadableSpan:
    (span,) = [span for span in spans.finished if span.kind is SpanKind.SERVER]
    return span


def ancestors(spans: Spans, span: ReadableSpan) -> list[ReadableSpan]:
    by_id = {context_of(each).span_id: each for each in spans.finished}
    found = []
    above = by_id.get(parent_id(span) or 0)
    while above is not None:
        found.append(above)
        above = by_id.get(parent_id(above) or 0)
    return found


class Frames(Agent):
    """Closes on "close", drops "drop", and hears the handshake as well."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        pass

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        if event.data == b"close":
            return AgentResponse.websocket_close(4001, "enough")
        return AgentResponse.websocket_drop() if event.data == b"drop" else None


class SlowFrames(Frames):
    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        await checkpoint()
        return await super().on_websocket_frame(event)


each_frames = pytest.mark.parametrize("frames", [Frames, SlowFrames], ids=["prompt", "slow"])


# OpenTelemetryMiddleware


@each_probe
@each_mode
async def test_calls_are_below_the_span_of_an_instrumentation_outside(
    mode: BodyMode, probe: type[Probe], spans: Spans
) -> None:
    app = App(start(), body(b"one", more=True), body(b"two"))
    client = Client("POST", body=[b"one", b"two"], headers=[(b"traceparent", CLIENTS_TRACEPARENT.encode())])
    agents = [config(name, probe(**ALL), mode) for name in "ab"]
    await client.call(outside(spans, app, *agents))
    assert client.body == b"onetwo"
    server = server_span(spans)
    assert f"{context_of(server).trace_id:032x}" in CLIENTS_TRACEPARENT
    assert len(spans.ours) == (10 if mode is BodyMode.BUFFER else 8)
    assert all(is_child(span, server) for span in spans.ours)


@each_probe
async def test_the_span_of_an_instrumentation_outside_is_marked(probe: type[Probe], spans: Spans) -> None:
    client = Client(headers=[(b"x-request-id", b"abc-1")])
    await client.call(outside(spans, App(), config("a", probe(request_headers=None))))
    assert attributes(server_span(spans))["asgi_agents.correlation_id"] == "abc-1"


@each_probe
@each_mode
async def test_an_instrumentation_inside_works_as_ever(mode: BodyMode, probe: type[Probe], spans: Spans) -> None:
    app = App(start(), body(b"one", more=True), body(b"two"))
    client = Client("POST", body=[b"one", b"two"], headers=[(b"traceparent", CLIENTS_TRACEPARENT.encode())])
    agents = [config(name, probe(**ALL), mode) for name in "ab"]
    await client.call(inside(spans, app, *agents))
    assert (client.status, client.body, app.body) == (200, b"onetwo", b"onetwo")
    assert f"{context_of(server_span(spans)).trace_id:032x}" in CLIENTS_TRACEPARENT
    # There is no span yet that it could be the child of.
    assert all(span.parent is None for span in spans.ours if span.name.startswith("request_headers"))
    assert trace.get_current_span() is trace.INVALID_SPAN


@each_order
@each_probe
@pytest.mark.parametrize("event", ["request_headers", "request_body", "response_headers", "response_body"])
@each_mode
async def test_a_block_leaves_no_span_unended(
    mode: BodyMode, event: str, probe: type[Probe], order: Any, spans: Spans
) -> None:
    client = Client("POST", body=b"x")
    with suppress(ResponseAborted):  # where the client has the head already
        await client.call(order(spans, App(), config("a", probe(**{event: DENIED}), mode)))
    assert not client.complete or client.status == 403
    (span,) = spans.ours
    assert span.status.status_code is StatusCode.UNSET


@each_order
async def test_a_response_that_is_broken_off_leaves_no_span_unended(order: Any, spans: Spans) -> None:
    def deny_the_second(event: ResponseBodyChunkEvent) -> AgentResponse | None:
        return DENIED if event.chunk_index == 1 else None

    app = App(start(), body(b"one", more=True), body(b"two"))
    with pytest.raises(ResponseAborted):
        await Client().call(order(spans, app, config("a", Probe(response_body=deny_the_second), STREAM)))
    assert spans.names == ["response_body"]


@each_order
@each_probe
@each_mode
async def test_an_app_that_raises_leaves_no_span_unended(
    mode: BodyMode, probe: type[Probe], order: Any, spans: Spans
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start())
        await send(body(b"one", more=True))
        raise KeyError("app")

    with pytest.raises(KeyError):
        await Client("POST", body=b"x").call(order(spans, app, config("a", probe(**ALL), mode)))
    assert server_span(spans)


@each_order
@each_mode
@pytest.mark.parametrize("agents", [1, 2], ids=["one agent", "two agents"])
@pytest.mark.parametrize("event", ["request_headers", "request_body", "response_headers", "response_body"])
async def test_a_cancelled_request_leaves_no_span_unended(
    event: str, agents: int, mode: BodyMode, order: Any, spans: Spans
) -> None:
    held = Held()
    configs = [config(f"a{index}", SlowProbe(**{event: held}), mode) for index in range(agents)]
    app = App(start(), body(b"one", more=True), body(b"two"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Client("POST", body=[b"one", b"two"]).call, order(spans, app, *configs))
        await held.reached.wait()
        await settle()
        tasks.cancel_scope.cancel()
    assert spans.ours
    for span in spans.ours:
        if span.name.endswith(("a0", "a1")):
            assert_cancelled(span)


@each_order
@each_mode
@pytest.mark.parametrize("event", ["request_body", "response_headers", "response_body"])
async def test_a_client_that_leaves_leaves_no_span_unended(
    event: str, mode: BodyMode, order: Any, spans: Spans
) -> None:
    held = Held()
    client = Client("POST", body=[b"one"], unfinished=True)
    app = App(start(), body(b"one", more=True), body(b"two"), read=event == "request_body")
    middleware = order(spans, app, config("a", SlowProbe(**{event: held}), mode))

    async def call() -> None:
        with suppress(OSError):
            await client.call(middleware)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await settle()
        client.leave()
        await settle()
        held.gate.set()
    assert spans.unended == []


@each_order
@each_frames
async def test_a_websocket_leaves_no_span_unended(frames: type[Frames], order: Any, spans: Spans) -> None:
    session, app = Server("one", "drop", "two", then_leaves=True), SocketApp("out")
    await run(order(spans, app, config("a", frames())), session)
    assert app.got == ["one", "two"]
    assert session.frames == ["out"]
    span = spans.one("websocket_session")
    assert attributes(span)["asgi_agents.events"] == 4
    assert server_span(spans)
    if order is outside:
        assert all(is_child(each, server_span(spans)) for each in spans.ours)


@each_order
@each_frames
async def test_a_websocket_that_an_agent_closes_leaves_no_span_unended(
    frames: type[Frames], order: Any, spans: Spans
) -> None:
    session, app = Server("one", "close"), SocketApp()
    await run(order(spans, app, config("a", frames())), session)
    assert session.close == (4001, "enough")
    assert app.disconnect["code"] == 4001
    assert len(spans.one("websocket_session").events) == 1


@each_order
async def test_a_websocket_that_is_cancelled_in_the_middle_of_a_call_leaves_no_span_unended(
    order: Any, spans: Spans
) -> None:
    reached = anyio.Event()

    class Stuck(Agent):
        async def on_websocket_frame(self, event: WebSocketFrameEvent) -> None:
            reached.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, order(spans, SocketApp(), config("a", Stuck()), config("b", Stuck())), Server("one"))
        await reached.wait()
        await settle()
        tasks.cancel_scope.cancel()
    assert spans.names == ["websocket_session"]


@each_order
@each_frames
async def test_an_app_that_reads_and_writes_a_websocket_in_two_tasks_leaves_no_span_unended(
    frames: type[Frames], order: Any, spans: Spans
) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        mine = trace.get_current_span()

        async def write() -> None:
            for _ in range(5):
                await send_frame(send, "out")
                await checkpoint()
                assert trace.get_current_span() is mine

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            while (message := await receive())["type"] == "websocket.receive":
                seen.append(message["text"])
                assert trace.get_current_span() is mine

    session = Server("one", "two", "three")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, order(spans, app, config("a", frames()), config("b", frames())), session)
        await settle()
        session.client_leaves()
    assert seen == ["one", "two", "three"]
    assert session.frames == ["out"] * 5
    assert attributes(spans.one("websocket_session"))["asgi_agents.events"] == 8


@each_frames
async def test_the_session_is_not_below_the_span_of_its_first_message(frames: type[Frames], spans: Spans) -> None:
    await run(inside(spans, SocketApp(), config("a", frames())), Server("one", then_leaves=True))
    above = [span.name for span in ancestors(spans, spans.one("websocket_session"))]
    assert not any(name.endswith(("receive", "send")) for name in above)


# FastAPI


class Everything(Agent):
    """Hears all of a request, with spans of its own."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    async def look(self, event: Event) -> AgentResponse | None:
        with self._spans.tracer.start_as_current_span(f"hook {event.event_type.value}"):
            await checkpoint()
        return None

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        await self.look(event)
        return DENIED if event.header("x-deny") else None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        return await self.look(event)

    async def on_response_headers(self, event: ResponseHeadersEvent) -> AgentResponse | None:
        return await self.look(event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        await self.look(event)
        return DENIED if b"forbidden" in event.data else None

    async def on_request_complete(self, event: RequestCompleteEvent) -> AgentResponse | None:
        return await self.look(event)

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        await self.look(event)
        return AgentResponse.websocket_close(4001, "enough") if event.data == b"close" else None


class _Pieces:
    """No generator, which trio wants to see closed by whoever has begun to read it."""

    def __init__(self, spans: Spans, word: str, error: bool) -> None:
        self._spans = spans
        self._word = word
        self._error = error
        self._index = 0

    def __aiter__(self) -> "_Pieces":
        return self

    async def __anext__(self) -> str:
        index = self._index
        self._index += 1
        if index == 5:
            raise KeyError("stream") if self._error else StopAsyncIteration
        with self._spans.tracer.start_as_current_span(f"piece {index}"):
            await checkpoint()
        return f"{self._word if index == 3 else 'x'}{index}"


def fastapi_app(spans: Spans, *, mode: BodyMode = BodyMode.BUFFER, first: bool = True, base: bool = False) -> FastAPI:
    """Instrumented before or after the middleware is added, which makes no difference to who is outside."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> dict[str, int]:
        with spans.tracer.start_as_current_span("handler"):
            return {"item": item_id}

    @app.get("/sync/{item_id}")
    def sync(item_id: int) -> dict[str, int]:
        with spans.tracer.start_as_current_span("handler"):
            return {"item": item_id}

    @app.post("/echo")
    async def echo(request: Request) -> PlainTextResponse:
        with spans.tracer.start_as_current_span("handler"):
            return PlainTextResponse(b"".join([chunk async for chunk in request.stream()]))

    @app.get("/stream")
    async def stream(word: str = "x", error: bool = False) -> StreamingResponse:
        return StreamingResponse(_Pieces(spans, word, error))

    @app.get("/error")
    async def error() -> None:
        raise KeyError("handler")

    @app.websocket("/ws/{room}")
    async def ws(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        with suppress(WebSocketDisconnect):
            while True:
                text = await websocket.receive_text()
                with spans.tracer.start_as_current_span("message"):
                    await websocket.send_text(text)

    if first:
        FastAPIInstrumentor.instrument_app(app, tracer_provider=spans.provider)
    if base:

        async def pass_on(request: Request, call_next: Any) -> Any:
            return await call_next(request)

        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    app.add_middleware(
        AgentMiddleware,
        agents=[config(name, Everything(spans), mode) for name in "ab"],
        routes=[Route("/{rest:path}", ["a", "b"])],
        tracer_provider=spans.provider,
    )
    if base:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    if not first:
        FastAPIInstrumentor.instrument_app(app, tracer_provider=spans.provider)
    return app


def client_of(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://app.example")


def assert_below_the_server(spans: Spans, *, base: bool = False) -> None:
    server = server_span(spans)
    assert spans.ours
    for span in spans.ours:
        assert server in ancestors(spans, span), span.name
        if not base:
            assert is_child(span, server), span.name
    for span in spans.finished:
        if span.name.startswith("hook "):
            assert ancestors(spans, span)[0] in spans.ours


each_first = pytest.mark.parametrize("first", [True, False], ids=["instrumented first", "instrumented last"])


@each_first
@each_mode
@pytest.mark.parametrize("path", ["items", "sync"])
async def test_calls_are_below_fastapis_server_span_which_keeps_its_route(
    path: str, mode: BodyMode, first: bool, spans: Spans
) -> None:
    async with client_of(fastapi_app(spans, mode=mode, first=first)) as client:
        response = await client.get(f"/{path}/7", headers={"x-request-id": "abc-1", "traceparent": CLIENTS_TRACEPARENT})
    assert response.json() == {"item": 7}
    server = server_span(spans)
    assert server.name == f"GET /{path}/{{item_id}}"
    assert attributes(server)["http.route"] == f"/{path}/{{item_id}}"
    assert attributes(server)["asgi_agents.correlation_id"] == "abc-1"
    assert f"{context_of(server).trace_id:032x}" in CLIENTS_TRACEPARENT
    assert_below_the_server(spans)
    assert is_child(spans.one("handler"), server)


@each_mode
async def test_a_body_that_a_handler_reads_in_pieces_changes_nothing_for_its_span(mode: BodyMode, spans: Spans) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for index in range(5):
            yield b"piece %d" % index

    async with client_of(fastapi_app(spans, mode=mode)) as client:
        response = await client.post("/echo", content=pieces())
    assert response.text == "".join(f"piece {index}" for index in range(5))
    assert is_child(spans.one("handler"), server_span(spans))
    for span in spans.ours:
        assert server_span(spans) in ancestors(spans, span)


@each_mode
@pytest.mark.parametrize("base", [False, True], ids=["alone", "between base middlewares"])
async def test_a_streaming_response_works(mode: BodyMode, base: bool, spans: Spans) -> None:
    async with client_of(fastapi_app(spans, mode=mode, base=base)) as client:
        response = await client.get("/stream")
    assert response.text == "x0x1x2x3x4"
    assert attributes(server_span(spans))["http.route"] == "/stream"
    assert_below_the_server(spans, base=base)


@each_mode
@pytest.mark.parametrize("base", [False, True], ids=["alone", "between base middlewares"])
async def test_a_streaming_response_that_is_denied_leaves_no_span_unended(
    mode: BodyMode, base: bool, spans: Spans
) -> None:
    async with client_of(fastapi_app(spans, mode=mode, base=base)) as client:
        with suppress(httpx.HTTPError, ResponseAborted):
            await client.get("/stream", params={"word": "forbidden"})
    assert attributes(server_span(spans))["http.route"] == "/stream"
    assert_below_the_server(spans, base=base)


@each_mode
async def test_a_streaming_response_that_fails_leaves_no_span_unended(mode: BodyMode, spans: Spans) -> None:
    async with client_of(fastapi_app(spans, mode=mode)) as client:
        with suppress(Exception):
            await client.get("/stream", params={"error": True})
    assert server_span(spans)


async def test_a_block_keeps_the_route_of_fastapis_server_span(spans: Spans) -> None:
    async with client_of(fastapi_app(spans)) as client:
        response = await client.get("/items/7", headers={"x-deny": "1"})
    assert response.status_code == 403
    assert attributes(server_span(spans))["http.route"] == "/items/{item_id}"
    assert server_span(spans).status.status_code is StatusCode.UNSET
    assert_below_the_server(spans)


async def test_a_handler_that_raises_makes_an_error_of_the_server_span_alone(spans: Spans) -> None:
    async with client_of(fastapi_app(spans)) as client:
        response = await client.get("/error")
    assert response.status_code == 500
    assert server_span(spans).status.status_code is StatusCode.ERROR
    assert {span.status.status_code for span in spans.ours} == {StatusCode.UNSET}


@each_mode
async def test_a_client_that_leaves_a_streaming_response_leaves_no_span_unended(mode: BodyMode, spans: Spans) -> None:
    client = Client(path="/stream")
    app = fastapi_app(spans, mode=mode)

    async def call() -> None:
        with suppress(Exception):
            await client.call(app)

    client.take_nothing()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await settle()
        client.leave()
    assert server_span(spans)


@each_mode
async def test_a_streaming_response_that_is_cancelled_leaves_no_span_unended(mode: BodyMode, spans: Spans) -> None:
    client = Client(path="/stream")
    client.take_nothing()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, fastapi_app(spans, mode=mode))
        await settle()
        tasks.cancel_scope.cancel()
    assert server_span(spans)


@each_first
def test_a_websocket_of_fastapi_works(first: bool, spans: Spans, anyio_backend_name: str) -> None:
    app = fastapi_app(spans, first=first)
    with (
        TestClient(app, backend=anyio_backend_name) as client,  # type: ignore[arg-type]
        client.websocket_connect("/ws/lobby") as websocket,
    ):
        for text in ("one", "two"):
            websocket.send_text(text)
            assert websocket.receive_text() == text
    server = server_span(spans)
    assert attributes(server)["http.route"] == "/ws/{room}"
    assert attributes(spans.one("websocket_session"))["asgi_agents.events"] == 4
    assert_below_the_server(spans)
    assert all(is_child(span, server) for span in spans.finished if span.name == "message")


def test_a_websocket_of_fastapi_that_an_agent_closes_leaves_no_span_unended(
    spans: Spans, anyio_backend_name: str
) -> None:
    with (
        TestClient(fastapi_app(spans), backend=anyio_backend_name) as client,  # type: ignore[arg-type]
        client.websocket_connect("/ws/lobby") as websocket,
    ):
        websocket.send_text("close")
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
    assert closed.value.code == 4001
    assert_below_the_server(spans)


def test_a_handshake_that_is_denied_leaves_no_span_unended(spans: Spans, anyio_backend_name: str) -> None:
    with (
        TestClient(fastapi_app(spans), backend=anyio_backend_name) as client,  # type: ignore[arg-type]
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/ws/lobby", headers={"x-deny": "1"}),
    ):
        pass
    assert "websocket_session" not in spans.names
    assert_below_the_server(spans)


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, STREAM], ids=lambda mode: mode.name)
def test_under_a_real_server_calls_are_below_the_server_span(mode: BodyMode, spans: Spans) -> None:
    with serve(fastapi_app(spans, mode=mode)) as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("items/7").json() == {"item": 7}
        assert client.post("echo", content=b"x" * 200_000).text == "x" * 200_000
        assert client.get("stream").text == "x0x1x2x3x4"
        assert client.get("items/7", headers={"x-deny": "1"}).status_code == 403
    servers = [span for span in spans.finished if span.kind is SpanKind.SERVER]
    assert len(servers) == 4
    for span in spans.ours:
        assert any(server in ancestors(spans, span) for server in servers)
