"""Messages that cross from the thread of gRPC's library to another event loop."""

from collections.abc import Callable

import pytest

from asgi_agents.transports.grpc.pump import MessagePump
from asgi_agents.transports.grpc.thread import _FEW_BYTES, _MANY, _MANY_BYTES, AsyncioThread, ThreadedWire
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


class Sink(Pump):
    """Takes all that is written."""

    written = 0
    congested = False

    def write(self, data: bytes) -> None:
        self.written += len(data)


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


class Later(HereAndNow):
    """Calls nothing before it is told to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def call(self, function: Callable[[], object]) -> None:
        self.calls.append(function)

    def catch_up(self) -> None:
        while self.calls:
            self.calls.pop(0)()


class Taker:
    """Takes all that comes, and knows how many bytes that is."""

    def __init__(self) -> None:
        self.taken = 0

    def data_received(self, data: bytes) -> None:
        self.taken += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        raise AssertionError


@pytest.mark.parametrize("size", [1, 1000, 20_000, 300_000, _MANY_BYTES, 4 * _MANY_BYTES])
async def test_what_is_on_its_way_to_the_event_loop_is_bounded_in_messages_and_in_bytes(size: int) -> None:
    pump, receiver = Pump(), Taker()
    wire = ThreadedWire(HereAndNow(), lambda _: pump, receiver)
    came = 0
    for _ in range(5):
        sent = 0
        # The peer has as much as it is let.
        while not pump.paused:
            wire.data_received(bytes(size))
            sent += 1
        assert sent <= _MANY + 1
        assert sent * size < _MANY_BYTES + size
        came += sent * size
        # It is read on when the event loop has caught up, and not before.
        assert receiver.taken < came
        await until(lambda came=came: receiver.taken == came)  # type: ignore[misc]
        assert not pump.paused


async def test_it_is_read_on_when_few_bytes_are_left() -> None:
    pump, receiver = Pump(), Taker()
    wire = ThreadedWire(HereAndNow(), lambda _: pump, receiver)
    pieces = [_MANY_BYTES // 2, _MANY_BYTES // 2, _FEW_BYTES]
    for size in pieces:
        wire.data_received(bytes(size))
    assert pump.paused
    wire._hand_over(bytes(pieces[0]))
    wire._hand_over(bytes(pieces[1]))
    assert pump.paused
    wire._hand_over(bytes(pieces[2]))
    assert not pump.paused


async def test_what_is_on_its_way_to_the_pump_makes_a_writer_wait() -> None:
    thread, pump = Later(), Sink()
    wire = ThreadedWire(thread, lambda _: pump, Taker())
    for times in range(1, 4):
        wire.write(bytes(_MANY_BYTES - 1))
        assert not wire.congested
        wire.write(b"x")
        assert wire.congested
        thread.catch_up()
        assert not wire.congested
        assert pump.written == times * _MANY_BYTES
