"""What the tests of pools of connections share."""

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from asgi_agents import (
    AgentConfig,
    AgentManager,
    AgentResponse,
    GuardrailInspectEvent,
    InspectionType,
    Opcode,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    ResponseHeadersEvent,
    StreamTransport,
    WebSocketFrameEvent,
)
from asgi_agents.manager import registry_of
from asgi_agents.protocol import Headers
from asgi_agents.transports.stream import StreamClient
from asgi_agents.transports.stream.pool import AgentPool
from tests.support.sample_events import head as head

from .peer import Peer, Received

# Generous: it is only reached by what would never have come.
PATIENCE = 60.0


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def port_of(listener: Any) -> int:
    """Of the loopback interface."""
    return int(listener.extra(SocketAttribute.local_port))  # noqa: S610 - no query


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it may be a condition on anything
            await anyio.sleep(0.001)


async def settle() -> None:
    """Let everything that can run do so, what goes through a socket too."""
    for _ in range(5):
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.002)


def chunk(correlation_id: str = "c", data: bytes = b"x", index: int = 0) -> RequestBodyChunkEvent:
    return RequestBodyChunkEvent(
        correlation_id=correlation_id, data=data, is_last=True, chunk_index=index, bytes_received=len(data)
    )


def response_head(correlation_id: str = "c") -> ResponseHeadersEvent:
    return ResponseHeadersEvent(correlation_id=correlation_id, status=200, headers=Headers())


def frame(correlation_id: str = "c", index: int = 0) -> WebSocketFrameEvent:
    return WebSocketFrameEvent(
        correlation_id=correlation_id,
        opcode=Opcode.TEXT,
        data=b"x",
        client_to_server=True,
        frame_index=index,
        client_ip="",
    )


def question(correlation_id: str = "c") -> GuardrailInspectEvent:
    return GuardrailInspectEvent(
        correlation_id=correlation_id, inspection_type=InspectionType.PII_DETECTION, content="x"
    )


def complete(correlation_id: str = "c") -> RequestCompleteEvent:
    return RequestCompleteEvent(
        correlation_id=correlation_id,
        status=200,
        duration_ms=0,
        request_body_size=0,
        response_body_size=0,
        upstream_attempts=1,
    )


# Agents


async def allow(event: Received) -> None:
    """Answer every event at once."""
    await event.answer()


async def name_the_link(event: Received) -> None:
    """Answer with the number of the connection that the event came on."""
    await event.answer(AgentResponse.block(403, str(event.link.number)))


def failing(event: Received) -> Awaitable[None]:
    """Answer that there is no verdict."""
    return event.answer(AgentResponse(version=0))


async def hang_up(event: Received) -> None:
    """Close the connection that the event came on."""
    await event.link.aclose()


def recording(kind: Callable[[Received], Awaitable[None]], heard: list[Received]) -> Callable[[Received], Any]:
    async def behave(event: Received) -> None:
        heard.append(event)
        await kind(event)

    return behave


# Clients


def nowhere() -> str:
    """The URL of a socket that is not there."""
    return f"unix://{tempfile.mkdtemp()}/nobody.sock"


def pool_of(client: StreamClient) -> AgentPool:
    pool = client._pools.peek()
    assert pool is not None
    return pool


@asynccontextmanager
async def client_of(*peers: Peer | str, config: Any = None, **options: Any) -> AsyncIterator[StreamClient]:
    """A client of agents that listen within. One connection each, unless it says otherwise."""
    urls = [peer.url if isinstance(peer, Peer) else peer for peer in peers]
    client = StreamTransport(urls, **{"connections": 1, "drain_timeout": 0.01} | options).bind("waf", config=config)
    async with AsyncExitStack() as stack:
        for peer in peers:
            if isinstance(peer, Peer):
                await stack.enter_async_context(peer.listening())
        try:
            yield client
        finally:
            await client.aclose()


async def connected(client: StreamClient, count: int = 1) -> AgentPool:
    """The client's pool, with all connections made."""
    with anyio.fail_after(PATIENCE):
        await client.connect()
    pool = pool_of(client)
    await until(lambda: len(pool.connections) == count)
    return pool


def agent(*peers: Peer | str, stream: dict[str, Any] | None = None, **fields: Any) -> AgentConfig:
    """An agent with a deadline that nothing but a mistake reaches."""
    urls = [peer.url if isinstance(peer, Peer) else peer for peer in peers]
    transport = StreamTransport(urls, **{"connections": 1, "drain_timeout": 0.01} | (stream or {}))
    return AgentConfig("waf", transport, **{"timeout": PATIENCE, "chunk_timeout": PATIENCE} | fields)


@asynccontextmanager
async def managing(
    *peers: Peer, callbacks: dict[str, Any] | None = None, connections: int | None = None, **fields: Any
) -> AsyncIterator[AgentManager]:
    """A manager of one agent that is there; as many connections as it is to have are made."""
    async with AsyncExitStack() as stack:
        for peer in peers:
            await stack.enter_async_context(peer.listening())
        manager = AgentManager([agent(*peers, **fields)], **callbacks or {})
        async with manager:
            if connections is not None:
                await until(lambda: manager.statistics()["waf"].connections == connections)
            yield manager


def client_in(manager: AgentManager) -> StreamClient:
    client = registry_of(manager).guard("waf").client
    assert isinstance(client, StreamClient)
    return client


def states(manager: AgentManager) -> list[str]:
    """Of the endpoints of the agent."""
    return [endpoint.state for endpoint in manager.statistics()["waf"].endpoints]


def is_idle(pool: AgentPool) -> bool:
    """Whether no place is taken and nobody waits for one."""
    return pool.waiting == 0 and all(connection.calls == 0 for connection in pool.connections)


# Requests


async def get(app: Any, path: str = "/", *, failing: bool = False, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of a request, made in this task."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if unread:
            return unread.pop()
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST" if body else "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-length", b"%d" % len(body))] if body else [],
        "client": ("192.0.2.1", 1),
        "server": ("app.example", 80),
        "state": {},
    }
    if failing:
        with pytest.raises(RuntimeError, match="the app has failed"):
            await app(scope, receive, send)
        return 0, b""
    with anyio.fail_after(PATIENCE):
        await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


# What is left


def open_files() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the package has logged."""
    return [record.getMessage() for record in caplog.records if record.name == "asgi_agents"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What of it is worth waking somebody for."""
    return [
        record.getMessage() for record in caplog.records if record.name == "asgi_agents" and record.levelname != "INFO"
    ]


def regular_file() -> str:
    path = Path(tempfile.mkdtemp()) / "file"
    path.write_text("hello")
    return f"unix://{path}"
