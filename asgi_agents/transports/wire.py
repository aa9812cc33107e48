"""Bytes to and from a peer over a Unix socket or TCP, for both ends of the stream transport.

Bytes are handed to a :class:`Receiver` as soon as they are read, without a task that waits for them. On asyncio this
uses asyncio's own transports, which cost a fraction of a stream that is awaited. On other event loops it uses anyio's
streams, read and written by a background task.
"""

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute
from msgspec import Struct

from ..concurrency.background import BackgroundTask, on_trio
from ..errors import AgentConnectionError, ConfigurationError, text_of
from ..observability.redaction import redact_secrets
from .racing import connect_socket, is_ip_address
from .readable import is_readable

# Bytes that may wait to be sent before `congested` says so.
_HIGH_WATER: Final = 256 * 1024
# On Windows neither Python's sockets nor asyncio's event loops know Unix sockets.
HAS_UNIX_SOCKETS: Final = hasattr(socket, "AF_UNIX") and sys.platform != "win32"
# What fits into a `sockaddr_un`, less its last NUL: 108 bytes on Linux, 104 on macOS and the BSDs.
_MAX_PATH_BYTES: Final = 107 if sys.platform == "linux" else 103
_READ_BYTES: Final = 256 * 1024
# Bytes that wait for the end of the event loop's turn, to be sent together.
_AT_ONCE: Final = 64 * 1024


class Receiver(Protocol):
    """Who gets the bytes of a :class:`Wire`. Both are called on the event loop, and must not raise."""

    def data_received(self, data: bytes) -> None:
        """The next bytes, in order."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """Called once, last: the peer has gone or :meth:`Wire.abort` was called. None where it ended in order."""
        ...


class Wire(Protocol):
    """One connection."""

    @property
    def congested(self) -> bool:
        """Whether the peer is slow to read. :meth:`drain` waits until it has caught up."""
        ...

    @property
    def unread(self) -> bool:
        """Whether the peer has sent bytes, or has closed, and the receiver has not been called yet."""
        ...

    @property
    def turns_behind(self) -> int:
        """Turns of the event loop that bytes take from the socket to the receiver. :attr:`unread` is False then."""
        ...

    def pause_reading(self) -> None:
        """Read nothing more until :meth:`resume_reading`. A read that is under way still ends.

        Meanwhile it is not noticed when the peer closes.
        """
        ...

    def resume_reading(self) -> None:
        """Read again."""
        ...

    def write(self, data: bytes) -> None:
        """Send ``data`` after what was written before; never blocks. Nothing happens when the connection is lost."""
        ...

    async def drain(self) -> None:
        """Wait until :attr:`congested` is over; returns also when the connection is lost."""
        ...

    def close(self) -> None:
        """Close once all that was written is sent."""
        ...

    @property
    def closed(self) -> bool:
        """Whether nothing of the connection is left."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    async def wait_closed(self) -> None:
        """Wait until nothing of the connection is left."""
        ...


class Address(Struct, frozen=True):
    """Where a peer is: the path of a Unix socket, or a host and a port.

    ``server_name``: whom the certificate has to name, where that is not the host.
    """

    text: str
    path: str | None = None
    host: str = ""
    port: int = 0
    server_name: str = ""

    def __str__(self) -> str:
        return self.text


def unusable_path(path: str) -> str | None:
    """For a message: what is expected instead of ``path``, where no Unix socket can have it; None where one can."""
    if not HAS_UNIX_SOCKETS:
        return f"TCP: Python has no Unix sockets on this platform ({sys.platform})"
    try:
        too_long = len(os.fsencode(path)) > _MAX_PATH_BYTES
    except UnicodeEncodeError:
        # A path that is not valid text has surrogates from PEP 383, which can be encoded; this one has others.
        return "the absolute path of a socket"
    return f"a path of {_MAX_PATH_BYTES} bytes at most" if too_long else None


def nearest_address(given: str, *, or_http: bool = False) -> str | None:
    """The address that was most likely meant by ``given``, which is not one; None where there is no good guess.

    It recognises a path, a port, and a host with a port. ``or_http``: an ``http://`` URL is possible as well.
    """
    scheme, colon, rest = given.partition(":")
    if given.startswith("/") and len(given) > 1 and not given.endswith("/"):
        return f"unix://{given}"
    if colon and scheme == "unix" and rest.startswith("/") and not rest.startswith("//"):
        return f"unix://{rest}"
    host, colon, port = given.rpartition(":")
    if port.isascii() and port.isdecimal() and len(port) <= 5 and "/" not in host and "@" not in host:
        place = f"{host or '127.0.0.1'}:{port}"
        return f"tcp://{place} or http://{place}/" if or_http else f"tcp://{place}"
    return None


def parse_address(where: str, given: object, *, also: Sequence[str] = ()) -> Address:
    """``unix:///path`` or ``tcp://host:port``; ``where`` begins the message of the :class:`ConfigurationError`.

    :param also: other forms that may stand in this place, which the caller reads itself. Messages name them.
    """
    *forms, last = ("unix:///path", "tcp://host:port", *also)
    expected = f"{', '.join(forms)} or {last}"
    if not isinstance(given, str):
        raise ConfigurationError(f"{where}: {given!r}, expected {expected}")
    # There may be credentials in what is none of these.
    shown = repr(redact_secrets(given))
    scheme, separator, rest = given.partition("://")
    if "@" in rest and scheme != "unix":
        # The message must not show the address: the credentials may be real.
        raise ConfigurationError(f"{where}: there are credentials in the address, expected {expected}")
    if separator and scheme == "unix":
        wanted = unusable_path(rest)
        if wanted is not None:
            raise ConfigurationError(f"{where}: {shown}, expected {wanted}")
        if not rest.startswith("/") or rest.endswith("/") or "\0" in rest:
            raise ConfigurationError(
                f"{where}: {shown}, expected the absolute path of a socket: unix:///run/agent.sock"
            )
        return Address(given, path=rest)
    if separator and scheme == "tcp":
        host, colon, port = rest.rstrip("/").rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        sendable = not any("\ud800" <= char <= "\udfff" for char in host)
        if (
            not colon
            or not host
            or not sendable
            or not port.isascii()
            or not port.isdecimal()
            or len(port) > 5
            or int(port) > 65535
        ):
            raise ConfigurationError(f"{where}: {shown}, expected a host and a port: tcp://127.0.0.1:9000")
        return Address(given, host=host, port=int(port))
    raise ConfigurationError(f"{where}: {shown}, expected {nearest_address(given) or expected}")


async def connect(address: Address, receiver: Receiver, tls: ssl.SSLContext | None = None) -> Wire:
    """Connect to ``address``, with TLS where a context is given; raises :class:`AgentConnectionError`."""
    try:
        return await (_connect_anyio if on_trio() else _connect_asyncio)(address, receiver, tls)
    except (OSError, ssl.SSLError, ValueError, anyio.BrokenResourceError, anyio.EndOfStream) as exc:
        raise AgentConnectionError(_describe(exc)) from exc


def _describe(exc: BaseException) -> str:
    if isinstance(exc.__cause__, BaseExceptionGroup):
        # anyio groups the errors of all addresses of a host.
        exc = exc.__cause__.exceptions[0]
    elif isinstance(exc.__cause__, OSError):
        exc = exc.__cause__
    return f"{type(exc).__name__}: {text_of(exc) or 'the connection was closed'}"


async def _connect_asyncio(address: Address, receiver: Receiver, tls: ssl.SSLContext | None) -> Wire:
    loop = asyncio.get_running_loop()

    def wire() -> AsyncioWire:
        return AsyncioWire(receiver)

    if address.path is not None:
        return (await loop.create_unix_connection(wire, address.path))[1]
    options: dict[str, Any] = {"ssl": tls, "server_hostname": (address.server_name or address.host) if tls else None}
    if is_ip_address(address.host):
        return (await loop.create_connection(wire, address.host, address.port, **options))[1]
    connected = await connect_socket(loop, address.host, address.port)
    return (await loop.create_connection(wire, sock=connected, **options))[1]


class AsyncioWire(asyncio.Protocol):
    """A :class:`Wire` on asyncio's transports, TLS included."""

    def __init__(self, receiver: Receiver, on_connect: Callable[["AsyncioWire"], None] | None = None) -> None:
        self._receiver = receiver
        self._on_connect = on_connect
        self._transport: Any = None
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._writable: anyio.Event | None = None
        self._closed = anyio.Event()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        if self._on_connect is not None:
            self._on_connect(self)

    def data_received(self, data: bytes) -> None:
        self._receiver.data_received(data)

    def eof_received(self) -> None:
        # A peer that sends no more will not answer, and may not even read.
        self._transport.abort()

    def pause_writing(self) -> None:
        self._writable = anyio.Event()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed.is_set():
            return
        self.resume_writing()
        self._closed.set()
        self._receiver.connection_lost(exc)

    # What we call

    def give_up(self) -> None:
        """The event loop was kept from connecting it: whoever has been told of it is told that it is lost."""
        if self._transport is not None:
            self.connection_lost(None)

    @property
    def congested(self) -> bool:
        return self._writable is not None

    @property
    def unread(self) -> bool:
        return is_readable(self._transport.get_extra_info("socket"))

    @property
    def turns_behind(self) -> int:
        # asyncio reads in the same turn in which it calls the receiver.
        return 0

    def pause_reading(self) -> None:
        if not self._transport.is_closing() and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        # All that is written in one turn of the event loop is sent at once: a system call and a wake-up of the peer
        # cost more than the rest of a call.
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > _AT_ONCE:
            # So that `congested` is up to date even when much is written in one turn.
            self._flush()

    def _flush(self) -> None:
        data, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if data and not self._transport.is_closing():
            self._transport.write(data[0] if len(data) == 1 else b"".join(data))

    async def drain(self) -> None:
        if self._writable is not None:
            await self._writable.wait()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        await self._closed.wait()


async def _connect_anyio(address: Address, receiver: Receiver, tls: ssl.SSLContext | None) -> Wire:
    stream: ByteStream
    if address.path is not None:
        stream = await anyio.connect_unix(address.path)
    elif tls is None:
        stream = await anyio.connect_tcp(address.host, address.port)
    else:
        stream = await anyio.connect_tcp(
            address.host,
            address.port,
            ssl_context=tls,
            tls_hostname=address.server_name or address.host,
            tls_standard_compatible=False,
        )
    return AnyioWire(stream, receiver)


class AnyioWire:
    """A :class:`Wire` on any of anyio's streams."""

    def __init__(self, stream: ByteStream, receiver: Receiver) -> None:
        self._stream = stream
        self._receiver = receiver
        self._unsent = bytearray()
        self._wake = anyio.Event()
        self._writable: anyio.Event | None = None
        self._readable: anyio.Event | None = None
        self._closing = self._aborted = False
        self._task = BackgroundTask(self._run)

    @property
    def congested(self) -> bool:
        return self._writable is not None

    @property
    def unread(self) -> bool:
        return is_readable(self._stream.extra(SocketAttribute.raw_socket, None))  # noqa: S610 - no query

    @property
    def turns_behind(self) -> int:
        # trio lets others run between the system call and the return of a read.
        return 3

    def pause_reading(self) -> None:
        if self._readable is None:
            self._readable = anyio.Event()

    def resume_reading(self) -> None:
        if self._readable is not None:
            self._readable.set()
            self._readable = None

    def write(self, data: bytes) -> None:
        if self._closing:
            return
        self._unsent += data
        self._wake.set()
        if len(self._unsent) > _HIGH_WATER and self._writable is None:
            self._writable = anyio.Event()

    async def drain(self) -> None:
        if self._writable is not None:
            await self._writable.wait()

    def close(self) -> None:
        self._closing = True
        self._wake.set()

    def abort(self) -> None:
        self._closing = self._aborted = True
        self._task.cancel()

    @property
    def closed(self) -> bool:
        return self._task.ended

    async def wait_closed(self) -> None:
        await self._task.wait()

    async def _run(self) -> None:
        lost: Exception | None = None
        over = False
        try:
            async with anyio.create_task_group() as tasks:

                async def read() -> None:
                    nonlocal lost, over
                    lost, over = await self._read(), True
                    tasks.cancel_scope.cancel()

                async def write() -> None:
                    nonlocal lost, over
                    lost, over = await self._write(), True
                    tasks.cancel_scope.cancel()

                tasks.start_soon(read)
                tasks.start_soon(write)
        finally:
            self._closing = True
            self._sent()
            try:
                await anyio.aclose_forcefully(self._stream)
            finally:
                # Closing may be a checkpoint, and this task is cancelled when the connection is aborted. If it was
                # cancelled for another reason, the event loop is ending, and the receiver is not called.
                if over or self._aborted:
                    self._receiver.connection_lost(lost)

    async def _read(self) -> Exception | None:
        try:
            tls = self._stream.extra(TLSAttribute.ssl_object, None)  # noqa: S610 - no query
            while True:
                while self._readable is not None:
                    await self._readable.wait()
                data = await self._stream.receive(_READ_BYTES)
                self._receiver.data_received(data if tls is None else data + _decrypted(tls))
        except anyio.EndOfStream:
            return None
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            return exc

    async def _write(self) -> Exception | None:
        try:
            while self._unsent or not self._closing:
                if not self._unsent:
                    self._wake = anyio.Event()
                    await self._wake.wait()
                    continue
                data = bytes(self._unsent)
                self._unsent.clear()
                await self._stream.send(data)
                if len(self._unsent) <= _HIGH_WATER:
                    self._sent()
            return None
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            return exc

    def _sent(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None


def _decrypted(tls: ssl.SSLObject) -> bytes:
    """The bytes that TLS has decrypted beyond the latest read, so that all are handed over at once."""
    data = bytearray()
    # The next read meets the same error.
    with suppress(ssl.SSLError):
        while chunk := tls.read(_READ_BYTES):
            data += chunk
    return bytes(data)
