"""Which connection a call gets, and when idle ones are closed."""

import time
from typing import Any

import anyio
import anyio.abc
import pytest

from asgi_agents.transports import HttpTransport, connections
from tests.transports.test_http import CHUNK, allow_everything, raw_agent, raw_answer, read_request, stall


async def call_at_once(transport: HttpTransport, calls: int) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(calls):
            group.start_soon(transport.call, CHUNK)


async def test_idle_connections_are_closed_without_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEEPALIVE_EXPIRY", 0.05)
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url)
        for _ in range(2):
            await call_at_once(transport, 5)
            await agent.has_open(0)
        assert agent.accepted == 10
        await transport.aclose()


async def test_those_that_are_used_stay_open_while_the_rest_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEEPALIVE_EXPIRY", 1.0)
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url)
        await call_at_once(transport, 5)
        assert agent.accepted == 5
        pool: Any = transport._connections.peek()  # type: ignore[union-attr]
        with anyio.fail_after(60):
            while agent.open > 1:
                await transport.call(CHUNK)
                # As if all of them had been idle for longer.
                pool._idle = type(pool._idle)((since - 0.01, connection) for since, connection in pool._idle)
                pool._idle[-1] = (time.monotonic(), pool._idle[-1][1])
                pool._close_expired()
        assert agent.accepted == 5
        await transport.aclose()


async def test_a_connection_that_has_expired_is_not_used_though_it_is_still_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url)
        await call_at_once(transport, 3)
        # The timer is late.
        monkeypatch.setattr(connections, "KEEPALIVE_EXPIRY", -1.0)
        await transport.call(CHUNK)
        await agent.has_open(1)
        assert agent.accepted == 4
        await transport.aclose()


async def test_connections_that_agents_have_closed_are_forgotten() -> None:
    async with raw_agent(allow_everything) as agent:
        transport = HttpTransport(agent.url)
        await call_at_once(transport, 3)
        pool: Any = transport._connections.peek()  # type: ignore[union-attr]
        idle = [connection for _, connection in pool._idle]
    for connection in idle:
        await connection.wait_closed()
    pool._close_expired()
    assert not pool._idle
    assert not pool._armed
    await transport.aclose()


async def test_a_connection_whose_call_ends_after_the_others_were_closed_is_closed_with_it() -> None:
    received, proceed = anyio.Event(), anyio.Event()

    async def behave(stream: anyio.abc.ByteStream) -> None:
        await read_request(stream)
        received.set()
        await proceed.wait()
        await stream.send(raw_answer())
        await stall(stream)

    async with raw_agent(behave) as agent:
        transport = HttpTransport(agent.url)
        async with anyio.create_task_group() as group:
            group.start_soon(transport.call, CHUNK)
            await received.wait()
            pool: Any = transport._connections.peek()  # type: ignore[union-attr]
            await transport.aclose()
            proceed.set()
        assert not pool._idle
        assert not pool._armed
        await agent.has_open(0)
