"""Frames on a byte stream, read and written one at a time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio import CancelScope
from anyio.abc import ByteStream, SocketStream
from anyio.lowlevel import checkpoint
from anyio.streams.buffered import BufferedByteReceiveStream


class Wire:
    """One end of a connection. ``typed``: whether frames have a type byte."""

    def __init__(self, stream: ByteStream, *, typed: bool = True) -> None:
        self._stream = stream
        self._buffered = BufferedByteReceiveStream(stream)
        self._typed = typed
        self._sending = anyio.Lock()

    async def send(self, payload: bytes, message_type: int | None = None) -> None:
        content = payload if message_type is None else bytes([message_type]) + payload
        async with self._sending:
            await self._stream.send(len(content).to_bytes(4, "big") + content)

    async def receive(self) -> tuple[int, bytes]:
        """The type of the next frame, 0 where there are none, and its payload."""
        length = int.from_bytes(await self._buffered.receive_exactly(4), "big")
        content = await self._buffered.receive_exactly(length)
        return (content[0], content[1:]) if self._typed else (0, content)


@asynccontextmanager
async def listening(path: str, serve: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[None]:
    """Within, each connection to a Unix socket at ``path`` is given to ``serve``."""
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
    Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 - at the end of a test, and quick


#: How a connection ends.
ENDS = (
    anyio.EndOfStream,
    anyio.IncompleteRead,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    OSError,
)
