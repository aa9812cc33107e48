"""An agent that says more than it was asked: whatever comes after an answer is no answer to the next event."""

import json
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from time import sleep
from typing import Any, Final, Protocol

import anyio
import grpc
import pytest
import trustme

from asgi_agents import AgentError, AgentResponse, EventType, GrpcTransport, HttpTransport, StreamTransport
from asgi_agents.protocol import ALLOW, Answer, Block, Encoding, RequestBodyChunkEvent, encode_answer
from asgi_agents.protocol.stream import (
    CallIds,
    Framing,
    MessageType,
    encode_answer_frame,
    encode_envelope_frame,
    encode_frame,
)
from asgi_agents.transports.grpc.ext_proc_messages import METHOD, messages
from tests.transports.grpc import peer as grpc_peer
from tests.transports.stream.peer import handshake

# Each test has a hostile server in threads, and waits for it.
pytestmark = pytest.mark.slow

PATIENCE: Final = 60.0
BODIES = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})


def event(number: int) -> RequestBodyChunkEvent:
    return RequestBodyChunkEvent(
        correlation_id="c-1", data=b"x", is_last=False, chunk_index=number, bytes_received=number
    )


def verdict(answer: Answer) -> str:
    decision = getattr(answer, "decision", None)
    return (decision.body or "") if isinstance(decision, Block) else "allow"


def block(body: str) -> bytes:
    return encode_answer(AgentResponse.block(403, body), Encoding.JSON)


ALLOWED = encode_answer(ALLOW, Encoding.JSON)


# How agents speak


class Http:
    """``style``: how an answer's length is told, or how long it is with its head."""

    def __init__(self, style: str | int) -> None:
        self.style = style

    def greet(self, peer: socket.socket) -> None:
        pass

    def read(self, peer: socket.socket) -> bool:
        data = b""
        while True:
            head, end, body = data.partition(b"\r\n\r\n")
            if end:
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                assert length
                if len(body) >= int(length[1]):
                    return True
            piece = peer.recv(65536)
            if not piece:
                return False
            data += piece

    def answer(self, body: bytes) -> bytes:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        if self.style == "chunked":
            half = len(body) // 2
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
            return head + b"transfer-encoding: chunked\r\n\r\n" + chunks
        if isinstance(self.style, int):
            # Blanks after JSON mean nothing.
            body = body.ljust(self.style - len(head) - len(b"content-length: 123456\r\n\r\n"))
            assert len(str(len(body))) <= 6
            return (head + b"content-length: %06d\r\n\r\n" % len(body)) + body
        return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


class Stream:
    """``named``: whether answers carry their correlation id."""

    def __init__(self, framing: Framing, *, named: bool = False, call_ids: bool = False) -> None:
        self.framing = framing
        self.named = named
        self.call_ids = call_ids
        self._ids = CallIds()

    def greet(self, peer: socket.socket) -> None:
        if self.framing is Framing.V2:
            self._frame(peer)
            peer.sendall(handshake(events=BODIES, features={"call_ids": self.call_ids}))

    def read(self, peer: socket.socket) -> bool:
        frame = self._frame(peer)
        if frame and self.framing is Framing.V2:
            payload = json.loads(frame[1:])
            self._ids = CallIds("c-1", payload["call_id"]) if self.call_ids else CallIds("c-1")
        return bool(frame)

    def answer(self, body: bytes) -> bytes:
        if self.framing is Framing.ENVELOPE:
            return encode_envelope_frame(body)
        if not self.named:
            return encode_frame(MessageType.AGENT_RESPONSE, body)
        decided = json.loads(body)["decision"]
        response = ALLOW if decided == "allow" else AgentResponse.block(403, decided["block"]["body"])
        return encode_answer_frame(response, Encoding.JSON, self._ids)

    @staticmethod
    def _frame(peer: socket.socket) -> bytes:
        data = b""
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            piece = peer.recv(65536)
            if not piece:
                return b""
            data += piece
        return data[4:]


#: What comes too much, from what an answer looks like.
KINDS: dict[str, Callable[[bytes], bytes]] = {
    "again": lambda answer: answer,
    "twice again": lambda answer: answer * 2,
    "half": lambda answer: answer[: len(answer) // 2],
    "all but a byte": lambda answer: answer[:-1],
    "a byte": lambda answer: answer[:1],
}
HTTP_KINDS: dict[str, Callable[[bytes], bytes]] = {
    **KINDS,
    "informational": lambda _: b"HTTP/1.1 100 Continue\r\n\r\n",
    "a line end": lambda _: b"\r\n",
    "garbage": lambda _: b"\0\xff nonsense\r\n\r\n",
}
TIMES = ["together", "just after", "while idle", "just before the next"]


class Hostile:
    """Answers the first event with ``first`` and says too much.

    Later events are answered with ``again`` on the same connection, and with ``own`` on others.
    """

    def __init__(self, speech: Http | Stream, kind: Callable[[bytes], bytes], time: str, tls: Any = None) -> None:
        self._speech = speech
        self._kind = kind
        self.time = time
        self._tls = tls
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.go = threading.Event()
        self.said = threading.Event()
        #: Whether the first connection was used a second time.
        self.reused = False
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        first = True
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            peer.settimeout(PATIENCE)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(peer)
            thread = threading.Thread(target=self._serve, args=(peer, first))
            self._threads.append(thread)
            thread.start()
            first = False

    def _serve(self, peer: socket.socket, first: bool) -> None:
        with suppress(OSError):
            if self._tls is not None:
                peer = self._tls.wrap_socket(peer, server_side=True)
            with peer:
                self._speech.greet(peer)
                (self._misbehave if first else self._behave)(peer)

    def _behave(self, peer: socket.socket) -> None:
        while self._speech.read(peer):
            peer.sendall(self._speech.answer(block("own")))

    def _misbehave(self, peer: socket.socket) -> None:
        if not self._speech.read(peer):
            return
        answer, more = self._speech.answer(block("first")), self._speech.answer(ALLOWED)
        surplus = self._kind(more)
        if self.time == "together":
            # With TLS they are two records in one segment.
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        peer.sendall(answer)
        if self.time in ("while idle", "just before the next"):
            self.go.wait(PATIENCE)
        try:
            peer.sendall(surplus)
            if self.time == "together":
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        finally:
            # A client that has noticed it may be gone before all of it was sent.
            self.said.set()
        # The rest of what was half, for the client to take for the answer.
        rest = more.removeprefix(surplus)
        while self._speech.read(peer):
            self.reused = True
            peer.sendall(rest + self._speech.answer(block("again")))
            rest = b""

    def close(self) -> None:
        self.go.set()
        for each in (self.listener, *self._connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def hostile(*args: Any) -> AsyncIterator[Hostile]:
    agent = Hostile(*args)
    try:
        yield agent
    finally:
        agent.close()


async def outcome(call: Callable[[RequestBodyChunkEvent], Any], number: int) -> str:
    try:
        with anyio.fail_after(PATIENCE):
            return verdict(await call(event(number)))
    except AgentError:
        return "failed"


class Provoked(Protocol):
    go: threading.Event
    said: threading.Event
    time: str


async def provoke(
    agent: Provoked, call: Callable[[RequestBodyChunkEvent], Any], *, seconds_on_the_way: float = 0.0
) -> list[str]:
    """The verdicts on one event after the other, of which the first is the last that the agent answers properly.

    ``seconds_on_the_way``: until what was said has come to a library whose threads read it.
    """
    verdicts = [await outcome(call, 0)]
    agent.go.set()
    # Blocking, so that the event loop has no turn in which it could read what was said.
    assert agent.said.wait(PATIENCE)
    sleep(seconds_on_the_way)  # noqa: ASYNC251 - it has no turn here either
    if agent.time == "while idle":
        await anyio.sleep(0.02)
    verdicts.append(await outcome(call, 1))
    with anyio.fail_after(PATIENCE):
        # A connection that was lost is made again.
        while (last := await outcome(call, 2)) == "failed":  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)
    return [*verdicts, last]


def contexts(authority: trustme.CA, tls: bool) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    if not tls:
        return None, None
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("style", ["content-length", "chunked"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_nothing_that_comes_after_an_answer_over_http_is_the_next_one(
    http_client: str, tls: bool, style: str, kind: str, time: str, authority: trustme.CA
) -> None:
    server, client = contexts(authority, tls)
    async with hostile(Http(style), HTTP_KINDS[kind], time, server) as agent:
        transport = HttpTransport(
            f"http{'s' if tls else ''}://127.0.0.1:{agent.port}/",
            verify=True if client is None else client,
        )
        verdicts = await provoke(agent, transport.call)
        await transport.aclose()

        assert verdicts == ["first", "own", "own"]
        assert not agent.reused


@pytest.mark.parametrize("size", [65536, 131072, 256000, 262144, 524288])
async def test_nor_where_the_answer_fills_what_is_read_at_once(http_client: str, size: int) -> None:
    """What an event loop hands over in one piece is cut at such sizes, and the rest is kept somewhere."""
    async with hostile(Http(size), KINDS["again"], "together") as agent:
        transport = HttpTransport(f"http://127.0.0.1:{agent.port}/")
        verdicts = await provoke(agent, transport.call)
        await transport.aclose()

        assert verdicts == ["first", "own", "own"]
        assert not agent.reused


STREAMS: dict[str, Callable[[], Stream]] = {
    "envelope": lambda: Stream(Framing.ENVELOPE),
    "v2": lambda: Stream(Framing.V2),
    "v2, named": lambda: Stream(Framing.V2, named=True),
    "v2, call ids": lambda: Stream(Framing.V2, named=True, call_ids=True),
}


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("speech", STREAMS)
async def test_nothing_that_comes_after_an_answer_on_a_stream_is_the_next_one(
    speech: str, tls: bool, kind: str, time: str, authority: trustme.CA
) -> None:
    server, client = contexts(authority, tls)
    spoken = STREAMS[speech]()
    async with hostile(spoken, KINDS[kind], time, server) as agent:
        secured: dict[str, Any] = {"tls": True, "verify": client} if tls else {}
        streams = StreamTransport(
            f"tcp://127.0.0.1:{agent.port}",
            framing=spoken.framing,
            connections=1,
            ping_interval=3600,
            drain_timeout=0.01,
            **secured,
        ).bind("agent", events=BODIES)
        verdicts = await provoke(agent, streams.call)
        await streams.aclose()

        assert verdicts[0] == "first"
        if speech == "v2, call ids":
            # An answer that names a call can't be taken for that to another.
            assert set(verdicts[1:]) == {"again"}
            return
        assert set(verdicts[1:]) <= {"own", "failed"}
        assert verdicts[-1] == "own"
        if speech == "envelope":
            assert not agent.reused


class Grpc:
    """The agent protocol over gRPC. ``named``: whether answers carry their correlation id."""

    method = f"/{grpc_peer.SERVICE}/ProcessStream"
    greeting: bytes | None = grpc_peer.greeting(events=(1, 2))
    transport: Final = {"protocol": "agent", "connections": 1, "ping_interval": 3600.0, "drain_timeout": 0.01}

    def __init__(self, *, named: bool) -> None:
        self._name = "c-1" if named else ""

    def answer(self, blocked: str | None) -> bytes:
        decision = grpc_peer.ALLOW if blocked is None else grpc_peer.block(403, blocked)
        return grpc_peer.answer(self._name, decision)


class ExtProc:
    """An external processor. A stream is that of an exchange, and a refusal is the last that counts on it."""

    method = METHOD
    greeting: bytes | None = None
    transport: Final = {"protocol": "ext_proc"}

    def answer(self, blocked: str | None) -> bytes:
        if blocked in (None, "first"):
            response = messages.ProcessingResponse(request_body={})
        else:
            refusal = {"status": {"code": 403}, "body": str(blocked).encode()}
            response = messages.ProcessingResponse(immediate_response=refusal)
        data: bytes = response.SerializeToString()
        return data


class HostileGrpc(grpc.GenericRpcHandler):
    """As :class:`Hostile`, with streams for connections: the same answer ``surplus`` times too often."""

    def __init__(self, speech: Grpc | ExtProc, surplus: int, time: str) -> None:
        self._speech = speech
        self._surplus = surplus
        self.time = time
        self.go = threading.Event()
        self.said = threading.Event()
        self._streams = 0
        self._server = grpc.server(ThreadPoolExecutor(max_workers=10), handlers=[self])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def service(self, handler_call_details: Any) -> Any:
        assert handler_call_details.method == self._speech.method
        return grpc.stream_stream_rpc_method_handler(self._serve)

    def _serve(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self._streams += 1
        # A client that has noticed it may be gone before all of it was sent.
        context.add_callback(self.said.set)
        own = "again" if self._streams == 1 else "own"
        if self._speech.greeting is not None:
            next(requests)
            yield self._speech.greeting
        if own == "again":
            next(requests)
            yield self._speech.answer("first")
            if self.time != "just after":
                self.go.wait(PATIENCE)
            for _ in range(self._surplus):
                yield self._speech.answer(None)
            # What comes behind a message is only asked for once that was sent.
            self.said.set()
        for _ in requests:
            yield self._speech.answer(own)

    def close(self) -> None:
        self.go.set()
        self._server.stop(None).wait()


GRPC: dict[str, Callable[[], Grpc | ExtProc]] = {
    "agent": lambda: Grpc(named=False),
    "agent, named": lambda: Grpc(named=True),
    "ext_proc": ExtProc,
}


@pytest.mark.parametrize("time", TIMES[1:])
@pytest.mark.parametrize("surplus", [1, 2])
@pytest.mark.parametrize("speech", GRPC)
async def test_nothing_that_comes_after_an_answer_over_grpc_is_the_next_one(
    speech: str, surplus: int, time: str
) -> None:
    spoken = GRPC[speech]()
    agent = HostileGrpc(spoken, surplus, time)
    settings: dict[str, Any] = dict(spoken.transport)
    client = GrpcTransport(f"grpc://127.0.0.1:{agent.port}", **settings).bind(
        "agent", events=frozenset({EventType.REQUEST_BODY_CHUNK}), config=None, max_concurrent_calls=10
    )

    async def call(event: RequestBodyChunkEvent) -> Any:
        try:
            return await client.call(event)
        except AgentError:
            # Where a stream is an exchange's, the next event is of another one.
            client.forget("c-1")
            raise

    try:
        # What comes later than the client waits for it can't be told from an answer to the next event: not even when
        # it comes depends on luck here.
        verdicts = await provoke(agent, call, seconds_on_the_way=0.3)
        await client.aclose()
    finally:
        agent.close()

    assert verdicts[0] == ("allow" if speech == "ext_proc" else "first")
    assert set(verdicts[1:]) <= {"own", "failed"}
    assert verdicts[-1] == "own"
