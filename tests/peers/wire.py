"""Frames on a byte stream, read and written one at a time."""

import anyio
from anyio.abc import ByteStream
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


#: How a connection ends.
ENDS = (
    anyio.EndOfStream,
    anyio.IncompleteRead,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    OSError,
)
