"""Clients that come while a served agent is told to stop: each is answered, by it or by the next who listens."""

import errno
import logging
import os
import socket
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
import trustme

from asgi_agents import Agent, AgentResponse
from asgi_agents.errors import ConfigurationError
from asgi_agents.protocol import Encoding, RequestHeadersEvent
from asgi_agents.protocol.stream import CallIds, HandshakeRequest, MessageType, encode_event_frame, encode_message
from asgi_agents.serve import accept, serve_stream
from asgi_agents.serve import stream as stream_module
from asgi_agents.serve.sockets import describe
from asgi_agents.transports.wire import parse_address
from tests.serve.client import RawClient, connected
from tests.support.sample_events import head

HANDSHAKE: Final = encode_message(
    MessageType.HANDSHAKE_REQUEST, HandshakeRequest(supported_versions=[2], supported_encodings=["json"])
)
QUESTION: Final = encode_event_frame(head(), Encoding.JSON, CallIds("r", 1))
# The event loop's turns between a client's first and the end: more than any of them needs to be answered.
TURNS: Final = {"unix": range(20), "tcp": range(20), "tls": range(48)}


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    # `python -m asgi_agents.serve` takes uvloop where it is installed.
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
        return "asyncio", {"use_uvloop": True}
    return request.param


class Named(Agent):
    """Answers with its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        return AgentResponse.block(403, self.name)


@pytest.fixture(params=["unix", "tcp", "tls"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def listening(kind: str) -> Iterator[socket.socket]:
    """What a service manager holds: whoever serves gets a duplicate."""
    with tempfile.TemporaryDirectory(prefix="agents-") as place:
        if kind == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(Path(place) / "waf.sock"))
            sock.listen(16)
        else:
            sock = socket.create_server(("127.0.0.1", 0))
        with sock:
            yield sock


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@asynccontextmanager
async def served(name: str, sock: socket.socket, **options: Any) -> AsyncIterator[anyio.Event]:
    """Serves until the event is set, or the end."""
    shutdown = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: Any) -> None:
            await serve_stream(
                Named(name), describe(sock), sock=sock.dup(), shutdown=shutdown, task_status=task_status, **options
            )

        await tasks.start(run)
        yield shutdown
        shutdown.set()


async def answer(client: RawClient) -> str:
    """Who answers the question, or how the connection ended."""
    try:
        while True:
            kind, payload = await client.message()
            if kind == MessageType.AGENT_RESPONSE:
                return str(payload["decision"]["block"]["body"])
    except anyio.EndOfStream:
        return "lost"


async def test_who_was_accepted_is_served_whenever_it_stops(
    kind: str, listening: socket.socket, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server, client_context = contexts if kind == "tls" else (None, None)
    found: dict[int, str] = {}

    async def call(turns: int) -> None:
        async with connected(describe(listening), handshake=False, tls=client_context) as client:
            await client.send(HANDSHAKE, QUESTION)
            found[turns] = await answer(client)

    with anyio.fail_after(120):
        for turns in TURNS[kind]:
            async with anyio.create_task_group() as tasks:
                async with served("first", listening, ssl_context=server) as shutdown:
                    tasks.start_soon(call, turns)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    shutdown.set()
                if turns not in found:
                    async with served("second", listening, ssl_context=server):
                        while turns not in found:  # noqa: ASYNC110 - the client says so itself
                            await anyio.sleep(0.001)
    assert set(found.values()) == {"first", "second"}, found
    # The range was wide enough.
    assert (found[0], found[TURNS[kind][-1]]) == ("second", "first")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


async def test_it_ends_whenever_it_is_cancelled_and_leaves_nothing_behind(
    kind: str, listening: socket.socket, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server, client_context = contexts if kind == "tls" else (None, None)
    listening.setblocking(False)
    found: set[int] = set()

    async def call(ended: anyio.Event) -> None:
        with suppress(OSError, anyio.BrokenResourceError, anyio.EndOfStream):
            async with connected(describe(listening), handshake=False, tls=client_context) as client:
                await client.send(HANDSHAKE, QUESTION)
                await answer(client)
        ended.set()

    for turns in TURNS[kind]:
        async with anyio.create_task_group() as calls:
            ended = anyio.Event()
            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(
                        lambda: serve_stream(
                            Named("first"), describe(listening), sock=listening.dup(), ssl_context=server
                        )
                    )
                    await anyio.wait_all_tasks_blocked()
                    calls.start_soon(call, ended)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
                # Whoever was not accepted is sent away. Versions of anyio lose a connect that is cancelled.
                while not ended.is_set():
                    with suppress(BlockingIOError):
                        listening.accept()[0].close()
                    await anyio.sleep(0.001)
        if turns > 10:
            found.add(descriptors())
    assert max(found) - min(found) <= 1, found


@pytest.mark.parametrize("kind", ["tls"])
async def test_who_says_no_hello_does_not_keep_it_from_stopping(
    listening: socket.socket, contexts: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "_TLS_TIMEOUT", 0.05)
    with socket.create_connection(listening.getsockname()) as silent, anyio.fail_after(60):
        async with served("first", listening, ssl_context=contexts[0], drain_timeout=1000.0):
            await anyio.sleep(0.01)
        silent.settimeout(60)
        assert silent.recv(1) == b""


@pytest.mark.parametrize("kind", ["unix"])
async def test_a_drained_client_has_its_time_however_long_the_event_loop_stood_still(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "QUIET", 0.1)
    async with served("first", listening) as shutdown, connected(describe(listening)) as client:
        shutdown.set()
        assert (await client.message())[0] == MessageType.HEALTH_STATUS
        time.sleep(0.3)  # noqa: ASYNC251 - that is what it does
        await client.send(QUESTION)
        assert await answer(client) == "first"


@pytest.mark.parametrize("kind", ["unix"])
async def test_a_handshake_shows_that_a_client_is_about_to_send(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "QUIET", 0.2)
    async with served("first", listening) as shutdown, connected(describe(listening), handshake=False) as client:
        # It is accepted, and says nothing yet.
        await anyio.wait_all_tasks_blocked()
        shutdown.set()
        await anyio.sleep(0.15)
        assert (await client.handshake("json"))["success"]
        await anyio.sleep(0.15)
        await client.send(QUESTION)
        assert await answer(client) == "first"


@pytest.mark.parametrize("kind", ["unix"])
async def test_a_frame_that_has_begun_to_come_is_waited_for(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "QUIET", 0.02)
    async with served("first", listening) as shutdown, connected(describe(listening)) as client:
        await client.send(QUESTION[:3])
        await anyio.wait_all_tasks_blocked()
        shutdown.set()
        await anyio.sleep(0.1)
        await client.send(QUESTION[3:])
        assert await answer(client) == "first"


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("turns", range(4))
async def test_who_waits_to_be_accepted_by_the_only_server_is_served_whenever_it_stops(kind: str, turns: int) -> None:
    """It has made the socket itself, and nobody else listens there: whom it leaves behind the system resets."""
    shutdown = anyio.Event()
    with tempfile.TemporaryDirectory(prefix="agents-") as place:
        bind = f"unix://{place}/s" if kind == "unix" else "tcp://127.0.0.1:0"
        async with anyio.create_task_group() as tasks:

            async def run(*, task_status: Any) -> None:
                await serve_stream(Named("only"), bind, shutdown=shutdown, task_status=task_status)

            address = parse_address("test", await tasks.start(run))
            clients = [socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) for _ in range(5)]
            # Without a turn of the event loop in which the server could accept them.
            for client in clients:
                client.connect(address.path or (address.host, address.port))
                client.sendall(HANDSHAKE + QUESTION)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            shutdown.set()
            assert [await anyio.to_thread.run_sync(read_answer, client) for client in clients] == ["only"] * 5


def read_answer(client: socket.socket) -> str:
    data = b""
    with client:
        client.settimeout(60)
        try:
            while b"only" not in data:
                piece = client.recv(65536)
                if not piece:
                    return "ended"
                data += piece
        except OSError as exc:
            return type(exc).__name__
    return "only"


class Failing(socket.socket):
    """A listening socket whose first accepts fail."""

    failures: list[int]

    def accept(self) -> Any:
        if self.failures:
            raise OSError(self.failures.pop(0), "as the system said")
        return super().accept()


def failing(listening: socket.socket, *numbers: int) -> Failing:
    sock = Failing(fileno=listening.dup().detach())
    sock.failures = [*numbers]
    return sock


async def answer_of(sock: socket.socket) -> str:
    """What a client is answered by a server on that socket."""
    address = describe(sock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: serve_stream(Named("first"), address, sock=sock))
        async with connected(address) as client:
            await client.send(QUESTION)
            given = await answer(client)
        tasks.cancel_scope.cancel()
    return given


# What says of the listening socket itself that it is none, and what says of it that nobody waits.
OF_THE_SOCKET: Final = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}
NOBODY_WAITS: Final = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EALREADY, errno.EINPROGRESS}


@pytest.mark.parametrize("kind", ["unix"])
async def test_it_goes_on_accepting_after_any_error_that_is_not_of_the_socket_itself(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "_PAUSE", 0)
    sock = failing(listening, *sorted(set(errno.errorcode) - OF_THE_SOCKET - NOBODY_WAITS))
    assert len(sock.failures) > 50
    assert await answer_of(sock) == "first"
    assert sock.failures == []


@pytest.mark.parametrize("kind", ["unix"])
@pytest.mark.parametrize("number", sorted(OF_THE_SOCKET))
async def test_a_socket_that_accepts_nobody_any_more_ends_the_server(number: int, listening: socket.socket) -> None:
    sock = failing(listening, number)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listening.getsockname())
        with anyio.fail_after(60), pytest.raises(BaseExceptionGroup) as caught:
            await serve_stream(Named("first"), describe(listening), sock=sock)
    assert caught.group_contains(OSError, match="as the system said")


@pytest.mark.parametrize("kind", ["unix"])
@pytest.mark.parametrize(
    ("number", "warnings"), [(errno.ECONNABORTED, 0), (errno.ECONNRESET, 0), (errno.EMFILE, 1), (errno.EPERM, 1)]
)
async def test_what_concerns_all_connections_is_said_once(
    number: int,
    warnings: int,
    listening: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(accept, "_PAUSE", 0.001)
    with caplog.at_level(logging.WARNING, logger="asgi_agents"):
        assert await answer_of(failing(listening, number, number)) == "first"
    assert Counter(record.levelname for record in caplog.records)["WARNING"] == warnings


@pytest.mark.parametrize("kind", ["tls"])
async def test_a_context_for_clients_is_refused_at_once(
    listening: socket.socket, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    with pytest.raises(ConfigurationError, match=r"ssl_context is for clients, .*Purpose\.CLIENT_AUTH"):
        await serve_stream(Named("first"), describe(listening), ssl_context=contexts[1])
