import asyncio
import gc
import gzip
import re
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
import trustme
from anyio.streams.tls import TLSListener
from cryptography.hazmat.primitives import serialization
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from asgi_agents._version import __version__
from asgi_agents.agent import Agent
from asgi_agents.errors import AgentConnectionError, AgentProtocolError, ConfigurationError, EventTooLargeError
from asgi_agents.protocol import (
    Acknowledgement,
    AgentResponse,
    Answer,
    BodyMutation,
    ConfigureEvent,
    Encoding,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    InspectionType,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    check_response,
    decode_event,
    encode_answer,
    encode_event,
)
from asgi_agents.serve import agent_app
from asgi_agents.transports import HttpTransport, Transport, connections
from tests.support.cancelling import cancelling
from tests.support.servers import serve

pytestmark = pytest.mark.usefixtures("http_client")

MIB = 1024 * 1024
ALLOWED = b'{"decision":"allow"}'
CHUNK = RequestBodyChunkEvent(correlation_id="c-1", data=b"\x00\xff", is_last=True, bytes_received=2)


def answering(*args: Any, **kwargs: Any) -> HttpTransport:
    """A transport whose agent always gives this ``httpx.Response``."""
    return HttpTransport("http://agent/", transport=httpx.MockTransport(lambda _: httpx.Response(*args, **kwargs)))


def raw_answer(body: bytes = ALLOWED, *, head: bytes = b"") -> bytes:
    """The bytes of a whole HTTP response."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        head,
        len(body),
        body,
    )


class Deaf(Agent):
    """Declares that it receives no events."""

    events = frozenset()


@dataclass
class RawAgent:
    """An agent at the level of bytes, on the loop of the test: ``behave`` is called with each connection."""

    behave: Callable[[anyio.abc.ByteStream], Awaitable[None]]
    url: str = ""
    accepted: int = 0
    open: int = 0

    async def has_open(self, number: int) -> None:
        """Wait until exactly so many connections are open."""
        with anyio.fail_after(60):
            while self.open != number:  # noqa: ASYNC110 - an event for each number would be more to get wrong
                await anyio.sleep(0.001)

    async def connection(self, stream: anyio.abc.ByteStream) -> None:
        self.accepted += 1
        self.open += 1
        try:
            async with stream:
                await self.behave(stream)
        except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
            pass
        finally:
            self.open -= 1


@asynccontextmanager
async def raw_agent(
    behave: Callable[[anyio.abc.ByteStream], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawAgent]:
    agent = RawAgent(behave)
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra_attributes[anyio.abc.SocketAttribute.local_port]()
    agent.url = f"http{'s' if tls else ''}://127.0.0.1:{port}/"
    if tls:
        listener = TLSListener(listener, tls, standard_compatible=False)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, agent.connection)
        try:
            yield agent
        finally:
            group.cancel_scope.cancel()


async def read_request(stream: anyio.abc.ByteStream) -> bytes:
    """The body of the next request."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        if end:
            length = re.search(rb"content-length: (\d+)", head)
            assert length
            if len(body) == int(length[1]):
                return body
        data += await stream.receive()


async def allow_everything(stream: anyio.abc.ByteStream) -> None:
    while True:
        await read_request(stream)
        await stream.send(raw_answer())


async def stall(stream: anyio.abc.ByteStream) -> None:
    """Read what comes and say nothing, until the other side closes."""
    while True:
        await stream.receive()


@dataclass
class Pki:
    """A certificate authority, a server and a client."""

    authority: str
    cert: str
    key: str
    encrypted_key: str
    uvicorn_options: dict[str, Any]
    server: ssl.SSLContext
    trusting: ssl.SSLContext


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    directory = tmp_path_factory.mktemp("pki")
    ca = trustme.CA()
    server, client = ca.issue_cert("127.0.0.1", "localhost"), ca.issue_cert("gateway@example.org")
    authority, pem, cert, key = (str(directory / name) for name in ("ca", "server", "client", "client-key"))
    ca.cert_pem.write_to_path(authority)
    server.private_key_and_cert_chain_pem.write_to_path(pem)
    client.cert_chain_pems[0].write_to_path(cert)
    client.private_key_pem.write_to_path(key)
    encrypted = serialization.load_pem_private_key(client.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"correct horse"),
    )
    (directory / "encrypted-key").write_bytes(encrypted)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.configure_cert(server_context)
    return Pki(
        authority,
        cert,
        key,
        str(directory / "encrypted-key"),
        {"ssl_certfile": pem, "ssl_ca_certs": authority},
        server_context,
        ssl.create_default_context(cafile=authority),
    )


class Recorder(Agent):
    """Answers every event in a way that shows that it was read."""

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> AgentResponse:
        return AgentResponse.allow(request_body_mutation=BodyMutation(event.data[::-1], event.chunk_index))


REVERSED = AgentResponse(request_body_mutation=BodyMutation(b"\xff\x00"))


# --- Messages -----------------------------------------------------------------------------------------------------


async def test_is_a_transport() -> None:
    transport = HttpTransport("http://agent/")
    assert isinstance(transport, Transport)
    assert (transport.kind, transport.remote, transport.events) == ("http", True, None)
    assert transport.carries == frozenset(EventType)
    assert transport.may_suspend(EventType.CONFIGURE)


@pytest.mark.parametrize("encoding", ["json", "msgpack", Encoding.JSON, Encoding.MSGPACK])
async def test_an_event_is_posted_with_the_headers_of_the_protocol(encoding: str) -> None:
    seen: list[httpx.Request] = []

    def agent(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        content_type = request.headers["content-type"]
        answer = encode_answer(REVERSED, Encoding(encoding))
        return httpx.Response(200, content=answer, headers={"content-type": f"{content_type.title()}; charset=utf-8"})

    transport = HttpTransport(
        "http://agent:9000/hook?a=b",
        encoding=encoding,
        headers={"Authorization": "Bearer s3cret", "x-empty": ""},
        transport=httpx.MockTransport(agent),
    )
    assert await transport.call(CHUNK) == REVERSED

    [request] = seen
    assert (request.method, str(request.url)) == ("POST", "http://agent:9000/hook?a=b")
    assert dict(request.headers) == {
        "host": "agent:9000",
        "user-agent": f"asgi-agents/{__version__}",
        "accept": f"application/{encoding}",
        "accept-encoding": "identity",
        "content-type": f"application/{encoding}",
        "authorization": "Bearer s3cret",
        "x-empty": "",
        "content-length": str(len(request.content)),
    }
    assert set(request.extensions["timeout"].values()) == {None}
    assert decode_event(request.content, Encoding(encoding)) == CHUNK


async def test_host_and_user_agent_can_be_replaced() -> None:
    def agent(request: httpx.Request) -> httpx.Response:
        assert request.headers.get_list("host") == ["waf.internal"]
        assert request.headers.get_list("user-agent") == ["gateway"]
        return httpx.Response(200, json={})

    transport = HttpTransport(
        "http://agent/", headers={"Host": "waf.internal", "User-Agent": "gateway"}, transport=httpx.MockTransport(agent)
    )
    assert await transport.call(CHUNK) == AgentResponse()


async def test_the_current_span_travels_as_traceparent() -> None:
    seen: list[httpx.Headers] = []

    def agent(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, json={})

    transport = HttpTransport("http://agent/", transport=httpx.MockTransport(agent))
    with TracerProvider().get_tracer(__name__).start_as_current_span("request") as span:
        await transport.call(CHUNK)
    await transport.call(CHUNK)
    context = span.get_span_context()
    assert seen[0]["traceparent"].startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    assert "traceparent" not in seen[1]


async def test_the_short_answers_are_read() -> None:
    transport = answering(200, json={"success": False, "error": "no such rule"})
    assert await transport.call(ConfigureEvent(agent_id="waf")) == Acknowledgement(success=False, error="no such rule")
    transport = answering(200, json={"detected": True})
    event = GuardrailInspectEvent(
        correlation_id="c-1", inspection_type=InspectionType.PII_DETECTION, content="a@example.org"
    )
    assert await transport.call(event) == GuardrailResponse(detected=True)


async def test_an_event_that_cannot_be_encoded_is_an_agent_error() -> None:
    with pytest.raises(AgentProtocolError, match="can't be encoded as json"):
        await answering(200, json={}).call(ConfigureEvent(agent_id="waf", config="\ud800"))


# --- Bad answers --------------------------------------------------------------------------------------------------

PAGE = "<html><h1>It works!</h1></html>"


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        ({"json": {"decision": 5}}, r"Expected `str \| object`.*\$\.decision"),
        ({"json": {"decision": "maybe"}}, r"Invalid enum value 'maybe' - at `\$\.decision`"),
        ({"json": {"decision": {"maybe": {}}}}, "decision: expected"),
        ({"json": {"decision": {"block": {"status": "no"}}}}, r"\$\.decision\.block\.status"),
        ({"json": {"request_headers": [{"set": {"name": "x-a"}}]}}, r"\$\.request_headers\[0\]\.set"),
        ({"json": {"request_body_mutation": {"data": "%%%"}}}, "Invalid base64.*request_body_mutation"),
        ({"json": [1]}, "Expected `object`, got `array`"),
        ({"json": {"version": 3}}, "version: expected 2, got 3"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "not json: "),
        ({"content": b"\xff", "headers": {"content-type": "application/json"}}, "not json: "),
        ({"content": b"", "headers": {"content-type": "application/json"}}, "not json: "),
        ({"html": PAGE}, "content-type: expected application/json, got 'text/html; charset=utf-8'"),
        ({"content": ALLOWED}, "content-type: expected application/json, got ''"),
        ({"content": ALLOWED, "headers": {"content-type": "application/msgpack"}}, "got 'application/msgpack'"),
        ({"status_code": 502, "html": PAGE}, "expected status 200, got 502"),
        ({"status_code": 204}, "expected status 200, got 204"),
        ({"status_code": 307, "headers": {"location": "http://elsewhere/"}}, "expected status 200, got 307"),
        (
            {
                "content": gzip.compress(ALLOWED),
                "headers": {"content-type": "application/json", "content-encoding": "gzip"},
            },
            "content-encoding: expected none, got 'gzip'",
        ),
        (
            {"content": ALLOWED, "headers": {"content-type": "application/json", "content-length": "9" * 5000}},
            "longer than 10485760 bytes",
        ),
        (
            {"content": b" " * 11 * MIB, "headers": {"content-type": "application/json"}},
            "longer than 10485760 bytes",
        ),
    ],
)
async def test_a_bad_answer_is_an_agent_error_that_says_why(response: dict[str, Any], fault: str) -> None:
    transport = answering(**{"status_code": 200} | response)
    with pytest.raises(AgentProtocolError, match=fault):
        # The guard's part, for the rules that hold for in-process agents too.
        check_response(await transport.call(CHUNK), may_mutate=True, may_set_host=True)


async def test_an_agent_that_answers_413_has_been_sent_too_much() -> None:
    with pytest.raises(EventTooLargeError, match="413"):
        await answering(413, html="too large").call(CHUNK)


async def test_identity_and_an_unreadable_content_length_are_let_through() -> None:
    headers = {"content-type": "application/json", "content-encoding": "Identity", "content-length": "many"}
    assert await answering(200, content=ALLOWED, headers=headers).call(CHUNK) == AgentResponse()


async def test_a_long_answer_need_not_say_so_to_be_refused() -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield b" " * MIB

    transport = answering(200, content=body(), headers={"content-type": "application/json"})
    with pytest.raises(AgentProtocolError, match="longer than 10485760 bytes"):
        await transport.call(CHUNK)


async def test_an_answer_without_end_is_cut_off_at_the_limit() -> None:
    chunks_sent = 0

    async def behave(stream: anyio.abc.ByteStream) -> None:
        nonlocal chunks_sent
        await read_request(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await stream.send(b"400\r\n" + b" " * 1024 + b"\r\n")
            chunks_sent += 1

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url, max_answer_bytes=MIB)
        with pytest.raises(AgentProtocolError, match="longer than 1048576 bytes"):
            await transport.call(CHUNK)
        await agent.has_open(0)
        await transport.aclose()
    gc.collect()
    assert chunks_sent >= 1024


async def test_an_answer_of_just_the_limit_is_read() -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        for length in (100, 101):
            await read_request(stream)
            await stream.send(raw_answer(b"{}".ljust(length)))

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url, max_answer_bytes=100)
        assert await transport.call(CHUNK) == AgentResponse()
        with pytest.raises(AgentProtocolError, match="longer than 100 bytes"):
            await transport.call(CHUNK)
        await transport.aclose()


# --- Broken connections -------------------------------------------------------------------------------------------


async def test_nobody_listening_is_a_connection_error() -> None:
    async with raw_agent(stall) as agent:
        url = agent.url
    transport = HttpTransport(url)
    with pytest.raises(AgentConnectionError, match=r"\A(ConnectError|ConnectionRefusedError): "):
        await transport.call(CHUNK)
    await transport.aclose()


async def test_what_an_agent_sent_stays_out_of_the_message(http_client: str) -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\nset-cookie session=s3cret\r\n\r\n")

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        with pytest.raises(AgentConnectionError) as caught:
            await transport.call(CHUNK)
        assert (
            str(caught.value)
            == {
                "http1": "the answer is not HTTP/1.1: Invalid header token",
                "httpcore": "RemoteProtocolError: illegal header line: …",
            }[http_client]
        )
        await transport.aclose()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", raw_answer()[:-1]])
async def test_a_connection_that_breaks_before_the_answer_is_complete_is_a_connection_error(sent: bytes) -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        if sent:
            await stream.send(sent)

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        with pytest.raises(
            AgentConnectionError, match=r"\A(RemoteProtocolError: |the agent closed the connection before it)"
        ):
            await transport.call(CHUNK)
        await transport.aclose()


async def test_an_idle_connection_that_the_agent_has_closed_is_replaced() -> None:
    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        await stream.send(raw_answer())

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        for _ in range(3):
            await transport.call(CHUNK)
            await agent.has_open(0)
        assert agent.accepted == 3
        await transport.aclose()


async def test_an_event_is_never_sent_twice() -> None:
    requests = 0

    async def behave(stream: anyio.abc.ByteStream) -> None:
        nonlocal requests
        await read_request(stream)
        await stream.send(raw_answer())
        requests += 1
        await read_request(stream)
        requests += 1

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        await transport.call(CHUNK)
        with pytest.raises(AgentConnectionError, match=r"without sending a response|before it answered"):
            await transport.call(CHUNK)
        assert requests == 2
        await transport.call(CHUNK)
        await transport.aclose()


async def test_what_the_given_transport_raises_is_a_connection_error() -> None:
    def agent(request: httpx.Request) -> httpx.Response:
        raise LookupError("no such agent")

    with pytest.raises(AgentConnectionError, match="LookupError: no such agent") as caught:
        await HttpTransport("http://agent/", transport=httpx.MockTransport(agent)).call(CHUNK)
    assert isinstance(caught.value.__cause__, LookupError)


# --- Connections --------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again() -> None:
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url)
        for _ in range(3):
            await transport.call(CHUNK)
        assert agent.accepted == 1
        await transport.aclose()


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
async def test_an_answer_too_many_is_not_taken_for_the_next_one(apart: bool) -> None:
    """RFC 9112, section 6.3: what follows a response must not be processed as another."""

    async def behave(stream: anyio.abc.ByteStream) -> None:
        while True:
            event = await read_request(stream)
            answer = raw_answer(b'{"routing_metadata":{"event":"%d"}}' % len(event))
            await stream.send(answer if apart else 2 * answer)
            if apart:
                await anyio.sleep(0.01)
                await stream.send(answer)

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        for size in range(10, 13):
            event = RequestBodyChunkEvent(correlation_id="c" * size, data=b"", is_last=True)
            asked = len(encode_event(event, Encoding.JSON))
            answer = await transport.call(event)
            assert isinstance(answer, AgentResponse)
            assert answer.routing_metadata == {"event": str(asked)}
            # The second one has come, if it was not there from the beginning.
            await anyio.sleep(0.04)
        assert agent.accepted == 3
        await transport.aclose()


async def test_concurrent_calls_do_not_wait_for_each_other() -> None:
    waiting = anyio.Event()

    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        if agent.open == 5:
            waiting.set()
        await waiting.wait()
        await stream.send(raw_answer())

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(transport.call, CHUNK)
        await transport.aclose()


async def test_the_connection_used_last_is_used_first() -> None:
    requests: list[int] = []

    async def behave(stream: anyio.abc.ByteStream) -> None:
        index = len(requests)
        requests.append(0)
        while True:
            await read_request(stream)
            requests[index] += 1
            await stream.send(raw_answer())

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(transport.call, CHUNK)
        for _ in range(3):
            await transport.call(CHUNK)
        assert sorted(requests) == [1, 4]
        await transport.aclose()


async def test_connections_that_are_no_longer_needed_are_closed(
    monkeypatch: pytest.MonkeyPatch, http_client: str
) -> None:
    if http_client == "http1":
        pytest.skip("it does not wait for the next call: tests/transports/http1/test_pool.py")
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(transport.call, CHUNK)
        assert agent.open == 5
        monkeypatch.setattr(connections, "KEEPALIVE_EXPIRY", 0.0)
        await transport.call(CHUNK)
        await agent.has_open(1)
        assert agent.accepted == 5
        await transport.aclose()


async def test_a_call_closes_what_is_no_longer_needed_while_others_take_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing, proceed = anyio.Event(), anyio.Event()

    class SlowToClose(connections.HttpConnection):
        async def aclose(self) -> None:
            closing.set()
            await proceed.wait()
            await super().aclose()

    monkeypatch.setattr(connections, "HttpConnection", SlowToClose)
    stack = connections.ConnectionStack(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), None)

    async def call() -> None:
        async with stack.lease():
            pass

    async with stack.lease(), stack.lease():
        pass
    monkeypatch.setattr(connections, "KEEPALIVE_EXPIRY", 0.0)
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await closing.wait()
        async with stack.lease():
            proceed.set()
            await anyio.wait_all_tasks_blocked()
    await stack.aclose()


async def test_aclose_closes_and_a_later_call_opens_again() -> None:
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url)
        await transport.aclose()
        await transport.call(CHUNK)
        await transport.aclose()
        await transport.aclose()
        await agent.has_open(0)
        await transport.call(CHUNK)
        assert agent.accepted == 2
        await transport.aclose()
        await agent.has_open(0)


async def test_a_call_under_way_outlives_aclose_and_its_connection_is_closed_after_it() -> None:
    received, proceed = anyio.Event(), anyio.Event()

    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        received.set()
        await proceed.wait()
        await stream.send(raw_answer())
        await stream.receive()

    answers: list[Answer] = []

    async def call() -> None:
        answers.append(await transport.call(CHUNK))

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await received.wait()
            await transport.aclose()
            proceed.set()
        assert answers == [AgentResponse()]
        await agent.has_open(0)


# --- Cancellation -------------------------------------------------------------------------------------------------


#: At least, by the client and whether it is connected.
SUSPENSIONS = {("http1", False): 2, ("http1", True): 1, ("httpcore", False): 3, ("httpcore", True): 3}


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_call_can_be_cancelled_wherever_it_suspends(
    scheme: str, connected: bool, pki: Pki, http_client: str
) -> None:
    async with raw_agent(allow_everything, pki.server if scheme == "https" else None) as agent:
        suspension, unfinished = 0, True
        while unfinished:
            suspension += 1
            transport = HttpTransport(agent.url, verify=pki.trusting if scheme == "https" else True)
            if connected:
                await transport.call(CHUNK)
            with anyio.CancelScope() as scope:
                unfinished = await cancelling(transport.call(CHUNK), scope.cancel, suspension)

            # Nothing is stuck, and everything can be closed.
            await transport.call(CHUNK)
            await transport.aclose()
            await agent.has_open(0)
            gc.collect()
        assert suspension > SUSPENSIONS[http_client, connected]


class TestAsyncioCancellation:
    """``Task.cancel()``, which is what ``asyncio.timeout`` uses, reaches through anyio's shields."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.mark.parametrize("connected", [False, True])
    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_a_call_can_be_cancelled_wherever_it_suspends(
        self, scheme: str, connected: bool, pki: Pki, http_client: str
    ) -> None:
        async def cancelled_at(suspension: int) -> bool:
            task = asyncio.current_task()
            assert task is not None
            return await cancelling(transport.call(CHUNK), task.cancel, suspension)

        async with raw_agent(allow_everything, pki.server if scheme == "https" else None) as agent:
            suspension, unfinished = 0, True
            while unfinished:
                suspension += 1
                transport = HttpTransport(agent.url, verify=pki.trusting if scheme == "https" else True)
                if connected:
                    await transport.call(CHUNK)
                with suppress(asyncio.CancelledError):
                    unfinished = await asyncio.create_task(cancelled_at(suspension))
                await transport.call(CHUNK)
                await transport.aclose()
                await agent.has_open(0)
                gc.collect()
            assert suspension > SUSPENSIONS[http_client, connected]


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", raw_answer()[:-1]], ids=["request", "head", "body"])
async def test_a_stalled_call_that_is_cancelled_has_its_connection_closed(sent: bytes) -> None:
    stalled = anyio.Event()

    async def behave(stream: anyio.abc.ByteStream) -> None:
        while agent.accepted > 1:
            await read_request(stream)
            await stream.send(raw_answer())
        await read_request(stream)
        if sent:
            await stream.send(sent)
        stalled.set()
        await stall(stream)

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        async with anyio.create_task_group() as group:
            group.start_soon(transport.call, CHUNK)
            await stalled.wait()
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        await agent.has_open(0)
        assert await transport.call(CHUNK) == AgentResponse()
        await transport.aclose()


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


# --- Event loops --------------------------------------------------------------------------------------------------


class PeerRecorder:
    """An ASGI app that allows everything and knows which connections it was asked over."""

    def __init__(self) -> None:
        self.app = agent_app(Deaf())
        self.peers: list[object] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.peers.append(scope["client"])
        await self.app(scope, receive, send)


LOOPS = [
    pytest.param("asyncio", {}, None, id="asyncio"),
    pytest.param("asyncio", {"use_uvloop": True}, None, id="uvloop"),
    pytest.param("trio", {}, None, id="trio"),
    pytest.param("asyncio", {}, httpx.AsyncHTTPTransport, id="asyncio-factory"),
    pytest.param("trio", {}, httpx.AsyncHTTPTransport, id="trio-factory"),
]


@pytest.mark.parametrize(("backend", "options", "carrier"), LOOPS)
def test_connections_are_kept_within_a_loop_and_closed_when_it_ends(
    backend: str, options: dict[str, Any], carrier: Any
) -> None:
    app = PeerRecorder()
    with serve(app) as url:
        transport = HttpTransport(url, transport=carrier)

        async def call_twice() -> None:
            for _ in range(2):
                assert await transport.call(CHUNK) == AgentResponse()

        for _ in range(2):
            anyio.run(call_twice, backend=backend, backend_options=options)
            gc.collect()
    first, second, third, fourth = app.peers
    assert first == second != third == fourth


def test_an_event_loop_that_has_ended_is_not_kept_alive() -> None:
    with serve(agent_app(Deaf())) as url:
        transport = HttpTransport(url)

        async def call() -> "weakref.ref[object]":
            await transport.call(CHUNK)
            return weakref.ref(asyncio.get_running_loop())

        loop = anyio.run(call)
        gc.collect()
        assert loop() is None


def test_works_under_a_test_client_that_is_never_entered() -> None:
    app = PeerRecorder()
    with serve(app) as url:
        transport = HttpTransport(url)

        async def ask(request: Request) -> PlainTextResponse:
            await transport.call(CHUNK)
            await transport.call(CHUNK)
            return PlainTextResponse("asked")

        client = TestClient(Starlette(routes=[Route("/", ask)]))
        for _ in range(3):
            assert client.get("/").text == "asked"
            gc.collect()
    assert len(app.peers) == 6
    assert len(set(app.peers)) == 3


# --- Other ways to carry it ---------------------------------------------------------------------------------------


class Closable(httpx.MockTransport):
    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


async def test_a_given_transport_is_shared_and_closed_by_aclose() -> None:
    carrier = Closable(lambda _: httpx.Response(200, json={}))
    transport = HttpTransport("http://agent/", transport=carrier)
    await transport.call(CHUNK)
    assert carrier.closed == 0
    await transport.aclose()
    assert carrier.closed == 1
    await transport.call(CHUNK)


async def test_a_factory_is_called_once_for_the_loop_and_its_transport_closed() -> None:
    made: list[Closable] = []

    def factory() -> Closable:
        made.append(Closable(lambda _: httpx.Response(200, json={})))
        return made[-1]

    transport = HttpTransport("http://agent/", transport=factory)
    await transport.call(CHUNK)
    await transport.call(CHUNK)
    await transport.aclose()
    assert [carrier.closed for carrier in made] == [1]
    await transport.call(CHUNK)
    await transport.aclose()
    assert [carrier.closed for carrier in made] == [1, 1]


@pytest.mark.parametrize("encoding", Encoding)
async def test_an_agent_app_can_be_called_without_a_network(encoding: Encoding) -> None:
    transport = HttpTransport("http://agent/", encoding=encoding, transport=httpx.ASGITransport(agent_app(Recorder())))
    assert await transport.call(CHUNK) == REVERSED
    complete = RequestCompleteEvent(
        correlation_id="c-1",
        status=200,
        duration_ms=1,
        request_body_size=0,
        response_body_size=0,
        upstream_attempts=1,
    )
    assert await transport.call(complete) == AgentResponse()


@pytest.mark.parametrize("encoding", Encoding)
async def test_an_agent_behind_uvicorn_is_reached_over_a_unix_socket(encoding: Encoding, tmp_path: Path) -> None:
    uds = str(tmp_path / "agent.sock")
    with serve(agent_app(Recorder()), uds=uds):
        transport = HttpTransport("http://agent/", uds=uds, encoding=encoding)
        assert await transport.call(CHUNK) == REVERSED
        await transport.aclose()


async def test_keeps_no_cookies() -> None:
    heads: list[bytes] = []

    async def behave(stream: anyio.abc.ByteStream) -> None:
        for _ in range(2):
            heads.append(await stream.receive())
            await stream.send(raw_answer(head=b"set-cookie: session=1\r\n"))

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url.replace("127.0.0.1", "localhost"))
        for _ in range(2):
            await transport.call(CHUNK)
        await transport.aclose()
    assert not [head for head in heads if b"cookie" in head.lower()]


# --- TLS ----------------------------------------------------------------------------------------------------------


async def call_over_tls(pki: Pki, *, client_cert_required: bool = False, **options: Any) -> Answer:
    reqs = ssl.CERT_REQUIRED if client_cert_required else ssl.CERT_NONE
    with serve(agent_app(Recorder()), **pki.uvicorn_options, ssl_cert_reqs=reqs) as url:
        transport = HttpTransport(url, **options)
        try:
            return await transport.call(CHUNK)
        finally:
            await transport.aclose()


async def test_certificates_are_verified_by_default(pki: Pki) -> None:
    with pytest.raises(AgentConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        await call_over_tls(pki)


async def test_an_empty_directory_trusts_nobody(pki: Pki, tmp_path: Path) -> None:
    with pytest.raises(AgentConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        await call_over_tls(pki, verify=str(tmp_path))


async def test_an_authority_can_be_given_as_a_file_or_a_context(pki: Pki) -> None:
    assert await call_over_tls(pki, verify=pki.authority) == REVERSED
    assert await call_over_tls(pki, verify=pki.trusting) == REVERSED


async def test_verification_can_be_switched_off(pki: Pki) -> None:
    assert await call_over_tls(pki, verify=False) == REVERSED


async def test_a_client_certificate_is_shown(pki: Pki) -> None:
    with pytest.raises(AgentConnectionError):
        await call_over_tls(pki, client_cert_required=True, verify=pki.authority)
    for cert in ((pki.cert, pki.key), (pki.cert, pki.encrypted_key, "correct horse")):
        assert await call_over_tls(pki, client_cert_required=True, verify=pki.authority, cert=cert) == REVERSED


# --- Configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": 5}, "url=5, expected an http:// or https:// URL"),
        ({"url": "agent:9000"}, "url='agent:9000', expected an http:// or https:// URL"),
        ({"url": "ftp://agent/"}, "url='ftp://agent/', expected an http:// or https:// URL"),
        ({"url": "http:///x"}, "url='http:///x', expected an http:// or https:// URL with a host"),
        ({"url": "http://agent/\ud800"}, "url: not UTF-8, expected an http:// or https:// URL"),
        ({"url": "http://u:s3cret\ud800@agent/"}, "url: not UTF-8, expected an http:// or https:// URL"),
        ({"url": "http://u:s3cret@agent:port/"}, "url: Invalid port: 'port', expected an http:// or https:// URL"),
        ({"url": "http://u:s3cret@agent/x"}, "url has credentials in it, expected 'http://agent/x' and headers={"),
        ({"encoding": "xml"}, "encoding='xml', expected 'json' or 'msgpack'"),
        ({"max_answer_bytes": 0}, "max_answer_bytes=0, expected a whole number of at least 1"),
        ({"max_answer_bytes": True}, "max_answer_bytes=True, expected"),
        ({"headers": [("a", "b")]}, "headers is a list, expected names mapped to values"),
        ({"headers": {"x y": "s3cret"}}, "headers='x y', expected names of letters"),
        ({"headers": {"Content-Type": "s3cret"}}, "headers='Content-Type', expected none of those that the transport"),
        ({"headers": {"x": "s3cret\r\nx-y: z"}}, "headers['x'], expected visible ASCII characters"),
        ({"headers": {"x": " s3cret"}}, "headers['x'], expected visible ASCII characters"),
        ({"headers": {"x": "s3crét"}}, "headers['x'], expected visible ASCII characters"),
        ({"headers": {"x": b"s3cret"}}, "headers['x'], expected visible ASCII characters"),
        ({"verify": False}, "url='http://agent/', expected https://"),
        ({"cert": "client.pem"}, "url='http://agent/', expected https://"),
        ({"url": "https://agent/", "verify": 1}, "verify=1, expected True, False, a path or an ssl.SSLContext"),
        ({"url": "https://agent/", "verify": "/nonexistent"}, "verify='/nonexistent', expected a PEM file"),
        ({"url": "https://agent/", "cert": "/nonexistent"}, "cert='/nonexistent', expected a certificate"),
        ({"url": "https://agent/", "cert": ("a", "b", "s3cret", "d")}, "cert, expected a path, (certificate, key)"),
        (
            {"url": "https://agent/", "cert": "client.pem", "verify": ssl.create_default_context()},
            "cert beside an SSLContext, expected verify.load_cert_chain(…)",
        ),
        ({"uds": ""}, "uds='', expected the path of a Unix socket"),
        ({"uds": 5}, "uds=5, expected the path of a Unix socket"),
        ({"transport": 5}, "transport=5, expected an httpx.AsyncBaseTransport, or a function"),
        ({"transport": "aiohttp"}, "transport='aiohttp', expected an httpx.AsyncBaseTransport, or a function"),
        *(
            ({"transport": httpx.AsyncHTTPTransport, name: value}, f"{name} beside transport, expected it to be given")
            for name, value in (("verify", False), ("cert", "client.pem"), ("uds", "/a"))
        ),
    ],
)
def test_arguments_that_cannot_work_are_configuration_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        HttpTransport(**{"url": "http://agent/"} | arguments)
    assert str(caught.value).startswith(f"HttpTransport: {message}")
    assert "s3cr" not in str(caught.value)


def test_an_encrypted_key_without_its_password_asks_nobody(pki: Pki) -> None:
    with pytest.raises(ConfigurationError, match="and the key's password"):
        HttpTransport("https://agent/", cert=(pki.cert, pki.encrypted_key))


def test_the_repr_shows_where_it_goes_but_no_query() -> None:
    transport = HttpTransport("http://agent:9000/hook?key=s3cret", headers={"x-key": "s3cret"})
    assert repr(transport) == "<HttpTransport 'http://agent:9000/hook'>"
