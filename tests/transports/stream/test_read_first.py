"""What has come is read before anything is sent; in virtual time."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from asgi_agents.protocol import Encoding
from asgi_agents.protocol.stream import Framing
from asgi_agents.transports.stream.connection import AgentConnection
from asgi_agents.transports.stream.flow_control import Capacity


class Owner:
    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *args, **more: None


class Wire:
    """Its bytes come from another thread, which is held up for so many seconds."""

    turns_behind = 1

    def __init__(self, seconds: float) -> None:
        self._until = anyio.current_time() + seconds
        self.closed = False

    @property
    def unread(self) -> bool:
        return anyio.current_time() < self._until

    def abort(self) -> None:
        self.closed = True

    close = abort


async def read_first(wire: Any) -> AgentConnection:
    connection = AgentConnection(Framing.V2, (Encoding.JSON,), Owner(), Capacity(), max_calls=3)  # type: ignore[arg-type]
    connection.alive = True
    await connection._read_first(wire)
    return connection


async def test_a_thread_that_waits_for_the_interpreter_is_no_flood() -> None:
    """It waits for five milliseconds while another thread computes (``sys.getswitchinterval``), and then for others."""
    assert not (await read_first(Wire(0.02))).fault


@pytest.mark.parametrize("seconds", [1.0, 3600.0])
async def test_a_peer_that_never_stops_is_given_up(seconds: float) -> None:
    assert (await read_first(Wire(seconds))).fault == "it sends more than can be read"
