"""Ending the wait of a task from outside."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from ..concurrency.background import asyncio_loop

T = TypeVar("T")


class Interruption:
    """Lets one task wait for something until it comes, or until :meth:`interrupt`.

    A cancel scope does the same. But on asyncio, entering and leaving one takes longer than judging a message, and this
    is done for each message. So there the task itself is cancelled, and its cancellation is undone.

    It belongs to the event loop that it was made on.
    """

    __slots__ = ("_called", "_cancellations", "_loop", "_scope", "_task")

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None
        self._task: asyncio.Task[Any] | None = None
        # How often others had cancelled it before the wait.
        self._cancellations = 0
        self._called = False
        # asyncio's; to ask for it takes longer than the rest of most waits.
        self._loop = asyncio_loop()

    def interrupt(self) -> None:
        """End the wait, if there is one."""
        if self._scope is not None:
            self._scope.cancel()
        elif self._task is not None and not self._called:
            self._called = True
            self._task.cancel()

    async def wait_for(self, function: Callable[[], Awaitable[T]]) -> T | None:
        """What ``function`` comes to, or None where it was interrupted."""
        if self._loop is None:
            with anyio.CancelScope() as self._scope:
                return await function()
            return None
        task = asyncio.current_task(self._loop)
        assert task is not None
        self.begin(task, task.cancelling())
        try:
            return await function()
        except asyncio.CancelledError:
            if not await self.is_ours():
                raise
            return None
        finally:
            self.end()

    # Its parts, for who drives a coroutine; on asyncio.

    def begin(self, task: "asyncio.Task[Any] | None", cancellations: int) -> None:
        """``task`` waits, which others had cancelled ``cancellations`` times when it began to."""
        assert task is not None
        self._task = task
        self._cancellations = cancellations

    async def is_ours(self) -> bool:
        """Whether the cancellation that has ended the wait, and is being handled, is ours alone."""
        assert self._task is not None
        if self._called and self._task.cancelling() - 1 <= self._cancellations:
            return True
        # Others have cancelled it as well. A cancel scope recognises its own cancellation. But if we were first, this
        # one is ours, and the scope would let it go on, through the app and to the middlewares around us.
        await anyio.lowlevel.checkpoint_if_cancelled()
        return False

    def end(self) -> None:
        """The wait is over."""
        task, self._task = self._task, None
        if self._called and task is not None:
            self._called = False
            task.uncancel()
