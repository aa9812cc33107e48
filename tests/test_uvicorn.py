"""Through a real server: what only it can get wrong."""

import asyncio
import contextlib
import http.client
import logging
import re
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx
import pytest
import uvicorn
import websockets.exceptions
from anyio.lowlevel import checkpoint
from fastapi import FastAPI, Request, WebSocket
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as AppRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.lifespan.on import LifespanOn
from websockets.sync.client import ClientConnection, connect

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    ConfigureEvent,
    EventType,
    FailureMode,
    HttpTransport,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    Route,
    WebSocketFrameEvent,
)
from asgi_agents.serve import agent_app
from tests.support.servers import serve, websocket_implementations
from tests.support.virtual_time import wait_for_sockets

# They serve with uvicorn, in threads, and put load on it.
pytestmark = pytest.mark.slow

BLOCK = AgentResponse.block()
# What uvicorn 0.54 says after every denial response, whoever sends it.
DENIAL_COMPLAINT = "ASGI callable returned without completing handshake."
# Seconds after which a test that hangs has failed.
PATIENCE = 60


@pytest.fixture(
    params=[{"http": "httptools", "loop": "uvloop"}, {"http": "h11", "loop": "asyncio"}],
    ids=["httptools-uvloop", "h11-asyncio"],
)
def server(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of uvicorn."""
    options: dict[str, Any] = request.param
    return options


@pytest.fixture
def aborts() -> None:
    """For tests in which the server has something to complain about."""


@pytest.fixture(autouse=True)
def nothing_went_wrong(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """uvicorn logs as an error what it has to complain about."""
    yield
    if "aborts" not in request.fixturenames:
        errors = {record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR}
        assert errors <= {DENIAL_COMPLAINT}


class Head(Agent):
    """Answers by the path of a request."""

    def __init__(self, **answers: AgentResponse) -> None:
        self.answers = {f"/{name}": answer for name, answer in answers.items()}
        self.heard: list[str] = []

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        self.heard.append(event.uri)
        return self.answers.get(event.uri)


class Bodies(Agent):
    """Blocks what has `evil` in it."""

    def __init__(self) -> None:
        self.requests: list[RequestBodyChunkEvent] = []

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        self.requests.append(event)
        return AgentResponse.block(422, "evil request") if b"evil" in event.data else None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        return AgentResponse.block(502, "evil response") if b"evil" in event.data else None


class Completions(Agent):
    def __init__(self) -> None:
        self.heard: list[RequestCompleteEvent] = []
        self.one = threading.Event()

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        self.heard.append(event)
        self.one.set()


def configured(agent: Any, agent_id: str = "agent", **options: Any) -> AgentConfig:
    """With deadlines that no machine is too slow for."""
    return AgentConfig(agent_id, agent, **{"timeout": 30.0, "chunk_timeout": 30.0} | options)


def streamed(agent: Agent, mode: BodyMode = BodyMode.STREAM) -> AgentConfig:
    return configured(agent, request_body_mode=mode, response_body_mode=mode)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    await Response(await request.body() or b"hello")(scope, receive, send)


class Wire:
    """A client at the level of bytes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE)
        self.file: BinaryIO = self.socket.makefile("rb")

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def response(self) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body of the next response."""
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers: dict[bytes, bytes] = {}
        while (field := self.file.readline()) != b"\r\n":
            name, _, value = field.partition(b":")
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers, self.file.read(int(headers.get(b"content-length", b"0")))

    def is_silent(self) -> bool:
        """Whether nothing comes for a moment."""
        self.socket.settimeout(0.05)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)
        return False

    def rest(self) -> bytes:
        """Everything until the server closes the connection."""
        try:
            return self.file.read()
        except ConnectionResetError:
            return b""


# Answers in the app's place


def test_a_block_and_a_redirect_reach_the_client(server: dict[str, Any]) -> None:
    head = Head(
        blocked=AgentResponse.block(401, "missing api key", headers={"www-authenticate": "ApiKey"}),
        moved=AgentResponse.redirect("https://example.org/ü", 308),
        challenged=AgentResponse.challenge("bearer", {"realm": "api"}),
    )
    with serve(AgentMiddleware(echo, agents=[configured(head)]), **server) as url, httpx.Client(base_url=url) as client:
        response = client.get("/blocked")
        assert (response.status_code, response.text) == (401, "missing api key")
        assert response.headers["www-authenticate"] == "ApiKey"
        response = client.get("/moved")
        assert (response.status_code, response.headers["location"]) == (308, "https://example.org/%C3%BC")
        response = client.get("/challenged")
        assert (response.status_code, response.headers["www-authenticate"]) == (401, 'Bearer realm="api"')
        assert client.get("/fine").text == "hello"


def test_a_head_request_is_blocked_without_a_body(server: dict[str, Any]) -> None:
    head = Head(blocked=AgentResponse.block(403, "a body"))
    with serve(AgentMiddleware(echo, agents=[configured(head)]), **server) as url, Wire(url) as wire:
        wire.send(b"HEAD /blocked HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        first, _, rest = wire.rest().partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 403")
        assert rest.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("status", [204, 205, 304])
def test_a_block_whose_status_has_no_body_keeps_the_connection_in_step(server: dict[str, Any], status: int) -> None:
    head = Head(blocked=AgentResponse.block(status, "never seen"))
    with serve(AgentMiddleware(echo, agents=[configured(head)]), **server) as url, httpx.Client(base_url=url) as client:
        for _ in range(2):
            response = client.get("/blocked")
            assert (response.status_code, response.content) == (status, b"")
        assert client.get("/fine").text == "hello"


# A late block


async def pass_through(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


AROUND = {
    "nothing": [],
    "GZipMiddleware": [Middleware(GZipMiddleware, minimum_size=1)],
    "BaseHTTPMiddleware": [Middleware(BaseHTTPMiddleware, dispatch=pass_through)],
}


def chunked(request: Request) -> Response:
    return StreamingResponse(iter([b"good", b"evil", b"more"]))


def with_content_length(request: Request) -> Response:
    return StreamingResponse(iter([b"good", b"evil", b"more"]), headers={"content-length": "12"})


def in_threads(request: Request) -> Response:
    def content() -> Iterator[bytes]:
        yield b"good"
        yield b"evil"
        for _ in range(1000):
            yield b"more"

    return StreamingResponse(content())


@pytest.mark.usefixtures("aborts")
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("endpoint", [chunked, with_content_length, in_threads])
def test_a_late_block_cuts_the_connection_so_that_the_response_can_not_look_complete(
    server: dict[str, Any], endpoint: Callable[[Request], Response], around: str
) -> None:
    app = Starlette(
        routes=[AppRoute("/", endpoint)],
        middleware=[*AROUND[around], Middleware(AgentMiddleware, agents=[streamed(Bodies())])],
    )
    with serve(app, **server) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(url)
        with Wire(url) as wire:
            wire.send(b"GET / HTTP/1.1\r\nhost: x\r\naccept-encoding: identity\r\n\r\n")
            everything = wire.rest()
        assert b"good" in everything
        assert b"evil" not in everything
        assert b"more" not in everything
        assert not everything.endswith(b"0\r\n\r\n")


@pytest.mark.usefixtures("aborts")
def test_no_connection_is_used_again_whose_response_is_denied_in_the_end(server: dict[str, Any]) -> None:
    """The next request on it would get no answer at all: the server closes it."""

    class End(Agent):
        async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
            return BLOCK if event.is_last else None

    def sized(request: Request) -> Response:
        # What a framework streams it ends with an empty message.
        return StreamingResponse(iter([b"all ", b"of it"]), headers={"content-length": "9"})

    app = Starlette(routes=[AppRoute("/", sized)], middleware=[Middleware(AgentMiddleware, agents=[streamed(End())])])
    with serve(app, **server) as url, Wire(url) as wire:
        wire.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert wire.rest().endswith(b"\r\n\r\nall ")


@pytest.mark.usefixtures("aborts")
def test_a_late_block_is_logged_as_what_it_is(server: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    app = Starlette(
        routes=[AppRoute("/", chunked)], middleware=[Middleware(AgentMiddleware, agents=[streamed(Bodies())])]
    )
    with serve(app, **server) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error.exc_info
    assert error.exc_info[0].__name__ == "ResponseAborted"  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.hybrid(100), BodyMode.STREAM], ids=lambda mode: mode.name)
def test_a_blocked_event_stream_ends_with_an_error_event(server: dict[str, Any], mode: BodyMode) -> None:
    def events(request: Request) -> Response:
        return StreamingResponse(
            iter([b"data: good\n\n", b"data: evil\n\n", b"data: more\n\n"]), media_type="text/event-stream"
        )

    app = Starlette(
        routes=[AppRoute("/", events)], middleware=[Middleware(AgentMiddleware, agents=[streamed(Bodies(), mode)])]
    )
    with serve(app, **server) as url:
        response = httpx.get(url)
    assert response.status_code == 200
    good, error = response.text.rstrip("\n").split("\n\n")
    assert good == "data: good"
    expected = '{"type":"error","error":{"message":"evil response","type":"blocked","code":"502"}}'
    assert error == f"event: error\ndata: {expected}"


# Streaming


class Steps:
    """Lets the client say when the app may go on, and the other way round."""

    def __init__(self) -> None:
        self.client = threading.Event()
        self.app = threading.Event()

    async def wait_for_client(self) -> None:
        assert await anyio.to_thread.run_sync(self.client.wait, PATIENCE)


@pytest.mark.parametrize(
    ("mode", "media_type"),
    [
        pytest.param(BodyMode.STREAM, "text/plain", id="stream"),
        pytest.param(BodyMode.hybrid(1), "text/plain", id="hybrid, over its threshold"),
        pytest.param(BodyMode.BUFFER, "text/event-stream", id="event stream"),
    ],
)
def test_the_first_chunk_of_a_response_arrives_before_the_last_is_made(
    server: dict[str, Any], mode: BodyMode, media_type: str
) -> None:
    steps = Steps()

    def endpoint(request: Request) -> Response:
        async def content() -> AsyncIterator[bytes]:
            yield b"first\n\n"
            await steps.wait_for_client()
            yield b"last\n\n"

        return StreamingResponse(content(), media_type=media_type)

    app = Starlette(
        routes=[AppRoute("/", endpoint)], middleware=[Middleware(AgentMiddleware, agents=[streamed(Bodies(), mode)])]
    )
    with serve(app, **server) as url, httpx.stream("GET", url, timeout=PATIENCE) as response:
        chunks = response.iter_raw()
        assert next(chunks) == b"first\n\n"
        steps.client.set()
        assert next(chunks) == b"last\n\n"


def test_the_app_has_the_first_chunk_of_a_request_before_the_client_sends_the_last(server: dict[str, Any]) -> None:
    steps = Steps()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()
        assert first["body"] == b"first"
        steps.app.set()
        last = await receive()
        while last.get("more_body"):
            last = {**(message := await receive()), "body": last["body"] + message["body"]}
        await Response(last["body"])(scope, receive, send)

    def content() -> Iterator[bytes]:
        yield b"first"
        assert steps.app.wait(PATIENCE)
        yield b"last"

    with serve(AgentMiddleware(app, agents=[streamed(Bodies())]), **server) as url:
        assert httpx.post(url, content=content(), timeout=PATIENCE).content == b"last"


def test_an_upload_is_answered_for_as_soon_as_a_chunk_is_blocked(server: dict[str, Any]) -> None:
    """And not only once all of it is there."""
    saw: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            saw.append(message["body"])

    with serve(AgentMiddleware(app, agents=[streamed(Bodies())]), **server) as url, Wire(url) as wire:
        wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\ngood\r\n")
        wire.send(b"4\r\nevil\r\n")
        status, _, body = wire.response()
        assert (status, body) == (422, b"evil request")
    assert b"".join(saw) in (b"good", b"")


# expect: 100-continue


def test_expect_100_continue_is_not_answered_before_the_verdict_on_the_head(server: dict[str, Any]) -> None:
    asked, go_on = threading.Event(), threading.Event()

    class Slow(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
            asked.set()
            assert await anyio.to_thread.run_sync(go_on.wait, PATIENCE)
            return BLOCK if event.uri == "/blocked" else None

    request = b"POST %b HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
    with serve(AgentMiddleware(echo, agents=[configured(Slow())]), **server) as url:
        with Wire(url) as wire:
            wire.send(request % b"/fine")
            assert asked.wait(PATIENCE)
            assert wire.is_silent()
            go_on.set()
            assert wire.response()[0] == 100
            wire.send(b"body")
            assert wire.response()[::2] == (200, b"body")
        with Wire(url) as wire:
            wire.send(request % b"/blocked")
            assert wire.response()[0] == 403


def test_expect_100_continue_is_not_answered_for_a_body_that_is_too_large_to_inspect(server: dict[str, Any]) -> None:
    agent = configured(Bodies(), max_request_body_bytes=3)
    with serve(AgentMiddleware(echo, agents=[agent]), **server) as url, Wire(url) as wire:
        wire.send(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        status, _, body = wire.response()
        assert (status, body) == (413, b"Payload too large for security inspection")


# Connections that are used again


def test_a_connection_is_used_again_after_a_block(server: dict[str, Any]) -> None:
    middleware = AgentMiddleware(echo, agents=[configured(Head(blocked=BLOCK), "head"), configured(Bodies(), "bodies")])
    with serve(middleware, **server) as url:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=PATIENCE)
        connection.connect()
        sock = connection.sock
        for method, path, body, status in [
            ("GET", "/blocked", None, 403),
            ("GET", "/fine", None, 200),
            ("POST", "/fine", b"evil", 422),
            ("POST", "/fine", b"good", 200),
            ("POST", "/blocked", b"good", 403),
            ("GET", "/fine", None, 200),
        ]:
            connection.request(method, path, body)
            response = connection.getresponse()
            response.read()
            assert response.status == status
        assert connection.sock is sock
        connection.close()


def test_the_unread_body_of_a_blocked_request_is_never_taken_for_the_next_request(server: dict[str, Any]) -> None:
    head = Head(blocked=BLOCK)
    smuggled = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    request = b"POST /blocked HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(smuggled)
    with serve(AgentMiddleware(echo, agents=[configured(head)]), **server) as url:
        for pieces in ([request + smuggled], [request, smuggled], [request, smuggled[:9], smuggled[9:]]):
            with Wire(url) as wire:
                for index, piece in enumerate(pieces):
                    with contextlib.suppress(ConnectionError):
                        wire.send(piece)
                    if index == 0:
                        assert wire.response()[0] == 403
                with contextlib.suppress(ConnectionError):
                    wire.send(b"GET /next HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                assert wire.rest().count(b"HTTP/1.1 ") <= 1
    assert "/smuggled" not in head.heard


def test_pipelined_requests_are_each_judged_and_answered_in_order(server: dict[str, Any]) -> None:
    head = Head(blocked=AgentResponse.block(403, "blocked"))
    middleware = AgentMiddleware(echo, agents=[configured(head, "head"), configured(Bodies(), "bodies")])
    request = b"%b %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
    with serve(middleware, **server) as url, Wire(url) as wire:
        wire.send(
            b"".join(
                request % (b"POST", path, len(body), body)
                for path, body in [
                    (b"/1", b"one"),
                    (b"/blocked", b"two"),
                    (b"/3", b"evil"),
                    (b"/4", b"four"),
                    (b"/blocked", b"evil"),
                    (b"/6", b"six"),
                ]
            )
        )
        answers = [wire.response()[::2] for _ in range(6)]
    assert answers == [
        (200, b"one"),
        (403, b"blocked"),
        (422, b"evil request"),
        (200, b"four"),
        (403, b"blocked"),
        (200, b"six"),
    ]
    assert head.heard == ["/1", "/blocked", "/3", "/4", "/blocked", "/6"]


# Clients that leave


@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.hybrid(4096)], ids=lambda mode: mode.name)
def test_an_upload_that_breaks_off_reaches_neither_agents_nor_app(server: dict[str, Any], mode: BodyMode) -> None:
    called: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(scope["type"])
        await echo(scope, receive, send)

    bodies, told = Bodies(), Completions()
    middleware = AgentMiddleware(
        app, agents=[configured(bodies, "bodies", request_body_mode=mode), configured(told, "told")]
    )
    with serve(middleware, lifespan="off", **server) as url:
        with Wire(url) as wire:
            wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf a body")
        assert told.one.wait(PATIENCE)
    assert called == []
    assert bodies.requests == []
    (event,) = told.heard
    assert (event.status, event.upstream_attempts) == (499, 0)
    metrics = middleware.manager.metrics["bodies"]
    assert (metrics.in_flight, metrics.waiting, metrics.calls) == (0, 0, 0)


def test_an_app_learns_that_a_streamed_upload_broke_off(server: dict[str, Any]) -> None:
    seen: list[Message] = []
    told = Completions()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not seen or seen[-1]["type"] == "http.request":
            seen.append(await receive())

    middleware = AgentMiddleware(app, agents=[streamed(Bodies()), configured(told, "told")])
    with serve(middleware, lifespan="off", **server) as url:
        with Wire(url) as wire:
            wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf a body")
        assert told.one.wait(PATIENCE)
    assert b"".join(message.get("body", b"") for message in seen) == b"half a body"
    assert seen[-1] == {"type": "http.disconnect"}


@pytest.mark.parametrize("event", ["request head", "request body", "response body"])
def test_a_client_that_leaves_while_an_agent_thinks_leaves_nothing_behind(server: dict[str, Any], event: str) -> None:
    thinking, left, told = threading.Event(), threading.Event(), Completions()

    class Thinks(Agent):
        async def think(self, about: str) -> None:
            if about == event:
                thinking.set()
                assert await anyio.to_thread.run_sync(left.wait, PATIENCE)

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            await self.think("request head")

        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
            await self.think("request body")

        async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> None:
            await self.think("response body")

    middleware = AgentMiddleware(echo, agents=[configured(Thinks(), "thinks"), configured(told, "told")])
    with serve(middleware, **server) as url:
        with Wire(url) as wire:
            wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody")
            assert thinking.wait(PATIENCE)
        left.set()
        assert told.one.wait(PATIENCE)
    metrics = middleware.manager.metrics["thinks"]
    assert (metrics.in_flight, metrics.waiting) == (0, 0)


@pytest.mark.parametrize("event", [EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK])
def test_a_remote_agent_does_not_work_for_a_client_that_has_left(server: dict[str, Any], event: EventType) -> None:
    asked, given_up, told = threading.Event(), threading.Event(), Completions()

    async def agent(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        asked.set()
        # What the middleware has given up, it has closed.
        await receive()
        given_up.set()

    with serve(agent, lifespan="off", **server) as agent_url:
        remote = AgentConfig("remote", HttpTransport(agent_url), events={event}, timeout=4 * PATIENCE)
        middleware = AgentMiddleware(echo, agents=[remote, configured(told, "told")])
        with serve(middleware, **server) as url:
            with Wire(url) as wire:
                wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody")
                assert asked.wait(PATIENCE)
            assert given_up.wait(PATIENCE)
            assert told.one.wait(PATIENCE)
    metrics = middleware.manager.metrics["remote"]
    assert (metrics.in_flight, metrics.waiting, metrics.outcomes) == (0, 0, {})


@pytest.mark.usefixtures("aborts")
def test_a_shutdown_while_an_agent_thinks_leaves_nothing_behind(server: dict[str, Any]) -> None:
    thinking = threading.Event()

    class Thinks(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            thinking.set()
            await anyio.sleep_forever()

    middleware = AgentMiddleware(echo, agents=[configured(Thinks())])
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serve(middleware, **server | {"timeout_graceful_shutdown": 0}))
        wire = stack.enter_context(Wire(url))
        wire.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert thinking.wait(PATIENCE)
    metrics = middleware.manager.metrics["agent"]
    assert (metrics.in_flight, metrics.waiting) == (0, 0)


# Websockets


@pytest.fixture(params=websocket_implementations())
def ws_server(request: pytest.FixtureRequest, server: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Options of uvicorn."""
    with warnings.catch_warnings():
        # One of the implementations is deprecated by uvicorn as well as by websockets.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield {**server, "ws": request.param}


class Frames(Agent):
    """Answers by what a frame says."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, bytes]] = []

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        await checkpoint()
        self.seen.append((event.client_to_server, event.data))
        match event.data.removeprefix(b"re: "):
            case b"close":
                return AgentResponse.websocket_close(4001, "enough " + "é" * 100)
            case b"block":
                return AgentResponse.block(403, "blocked")
            case b"drop":
                return AgentResponse.websocket_drop()
            case b"raise":
                raise ValueError("bug")
            case b"stall":
                await anyio.sleep_forever()
        return None


class FramesAtOnce(Agent):
    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        return AgentResponse.websocket_close(4001, "enough") if event.data == b"close" else None


def chat() -> FastAPI:
    app = FastAPI()

    @app.websocket("/echo")
    async def reply(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text("re: " + text)

    @app.websocket("/bytes")
    async def reply_bytes(websocket: WebSocket) -> None:
        await websocket.accept()
        async for data in websocket.iter_bytes():
            await websocket.send_bytes(data)

    @app.websocket("/ticker")
    async def ticker(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text("tick")
            await anyio.sleep(0.001)
            await websocket.send_text("close")

    @app.websocket("/bye")
    async def bye(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        await websocket.close(4321, "bye")

    return app


@contextmanager
def session(app: FastAPI, *agents: AgentConfig, path: str = "/echo", **server: Any) -> Iterator[ClientConnection]:
    app.add_middleware(AgentMiddleware, agents=agents)
    with serve(app, **server) as url, connect(url.replace("http", "ws").rstrip("/") + path) as websocket:
        yield websocket


def closed_with(websocket: ClientConnection) -> tuple[int, str]:
    """How the server closed it."""
    with contextlib.suppress(websockets.exceptions.ConnectionClosedError):
        for _ in websocket:
            pass
    assert websocket.close_code is not None
    assert websocket.close_reason is not None
    return websocket.close_code, websocket.close_reason


def test_a_session_runs_past_its_agents_and_closes_as_the_app_says(ws_server: dict[str, Any]) -> None:
    agent = Frames()
    with session(chat(), configured(agent), path="/bye", **ws_server) as websocket:
        websocket.send("hello")
        assert closed_with(websocket) == (4321, "bye")
    with session(chat(), configured(agent), **ws_server) as websocket:
        for text in ("one", "drop", "", "two"):
            websocket.send(text)
        assert [websocket.recv(PATIENCE) for _ in range(3)] == ["re: one", "re: ", "re: two"]
    assert agent.seen[1:] == [
        (True, b"one"),
        (False, b"re: one"),
        (True, b"drop"),
        (True, b""),
        (False, b"re: "),
        (True, b"two"),
        (False, b"re: two"),
    ]


def test_large_and_fragmented_messages_are_judged_whole(ws_server: dict[str, Any]) -> None:
    agent, large = Frames(), bytes(range(256)) * 2048
    with session(chat(), configured(agent), path="/bytes", **ws_server) as websocket:
        websocket.send(large)
        assert websocket.recv(PATIENCE) == large
        websocket.send([b"frag", b"ment", b"ed"])
        assert websocket.recv(PATIENCE) == b"fragmented"
    assert agent.seen == [(True, large), (False, large), (True, b"fragmented"), (False, b"fragmented")]


@pytest.mark.parametrize(
    ("text", "close"),
    [
        ("close", (4001, "enough " + "é" * 58)),
        ("block", (1008, "blocked")),
        ("raise", (1011, "Agent error")),
        ("stall", (1011, "Gateway timeout")),
    ],
)
def test_a_client_sees_the_close_code_of_what_its_agents_decided(
    ws_server: dict[str, Any], text: str, close: tuple[int, str]
) -> None:
    timeout = 0.05 if text == "stall" else 30.0
    with session(chat(), configured(Frames(), timeout=timeout), **ws_server) as websocket:
        websocket.send(text)
        assert closed_with(websocket) == close


def test_an_app_that_only_sends_ends_without_an_error_when_an_agent_closes(ws_server: dict[str, Any]) -> None:
    with session(chat(), configured(Frames()), path="/ticker", **ws_server) as websocket:
        assert websocket.recv(PATIENCE) == "tick"
        assert closed_with(websocket)[0] == 4001


def test_messages_that_arrived_before_the_app_closed_are_not_closed_for_once_more(ws_server: dict[str, Any]) -> None:
    """uvicorn raises on a second close."""
    drained = threading.Event()
    app = FastAPI()

    @app.websocket("/drains")
    async def drains(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        await websocket.close(4321, "bye")
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass
        drained.set()

    with session(app, configured(FramesAtOnce()), path="/drains", **ws_server) as websocket:
        with websocket.send_context():
            # In one piece, so that the server has both before the app can close.
            websocket.protocol.send_text(b"hello")
            websocket.protocol.send_text(b"close")
        assert closed_with(websocket) == (4321, "bye")
        assert drained.wait(PATIENCE)


@pytest.mark.parametrize("timeout", [0.05, 30.0], ids=["failing", "blocking"])
def test_a_client_whose_handshake_is_denied_sees_a_response(ws_server: dict[str, Any], timeout: float) -> None:
    class Doorman(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
            if timeout < 1:
                await anyio.sleep_forever()
            return AgentResponse.block(401, "who are you?")

    with (
        pytest.raises(websockets.exceptions.InvalidStatus) as denied,
        session(chat(), configured(Doorman(), timeout=timeout), **ws_server),
    ):
        pass
    response = denied.value.response
    assert (response.status_code, response.body) == (
        (504, b"Gateway timeout") if timeout < 1 else (401, b"who are you?")
    )


def test_a_handshake_that_is_closed_is_refused(ws_server: dict[str, Any]) -> None:
    class Doorman(Agent):
        async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
            return AgentResponse.websocket_close(4001, "no")

    with (
        pytest.raises(websockets.exceptions.InvalidStatus) as denied,
        session(chat(), configured(Doorman()), **ws_server),
    ):
        pass
    assert denied.value.response.status_code == 403


def test_a_refusal_by_the_app_that_an_agent_replaces_is_no_error(ws_server: dict[str, Any]) -> None:
    app = FastAPI()

    @app.websocket("/refuses")
    async def refuses(websocket: WebSocket) -> None:
        await websocket.send_denial_response(StreamingResponse(iter([b"internal ", b"evil", b" details"]), 418))

    bodies = Bodies()
    with (
        pytest.raises(websockets.exceptions.InvalidStatus) as denied,
        session(app, configured(bodies), path="/refuses", **ws_server),
    ):
        pass
    assert (denied.value.response.status_code, denied.value.response.body) == (502, b"evil response")


def test_a_client_that_breaks_off_a_session_leaves_nothing_behind(ws_server: dict[str, Any]) -> None:
    told, stalls = Completions(), Frames()
    app = chat()
    app.add_middleware(AgentMiddleware, agents=[configured(stalls, "stalls", timeout=0.05), configured(told, "told")])
    with serve(app, **ws_server) as url:
        with connect(url.replace("http", "ws") + "echo") as websocket:
            websocket.send("stall")
            websocket.socket.shutdown(socket.SHUT_RDWR)
        assert told.one.wait(PATIENCE)
    assert told.heard[0].upstream_attempts == 1


# Agents behind HTTP


def test_an_agent_behind_a_unix_socket(server: dict[str, Any], tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    head = Head(blocked=AgentResponse.block(401, "by the remote agent"))
    agent = configured(HttpTransport("http://agent/", uds=path), events={EventType.REQUEST_HEADERS})
    with (
        serve(agent_app(head), uds=path),
        serve(AgentMiddleware(echo, agents=[agent]), **server) as url,
        httpx.Client(base_url=url) as client,
    ):
        for _ in range(3):
            assert client.get("/fine").text == "hello"
            response = client.get("/blocked")
            assert (response.status_code, response.text) == (401, "by the remote agent")
    assert len(head.heard) == 6


def test_a_remote_agent_that_is_not_there_is_treated_by_its_failure_mode(server: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    agent = configured(f"http://127.0.0.1:{port}/", "gone", events={EventType.REQUEST_HEADERS})
    middleware = AgentMiddleware(
        echo,
        agents=[agent],
        routes=[Route("/closed", [("gone", FailureMode.CLOSED)]), Route("/open", [("gone", FailureMode.OPEN)])],
    )
    with serve(middleware, **server) as url, httpx.Client(base_url=url) as client:
        response = client.get("/closed")
        assert (response.status_code, response.text) == (503, "Agent unavailable")
        assert client.get("/open").text == "hello"


@pytest.mark.usefixtures("aborts")
def test_a_required_agent_that_is_down_keeps_the_server_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    class Down(Agent):
        async def on_configure(self, event: ConfigureEvent) -> None:
            raise RuntimeError("down")

        async def on_request_headers(self, event: RequestHeadersEvent) -> None:
            raise AssertionError("nobody asks it")

    started: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        started.append("app")
        yield

    app = AgentMiddleware(Starlette(lifespan=lifespan), agents=[configured(Down(), "waf", require_at_startup=True)])
    with pytest.raises(SystemExit):
        uvicorn.Server(uvicorn.Config(app, port=0, log_config=None)).run()
    assert started == []
    assert any("'waf' is required at startup" in record.getMessage() for record in caplog.records)


def _ending(*messages: str, raises: bool) -> ASGIApp:
    """An app that ends its lifespan after these messages, perhaps by raising."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await receive()
            await send({"type": f"lifespan.{message}", "message": "the app's own"})
        if raises:
            raise RuntimeError("the app's own")

    return app


@pytest.mark.usefixtures("aborts")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize(
    "messages", [(), ("startup.failed",), ("startup.complete",), ("startup.complete", "shutdown.complete")]
)
async def test_uvicorn_knows_of_an_apps_lifespan_what_it_knows_without_agents(
    messages: tuple[str, ...], raises: bool, mode: Any, anyio_backend: str
) -> None:
    """At the very moment at which it looks."""
    app = _ending(*messages, raises=raises)
    known = []
    for served in (app, AgentMiddleware(app, agents=[configured(Stalls())])):
        lifespan = LifespanOn(uvicorn.Config(served, lifespan=mode, log_config=None))
        for phase in (lifespan.startup, lifespan.shutdown):
            with anyio.fail_after(PATIENCE):
                await phase()
            known.append(
                (lifespan.startup_failed, lifespan.shutdown_failed, lifespan.error_occurred, lifespan.should_exit)
            )
    assert known[2:] == known[:2]


# Stalls. Servers, clients and agent share an event loop in virtual time: the machine holds nobody up.

CLIENTS = 200
DEADLINE = 1.0
STALL_HEADER = "x-stall"


class Stalls(Agent):
    """One call in ten takes for ever."""

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        await (anyio.sleep_forever() if event.header(STALL_HEADER) else checkpoint())


def stalling_app(agent: Agent | str) -> ASGIApp:
    """Tells in a header how long the guard has taken."""
    guarded = AgentMiddleware(
        PlainTextResponse("hello"),
        agents=[
            # Many calls run into their deadlines at the same time, and so in a row.
            AgentConfig("stalls", agent, events={EventType.REQUEST_HEADERS}, timeout=DEADLINE, circuit_breaker=None)
        ],
        routes=[Route("/closed", [("stalls", FailureMode.CLOSED)]), Route("/open", [("stalls", FailureMode.OPEN)])],
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def report(message: Message) -> None:
            if message["type"] == "http.response.start":
                (verdict,) = scope["state"]["agents"].decision.verdicts
                message = {**message, "headers": [*message["headers"], (b"x-seconds", b"%f" % verdict.duration)]}
            await send(message)

        await guarded(scope, receive, report)

    return app


@asynccontextmanager
async def beside(app: ASGIApp) -> AsyncIterator[str]:
    """Serve ``app`` on the event loop of the test; gives the URL of its root."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
                await anyio.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
            server.should_exit = True


class Answer:
    def __init__(self, path: str, stalled: bool, raw: bytes) -> None:
        self.path, self.stalled = path, stalled
        self.status = int(raw.split(b" ", 2)[1])
        seconds = re.search(rb"x-seconds: ([0-9.]+)", raw)
        assert seconds
        self.seconds = float(seconds[1])

    @property
    def expected(self) -> int:
        return 504 if self.stalled and self.path == "closed" else 200


async def load(url: str) -> list[Answer]:
    """200 clients, connected all at once, ask twice each."""
    parts = urlsplit(url)
    answers: list[Answer] = []
    connected = 0
    everyone = asyncio.Event()

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, stall: bool) -> Answer:
        extra = f"{STALL_HEADER}: 1\r\n" if stall else ""
        writer.write(f"GET /{path} HTTP/1.1\r\nhost: x\r\n{extra}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length
        await reader.readexactly(int(length[1]))
        return Answer(path, stall, head)

    async def client(number: int) -> None:
        nonlocal connected
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        connected += 1
        if connected == CLIENTS:
            everyone.set()
        await everyone.wait()
        for turn, path in enumerate(("closed", "open")):
            answers.append(await exchange(reader, writer, path, (number + turn) % 10 == 0))
        writer.close()
        await writer.wait_closed()

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
    return answers


@pytest.mark.parametrize("remote", [False, True], ids=["in-process", "http"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_agent_that_stalls_for_one_call_in_ten_holds_up_those_calls_only_and_no_longer_than_its_deadline(
    remote: bool,
) -> None:
    wait_for_sockets(0.02)
    async with contextlib.AsyncExitStack() as stack:
        agent: Agent | str = Stalls()
        if remote:
            agent = await stack.enter_async_context(beside(agent_app(Stalls())))
        url = await stack.enter_async_context(beside(stalling_app(agent)))
        answers = await load(url)
    assert len(answers) == 2 * CLIENTS
    assert sum(answer.stalled for answer in answers) == 2 * CLIENTS // 10
    assert [(a.path, a.status, a.seconds) for a in answers if a.status != a.expected] == []
    assert all(answer.seconds == pytest.approx(DEADLINE, abs=0.1) for answer in answers if answer.stalled)
    # All wait for the same machine. None waits for one that stalls.
    assert max(answer.seconds for answer in answers if not answer.stalled) < DEADLINE / 2
