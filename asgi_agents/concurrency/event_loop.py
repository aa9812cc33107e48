"""Event loops that other threads can call, and events that tasks of several event loops can wait for.

A manager may serve several event loops, each in a thread of its own: servers run one in each of their threads, and
tests often do. A task may only be woken by its own event loop.
"""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from threading import RLock
from typing import Any

import anyio

from .background import BackgroundTask, on_trio

_STARTING: set[asyncio.Task[None]] = set()


class EventLoop:
    """The running event loop, to be called from other threads. Holds no strong reference to it.

    Two objects for the same event loop are equal.

    :raises RuntimeError: no event loop runs in this thread.
    """

    __slots__ = ("_native", "_on_trio")

    def __init__(self) -> None:
        self._on_trio = on_trio()
        self._native: weakref.ref[Any] = weakref.ref(_running(self._on_trio))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EventLoop) and self._native == other._native

    def __hash__(self) -> int:
        return hash(self._native)

    @property
    def alive(self) -> bool:
        """Whether the event loop still exists."""
        return self._native() is not None

    @property
    def is_current(self) -> bool:
        """Whether it is the event loop that runs in this thread."""
        here = on_trio()
        if here is not self._on_trio:
            return False
        try:
            return self._native() is _running(here)
        except RuntimeError:
            return False

    def start_soon(self, function: Callable[[], Awaitable[object]]) -> bool:
        """Run ``function`` on the event loop in a :class:`BackgroundTask`; returns what :meth:`call_soon` returns."""
        return self.call_soon(partial(_start, function))

    def call_soon(self, function: Callable[[], object], *, only_if_running: bool = True) -> bool:
        """Call ``function`` on the event loop. It must not raise. Returns False if the loop has ended or doesn't run.

        An asyncio event loop that does not run now may run again. The call then waits for that, unless
        ``only_if_running``.

        On asyncio no task is current in that call, so that ``function`` can't create objects of anyio.
        """
        native = self._native()
        if native is None:
            return False
        try:
            if self._on_trio:
                native.run_sync_soon(function)
            elif native.is_running() or not only_if_running:
                native.call_soon_threadsafe(function, context=Context())
            else:
                return False
        except RuntimeError:
            # The event loop has ended: asyncio raises a RuntimeError, trio a subclass of it.
            return False
        return True


def _start(function: Callable[[], Awaitable[object]]) -> None:
    if on_trio():
        BackgroundTask(function)
        return

    async def start() -> None:
        BackgroundTask(function)

    task = asyncio.get_running_loop().create_task(start(), context=Context())
    # The loop itself keeps no strong reference.
    _STARTING.add(task)
    task.add_done_callback(_STARTING.discard)


def _running(trio_runs: bool) -> Any:
    if trio_runs:
        import trio

        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


class Wakeup:
    """Wakes the task that made this object, once, from any thread."""

    __slots__ = ("_event", "_loop")

    def __init__(self) -> None:
        self._loop = EventLoop()
        self._event = anyio.Event()

    def wake(self) -> bool:
        """End the wait. Returns False if the task can't be woken because its event loop does not run."""
        if self._loop.is_current:
            self._event.set()
            return True
        return self._loop.call_soon(self._event.set)

    def when_its_loop_runs(self, function: Callable[[], object]) -> None:
        """Call ``function`` once the task's event loop runs again, if it ever does."""
        self._loop.call_soon(function, only_if_running=False)

    async def wait(self) -> None:
        """Wait until the task is woken."""
        await self._event.wait()


class SharedEvent:
    """Like :class:`anyio.Event`, for tasks of several event loops. Any thread may set it."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may close a coroutine of this thread, and with it a wait, at any time.
        self._lock = RLock()
        self._waiting: list[Wakeup] = []
        self._is_set = False

    def set(self) -> None:
        """Wake all waiting tasks; later waits return at once."""
        with self._lock:
            self._is_set = True
            waiting, self._waiting = self._waiting, []
        for wakeup in waiting:
            if not wakeup.wake():
                wakeup.when_its_loop_runs(wakeup.wake)

    async def wait(self) -> None:
        """Wait until the event is set."""
        wakeup = Wakeup()
        with self._lock:
            if self._is_set:
                return
            self._waiting.append(wakeup)
        try:
            await wakeup.wait()
        finally:
            with self._lock:
                if wakeup in self._waiting:
                    self._waiting.remove(wakeup)
