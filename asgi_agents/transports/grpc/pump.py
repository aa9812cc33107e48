"""The messages of one gRPC call, in both directions, as a :class:`~asgi_agents.transports.wire.Wire`.

One task reads and one writes. They belong to the call and to no caller: to cancel a ``read()`` of grpc.aio ends the
whole call.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Final, Protocol

from ...concurrency.background import Timer
from ...errors import AgentError
from ..wire import Receiver

# Bytes that may wait to be sent before `congested` says so.
_HIGH_WATER: Final = 256 * 1024
#: Seconds that a server may take to end its side, once we have ended ours.
LINGER: Final = 1.0
# Seconds in which a message that was sent right behind another has come.
_RIGHT_BEHIND: Final = 0.002
# How often :meth:`MessagePump.catch_up` goes through gRPC's library. Of 600 messages that had just come, on a machine
# with four times as many busy threads as processors, the first time came before 9, and the second before one.
_ROUNDS: Final = 3


class MessageCall(Protocol):
    """A call of grpc.aio, from either end of it.

    :ivar ends_with_us: whether it is over once we send no more, as it is at the serving end.
    :ivar linger: seconds that the peer may take, once we have closed, for what was written and to end its side.
    """

    ends_with_us: bool

    @property
    def linger(self) -> float: ...

    async def begin(self) -> None:
        """Called once, before the first message is sent. It takes a moment, and is not cancelled. Raises nothing."""
        ...

    async def read(self) -> bytes | None:
        """The next message; None where the peer has ended its side in order.

        :raises AgentError: the call is over.
        """
        ...

    async def write(self, message: bytes) -> bool:
        """Send a message; False where the call is over. Never while another write is under way."""
        ...

    async def end(self) -> None:
        """Send no more."""
        ...

    def cancel(self) -> None:
        """End the call at once, if it isn't over."""
        ...


class MessagePump:
    """A Wire for messages: what is written at once arrives at once, as one call of ``data_received``.

    It is for asyncio only, and begins at once. It may be made in a callback, in which anyio has no tasks.

    :param pass_through: comes back once gRPC's library has handed over what it had for the event loop when this began.
    :param half_open: go on writing when the peer has ended its side, until this side is ended too. Otherwise the peer
        is gone then.
    """

    def __init__(
        self,
        call: MessageCall,
        receiver: Receiver,
        *,
        pass_through: Callable[[], Awaitable[object]] | None = None,
        half_open: bool = False,
    ) -> None:
        self._call = call
        self._receiver = receiver
        self._pass_through = pass_through
        self._heard_at = 0.0
        self._half_open = half_open
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._writable: asyncio.Event | None = None
        self._readable: asyncio.Event | None = None
        self._ending = self._lost_told = self._read_to_the_end = False
        self._begun = self._beginning = False
        self._lost: Exception | None = None
        #: Whether :meth:`abort` has ended it.
        self.aborted = False
        #: Called, last of all, when nothing of it is left.
        self.when_closed: Callable[[], object] = lambda: None
        self._linger = Timer(self.abort)
        self._closed = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._writer = loop.create_task(self._write(), context=Context())
        self._reader = loop.create_task(self._read(), context=Context())
        self._reader.add_done_callback(self._end)

    def _end(self, reader: asyncio.Task[None]) -> None:
        by_us, self._ending = self._ending, True
        self._linger.disarm()
        if not reader.cancelled():
            # Or else asyncio says that nobody has asked.
            reader.exception()
        self._unsent.clear()
        # One that begins the call finds that there is nothing more to do.
        if not self._beginning:
            self._writer.cancel()
        self._writer.add_done_callback(self._finish)
        # If neither the peer nor we have ended it, the event loop is ending, and the receiver is not called.
        if (self._read_to_the_end or by_us) and not self._lost_told:
            self._receiver.connection_lost(self._lost)

    def _finish(self, writer: asyncio.Task[None]) -> None:
        self._call.cancel()
        self._caught_up()
        self._closed.set()
        self.when_closed()

    async def _read(self) -> None:
        call, receiver = self._call, self._receiver
        try:
            while True:
                if self._readable is not None:
                    await self._readable.wait()
                message = await call.read()
                if message is None:
                    break
                self._heard_at = time.monotonic()
                receiver.data_received(message)
                # Not held until the next comes, nor by what this ends with.
                del message
        except AgentError as exc:
            self._lost = exc
        self._read_to_the_end = True
        if self._half_open and self._lost is None:
            self._lost_told = True
            receiver.connection_lost(None)
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        call, unsent = self._call, self._unsent
        loop = asyncio.get_running_loop()
        while True:
            while unsent:
                if not self._begun:
                    self._begun = self._beginning = True
                    await call.begin()
                    self._beginning = False
                    continue
                message = unsent.popleft()
                if not await call.write(message):
                    # The reader learns why.
                    return
                self._unsent_bytes -= len(message)
                if self._writable is not None and self._unsent_bytes <= _HIGH_WATER:
                    self._caught_up()
            if self._ending:
                await call.end()
                if call.ends_with_us:
                    self._reader.cancel()
                return
            self._wake = loop.create_future()
            await self._wake
            self._wake = None

    def _wake_writer(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _caught_up(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    # A Wire

    @property
    def congested(self) -> bool:
        return self._writable is not None

    @property
    def unread(self) -> bool:
        # What gRPC's library holds can't be seen.
        return False

    @property
    def turns_behind(self) -> int:
        return 0

    async def catch_up(self) -> None:
        """Wait until the receiver has what has come, and what was sent right behind that: a few milliseconds.

        gRPC's library does not say whether a message has come that nobody has read yet.
        """
        rest = self._heard_at + _RIGHT_BEHIND - time.monotonic()
        if rest > 0:
            await asyncio.sleep(rest)
        if self._pass_through is not None:
            for _ in range(_ROUNDS):
                await self._pass_through()

    def pause_reading(self) -> None:
        if self._readable is None:
            self._readable = asyncio.Event()

    def resume_reading(self) -> None:
        if self._readable is not None:
            self._readable.set()
            self._readable = None

    def write(self, data: bytes) -> None:
        if self._ending:
            return
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > _HIGH_WATER and self._writable is None:
            self._writable = asyncio.Event()
        self._wake_writer()

    async def drain(self) -> None:
        if self._writable is not None:
            await self._writable.wait()

    def end(self) -> None:
        """Send no more than what was written. The peer may still send."""
        self._ending = True
        self._wake_writer()

    def close(self) -> None:
        self.end()
        if not self.closed:
            self._linger.arm(self._call.linger)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def abort(self) -> None:
        self._ending = self.aborted = True
        self._reader.cancel()

    async def wait_closed(self) -> None:
        await self._closed.wait()
