"""gRPC's library tells an event loop of calls that were ended; it is never told once it has ended itself."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgi_agents import AgentError, EventType, GrpcTransport
from asgi_agents.transports.grpc.channel import _TURN, _TURNS, Channel, open_channel

from .peer import Peer
from .test_channel import ECHO, FLOOD, HANG, WAIT, serving, settings

Way = Callable[[Channel], Awaitable[object]]


async def aborted_while_it_reads(channel: Channel) -> None:
    stream = channel.stream(HANG)
    await stream.send(b"x")
    stream.cancel()


async def aborted_and_closed_before_the_channel(channel: Channel) -> None:
    await aborted_while_it_reads(channel)
    stream = channel.stream(HANG)
    stream.cancel()
    await stream.wait_closed()


async def aborted_as_it_begins(channel: Channel) -> None:
    channel.stream(ECHO).cancel()


async def aborted_and_closed_as_it_begins(channel: Channel) -> None:
    stream = channel.stream(ECHO)
    await anyio.lowlevel.checkpoint()
    stream.cancel()
    await stream.wait_closed()


async def aborted_as_messages_come(channel: Channel) -> None:
    stream = channel.stream(FLOOD)
    await stream.receive()
    stream.cancel()
    await stream.wait_closed()


async def aborted_as_it_sends(channel: Channel) -> None:
    stream = channel.stream(HANG)
    with anyio.move_on_after(0.05):
        while True:
            await stream.send(bytes(100_000))
    stream.cancel()
    await stream.wait_closed()


async def ended_by_both(channel: Channel) -> None:
    stream = channel.stream(ECHO)
    await stream.send(b"x")
    await stream.end()
    while await stream.receive() is not None:
        pass


async def left_open(channel: Channel) -> None:
    stream = channel.stream(ECHO)
    await stream.send(b"x")
    await stream.receive()


async def cancelled_while_it_waits(channel: Channel) -> None:
    with anyio.move_on_after(0.02):
        await channel.unary(WAIT, b"x")


async def closed_while_it_waits(channel: Channel) -> None:
    async def wait() -> None:
        with suppress(AgentError):
            await channel.unary(WAIT, b"x")

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(wait)
        await anyio.sleep(0.02)
        await channel.aclose()


async def cancelled_and_begun_anew(channel: Channel) -> None:
    await aborted_while_it_reads(channel)
    await left_open(channel)


WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (
        aborted_while_it_reads,
        aborted_and_closed_before_the_channel,
        aborted_as_it_begins,
        aborted_and_closed_as_it_begins,
        aborted_as_messages_come,
        aborted_as_it_sends,
        ended_by_both,
        left_open,
        cancelled_while_it_waits,
        closed_while_it_waits,
        cancelled_and_begun_anew,
    )
}


async def within(path: str, way: Way) -> None:
    """A whole event loop, in which a channel is closed as soon as something has happened on it."""
    channel = open_channel(settings(path), f"unix:{path}")
    with suppress(AgentError):
        await way(channel)
    await channel.aclose()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("backend", ["asyncio", "trio"], ids=["its own", "of another"])
@pytest.mark.parametrize("way", WAYS)
async def test_an_event_loop_that_has_ended_is_told_nothing(tmp_path: Path, way: str, backend: str) -> None:
    # Whichever event loop is awake finds what is to be told to others.
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    path = str(tmp_path / "s")
    with serving(path) as server:
        mine = open_channel(settings(path), f"unix:{path}")
        await mine.ready()
        for _ in range(3):
            server.ended.clear()
            server.go.clear()
            await anyio.to_thread.run_sync(partial(anyio.run, within, path, WAYS[way], backend=backend))
            server.go.set()
        await mine.aclose()
        await anyio.sleep(0.1)
    assert said == []


async def test_what_goes_on_elsewhere_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with serving(path):
        channel, other = open_channel(settings(path), f"unix:{path}"), open_channel(settings(path), f"unix:{path}")
        await left_open(other)
        await aborted_while_it_reads(channel)
        began = anyio.current_time()
        await channel.aclose()
        assert anyio.current_time() - began < _TURNS * _TURN
        await other.aclose()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_tasks_of_any_kind_may_run_meanwhile(tmp_path: Path) -> None:
    class Request(Coroutine[Any, Any, None]):
        """As aiohttp has them: awaitable, and no coroutine of a function."""

        def send(self, value: Any) -> Any:
            return asyncio.sleep(0).__await__().send(value)

        def throw(self, *given: Any) -> Any:
            raise given[0]

        def close(self) -> None:
            pass

        def __await__(self) -> Any:
            return self

    path = str(tmp_path / "s")
    with serving(path):
        channel = open_channel(settings(path), f"unix:{path}")
        await aborted_while_it_reads(channel)
        task = asyncio.get_running_loop().create_task(Request())
        await channel.aclose()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_an_agent_that_is_closed_by_who_is_cancelled_closes_all_its_channels() -> None:
    with Peer().on_a_socket() as one, Peer().on_a_socket() as other:
        transport = GrpcTransport([f"grpc+unix://{path}" for path in (one, other)], connect_timeout=30.0)
        client: Any = transport.bind("agent", events=frozenset({EventType.REQUEST_HEADERS}))
        await client.connect()
        pool = client._pools.peek()
        assert len(pool._channels) == 2
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pool.aclose()
        assert all(channel.closed for channel in pool._channels.values())
        await client.aclose()
