"""Something that listens on a Unix socket."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio import CancelScope
from anyio.abc import SocketStream
from anyio.lowlevel import checkpoint


@asynccontextmanager
async def listening(path: str, serve: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[None]:
    """Within, each connection to a Unix socket at ``path`` is given to ``serve``."""
    Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 - quick
    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        try:
            yield
        finally:
            # asyncio's readers don't like to be cancelled in the moment that there is something to read.
            with CancelScope(shield=True):
                for _ in range(5):
                    await checkpoint()
            tasks.cancel_scope.cancel()
    Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 - quick
