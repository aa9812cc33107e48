"""The clients' side of one connection, for HTTP and for websockets."""

import asyncio
import functools
import re
import time
from typing import Final, cast

_PATH: Final = b"/items/42?verbose=1"
_HEADERS: Final = (
    b"host: 127.0.0.1\r\n"
    b"user-agent: benchmark/1\r\n"
    b"accept: application/json, text/plain, */*\r\n"
    b"accept-encoding: gzip, deflate\r\n"
    b"authorization: Bearer 0123456789abcdef0123456789abcdef\r\n"
)
_HANDSHAKE: Final = (
    b"GET /echo HTTP/1.1\r\n"
    + _HEADERS
    + b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    + b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)

# RFC 6455, section 5.2. Clients must mask what they send; with a key of zeros that changes nothing.
_TEXT: Final = 0x81
_PING: Final = 0x89
_PONG: Final = 0x8A
_KEY: Final = bytes(4)


class LoadError(Exception):
    """A response that is not what was expected."""


def response_length(data: bytes) -> int | None:
    """How long the response is that ``data`` begins with; None as long as its head is not complete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    found = _CONTENT_LENGTH.search(data, 0, end + 2)
    if found is None:
        raise LoadError(f"no content-length in {data[:end]!r}")
    return end + 4 + int(found[1])


@functools.lru_cache(maxsize=1)
def request(upload: int | None) -> tuple[bytes, bytes]:
    """The head, and the body of that many bytes."""
    if upload is None:
        return b"GET " + _PATH + b" HTTP/1.1\r\n" + _HEADERS + b"\r\n", b""
    length = b"content-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n" % upload
    return b"POST /uploads HTTP/1.1\r\n" + _HEADERS + length, b"x" * upload


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A frame of a payload of at most 125 bytes; ``opcode`` with the FIN bit."""
    return bytes((opcode, 0x80 | len(payload))) + _KEY + payload


class Client(asyncio.Protocol):
    """One connection. Appends to ``latencies``; ``failed`` is told of what ends it."""

    _transport: asyncio.WriteTransport
    _sent: float

    def __init__(self, latencies: list[float], failed: asyncio.Future[None]) -> None:
        self._latencies = latencies
        self._failed = failed
        self._received = b""
        self._ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(LoadError(f"the server closed a connection: {exc!r}"))

    def end(self) -> None:
        """Ask no more. The connection is closed when the last response is there."""
        self._ending = True

    def abort(self) -> None:
        self._transport.abort()

    @property
    def ended(self) -> bool:
        return self._transport.is_closing()

    def _fail(self, exc: LoadError) -> None:
        self._transport.abort()
        if not self._failed.done():
            self._failed.set_exception(exc)


class HttpClient(Client):
    def __init__(self, latencies: list[float], failed: asyncio.Future[None], upload: int | None) -> None:
        super().__init__(latencies, failed)
        self._head, self._body = request(upload)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        try:
            length = response_length(data)
        except LoadError as exc:
            self._fail(exc)
            return
        if length is None or len(data) < length:
            self._received = data
            return
        if len(data) > length or not data.startswith(b"HTTP/1.1 200 "):
            self._fail(LoadError(f"expected one response with status 200, not {data!r}"))
            return
        self._received = b""
        self._latencies.append(time.perf_counter() - self._sent)
        self._ask()

    def _ask(self) -> None:
        if self._ending:
            self._transport.abort()
            return
        self._sent = time.perf_counter()
        self._transport.write(self._head)
        if self._body:
            self._transport.write(self._body)


class WebSocketClient(Client):
    """Sends text messages, and waits for the echo of each.

    :param size: of each message, in bytes, at most 125.
    """

    def __init__(self, latencies: list[float], failed: asyncio.Future[None], size: int) -> None:
        super().__init__(latencies, failed)
        self._open = False
        self._payload = b"x" * size
        self._message = client_frame(_TEXT, self._payload)
        self._echo = bytes((_TEXT, size)) + self._payload

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport.write(_HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        if data == self._echo and not self._received:
            self._answered()
            return
        data = self._received + data
        if not self._open:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._received = head
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._fail(LoadError(f"expected a websocket, not {head!r}"))
                return
            self._open = True
            self._opened()
        while len(data) >= 2 and len(data) >= 2 + data[1]:
            frame, data = data[: 2 + data[1]], data[2 + data[1] :]
            if frame == self._echo:
                self._answered()
            elif frame[0] == _PING:
                self._transport.write(client_frame(_PONG, frame[2:]))
            else:
                self._fail(LoadError(f"expected the echo of a message, not {frame!r}"))
                return
        self._received = data

    def ask(self) -> None:
        if self._ending:
            self._transport.abort()
            return
        self._sent = time.perf_counter()
        self._transport.write(self._message)

    def _opened(self) -> None:
        self.ask()

    def _answered(self) -> None:
        self._latencies.append(time.perf_counter() - self._sent)
        self.ask()
