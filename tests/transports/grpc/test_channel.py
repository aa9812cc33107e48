"""Channels, and the calls on them, against servers of grpcio's other API."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest

from asgi_agents import AgentConnectionError, AgentError, AgentProtocolError, AgentTimeoutError, EventTooLargeError
from asgi_agents.transports.grpc.channel import Channel, Channels, open_channel
from asgi_agents.transports.grpc.settings import GrpcSettings
from asgi_agents.transports.grpc.status import EndedWithStatusError, error_of_status
from asgi_agents.transports.stream.balancing import LoadBalancing
from asgi_agents.transports.wire import Address
from tests.transports.stream.pools import until

pytestmark = pytest.mark.anyio

ECHO, FAIL, FLOOD, HANG, WAIT = "/t.T/Echo", "/t.T/Fail", "/t.T/Flood", "/t.T/Hang", "/t.T/Wait"


class Server(grpc.GenericRpcHandler):
    """Echoes, fails, floods and hangs. ``sent`` counts the messages of the flood that gRPC's library has taken."""

    def __init__(self) -> None:
        self.sent = 0
        self.received: list[bytes] = []
        self.ended = threading.Event()
        self.metadata: dict[str, Any] = {}
        self.go = threading.Event()
        self.called = threading.Event()

    def service(self, handler_call_details: Any) -> Any:
        self.metadata = dict(handler_call_details.invocation_metadata)
        stream, unary = grpc.stream_stream_rpc_method_handler, grpc.unary_unary_rpc_method_handler
        return {
            ECHO: stream(self._echo),
            FAIL: unary(self._fail),
            FLOOD: stream(self._flood),
            HANG: stream(self._hang),
            WAIT: unary(self._wait),
        }.get(handler_call_details.method)

    def _echo(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            self.received.append(request)
            yield request
        self.ended.set()
        yield b"bye"

    def _fail(self, request: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode[request.decode()], "the password is hunter2")
        raise AssertionError

    def _flood(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.add_callback(self.ended.set)
        for _ in range(100_000):
            yield bytes(64 * 1024)
            self.sent += 1

    def _hang(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        if not context.add_callback(self.ended.set):
            self.ended.set()
        self.called.set()
        self.ended.wait(60)
        yield from ()

    def _wait(self, request: bytes, context: Any) -> bytes:
        context.add_callback(self.ended.set)
        self.go.wait(60)
        return request


@contextmanager
def serving(path: str) -> Iterator[Server]:
    handler = Server()
    server = grpc.server(ThreadPoolExecutor(8), handlers=[handler])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield handler
    finally:
        handler.go.set()
        handler.ended.set()
        server.stop(None).wait()


def settings(path: str, **changes: Any) -> GrpcSettings:
    return GrpcSettings(
        addresses=[Address(f"grpc+unix://{path}", path=path)],
        tls=None,
        connections=1,
        load_balancing=LoadBalancing.ROUND_ROBIN,
        **{
            "connect_timeout": 5.0,
            "drain_timeout": 1.0,
            "max_calls_per_connection": 1,
            "ping_interval": 1.0,
            "stall_timeout": 1.0,
            "keepalive": 30.0,
            "max_event_bytes": 1 << 20,
            "max_answer_bytes": 1 << 20,
            **changes,
        },
    )


@asynccontextmanager
async def channel_to(path: str, **changes: Any) -> AsyncIterator[Channel]:
    channel = open_channel(settings(path, **changes), f"unix:{path}")
    try:
        yield channel
    finally:
        await channel.aclose()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


async def test_messages_go_both_ways_in_order_until_both_sides_have_ended(path: str) -> None:
    with serving(path) as server:
        async with channel_to(path) as channel:
            stream = channel.stream(ECHO, metadata=(("x-token", "t"),))
            for number in range(50):
                await stream.send(b"%d" % number)
            assert [await stream.receive() for _ in range(50)] == [b"%d" % number for number in range(50)]
            await stream.end()
            assert await stream.receive() == b"bye"
            assert await stream.receive() is None
            assert await stream.receive() is None
            await stream.wait_closed()
            with pytest.raises(AgentConnectionError, match="the call is over"):
                await stream.send(b"x")
    assert server.metadata["x-token"] == "t"


async def test_a_receive_that_is_cancelled_loses_nothing_and_ends_no_call(path: str) -> None:
    with serving(path):
        async with channel_to(path) as channel:
            stream = channel.stream(ECHO)
            with anyio.move_on_after(0.01):
                await stream.receive()
            await stream.send(b"a")
            await stream.send(b"b")
            with anyio.CancelScope() as scope:
                scope.cancel()
                await stream.receive()
            assert [await stream.receive(), await stream.receive()] == [b"a", b"b"]


async def test_a_server_that_floods_has_to_wait(path: str) -> None:
    with serving(path) as server:
        async with channel_to(path) as channel:
            stream = channel.stream(FLOOD)
            await until(lambda: server.sent > 0)
            sent = -1
            while sent != server.sent:
                sent = server.sent
                await anyio.sleep(0.1)
            # What the stream, the other event loop and HTTP/2's windows hold.
            assert 16 <= sent < 600
            for _ in range(sent + 50):
                assert await stream.receive() is not None
            stream.cancel()
            stream.cancel()
            await stream.wait_closed()
            await until(server.ended.is_set)


async def test_a_call_that_is_cancelled_ends_at_the_server(path: str) -> None:
    with serving(path) as server:
        async with channel_to(path) as channel:
            stream = channel.stream(HANG)
            await stream.send(b"x")
            async with anyio.create_task_group() as tasks:

                async def receive() -> None:
                    assert await stream.receive() is None

                tasks.start_soon(receive)
                await until(server.called.is_set)
                stream.cancel()
            await until(server.ended.is_set)


async def test_a_unary_call_has_a_deadline_and_can_be_cancelled(path: str) -> None:
    with serving(path) as server:
        async with channel_to(path) as channel:
            with pytest.raises(AgentTimeoutError):
                await channel.unary(WAIT, b"x", deadline=time.monotonic() + 0.02)
            with pytest.raises(AgentTimeoutError):
                await channel.unary(WAIT, b"x", deadline=time.monotonic() - 1)
            with anyio.move_on_after(0.05) as scope:
                await channel.unary(WAIT, b"x")
            assert scope.cancelled_caught
            server.go.set()
            assert await channel.unary(WAIT, b"x", deadline=time.monotonic() + 30) == b"x"


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        ("UNAVAILABLE", AgentConnectionError, "it can't be reached"),
        ("DEADLINE_EXCEEDED", AgentTimeoutError, "no answer"),
        ("CANCELLED", AgentConnectionError, "cancelled"),
        ("UNIMPLEMENTED", AgentProtocolError, "it does not know the method"),
        ("RESOURCE_EXHAUSTED", AgentError, "RESOURCE_EXHAUSTED"),
        ("UNAUTHENTICATED", AgentError, "it ended the call with the status UNAUTHENTICATED"),
        ("INTERNAL", AgentError, "INTERNAL"),
    ],
)
async def test_a_status_is_an_error_of_ours_that_quotes_nothing(
    path: str, code: str, error: type[AgentError], told: str
) -> None:
    with serving(path):
        async with channel_to(path) as channel:
            with pytest.raises(error, match=told) as raised:
                await channel.unary(FAIL, code.encode())
    assert "hunter2" not in str(raised.value)
    assert type(raised.value) is (EndedWithStatusError if error is AgentError else error)


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (5 vs. 4)", EventTooLargeError),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (5 vs. 4)", EventTooLargeError),
        ("OUT_OF_RANGE", "Error, decoded message length too large: found 5 bytes", EventTooLargeError),
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (5 vs. 4)", AgentProtocolError),
        ("RESOURCE_EXHAUSTED", "too many requests", EndedWithStatusError),
        ("OUT_OF_RANGE", "", EndedWithStatusError),
    ],
)
def test_what_is_too_large_is_told_from_what_is_too_much(code: str, details: str, error: type[AgentError]) -> None:
    assert type(error_of_status(grpc.StatusCode[code], details)) is error


async def test_nobody_there_is_a_connection_error(path: str) -> None:
    async with channel_to(path) as channel:
        with pytest.raises(AgentConnectionError, match="it can't be reached: No such file or directory"):
            await channel.unary(WAIT, b"x")
        with pytest.raises(AgentConnectionError):
            await channel.ready(time.monotonic() + 30)
        stream = channel.stream(ECHO)
        with pytest.raises(AgentConnectionError):
            await stream.receive()
        with pytest.raises(AgentConnectionError):
            await stream.send(b"x")


async def test_a_channel_that_is_closed_ends_its_calls_and_begins_none(path: str) -> None:
    with serving(path):
        async with channel_to(path) as channel:
            stream = channel.stream(HANG)
            await channel.ready(time.monotonic() + 30)
            await channel.aclose()
            assert await stream.receive() is None
            for begin in (lambda: channel.unary(WAIT, b"x"), lambda: channel.ready(time.monotonic() + 1)):
                with pytest.raises(AgentConnectionError, match="the channel was closed"):
                    await begin()
            with pytest.raises(AgentConnectionError, match="the channel was closed"):
                channel.stream(ECHO)


async def test_each_event_loop_has_a_channel_of_its_own(path: str, anyio_backend_name: str) -> None:
    with serving(path):
        channels = Channels(settings(path))
        found: list[bytes | None] = []

        async def in_another_loop() -> None:
            stream = (await channels.get()).stream(ECHO)
            await stream.send(b"there")
            found.append(await stream.receive())
            await channels.aclose()

        stream = (await channels.get()).stream(ECHO)
        assert await channels.get() is await channels.get()
        await stream.send(b"here")
        found.append(await stream.receive())
        for backend in ("asyncio", "trio"):
            await anyio.to_thread.run_sync(partial(anyio.run, in_another_loop, backend=backend))
        await stream.send(b"here again")
        found.append(await stream.receive())
        await channels.aclose_everywhere()
    assert found == [b"here", b"there", b"there", b"here again"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_event_loop_that_ends_takes_its_calls_with_it(
    path: str, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(path) as server:
        channels = Channels(settings(path))

        async def leave() -> None:
            stream = (await channels.get()).stream(HANG)
            await stream.send(b"x")
            await (await channels.get()).ready(time.monotonic() + 30)

        anyio.run(leave, backend=backend)
        assert server.ended.wait(30)
    wait_until(lambda: not any("grpc" in thread.name for thread in threading.enumerate()))
    # Where gRPC's library hears of an end later than the event loop ends, asyncio logs that the loop is closed.
    assert [record for record in caplog.records if record.name != "asyncio"] == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
