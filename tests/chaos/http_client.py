"""A client that knows whether a response has ended or was cut, which most don't tell."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

# Bytes of the head of a response.
_MAX_HEAD = 64 * 1024


class Ending(Enum):
    """How a response has ended, from the protocol's point of view."""

    #: As its framing says that it does (RFC 9112, section 6).
    COMPLETE = "complete"
    #: The connection was closed before.
    CUT = "cut"
    #: The connection was closed, and the framing had said nothing of an end.
    UNFRAMED = "unframed"
    #: There was no response, or only a part of its head.
    NOTHING = "nothing"
    #: Nothing more came for longer than anybody waits.
    HUNG = "hung"


class Got(NamedTuple):
    """What came in answer to a request; ``seconds`` is how long it took to the end."""

    ending: Ending
    status: int = 0
    headers: dict[str, str] = {}  # noqa: RUF012 - a tuple's default, never written to
    body: bytes = b""
    seconds: float = 0.0


class HttpConnection:
    """One connection to the server, made for the first request."""

    def __init__(self, port: int, patience: float) -> None:
        self._port = port
        self._patience = patience
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]],
        body: Sequence[bytes] = (),
        *,
        chunked: bool = False,
    ) -> Got:
        """Send a request and return what comes of it. Closes the connection unless that was complete."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        partial = _Partial()
        ending = Ending.NOTHING
        sending: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(self._patience):
                reader, writer = await self._connect()
                writer.write(_head(method, path, headers, body, chunked=chunked))
                sending = asyncio.create_task(_send(writer, body, chunked=chunked))
                ending = await partial.read(reader)
        except TimeoutError:
            ending = Ending.HUNG
        except (OSError, EOFError):
            ending = Ending.CUT if partial.status else Ending.NOTHING
        finally:
            whole = sending is not None and sending.done()
            if sending is not None:
                sending.cancel()
            if ending is not Ending.COMPLETE or not whole or partial.headers.get("connection") == "close":
                self.close()
        return Got(ending, partial.status, partial.headers, bytes(partial.body), loop.time() - began)

    async def abandon(self, method: str, path: str, headers: Sequence[tuple[str, str]], patience: float) -> None:
        """Send a request that promises more body than there is, read for ``patience`` seconds, and go away."""
        with suppress(OSError, EOFError, TimeoutError):
            reader, writer = await self._connect()
            length = ("content-length", "1000000")
            writer.write(_head(method, path, [*headers, length] if method == "POST" else headers, (), chunked=False))
            if method == "POST":
                writer.write(b"a beginning")
            async with asyncio.timeout(patience):
                while await reader.read(1000):
                    pass
        self.close()

    def close(self) -> None:
        """Have done with it, at once."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=_MAX_HEAD)
        return self._streams


def _head(method: str, path: str, headers: Sequence[tuple[str, str]], body: Sequence[bytes], *, chunked: bool) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: test", *(f"{name}: {value}" for name, value in headers)]
    if chunked:
        lines.append("transfer-encoding: chunked")
    elif body:
        lines.append(f"content-length: {sum(map(len, body))}")
    return "\r\n".join([*lines, "", ""]).encode()


async def _send(writer: asyncio.StreamWriter, body: Sequence[bytes], *, chunked: bool) -> None:
    with suppress(OSError):
        for piece in body:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        if chunked:
            writer.write(b"0\r\n\r\n")


class _Partial:
    """As much of a response as there is."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()

    async def read(self, reader: asyncio.StreamReader) -> Ending:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.splitlines()
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        self.status = int(first.split()[1])
        if "content-length" in self.headers:
            return await self._take(reader, int(self.headers["content-length"]))
        if self.headers.get("transfer-encoding") != "chunked":
            self.body += await reader.read()
            return Ending.UNFRAMED
        while size := int(await reader.readuntil(b"\r\n"), 16):
            if await self._take(reader, size) is Ending.CUT:
                return Ending.CUT
            await reader.readexactly(2)
        await reader.readexactly(2)
        return Ending.COMPLETE

    async def _take(self, reader: asyncio.StreamReader, size: int) -> Ending:
        try:
            self.body += await reader.readexactly(size)
        except asyncio.IncompleteReadError as exc:
            self.body += exc.partial
            return Ending.CUT
        return Ending.COMPLETE
