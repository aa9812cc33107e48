"""SIGHUP, for as many as want to know of it."""

import logging
import math
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Final

import anyio

from ..concurrency.event_loop import EventLoop
from .retry import Retry

logger: Final = logging.getLogger("asgi_agents")

#: None: the platform has no such signal.
SIGHUP: Final[int | None] = getattr(signal, "SIGHUP", None)


class _Listener:
    """Who waits for the signal, and on which event loop."""

    def __init__(self) -> None:
        self._loop = EventLoop()
        self._rung = anyio.Event()

    def notify(self) -> None:
        """Called by the handler of the signal, wherever the main thread is just then."""
        self._loop.call_soon(lambda: self._rung.set())

    async def wait(self) -> None:
        """Wait for the signal. One that comes between two calls is not missed."""
        await self._rung.wait()
        self._rung = anyio.Event()


class _Hangups:
    """The handler of the signal, and what was there before it."""

    def __init__(self) -> None:
        self._listeners: list[_Listener] = []
        self._previous: Any = None

    def add(self, listener: _Listener) -> None:
        if not self._listeners:
            assert SIGHUP is not None
            self._previous = signal.signal(SIGHUP, self._handle)
        self._listeners.append(listener)

    def remove(self, listener: _Listener) -> None:
        self._listeners.remove(listener)
        # Who has put another handler in place meanwhile keeps that.
        if not self._listeners and SIGHUP is not None and signal.getsignal(SIGHUP) == self._handle:
            signal.signal(SIGHUP, signal.SIG_DFL if self._previous is None else self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for listener in tuple(self._listeners):
            listener.notify()
        if callable(self._previous):
            self._previous(number, frame)


_HANGUPS: Final = _Hangups()


async def on_hangup(
    function: Callable[[], Awaitable[object]], again: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Call ``function`` after each SIGHUP, until cancelled. Signals that come while it runs lead to one more call.

    Only the main thread can be told of signals: elsewhere the log says so, and nothing happens.

    :param again: what is called while no signal comes, as long as the last call has returned True.
    """
    if threading.current_thread() is not threading.main_thread():
        logger.warning("reload='on-sighup': the app does not run in the main thread, so that no signal reaches it")
        return
    listener = _Listener()
    _HANGUPS.add(listener)
    try:
        retry = Retry()
        while True:
            with anyio.move_on_after(math.inf if again is None else retry.left) as waiting:
                await listener.wait()
            if waiting.cancelled_caught and again is not None:
                retry.note(await again(), first=False)
            else:
                retry.note(await function(), first=True)
    finally:
        _HANGUPS.remove(listener)
