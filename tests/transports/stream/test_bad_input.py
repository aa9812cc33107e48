"""Peers that are no agents, or not the right one."""

import json
import logging
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from starlette.testclient import TestClient

from asgi_agents import AgentConfig, AgentConnectionError, AgentManager, AgentMiddleware, FailureMode, StreamTransport
from asgi_agents.protocol.stream import MessageType, encode_frame

from .peer import handshake
from .pools import get, head, lines, nowhere, open_files, port_of, regular_file, until
from .test_pool import impatient as impatient

Handler = Callable[[SocketStream], Awaitable[None]]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def saying(data: bytes, *, then_close: bool = True) -> Handler:
    """Reads something, says ``data``, and hangs up."""

    async def handle(stream: SocketStream) -> None:
        await stream.receive()
        await stream.send(data)
        if not then_close:
            await anyio.sleep_forever()

    return handle


async def silent(stream: SocketStream) -> None:
    await anyio.sleep_forever()


async def hanging_up(stream: SocketStream) -> None:
    pass


async def reading_and_hanging_up(stream: SocketStream) -> None:
    await stream.receive()


async def kit(stream: SocketStream) -> None:
    """An agent of the older framing that takes what it can't read for a mistake of its own, and says so."""
    data = await stream.receive()
    length = int.from_bytes(data[:4], "big")
    try:
        json.loads(data[4 : 4 + length])
    except ValueError:
        answer = json.dumps({"version": 2, "decision": {"block": {"status": 500}}}).encode()
        await stream.send(len(answer).to_bytes(4, "big") + answer)
        await anyio.sleep_forever()


def refusing(**changes: Any) -> Handler:
    return saying(handshake(**changes), then_close=False)


HTTP = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"

# What is at the other end, and what is to be told of it.
PEERS: dict[str, tuple[Handler, str]] = {
    "an HTTP server": (saying(HTTP), "the peer speaks HTTP"),
    "silence": (silent, r"not connected within 0\.03 s, handshake included; .*framing='envelope'"),
    "one that hangs up": (hanging_up, "during the handshake|Broken|reset|closed"),
    "one that reads and hangs up": (reading_and_hanging_up, "closed the connection during the handshake"),
    "version 3": (refusing(protocol_version=3), "speaks version 3 of the protocol, expected 2"),
    "a refusal": (refusing(success=False, error="no proxy wanted"), "refused the handshake: no proxy wanted"),
    "a refusal without a reason": (refusing(success=False), "refused the handshake: no reason given"),
    "a wrong encoding": (refusing(encoding="protobuf"), "chose the encoding 'protobuf', expected json"),
    "an encoding not offered": (refusing(encoding="msgpack"), "chose the encoding 'msgpack', expected json"),
    "no capabilities": (refusing(capabilities=None), "says nothing of its capabilities"),
    "garbage": (saying(b"\xff" * 64), r"a frame of 4294967295 bytes, expected 1 to 65536"),
    "an empty frame": (saying(b"\0\0\0\0"), "a frame of 0 bytes"),
    "a handshake that is no JSON": (saying(encode_frame(MessageType.HANDSHAKE_RESPONSE, b"hello")), "not json"),
    "a handshake of a wrong shape": (
        saying(encode_frame(MessageType.HANDSHAKE_RESPONSE, b'{"protocol_version":"2","success":true}')),
        "handshake: .*protocol_version",
    ),
    "an answer instead of a handshake": (
        saying(encode_frame(MessageType.AGENT_RESPONSE, b"{}")),
        "answered the handshake with a message of type 0x20",
    ),
    "an agent of the older kits": (kit, "framing='envelope'"),
}


@asynccontextmanager
async def at_the_other_end(handler: Handler, *, tcp: bool = False) -> AsyncIterator[str]:
    """The URL where ``handler`` gets each connection."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await handler(stream)

    if tcp:
        listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
        url = f"tcp://127.0.0.1:{port_of(listener)}"
    else:
        path = f"{tempfile.mkdtemp()}/peer.sock"
        listener = await anyio.create_unix_listener(path)
        url = f"unix://{path}"
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        try:
            yield url
        finally:
            tasks.cancel_scope.cancel()


def config(url: str, **fields: Any) -> AgentConfig:
    transport = StreamTransport(url, connections=2, connect_timeout=0.03, drain_timeout=0.01)
    return AgentConfig("waf", transport, **{"timeout": 10.0, "circuit_breaker": None} | fields)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_a_peer_that_is_no_agent_stops_the_startup(name: str, tcp: bool) -> None:
    handler, fault = PEERS[name]
    async with at_the_other_end(handler, tcp=tcp) as url:
        manager = AgentManager([config(url, require_at_startup=True)])
        with anyio.fail_after(5), pytest.raises(AgentConnectionError, match=fault) as caught:
            async with manager:
                pass

    told = str(caught.value)
    assert told.startswith("agent 'waf' is required at startup: ")
    assert told.count(url) == 1
    assert len(told) < 400


@pytest.mark.parametrize("name", PEERS)
async def test_a_peer_that_is_no_agent_is_one_line_and_its_failure_mode_for_the_requests(
    name: str, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    handler, _ = PEERS[name]
    attempts = 0

    async def counting(stream: SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        await handler(stream)

    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        async with at_the_other_end(counting) as url:
            manager = AgentManager([config(url)])
            async with manager:
                app = AgentMiddleware(hello, manager=manager)
                for _ in range(15):
                    assert await get(app) == (503, b"Agent unavailable")
                opened = AgentMiddleware(hello, manager=manager, default_agents=[("waf", FailureMode.OPEN)], routes=[])
                for _ in range(5):
                    assert await get(opened) == (200, b"hello")
                await until(lambda: attempts > 4)

    told = [line for line in lines(caplog) if line.endswith("; connecting again")]
    assert len(told) == 1, told
    assert told[0].startswith(f"agent 'waf' at {url}: ")
    # And one of the guard's.
    assert len(lines(caplog)) == 2


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def dead_socket() -> str:
    """A socket that nobody listens on any more."""
    path = f"{tempfile.mkdtemp()}/dead.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
    return f"unix://{path}"


def forbidden() -> str:
    return f"unix://{tempfile.mkdtemp()}/" + "x" * 150


PLACES: dict[str, tuple[Callable[[], str], str]] = {
    "a closed port": (closed_port, "(?i)refused"),
    "a socket that nobody listens on": (dead_socket, "ConnectionRefusedError"),
    "a path that leads nowhere": (nowhere, "FileNotFoundError: No such file or directory"),
    "a regular file": (regular_file, "is not a socket"),
    "a directory": (lambda: f"unix://{tempfile.mkdtemp()}", "is not a socket"),
    "a path through a file": (lambda: f"{regular_file()}/waf.sock", "NotADirectoryError"),
}


@pytest.mark.parametrize("name", PLACES)
async def test_a_place_where_no_agent_is_stops_the_startup(name: str) -> None:
    place, fault = PLACES[name]
    url = place()
    with anyio.fail_after(10), pytest.raises(AgentConnectionError, match=fault) as caught:
        async with AgentManager([config(url, require_at_startup=True)]):
            pass

    assert str(caught.value).count(url) == 1


# A thread asks for the address.
@pytest.mark.real_time
async def test_a_host_that_does_not_exist_stops_the_startup() -> None:
    url = "tcp://agent.invalid:9000"
    transport = StreamTransport(url, connections=1, connect_timeout=60)
    with pytest.raises(AgentConnectionError, match=r"gaierror|Error") as caught:
        async with AgentManager([AgentConfig("waf", transport, require_at_startup=True)]):
            pass

    assert str(caught.value).count(url) == 1


@pytest.mark.parametrize("name", PLACES)
async def test_a_place_where_no_agent_is_is_one_line_and_its_failure_mode_for_the_requests(
    name: str, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    place, _ = PLACES[name]
    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        async with AgentManager([config(place())]) as manager:
            app = AgentMiddleware(hello, manager=manager)
            for _ in range(20):
                assert await get(app) == (503, b"Agent unavailable")
                await anyio.sleep(0.002)

    assert len([line for line in lines(caplog) if line.endswith("; connecting again")]) == 1
    assert len(lines(caplog)) == 2


def test_a_regular_file_is_left_as_it_is() -> None:
    url = regular_file()

    async def main() -> None:
        async with AgentManager([config(url)]) as manager:
            assert (await manager.process_request_headers(head())).failure is not None

    anyio.run(main)

    assert Path(url.removeprefix("unix://")).read_text() == "hello"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_lifespan_fails_with_the_reason(backend: Any) -> None:
    app = AgentMiddleware(hello, agents=[config(regular_file(), require_at_startup=True)])
    sent: list[Any] = []

    async def main() -> None:
        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)

    # As Starlette does it: servers are told, and TestClient has something to raise.
    with pytest.raises(AgentConnectionError, match="is not a socket"):
        anyio.run(main, backend=backend)

    (message,) = sent
    assert message["type"] == "lifespan.startup.failed"
    assert "is not a socket" in message["message"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_without_a_lifespan_it_is_the_failure_mode_too(backend: Any) -> None:
    app = AgentMiddleware(hello, agents=[config(regular_file())])
    client = TestClient(app, backend=backend)

    for _ in range(3):
        assert client.get("/").status_code == 503


@pytest.mark.parametrize("name", ["silence", "garbage", "one that hangs up", "version 3"])
async def test_attempts_that_fail_leave_nothing_open(name: str, impatient: None) -> None:
    before = open_files()
    attempts = 0
    handler, _ = PEERS[name]

    async def counting(stream: SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        await handler(stream)

    async with at_the_other_end(counting) as url, AgentManager([config(url)]):
        await until(lambda: attempts > 10)

    await until(lambda: open_files() <= before)


async def test_a_peer_that_becomes_an_agent_is_one(impatient: None) -> None:
    answer = HTTP

    async def handle(stream: SocketStream) -> None:
        await stream.receive()
        await stream.send(answer)
        if answer is not HTTP:
            await anyio.sleep_forever()

    async with at_the_other_end(handle) as url, AgentManager([config(url)]) as manager:
        assert manager.statistics()["waf"].connections == 0
        answer = handshake()
        await until(lambda: manager.statistics()["waf"].connections == 2)
