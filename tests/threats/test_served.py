"""What whoever reaches a served agent can do to it."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
from starlette.testclient import TestClient

from asgi_agents import Agent, RequestHeadersEvent
from asgi_agents.protocol.stream import FrameReader, Framing, MessageType, encode_frame
from asgi_agents.serve import agent_app, framings, serve_stream

GREETING = encode_frame(MessageType.HANDSHAKE_REQUEST, b'{"supported_versions":[2]}')
EVENT = {
    "metadata": {
        "correlation_id": "c",
        "request_id": "r",
        "client_ip": "192.0.2.7",
        "client_port": 1,
        "protocol": "HTTP/1.1",
        "timestamp": "2026-01-01T00:00:00Z",
    },
    "method": "GET",
    "uri": "/",
    "headers": {},
}


class Patient(Agent):
    """Counts those that it has answered; one whose method is WAIT it never answers."""

    def __init__(self) -> None:
        self.heard = 0

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        if event.method == "WAIT":
            await anyio.sleep_forever()
        self.heard += 1


@asynccontextmanager
async def served(agent: Agent, tmp_path: Path, **options: Any) -> AsyncIterator[str]:
    path = str(tmp_path / "agent.sock")

    async def run(*, task_status: Any) -> None:
        await serve_stream(agent, f"unix://{path}", task_status=task_status, **options)

    async with anyio.create_task_group() as tasks:
        await tasks.start(run)
        yield path
        tasks.cancel_scope.cancel()


async def closes(stream: anyio.abc.ByteStream) -> bytes:
    """What comes until the other side closes."""
    received = b""
    with anyio.fail_after(60):
        try:
            while True:
                received += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
            return received


async def is_answered(path: str) -> bool:
    """Whether another client still is."""
    async with await anyio.connect_unix(path) as stream:
        await stream.send(GREETING + encode_frame(MessageType.REQUEST_HEADERS, msgspec.json.encode(EVENT)))
        reader, answers = FrameReader(Framing.V2), 0
        with anyio.fail_after(60):
            while not answers:
                answers += sum(frame[0] == MessageType.AGENT_RESPONSE for frame in reader.feed(await stream.receive()))
    return True


NONSENSE = {
    "HTTP": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a frame of 4 GiB": b"\xff\xff\xff\xff\x01",
    "an empty frame": b"\x00\x00\x00\x00",
    "no handshake": encode_frame(MessageType.REQUEST_HEADERS, b"{}"),
    "a handshake that is none": encode_frame(MessageType.HANDSHAKE_REQUEST, b"\xff"),
    "a version from the future": encode_frame(MessageType.HANDSHAKE_REQUEST, b'{"supported_versions":[3]}'),
    "a nested handshake": encode_frame(MessageType.HANDSHAKE_REQUEST, b'{"config":' + b"[" * 10**6),
    "a flood": GREETING
    + encode_frame(MessageType.REQUEST_HEADERS, msgspec.json.encode({**EVENT, "method": "WAIT"})) * 1200,
}


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_a_client_of_a_served_agent_that_talks_nonsense_loses_its_connection_alone(
    nonsense: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(Patient(), tmp_path, max_concurrency=10) as path:
        async with await anyio.connect_unix(path) as stream:
            with suppress(anyio.BrokenResourceError):
                await stream.send(NONSENSE[nonsense])
            received = await closes(stream)
        assert b'"decision"' not in received
        assert await is_answered(path)

    lines = [record.getMessage() for record in caplog.records if record.name.startswith("asgi_agents")]
    assert len(lines) <= 2
    assert all(line.isprintable() and len(line) < 600 for line in lines)


async def test_a_client_of_a_served_agent_that_never_introduces_itself_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framings, "HANDSHAKE_TIMEOUT", 0.05)
    async with served(Patient(), tmp_path) as path:
        async with await anyio.connect_unix(path) as silent, await anyio.connect_unix(path) as slow:
            await slow.send(GREETING[:10])
            assert await closes(silent) == b""
            assert await closes(slow) == b""
        monkeypatch.undo()
        assert await is_answered(path)


async def test_a_client_of_a_served_agent_that_reads_nothing_does_not_fill_its_memory(tmp_path: Path) -> None:
    """It stops running hooks for a client that owes it the reading of answers."""
    agent = Patient()
    event = encode_frame(MessageType.REQUEST_HEADERS, msgspec.json.encode({**EVENT, "headers": {"x": ["y" * 1000]}}))
    async with served(agent, tmp_path, max_concurrency=10) as path:
        deaf = socket.socket(socket.AF_UNIX)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(path)
        deaf.setblocking(False)
        async with await anyio.abc.UNIXSocketStream.from_socket(deaf) as stream:
            await stream.send(GREETING)
            # Until it is closed, for having more unanswered than may be.
            with anyio.fail_after(60), suppress(anyio.BrokenResourceError):
                while True:
                    await stream.send(event * 100)
        heard = agent.heard
        assert await is_answered(path)

    assert heard < 20_000


DEEP = (
    b'{"version":2,"event_type":"configure","payload":{"agent_id":"a","config":' + b"[" * 10**6 + b"]" * 10**6 + b"}}"
)


@pytest.mark.parametrize("body", [DEEP, b"\xff", b"{}", b"", b"1" * 10_000, b'{"version":2}'], ids=range(6))
def test_a_served_agent_refuses_what_is_no_event(body: bytes) -> None:
    answered = TestClient(agent_app(Patient())).post("/", content=body, headers={"content-type": "application/json"})

    assert answered.status_code == 400


def test_a_served_agent_refuses_what_is_too_long_or_compressed() -> None:
    client = TestClient(agent_app(Patient(), max_event_bytes=1000))
    json = {"content-type": "application/json"}

    assert client.post("/", content=b"a" * 1001, headers=json).status_code == 413
    assert client.post("/", content=iter([b"a" * 600] * 2), headers=json).status_code == 413
    assert client.post("/", content=b"a", headers={**json, "content-encoding": "gzip"}).status_code == 415
    assert client.post("/", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
