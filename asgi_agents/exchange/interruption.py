"""Ending somebody's wait from outside."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.lowlevel

from ..concurrency.background import on_trio

T = TypeVar("T")


class Interruption:
    """Lets one task wait for something until it comes, or until :meth:`interrupt`.

    What a cancel scope is for. But on asyncio to enter and to leave one takes longer than to judge a message, and this
    is done for each; so there the task is cancelled, and told that it was not.
    """

    __slots__ = ("_called", "_scope", "_task")

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        self._task: asyncio.Task[object] | None = None
        self._called = False

    def interrupt(self) -> None:
        """Whoever waits, waits no longer."""
        if self._scope is not None:
            self._scope.cancel()
        elif self._task is not None and not self._called:
            self._called = True
            self._task.cancel()

    async def wait_for(self, function: Callable[[], Awaitable[T]]) -> T | None:
        """What ``function`` comes to, or None where it was interrupted."""
        if on_trio():
            with anyio.CancelScope() as self._scope:
                return await function()
            return None
        task = self._task = asyncio.current_task()
        assert task is not None
        cancellations = task.cancelling()
        try:
            return await function()
        except asyncio.CancelledError:
            if self._called and task.cancelling() - 1 <= cancellations:
                return None
            # Somebody else has cancelled it. A scope knows its own cancellation when it meets it, but this one is ours
            # if we were first: the scope would let it go on, through the app and to whoever stands around us.
            await anyio.lowlevel.checkpoint_if_cancelled()
            raise
        finally:
            self._task = None
            if self._called:
                self._called = False
                task.uncancel()
