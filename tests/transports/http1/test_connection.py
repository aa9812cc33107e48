"""One connection: what goes over it, and when it is closed. Agents at the level of bytes, on asyncio and uvloop."""

import asyncio
import gc
import socket
import ssl
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from opentelemetry.sdk.trace import TracerProvider

from asgi_agents.errors import AgentConnectionError, AgentError, AgentProtocolError, EventTooLargeError
from asgi_agents.protocol import (
    AgentResponse,
    Answer,
    Encoding,
    RequestBodyChunkEvent,
    encode_answer,
    encode_event,
)
from asgi_agents.transports import HttpTransport
from asgi_agents.transports.http1.answer import AnswerParser
from asgi_agents.transports.http1.connection import Http1Connection
from asgi_agents.transports.http1.pool import Http1Pool
from tests.support.cancelling import cancelling
from tests.support.examples import the_first_is_short
from tests.transports.test_http import (
    CHUNK,
    Pki,
    allow_everything,
    pki,
    raw_agent,
    raw_answer,
    read_request,
    stall,
)

__all__ = ["pki"]

MIB = 1024 * 1024
#: More than the buffers of two sockets hold.
LARGE = RequestBodyChunkEvent(correlation_id="c-1", data=b"x" * 24 * MIB, is_last=True, bytes_received=24 * MIB)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BODY = b'{"decision":"allow"}'


async def answers_of(answer: list[bytes], calls: int = 3) -> tuple[list[Answer], int]:
    """What comes of calls that are answered with these pieces, and how many connections they took."""

    async def behave(stream: anyio.abc.ByteStream) -> None:
        while True:
            await read_request(stream)
            for piece in answer:
                await stream.send(piece)
                await anyio.lowlevel.checkpoint()

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        found = [await transport.call(CHUNK) for _ in range(calls)]
        assert isinstance(transport._connections.peek(), Http1Pool)  # type: ignore[union-attr]
        await transport.aclose()
        await agent.has_open(0)
    return found, agent.accepted


KEPT = {
    "length": HEAD + b"content-length: 20\r\n\r\n" + BODY,
    "chunks": HEAD
    + b"transfer-encoding: chunked\r\n\r\na\r\n"
    + BODY[:10]
    + b"\r\na;x=y\r\n"
    + BODY[10:]
    + b"\r\n0\r\n\r\n",
    "a line end": HEAD + b"content-length: 21\r\n\r\n" + BODY + b"\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + raw_answer(),
}


@pytest.mark.parametrize("answer", KEPT.values(), ids=KEPT)
async def test_answers_come_over_one_connection(answer: bytes) -> None:
    assert await answers_of([answer]) == ([AgentResponse()] * 3, 1)


@pytest.mark.parametrize("answer", KEPT.values(), ids=KEPT)
async def test_answers_may_come_in_pieces(answer: bytes) -> None:
    found, _ = await answers_of([answer[:1], answer[1:30], answer[30:-3], answer[-3:]])
    assert found == [AgentResponse()] * 3


@pytest.mark.parametrize("line", [b"connection: close\r\n", b"connection: Close, x\r\n"])
async def test_a_connection_that_the_agent_is_about_to_close_is_not_used_again(line: bytes) -> None:
    assert await answers_of([raw_answer(head=line)]) == ([AgentResponse()] * 3, 3)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_answer_may_end_with_its_connection(scheme: str, pki: Pki) -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        await stream.send(HEAD + b"\r\n" + BODY[:10])
        await stream.send(BODY[10:])
        if scheme == "https":
            # Says that it is the end.
            await stream.unwrap()  # type: ignore[attr-defined]

    tls = pki.server if scheme == "https" else None
    async with raw_agent(behave, tls) as agent:
        transport = HttpTransport(agent.url, verify=pki.trusting if tls else True)
        for _ in range(2):
            assert await transport.call(CHUNK) == AgentResponse()
        assert agent.accepted == 2
        await transport.aclose()


async def test_the_request_is_what_the_protocol_says() -> None:
    heads: list[bytes] = []

    async def behave(stream: anyio.abc.ByteStream) -> None:
        received = b""
        while not received.endswith(event):
            received += await stream.receive()
        heads.append(received.removesuffix(event))
        await stream.send(raw_answer())

    event = encode_event(CHUNK, Encoding.JSON)
    async with raw_agent(behave) as agent:
        transport = HttpTransport(f"{agent.url}hook/é?a=b c#d", headers={"x-key": "s3cret"})
        with TracerProvider().get_tracer(__name__).start_as_current_span("request") as span:
            await transport.call(CHUNK)
        await transport.aclose()
    lines = heads[0].split(b"\r\n")
    assert lines[0] == b"POST /hook/%C3%A9?a=b%20c HTTP/1.1"
    assert lines[-2:] == [b"", b""]
    fields = dict(line.split(b": ") for line in lines[1:-2])
    trace_id = f"{span.get_span_context().trace_id:032x}".encode()
    assert fields.pop(b"user-agent").startswith(b"asgi-agents/")
    assert fields.pop(b"traceparent").startswith(b"00-" + trace_id)
    assert fields == {
        b"host": agent.url.removeprefix("http://").removesuffix("/").encode(),
        b"accept": b"application/json",
        b"accept-encoding": b"identity",
        b"content-type": b"application/json",
        b"content-length": str(len(event)).encode(),
        b"x-key": b"s3cret",
    }


async def test_a_large_event_arrives_whole_at_an_agent_that_reads_slowly() -> None:
    received: list[int] = []

    async def behave(stream: anyio.abc.ByteStream) -> None:
        await anyio.sleep(0.05)
        received.append(len(await read_large(stream)))
        await stream.send(raw_answer())
        await allow_everything(stream)

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        assert await transport.call(LARGE) == AgentResponse()
        assert await transport.call(CHUNK) == AgentResponse()
        assert received == [len(encode_event(LARGE, Encoding.JSON))]
        assert agent.accepted == 1
        await transport.aclose()


async def read_large(stream: anyio.abc.ByteStream) -> bytes:
    """As `read_request`, in time."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += await stream.receive()
    [length] = [int(line[16:]) for line in bytes(data[:end]).split(b"\r\n") if line.startswith(b"content-length: ")]
    while len(data) < end + 4 + length:
        data += await stream.receive()
    return bytes(data[end + 4 :])


@pytest.mark.parametrize("then", ["close", "stall"])
async def test_an_agent_may_refuse_an_event_before_it_has_read_it(then: str) -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await stream.receive(100)
        await stream.send(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n")
        if then == "stall":
            await released.wait()

    released = anyio.Event()
    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        with pytest.raises(EventTooLargeError):
            await transport.call(LARGE)
        released.set()
        await agent.has_open(0)
        await transport.aclose()


async def test_an_answer_before_the_event_is_read_is_one_and_its_connection_is_not_used_again() -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await stream.receive(100)
        await stream.send(raw_answer())
        await released.wait()
        if agent.accepted > 1:
            await stream.send(raw_answer())
        await stall(stream)

    released = anyio.Event()
    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        assert await transport.call(LARGE) == AgentResponse()
        pool: Any = transport._connections.peek()  # type: ignore[union-attr]
        assert not pool._idle
        released.set()
        await agent.has_open(0)
        await transport.call(CHUNK)
        assert agent.accepted == 2
        await transport.aclose()


class FakeTransport:
    """Of asyncio: it never gets rid of what it is given."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.aborted = False

    def get_extra_info(self, _: str) -> socket.socket:
        return self.sock

    def write(self, _: bytes) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


async def test_an_agent_that_sends_no_more_is_not_sent_the_rest() -> None:
    """asyncio would wait, for as long as the agent does not read."""
    with socket.socket() as sock:
        fake: Any = FakeTransport(sock)
        answers = AnswerParser(lambda *_: None, 1000)
        connection = Http1Connection(asyncio.get_running_loop(), answers)
        connection.connection_made(fake)
        call = asyncio.create_task(connection.send(b"head", b"message"))
        await anyio.lowlevel.checkpoint()
        connection.eof_received()
        assert fake.aborted
        with pytest.raises(AgentConnectionError, match="before it answered"):
            await call
        with pytest.raises(AgentConnectionError, match="before it answered"):
            await connection.send(b"head", b"message")


async def test_a_call_that_is_cancelled_while_it_sends_closes_its_connection() -> None:
    sending = anyio.Event()

    async def behave(stream: anyio.abc.ByteStream) -> None:
        await stream.receive(100)
        sending.set()
        await released.wait()
        await stall(stream)

    released = anyio.Event()
    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        async with anyio.create_task_group() as group:
            group.start_soon(transport.call, LARGE)
            await sending.wait()
            group.cancel_scope.cancel()
        released.set()
        await agent.has_open(0)
        await transport.aclose()


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("host", ["http://127.0.0.1", "http://localhost", "https://127.0.0.1", "https://localhost"])
async def test_a_call_can_be_cancelled_wherever_it_suspends(host: str, connected: bool, pki: Pki) -> None:
    async def cancelled_at(suspension: int) -> bool:
        task = asyncio.current_task()
        assert task is not None
        return await cancelling(transport.call(CHUNK), task.cancel, suspension)

    tls = host.startswith("https")
    async with raw_agent(allow_everything, pki.server if tls else None) as agent:
        url = host + agent.url[agent.url.rindex(":") :]
        suspension, unfinished = 0, True
        while unfinished:
            suspension += 1
            transport = HttpTransport(url, verify=pki.trusting if tls else True)
            if connected:
                await transport.call(CHUNK)
            with suppress(asyncio.CancelledError):
                unfinished = await asyncio.create_task(cancelled_at(suspension))
            # Nothing is stuck, and everything can be closed.
            await transport.call(CHUNK)
            await transport.aclose()
            await agent.has_open(0)
            gc.collect()
        assert suspension > (1 if connected else 2)


async def test_a_tls_handshake_that_is_cancelled_leaves_no_socket_open() -> None:
    stalled = anyio.Event()

    async def behave(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        stalled.set()
        await stall(stream)

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url.replace("http:", "https:"))
        async with anyio.create_task_group() as group:
            group.start_soon(transport.call, CHUNK)
            await stalled.wait()
            group.cancel_scope.cancel()
        await agent.has_open(0)
        gc.collect()


@pytest.mark.parametrize("encoding", the_first_is_short(Encoding))
async def test_over_tls_an_answer_that_is_cut_off_is_none(encoding: Encoding, pki: Pki) -> None:
    """Anybody on the way can end a connection. The beginning of a message is none: it is an object."""
    message = encode_answer(AgentResponse(), encoding)
    cut = 0

    async def behave(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        head = HEAD.replace(b"json", encoding.encode())
        await stream.send(head + b"\r\n" + message[:cut])

    async with raw_agent(behave, pki.server) as agent:
        for cut in range(len(message)):  # noqa: B007 - the agent reads it
            transport = HttpTransport(agent.url, verify=pki.trusting, encoding=encoding)
            with pytest.raises(AgentError):
                await transport.call(CHUNK)
            await transport.aclose()


async def test_what_an_agent_says_before_it_is_asked_is_no_answer() -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await stream.send(raw_answer())
        await stall(stream)

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        pool: Any = await transport._connections.get()  # type: ignore[union-attr]
        connection = await pool._connector.connect(pool._make)
        await connection.wait_closed()
        with pytest.raises(AgentConnectionError, match="has sent something before it was asked"):
            await connection.send(b"", b"")
        await transport.aclose()


async def test_a_connection_that_is_lost_before_it_is_used_is_a_connection_error() -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        pass

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        pool: Any = await transport._connections.get()  # type: ignore[union-attr]
        connection = await pool._connector.connect(pool._make)
        await connection.wait_closed()
        with pytest.raises(AgentConnectionError, match="closed the connection before it was asked"):
            await connection.send(b"", b"")
        await transport.aclose()


async def test_an_idle_connection_is_closed_at_once_when_anything_comes() -> None:
    more = anyio.Event()

    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        await stream.send(raw_answer())
        await more.wait()
        await stream.send(b"\n")
        await stall(stream)

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        await transport.call(CHUNK)
        assert agent.open == 1
        more.set()
        await agent.has_open(0)
        await transport.aclose()


@pytest.mark.parametrize("sent", [b"", HEAD, raw_answer()[:-1]], ids=["request", "head", "body"])
async def test_a_connection_that_is_reset_is_a_connection_error(sent: bytes) -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        if sent:
            await stream.send(sent)
        await proceed.wait()
        raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - no query
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    proceed = anyio.Event()
    proceed.set()
    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        with pytest.raises(AgentConnectionError, match=r"ConnectionResetError|closed the connection before it"):
            await transport.call(CHUNK)
        await transport.aclose()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", AgentProtocolError, "expected status 200, got 204"),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n", AgentProtocolError, "got 304"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nx",
            AgentProtocolError,
            "expected status 200, got 101",
        ),
        (b"hello\r\n", AgentConnectionError, "not HTTP/1.1"),
        (HEAD + b"content-length: 1000000000\r\n\r\n", AgentProtocolError, "longer than 1000 bytes"),
        (HEAD + b"\r\n" + b" " * 1001, AgentProtocolError, "longer than 1000 bytes"),
        (HEAD + b"x: " + b"y" * 70_000, AgentConnectionError, "bytes of headers"),
        (HEAD + b"content-encoding: gzip\r\n\r\n", AgentProtocolError, "content-encoding: expected none"),
    ],
)
async def test_an_answer_that_is_none_closes_the_connection(answer: bytes, error: type[AgentError], text: str) -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        await stream.send(answer)
        await stall(stream)

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url, max_answer_bytes=1000)
        with pytest.raises(error, match=text):
            await transport.call(CHUNK)
        await agent.has_open(0)
        await transport.aclose()


async def test_many_calls_at_a_time() -> None:
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url)
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(100):
                    group.start_soon(transport.call, CHUNK)
        assert agent.accepted == agent.open == 100
        await transport.aclose()
        await agent.has_open(0)


async def test_tls_on_a_unix_socket_names_the_host_of_the_url(pki: Pki, tmp_path: Path) -> None:
    names: list[str | None] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki.uvicorn_options["ssl_certfile"])
    server.sni_callback = lambda _, name, __: names.append(name)
    server.set_alpn_protocols(["h2", "http/1.1"])
    protocols: list[str | None] = []

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw_answer())
        await reader.read()
        writer.close()

    uds = str(tmp_path / "agent.sock")
    async with await asyncio.start_unix_server(behave, uds, ssl=server):
        transport = HttpTransport("https://localhost/", uds=uds, verify=pki.authority)
        assert await transport.call(CHUNK) == AgentResponse()
        await transport.aclose()
        transport = HttpTransport("https://elsewhere/", uds=uds, verify=pki.authority)
        with pytest.raises(AgentConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await transport.call(CHUNK)
        await transport.aclose()
    assert names == ["localhost", "elsewhere"]
    assert protocols == ["http/1.1"]


async def test_a_unix_socket_that_is_not_there_is_a_connection_error(tmp_path: Path) -> None:
    transport = HttpTransport("http://agent/", uds=str(tmp_path / "agent.sock"))
    with pytest.raises(AgentConnectionError, match="FileNotFoundError"):
        await transport.call(CHUNK)
    await transport.aclose()
