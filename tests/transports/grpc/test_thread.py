"""Messages that cross from the thread of gRPC's library to another event loop."""

from collections.abc import Callable

import pytest

from asgi_agents.transports.grpc.pump import MessagePump
from asgi_agents.transports.grpc.thread import _MANY, AsyncioThread, ThreadedWire
from tests.transports.stream.pools import until

pytestmark = pytest.mark.anyio


class HereAndNow(AsyncioThread):
    """Calls at once what is to be called in the thread."""

    def __init__(self) -> None:
        pass

    def call(self, function: Callable[[], object]) -> None:
        function()


class Pump(MessagePump):
    """Carries nothing."""

    def __init__(self) -> None:
        self._readable = None

    @property
    def paused(self) -> bool:
        return self._readable is not None


class Receiver:
    """Takes one message, and then no more."""

    def __init__(self) -> None:
        self.wire: ThreadedWire | None = None
        self.taken = 0

    def data_received(self, data: bytes) -> None:
        self.taken += 1
        if self.taken == 1:
            assert self.wire is not None
            self.wire.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        raise AssertionError


async def test_a_receiver_that_takes_no_more_is_not_read_for_when_the_event_loop_has_caught_up() -> None:
    pump = Pump()
    receiver = Receiver()
    wire = receiver.wire = ThreadedWire(HereAndNow(), lambda _: pump, receiver)
    for _ in range(_MANY + 1):
        wire.data_received(b"x")
    assert pump.paused
    await until(lambda: receiver.taken > _MANY)
    assert pump.paused
    wire.resume_reading()
    assert not pump.paused
