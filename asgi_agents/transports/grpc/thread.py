"""gRPC on event loops other than asyncio's: its library runs on one of asyncio's, in a thread of its own.

There is one such thread in a process, as long as somebody needs it.
"""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import ClassVar, Final, Self, TypeVar

import anyio
from anyio import CancelScope

from ...concurrency.event_loop import EventLoop, Wakeup
from ...errors import AgentConnectionError, AgentError
from ..wire import Receiver
from .pump import MessagePump

T = TypeVar("T")

# Messages on their way to the other event loop before no more are read, and their bytes; and how few there are when
# reading goes on.
_MANY: Final = 64
_MANY_BYTES: Final = 1024 * 1024
_FEW: Final = 16
_FEW_BYTES: Final = 256 * 1024


class AsyncioThread:
    """A thread in which an event loop of asyncio runs. It is shared: see :meth:`acquire`."""

    _lock: ClassVar = threading.Lock()
    _shared: ClassVar["AsyncioThread | None"] = None

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._users = 0
        self._process = os.getpid()
        self._thread = threading.Thread(target=Context().run, args=(self._run,), name="asgi_agents grpc", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls) -> Self:
        """The thread, started if there is none. Who got it calls :meth:`release` in the end."""
        with cls._lock:
            shared = cls._shared
            # A forked process has none of the threads of its parent.
            if not isinstance(shared, cls) or shared._process != os.getpid():
                shared = cls._shared = cls()
            shared._users += 1
            return shared

    def release(self) -> None:
        """It is not needed any more: the last to say so ends it."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            if AsyncioThread._shared is self:
                AsyncioThread._shared = None
        self.call(self.loop.stop)

    def call(self, function: Callable[[], object]) -> None:
        """Call ``function`` in the thread, unless it has ended."""
        # A RuntimeError says that the event loop is closed.
        with suppress(RuntimeError):
            # Not in the caller's context: that says which event loop the caller has.
            self.loop.call_soon_threadsafe(function, context=Context())

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await ``function()`` in the thread. When this is cancelled, so is that, and this waits for its end."""
        wakeup = Wakeup()
        outcome: list[asyncio.Task[T]] = []

        async def body() -> T:
            return await function()

        def start() -> None:
            task = self.loop.create_task(body())
            outcome.append(task)
            task.add_done_callback(lambda _: wakeup.wake())

        self.call(start)
        try:
            await wakeup.wait()
        except BaseException:
            self.call(lambda: outcome[0].cancel())
            with CancelScope(shield=True):
                await wakeup.wait()
            raise
        try:
            return outcome[0].result()
        except asyncio.CancelledError:
            raise AgentConnectionError("the channel was closed") from None

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            try:
                for task in asyncio.all_tasks(self.loop):
                    task.cancel()
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            finally:
                asyncio.set_event_loop(None)
                self.loop.close()


class ThreadedWire:
    """A Wire of the running event loop whose pump is in the thread. The receiver is called on the running event loop.

    :param open_pump: called in the thread, with the receiver of the pump that it is to start and return.
    """

    def __init__(self, thread: AsyncioThread, open_pump: Callable[[Receiver], MessagePump], receiver: Receiver) -> None:
        self._thread = thread
        self._receiver = receiver
        self._home = EventLoop()
        self._pump: MessagePump | None = None
        self._closed = anyio.Event()
        # Counted in the thread, and on the event loop.
        self._came = self._handed_over = 0
        self._came_bytes = self._handed_over_bytes = 0
        # The other way round. Both are bytes.
        self._written = self._passed_on = 0
        self._held_up = False
        # The receiver takes no more, whatever the event loop has caught up with.
        self._paused = False
        thread.call(partial(self._open, open_pump))

    # In the thread

    def _open(self, open_pump: Callable[[Receiver], MessagePump]) -> None:
        try:
            self._pump = open_pump(self)
        except Exception as exc:
            self.connection_lost(exc if isinstance(exc, AgentError) else AgentConnectionError(type(exc).__name__))
            self._set_closed()
        else:
            self._pump.when_closed = self._set_closed

    def _set_closed(self) -> None:
        self._home.call_soon(self._closed.set)

    def _pass_on(self, data: bytes) -> None:
        self._passed_on += len(data)
        if self._pump is not None:
            self._pump.write(data)

    async def _caught_up(self) -> None:
        if self._pump is not None:
            await self._pump.catch_up()

    async def _drained(self) -> None:
        # It is called behind all that was written before.
        if self._pump is not None:
            await self._pump.drain()

    def data_received(self, data: bytes) -> None:
        self._came += 1
        self._came_bytes += len(data)
        if self._came - self._handed_over > _MANY or self._came_bytes - self._handed_over_bytes >= _MANY_BYTES:
            self._held_up = True
            assert self._pump is not None
            self._pump.pause_reading()
        self._home.call_soon(partial(self._hand_over, data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._home.call_soon(partial(self._receiver.connection_lost, exc))

    # On the event loop

    def _hand_over(self, data: bytes) -> None:
        self._handed_over += 1
        self._handed_over_bytes += len(data)
        if (
            self._held_up
            and self._came - self._handed_over < _FEW
            and self._came_bytes - self._handed_over_bytes < _FEW_BYTES
        ):
            self._held_up = False
            if not self._paused:
                self._tell(MessagePump.resume_reading)
        self._receiver.data_received(data)

    def _tell(self, function: Callable[[MessagePump], object]) -> None:
        def tell() -> None:
            if self._pump is not None:
                function(self._pump)

        self._thread.call(tell)

    @property
    def congested(self) -> bool:
        # What has not come to the pump yet is held as well.
        return not self.closed and (
            self._written - self._passed_on >= _MANY_BYTES or (self._pump is not None and self._pump.congested)
        )

    @property
    def unread(self) -> bool:
        return self._came > self._handed_over

    @property
    def turns_behind(self) -> int:
        return 1

    async def catch_up(self) -> None:
        """Wait until the receiver has what has come."""
        if not self.closed:
            # That it is done comes behind what has come.
            await self._thread.run(self._caught_up)

    def pause_reading(self) -> None:
        self._paused = True
        self._tell(MessagePump.pause_reading)

    def resume_reading(self) -> None:
        self._paused = False
        self._tell(MessagePump.resume_reading)

    def write(self, data: bytes) -> None:
        self._written += len(data)
        self._thread.call(partial(self._pass_on, data))

    async def drain(self) -> None:
        if self.congested:
            await self._thread.run(self._drained)

    def end(self) -> None:
        """Send no more than what was written. The peer may still send."""
        self._tell(MessagePump.end)

    def close(self) -> None:
        self._tell(MessagePump.close)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def abort(self) -> None:
        self._tell(MessagePump.abort)

    async def wait_closed(self) -> None:
        await self._closed.wait()
