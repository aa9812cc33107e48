"""A wire that was opened and is not used after all is closed, in whatever moment that turns out; in virtual time."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from asgi_agents import AgentError, EventType, StreamTransport
from asgi_agents.transports.grpc.agent import GrpcPool
from asgi_agents.transports.grpc.transport import GrpcTransport
from asgi_agents.transports.stream.stream_pool import StreamPool
from asgi_agents.transports.wire import Wire

pytestmark = pytest.mark.anyio

HEADS = frozenset({EventType.REQUEST_HEADERS})


class Silent:
    """A wire whose peer says nothing."""

    congested = unread = closed = False
    turns_behind = 0

    def abort(self) -> None:
        self.closed = True

    close = abort

    def write(self, data: bytes) -> None:
        pass

    async def wait_closed(self) -> None:
        assert self.closed


async def timeout(client: Any) -> None:
    with anyio.move_on_after(10), pytest.raises(AgentError):
        await client.connect()


async def closing(client: Any) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timeout, client)
        await anyio.sleep(0.5)
        await client.aclose()
        tasks.cancel_scope.cancel()


async def removal(client: Any) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timeout, client)
        await anyio.sleep(0.5)
        await client.retire()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("held", [True, False], ids=["configuration held", "no handshake"])
@pytest.mark.parametrize("way_out", [timeout, closing, removal], ids=lambda way_out: way_out.__name__)
@pytest.mark.parametrize(
    ("pool", "transport"),
    [
        (StreamPool, lambda: StreamTransport("tcp://192.0.2.1:1", connections=2, connect_timeout=1, drain_timeout=1)),
        (GrpcPool, lambda: GrpcTransport("grpc://192.0.2.1:1", connections=2, connect_timeout=1, drain_timeout=1)),
    ],
    ids=["stream", "grpc"],
)
async def test_a_wire_that_is_not_used_is_closed(
    pool: type[StreamPool | GrpcPool],
    transport: Callable[[], Any],
    way_out: Callable[[Any], Awaitable[None]],
    held: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wires: list[Silent] = []

    async def open_wire(self: object, endpoint: object, connection: object) -> Wire:
        wires.append(Silent())
        return wires[-1]  # type: ignore[return-value]

    monkeypatch.setattr(pool, "open_wire", open_wire)
    client = transport().bind("a", events=HEADS, config={"x": 1}, max_concurrent_calls=10)
    if held:
        await client.hold_config()
    await way_out(client)
    await client.aclose()
    if held:
        client.release_config()

    assert wires
    assert all(wire.closed for wire in wires)
