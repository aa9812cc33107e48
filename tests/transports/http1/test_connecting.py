"""Connecting to a host that has several addresses, of which not all answer."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from asgi_agents.errors import AgentConnectionError
from asgi_agents.protocol import AgentResponse
from asgi_agents.transports import HttpTransport
from asgi_agents.transports.http1 import connecting
from tests.transports.test_http import CHUNK, allow_everything, raw_agent

V4, V6 = socket.AF_INET, socket.AF_INET6


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
    connected = await connecting._connect_socket(loop, "agent", 80)
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
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.001)
    loop = Loop([(V6, "a"), (V4, "b"), (V4, "c")], {"a": never, "b": never, "c": answers})
    assert await connect(loop) == "c"


async def test_where_two_answer_one_is_taken_and_the_other_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.0)
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
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.0)

    async def soon() -> None:
        for _ in range(2):
            await asyncio.sleep(0)

    loop = Loop([(V6, "a"), (V4, "b")], {"a": soon, "b": soon})
    task = asyncio.create_task(connecting._connect_socket(loop, "agent", 80))  # type: ignore[arg-type]
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        (await task).close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert [each for each in loop.sockets if each.fileno() != -1] == []


async def test_a_name_is_looked_up() -> None:
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url.replace("127.0.0.1", "localhost"))
        for _ in range(2):
            assert await transport.call(CHUNK) == AgentResponse()
        assert agent.accepted == 1
        await transport.aclose()
        await agent.has_open(0)


async def test_an_ipv6_address_is_taken_as_it_is() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=V6)
    except OSError:
        pytest.skip("there is no IPv6")
    async with await anyio.create_tcp_listener(local_host="::1") as listeners, anyio.create_task_group() as group:
        listener.close()
        port = listeners.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - no query

        async def serve(stream: Any) -> None:
            async with stream:
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    await allow_everything(stream)

        group.start_soon(listeners.serve, serve)
        transport = HttpTransport(f"http://[::1]:{port}/")
        assert await transport.call(CHUNK) == AgentResponse()
        await transport.aclose()
        group.cancel_scope.cancel()


async def test_a_host_without_an_address_is_a_connection_error() -> None:
    transport = HttpTransport("http://agent.invalid/")
    with pytest.raises(AgentConnectionError, match="gaierror"):
        await transport.call(CHUNK)
    await transport.aclose()
    gc.collect()
