"""A request body that is kept until all of it was judged, so that the app can be told how long it is."""

from contextlib import suppress
from tempfile import TemporaryFile
from threading import Lock
from typing import Final

import anyio
from anyio import CancelScope
from starlette.types import Message, Receive

from ..memory.pieces import Pieces

#: How many bytes are kept in memory; what is beyond goes to a temporary file.
MAX_MEMORY_BYTES: Final = 1024 * 1024
# How much of a file the app gets at a time.
_PIECE: Final = 64 * 1024


class Spool:
    """Takes a body in pieces, and gives it back in order. Memory first, then a temporary file without a name."""

    def __init__(self) -> None:
        #: Bytes taken so far.
        self.size = 0
        self._pieces = Pieces()
        self._file: anyio.AsyncFile[bytes] | None = None
        self._in_file = 0
        self._ended = False
        self._closed = False
        # Held while the file is read or closed. Both run in threads, which may go on when their task was cancelled.
        self._lock = Lock()

    async def write(self, data: bytes) -> None:
        """Keep ``data``. Raises OSError where the file system has no room."""
        if self._file is None and self.size + len(data) > MAX_MEMORY_BYTES:
            with CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._open)
        if self._file is not None:
            await self._file.write(data)
            self._in_file += len(data)
        else:
            self._pieces.append(data)
        self.size += len(data)

    async def rewind(self) -> None:
        """Nothing more is written: what was is to be read."""
        if self._file is not None:
            await self._file.seek(0)

    def receive(self, rest: Receive, *, ended: bool) -> Receive:
        """A ``receive`` that gives the body and then what ``rest`` gives.

        ``ended``: the body is all here. Messages of ``rest`` that belong to the body are left out then.
        """

        async def receive() -> Message:
            while True:
                # In this order, and the other way round where it is read: never does it look as if nothing were left.
                in_file = self._in_file
                if self._pieces:
                    return self._message(self._pieces.popleft(), ended)
                if not in_file:
                    break
                # A receive within a cancelled scope gets what is there, as from a server. Another task may take it.
                with CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._read_piece)
            if ended and not self._ended:
                return self._message(b"", ended)
            message = await rest()
            while ended and message["type"] == "http.request":
                message = await rest()
            return message

        return receive

    def _open(self) -> None:
        """Make the file. Runs in a thread."""
        self._file = anyio.wrap_file(TemporaryFile())  # noqa: SIM115 - aclose() closes it
        # In this order, and the other way round in aclose(): whichever comes last closes it.
        if self._closed:
            self._close()

    def _read_piece(self) -> None:
        """Read the next piece of the file, for the first task that asks. Runs in a thread."""
        with self._lock:
            if self._file is None or not self._in_file or self._pieces:
                return
            data = self._file.wrapped.read(_PIECE)
            self._pieces.append(data)
            self._in_file -= len(data)

    def _message(self, data: bytes, ended: bool) -> Message:
        more = not ended or bool(self._pieces) or self._in_file > 0
        self._ended = self._ended or not more
        return {"type": "http.request", "body": data, "more_body": more}

    async def aclose(self) -> None:
        """Delete the file, if there is one. A task that still reads the body finds that the request is over."""
        self._ended = self._closed = True
        self._pieces.clear()
        if self._file is not None:
            # What there was no room for, it tries to write once more.
            with CancelScope(shield=True), suppress(OSError):
                await anyio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        with self._lock:
            self._in_file = 0
            self._pieces.clear()
            assert self._file is not None
            self._file.wrapped.close()
