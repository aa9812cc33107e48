"""Tasks that belong to an event loop, not to the task that started them."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from typing import Any

import anyio
from anyio import CancelScope

logger = logging.getLogger("asgi_agents")

_ASYNCIO_TASKS: set[asyncio.Task[None]] = set()


def on_trio() -> bool:
    """Whether the running event loop is trio's. Otherwise it is asyncio's, or a compatible one such as uvloop's."""
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    # Another thread may be importing it right now.
    lowlevel = getattr(trio, "lowlevel", None)
    in_trio_run = getattr(lowlevel, "in_trio_run", None)
    # In trio's callbacks there is no task, but trio's event loop runs.
    return in_trio_run is not None and bool(in_trio_run())


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """asyncio's running event loop, or None on others."""
    return None if on_trio() else asyncio.get_running_loop()


class BackgroundTask:
    """Runs ``function`` on the running event loop until it returns, is cancelled, or the loop ends.

    The task that reads a connection needs this: requests share the connection, and the app may have no lifespan, so
    that no task group lives long enough. The task sees none of the context variables of the request that started it.
    """

    def __init__(self, function: Callable[[], Awaitable[object]]) -> None:
        self._function = function
        self._scope = CancelScope()
        self._ended = anyio.Event()
        if on_trio():
            import trio

            trio.lowlevel.spawn_system_task(self._run)
        else:
            task = asyncio.get_running_loop().create_task(self._run(), context=Context())
            # The loop itself keeps no strong reference.
            _ASYNCIO_TASKS.add(task)
            task.add_done_callback(_ASYNCIO_TASKS.discard)
            # A task that is cancelled before its first step never runs.
            task.add_done_callback(lambda _: self._ended.set())

    def cancel(self) -> None:
        """Cancel the task, without waiting until it has ended; :meth:`wait` does that."""
        self._scope.cancel()

    @property
    def ended(self) -> bool:
        """Whether the task has ended."""
        return self._ended.is_set()

    async def wait(self) -> None:
        """Wait until the task has ended."""
        await self._ended.wait()

    async def _run(self, *_: Any) -> None:
        try:
            with self._scope:
                await self._function()
        except Exception:
            # trio would end the whole program.
            logger.exception("a background task failed")
        finally:
            self._ended.set()


class Signal:
    """Something that happens once, for which one task waits.

    On asyncio this is a future: an anyio.Event would take half of a call's time.

    :param loop: asyncio's running event loop; None on others.
    """

    __slots__ = ("_event", "_future", "_loop", "is_set")

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.is_set = False
        self._loop = loop
        self._event: anyio.Event | None = None
        self._future: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the waiting task."""
        self.is_set = True
        if self._future is not None:
            # The future is cancelled with the task that waits for it.
            if not self._future.done():
                self._future.set_result(None)
        elif self._event is not None:
            self._event.set()

    def __await__(self) -> Generator[Any, Any, object]:
        """Wait for :meth:`set`; returns at once if it was called before."""
        if self.is_set:
            return iter_nothing()
        if self._loop is None:
            self._event = anyio.Event()
            return self._event.wait().__await__()
        self._future = self._loop.create_future()
        return self._future.__await__()


def iter_nothing() -> Generator[Any, Any, None]:
    """An awaitable that is ready at once."""
    return
    yield


class Timer:
    """Calls ``function`` on the event loop, once each time it is armed."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._armed: asyncio.TimerHandle | BackgroundTask | None = None

    def arm(self, delay: float) -> None:
        """Call the function in ``delay`` seconds. This replaces the time that was set before."""
        self.disarm()
        if on_trio():
            self._armed = BackgroundTask(lambda: self._fire_in(delay))
        else:
            self._armed = asyncio.get_running_loop().call_later(delay, self._function, context=Context())

    def disarm(self) -> None:
        """Cancel the pending call."""
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None

    async def _fire_in(self, delay: float) -> None:
        await anyio.sleep(delay)
        self._armed = None
        self._function()
