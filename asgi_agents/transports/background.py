"""Tasks that belong to an event loop rather than to whoever started them."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

import anyio
from anyio import CancelScope

logger = logging.getLogger("asgi_agents")

_ASYNCIO_TASKS: set[asyncio.Task[None]] = set()


def on_trio() -> bool:
    """Whether the running event loop is trio's; else it is asyncio's, or one that does as asyncio's does."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


class BackgroundTask:
    """Runs ``function`` on the running event loop until it returns, is cancelled, or the loop ends.

    A connection is shared by requests that come and go, in apps that may have no lifespan, so that there is no task
    group it could be read in. The task sees none of the context variables of the request that happened to start it.
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

    def cancel(self) -> None:
        """Cancel it; see :meth:`wait`."""
        self._scope.cancel()

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._ended.wait()

    async def _run(self, *_: Any) -> None:
        try:
            with self._scope:
                await self._function()
        except Exception:
            # trio would end the program over it.
            logger.exception("a background task failed")
        finally:
            self._ended.set()
