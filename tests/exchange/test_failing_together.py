"""Requests that an agent fails for at the same moment, and the next one."""

import anyio
import pytest

from asgi_agents import Agent, AgentConfig, BodyMode, BreakerState, RequestBodyChunkEvent
from tests.support.asgi import App, Client, assert_nothing_left, guarded


class SlowTogether(Agent):
    """Never answers for a body that says ``slow``, and fails for one that says ``bad`` once ``number`` are there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.here = 0
        self.complete = anyio.Event()

    async def on_request_body_chunk(self, event: RequestBodyChunkEvent) -> None:
        if event.data == b"good":
            return
        self.here += 1
        if self.here == self.number:
            self.complete.set()
        await self.complete.wait()
        if event.data == b"slow":
            await anyio.sleep_forever()
        raise ValueError


@pytest.mark.parametrize(("data", "status"), [(b"slow", 504), (b"bad", 503)])
async def test_five_body_chunks_that_fail_together_leave_the_agent_to_everybody_else(data: bytes, status: int) -> None:
    agent = SlowTogether(5)
    middleware = guarded(App(), AgentConfig("agent", agent, request_body_mode=BodyMode.STREAM, chunk_timeout=2.0))
    clients = [Client("POST", body=data) for _ in range(5)]

    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.call, middleware)
    other = Client("POST", body=b"good")
    await other.call(middleware)

    assert [client.status for client in clients] == [status] * 5
    assert other.status == 200
    assert middleware.manager.statistics()["agent"].breaker is BreakerState.CLOSED
    assert_nothing_left(middleware.manager)


async def test_an_outage_shuts_out_the_requests_that_come_next_at_once() -> None:
    agent = SlowTogether(20)
    middleware = guarded(App(), AgentConfig("agent", agent, request_body_mode=BodyMode.STREAM, chunk_timeout=60.0))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(Client("POST", body=b"bad").call, middleware)
    other = Client("POST", body=b"good")
    await other.call(middleware)

    assert other.status == 503
    assert 1 <= int(other.header(b"retry-after") or 0) <= 30
    assert middleware.manager.statistics()["agent"].breaker is BreakerState.OPEN
