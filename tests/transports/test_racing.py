"""Connecting to a host that has several addresses, of which not all answer. On asyncio."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from asgi_agents.transports import racing, wire
from tests.support.names import free_port

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The event loops that this is for."""
    return "asyncio", {"use_uvloop": request.param}


class Loop:
    """An event loop on which hosts have the addresses that a test gives them.

    :param behave: what connecting to an address does; by its last number.
    """

    def __init__(self, found: list[tuple[int, str]], behave: dict[str, Callable[[], Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._found = found
        self._behave = behave
        self.attempts: list[str] = []
        self.sockets: list[Any] = []
        self.create_task = self._loop.create_task

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in self._found]

    async def sock_connect(self, attempt: socket.socket, address: tuple[str, int]) -> None:
        self.attempts.append(address[0])
        self.sockets.append(attempt)
        await self._behave[address[0]]()


async def answers() -> None:
    await asyncio.sleep(0)


async def refuses() -> None:
    await asyncio.sleep(0)
    raise ConnectionRefusedError(111, "refused")


async def is_unreachable() -> None:
    raise OSError(101, "unreachable")


@pytest.fixture
async def never() -> AsyncIterator[Callable[[], Any]]:
    """An address of which nothing is heard."""
    silence = asyncio.Event()
    yield silence.wait
    silence.set()


async def connect(loop: Any) -> str:
    """The last of the addresses that were tried, with which there is a connection."""
    connected = await racing.connect_socket(loop, "agent", 80)
    with connected:
        await asyncio.sleep(0)
        assert [each for each in loop.sockets if each.fileno() != -1] == [connected]
        index = loop.sockets.index(connected)
    return str(loop.attempts[index])


async def test_the_first_address_that_answers_is_taken() -> None:
    loop = Loop([(V4, "a"), (V4, "b")], {"a": answers, "b": answers})
    assert await connect(loop) == "a"
    assert loop.attempts == ["a"]


async def test_the_families_take_turns() -> None:
    behave: dict[str, Any] = dict.fromkeys("abcde", refuses)
    loop = Loop([(V6, "a"), (V6, "b"), (V6, "c"), (V4, "d")], behave | {"c": answers})
    assert await connect(loop) == "c"
    assert loop.attempts == ["a", "d", "b", "c"]


async def test_an_address_of_which_nothing_is_heard_does_not_hold_up_the_next(
    never: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(racing, "ATTEMPT_DELAY", 0.001)
    loop = Loop([(V6, "a"), (V4, "b"), (V4, "c")], {"a": never, "b": never, "c": answers})
    assert await connect(loop) == "c"


async def test_where_two_answer_one_is_taken_and_the_other_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "ATTEMPT_DELAY", 0.0)
    go = asyncio.Event()

    async def at_last() -> None:
        go.set()

    loop = Loop([(V6, "a"), (V4, "b")], {"a": go.wait, "b": at_last})
    assert await connect(loop) in "ab"
    assert loop.attempts == ["a", "b"]


async def test_where_none_answers_all_faults_are_told(never: Callable[[], Any]) -> None:
    with pytest.raises(ConnectionRefusedError, match="refused"):
        await connect(Loop([(V6, "a"), (V4, "b")], {"a": refuses, "b": refuses}))
    with pytest.raises(OSError, match=r"refused.*; .*unreachable"):
        await connect(Loop([(V6, "a"), (V4, "b")], {"a": refuses, "b": is_unreachable}))


@pytest.mark.parametrize("turns", range(5))
async def test_a_call_that_is_cancelled_leaves_no_socket_open(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "ATTEMPT_DELAY", 0.0)

    async def soon() -> None:
        for _ in range(2):
            await asyncio.sleep(0)

    loop = Loop([(V6, "a"), (V4, "b")], {"a": soon, "b": soon})
    task = asyncio.create_task(racing.connect_socket(loop, "agent", 80))  # type: ignore[arg-type]
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        (await task).close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert [each for each in loop.sockets if each.fileno() != -1] == []


class Finding:
    """An event loop on which every name leads to ``found``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, found: list[Any]) -> None:
        self._loop = loop
        self._found = found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def getaddrinfo(self, *_: Any, **__: Any) -> list[Any]:
        return self._found


class Nothing:
    """Gets the bytes of a connection, and does nothing with them."""

    def data_received(self, data: bytes) -> None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        pass


async def test_an_agent_over_a_stream_is_reached_by_the_address_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others of its host may be silent for longer than a connection may take."""
    silent, answering = "127.0.0.2", "127.0.0.1"
    port = free_port((silent, answering))
    found = [(V4, socket.SOCK_STREAM, 6, "", (address, port)) for address in (silent, answering)]
    connect_socket = racing.connect_socket

    async def connect_to_found(loop: Any, host: str, port: int) -> socket.socket:
        return await connect_socket(Finding(loop, found), host, port)  # type: ignore[arg-type]

    monkeypatch.setattr(wire, "connect_socket", connect_to_found)
    with socket.create_server((answering, port)), full_listener(silent, port):
        address = wire.parse_address("test", f"tcp://waf.test:{port}")
        async with asyncio.timeout(60):
            connected = await wire.connect(address, Nothing())
        connected.abort()
        await connected.wait_closed()


@contextmanager
def full_listener(host: str, port: int) -> Iterator[None]:
    """Something that listens and answers nobody, because its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
        yield
