"""Bodies that are streamed past agents take no memory that grows with them."""

import gc
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx
import pytest
from anyio.lowlevel import checkpoint
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_agents import (
    Agent,
    AgentConfig,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    RequestBodyChunkEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
)
from tests.support.servers import serve

MIB = 1024 * 1024
BODY = 32 * MIB
CHUNK = 64 * 1024
ALLOWANCE = 8 * MIB

# Each case passes 32 MiB while allocations are traced: of the modes and agents, the most involved are quick enough.
SLOW = pytest.mark.slow
MODES = pytest.mark.parametrize(
    "mode", [pytest.param(BodyMode.STREAM, marks=SLOW), BodyMode.hybrid(MIB)], ids=lambda mode: mode.name
)


class Counts(Agent):
    """Reads all there is and keeps nothing. Its hooks never suspend."""

    def __init__(self) -> None:
        self.requests = self.responses = 0

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse | None:
        return None

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        self.requests += len(event.data)
        return None

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        self.responses += len(event.data)
        return None


class CountsLater(Counts):
    """Suspends in each of its hooks."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        return await super().on_request_body_chunk(event)

    async def on_response_body_chunk(self, event: ResponseBodyChunkEvent) -> AgentResponse | None:
        await checkpoint()
        return await super().on_response_body_chunk(event)


@pytest.fixture(params=[pytest.param(Counts, marks=SLOW), CountsLater])
def agent(request: pytest.FixtureRequest) -> Counts:
    counts: Counts = request.param()
    return counts


def guarded(app: ASGIApp, *agents: Agent, mode: BodyMode = BodyMode.STREAM) -> AgentMiddleware:
    configs = [
        AgentConfig(f"agent-{index}", agent, chunk_timeout=60.0, request_body_mode=mode, response_body_mode=mode)
        for index, agent in enumerate(agents)
    ]
    return AgentMiddleware(app, agents=configs)


async def upload(scope: Scope, receive: Receive, send: Send) -> None:
    size = 0
    async for chunk in Request(scope, receive).stream():
        size += len(chunk)
    await PlainTextResponse(str(size))(scope, receive, send)


async def download(scope: Scope, receive: Receive, send: Send) -> None:
    # Each chunk in memory of its own.
    chunks = (bytes(CHUNK) for _ in range(BODY // CHUNK))
    await StreamingResponse(chunks, headers={"content-length": str(BODY)})(scope, receive, send)


@contextmanager
def little_memory() -> Iterator[None]:
    """What is allocated within never comes to more than the allowance at a time."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < ALLOWANCE


class Server:
    """Gives a request body of 32 MiB where one is asked for, and takes any response."""

    def __init__(self, *, method: str) -> None:
        length = BODY if method == "POST" else 0
        self.left = length
        self.ended = False
        self.received = 0
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "path": "/",
            "query_string": b"",
            "headers": [(b"content-length", b"%d" % length)],
        }

    async def receive(self) -> Message:
        await checkpoint()
        if self.ended:
            await anyio.sleep_forever()
        size = min(CHUNK, self.left)
        self.left -= size
        self.ended = self.left == 0
        return {"type": "http.request", "body": bytes(size), "more_body": not self.ended}

    async def send(self, message: Message) -> None:
        await checkpoint()
        self.received += len(message.get("body", b""))


@MODES
async def test_an_upload_is_not_kept_in_memory(agent: Counts, mode: BodyMode) -> None:
    server, middleware = Server(method="POST"), guarded(upload, agent, mode=mode)
    with little_memory():
        await middleware(server.scope, server.receive, server.send)
    assert agent.requests == BODY
    assert server.left == 0
    assert server.received == len(str(BODY))


@MODES
async def test_a_download_is_not_kept_in_memory(agent: Counts, mode: BodyMode) -> None:
    server, middleware = Server(method="GET"), guarded(download, agent, mode=mode)
    with little_memory():
        await middleware(server.scope, server.receive, server.send)
    assert agent.responses == BODY
    assert server.received == BODY


async def test_a_body_is_not_kept_in_memory_by_any_number_of_agents() -> None:
    agents = [Counts(), CountsLater(), Counts(), CountsLater()]
    server = Server(method="POST")
    with little_memory():
        await guarded(upload, *agents)(server.scope, server.receive, server.send)
    assert {agent.requests for agent in agents} == {BODY}


@pytest.mark.parametrize("http", ["httptools", pytest.param("h11", marks=SLOW)])
def test_neither_is_kept_in_memory_behind_a_real_server(agent: Counts, http: str) -> None:
    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        await (upload if scope.get("method") == "POST" else download)(scope, receive, send)

    with serve(guarded(both, agent), http=http, lifespan="off") as url, httpx.Client(timeout=60) as client:
        client.post(url, content=b"")  # what is imported on the way
        chunk = bytes(CHUNK)
        with little_memory():
            response = client.post(url, content=(chunk for _ in range(BODY // CHUNK)))
            assert response.text == str(BODY)
            with client.stream("GET", url) as response:
                assert sum(len(data) for data in response.iter_raw()) == BODY
    assert agent.requests == BODY
    assert agent.responses >= BODY


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_an_upload_waits_for_a_slow_agent_with_the_client(http: str) -> None:
    """And not in the memory of the server."""
    release = threading.Event()

    class Slow(Agent):
        async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
            await anyio.to_thread.run_sync(release.wait)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await upload(scope, receive, send)

    with serve(guarded(app, Slow()), http=http, lifespan="off") as url:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        with little_memory(), socket.create_connection((parts.hostname, parts.port)) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % BODY)
            client.settimeout(0.05)
            sent, chunk = 0, bytes(CHUNK)
            with suppress(TimeoutError):
                while sent < BODY:
                    sent += client.send(chunk)
        release.set()
    assert sent < BODY
