"""What a hostile network can do between the app and its agents."""

import datetime
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
import trustme
from anyio.streams.tls import TLSListener
from starlette.types import Receive, Scope, Send

from asgi_agents import Agent, AgentConfig, EventType, FailureKind, HttpTransport, RequestHeadersEvent, StreamTransport
from asgi_agents.serve import agent_app
from tests.support.asgi import App, Client, guarded
from tests.support.servers import serve
from tests.transports.stream.peer import handshake

from .asking import SECRET, ask

HEADS = {EventType.REQUEST_HEADERS}


class Allows(Agent):
    def __init__(self) -> None:
        self.heard = 0

    async def on_request_headers(self, event: RequestHeadersEvent) -> None:
        self.heard += 1


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(name: str, authority: trustme.CA) -> ssl.SSLContext:
    """Of a server that shows a certificate with that flaw."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    match name:
        case "good":
            authority.issue_cert("127.0.0.1").configure_cert(context)
        case "self-signed":
            trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        case "of another host":
            authority.issue_cert("other.example").configure_cert(context)
        case "expired":
            past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
            authority.issue_cert("127.0.0.1", not_before=past, not_after=past).configure_cert(context)
    return context


class Eavesdropper:
    """Sits where the agent should be, answers everything with allow, and remembers what it was told."""

    def __init__(self) -> None:
        self.told = b""

    async def _hear(self, stream: anyio.abc.ByteStream) -> None:
        # Not `self.told += await ...`: that forgets what another connection has told it meanwhile.
        data = await stream.receive()
        self.told += data

    async def http(self, stream: anyio.abc.ByteStream) -> None:
        async with stream:
            try:
                while True:
                    await self._hear(stream)
                    answer = b'{"decision":"allow"}'
                    await stream.send(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                        % (len(answer), answer)
                    )
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass

    async def stream(self, stream: anyio.abc.ByteStream) -> None:
        async with stream:
            try:
                await self._hear(stream)
                await stream.send(handshake())
                await self._hear(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass


CERTIFICATES = ["self-signed", "of another host", "expired"]


@pytest.mark.parametrize("certificate", [*CERTIFICATES, "good"])
@pytest.mark.parametrize("via", ["http", "stream"])
async def test_tls_trusts_nobody_whose_certificate_is_wrong(
    certificate: str, via: str, authority: trustme.CA, tmp_path: Path, http_client: str
) -> None:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    eavesdropper = Eavesdropper()
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra_attributes[anyio.abc.SocketAttribute.local_port]()
    listener = TLSListener(listener, server_context(certificate, authority), standard_compatible=False)
    transport: Any
    if via == "stream":
        transport = StreamTransport(f"tcp://127.0.0.1:{port}", tls=True, verify=str(ca), connect_timeout=10)
    else:
        transport = HttpTransport(f"https://127.0.0.1:{port}/", verify=str(ca))
    behave = eavesdropper.stream if via == "stream" else eavesdropper.http

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, _quietly(behave))
        client, _, app = await ask(AgentConfig("agent", transport, events=HEADS, timeout=10))
        tasks.cancel_scope.cancel()

    if certificate == "good":
        assert SECRET.encode() in eavesdropper.told
    else:
        assert (client.status, app.calls) in ((503, 0), (504, 0))
        assert eavesdropper.told == b""


def _quietly(behave: Callable[[anyio.abc.ByteStream], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    async def handle(stream: Any) -> None:
        with suppress(ssl.SSLError, OSError, anyio.BrokenResourceError):
            await behave(stream)

    return handle


@pytest.mark.parametrize("via", ["http", "stream"])
async def test_tls_is_verified_unless_somebody_switches_it_off(via: str, authority: trustme.CA) -> None:
    """By default a certificate of an authority of one's own is nobody's."""
    eavesdropper = Eavesdropper()
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra_attributes[anyio.abc.SocketAttribute.local_port]()
    listener = TLSListener(listener, server_context("good", authority), standard_compatible=False)
    transport: Any = (
        StreamTransport(f"tcp://127.0.0.1:{port}", tls=True, connect_timeout=10)
        if via == "stream"
        else HttpTransport(f"https://127.0.0.1:{port}/")
    )
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, _quietly(getattr(eavesdropper, via)))
        client, _, app = await ask(AgentConfig("agent", transport, events=HEADS, timeout=10))
        tasks.cancel_scope.cancel()

    assert client.status in (503, 504)
    assert (app.calls, eavesdropper.told) == (0, b"")


async def test_without_tls_whoever_is_on_the_way_reads_and_answers() -> None:
    """What is not defended: `tcp://` and `http://` are for networks that are trusted."""
    eavesdropper = Eavesdropper()
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra_attributes[anyio.abc.SocketAttribute.local_port]()
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, eavesdropper.http)
        client, _, app = await ask(AgentConfig("agent", f"http://127.0.0.1:{port}/", events=HEADS, timeout=10))
        tasks.cancel_scope.cancel()

    assert (client.status, app.calls) == (200, 1)
    assert SECRET.encode() in eavesdropper.told


class Trap:
    """A TCP server that counts those that come."""

    def __init__(self) -> None:
        self.caught = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.caught += 1
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def trap() -> Iterator[Trap]:
    trap = Trap()
    yield trap
    trap.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_by_an_agent_is_not_followed(status: int, trap: Trap, http_client: str) -> None:

    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"location", trap.url.encode()), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"decision":"allow"}'})

    with serve(elsewhere, lifespan="off") as url:
        client, manager, app = await ask(AgentConfig("agent", HttpTransport(url), events=HEADS, timeout=10))

    assert (client.status, app.calls, trap.caught) == (503, 0, 0)
    assert manager.metrics["agent"].outcomes == {FailureKind.ERROR: 1}


async def test_neither_proxies_nor_netrc_of_the_environment_see_an_event(
    trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, http_client: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, trap.url)
        monkeypatch.setenv(name.lower(), trap.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"default login somebody password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    headers: list[Any] = []
    inner = agent_app(Allows())

    async def looking(scope: Scope, receive: Receive, send: Send) -> None:
        headers.append(dict(scope["headers"]))
        await inner(scope, receive, send)

    with serve(looking, lifespan="off") as url:
        client, _, _ = await ask(AgentConfig("agent", HttpTransport(url), events=HEADS, timeout=10))

    assert (client.status, trap.caught) == (200, 0)
    assert b"authorization" not in headers[0]


async def test_cookies_of_an_agent_are_not_sent_back() -> None:
    cookies: list[Any] = []
    inner = agent_app(Allows())

    async def baking(scope: Scope, receive: Receive, send: Send) -> None:
        cookies.append(dict(scope["headers"]).get(b"cookie"))

        async def send_with_cookie(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"set-cookie", b"a=b")]}
            await send(message)

        await inner(scope, receive, send_with_cookie)

    with serve(baking, lifespan="off") as url:
        middleware = guarded(App(), AgentConfig("agent", HttpTransport(url), events=HEADS, timeout=10))
        async with middleware.manager:
            for _ in range(3):
                await Client().call(middleware)

    assert cookies == [None, None, None]
