"""Something that listens on a Unix socket, or at an address of this machine."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio import CancelScope
from anyio.abc import Listener, SocketStream
from anyio.lowlevel import checkpoint


@asynccontextmanager
async def listening(path: str, serve: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[None]:
    """Within, each connection to a Unix socket at ``path`` is given to ``serve``."""
    Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 - quick
    async with serving(await anyio.create_unix_listener(path), serve):
        yield
    Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 - quick


@asynccontextmanager
async def serving(
    listener: Listener[SocketStream], serve: Callable[[SocketStream], Awaitable[None]]
) -> AsyncIterator[None]:
    """Within, each connection to ``listener`` is given to ``serve``."""
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        try:
            yield
        finally:
            # asyncio's readers don't like to be cancelled in the moment that there is something to read.
            with CancelScope(shield=True):
                for _ in range(5):
                    await checkpoint()
            tasks.cancel_scope.cancel()
