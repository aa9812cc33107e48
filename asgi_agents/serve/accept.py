"""Connections of a listening socket, on asyncio and on trio."""

import asyncio
import errno
import socket
import ssl
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
from anyio.abc import ByteStream, TaskGroup

from ..concurrency.background import on_trio
from ..transports.wire import AnyioWire, AsyncioWire, Receiver, Wire
from .sockets import BACKLOG, is_unix

if TYPE_CHECKING:
    import trio

# Seconds that a client may take for its TLS handshake.
_TLS_TIMEOUT: Final = 5.0
# Out of file descriptors or memory: accepting goes on when some are free again.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_PAUSE: Final = 0.1


class Client(Receiver, Protocol):
    """What is at the server's end of a connection."""

    def connected(self, wire: Wire) -> None:
        """Called once, first."""
        ...


async def accept(
    sock: socket.socket, tls: ssl.SSLContext | None, client: Callable[[], Client], tasks: TaskGroup
) -> Callable[[], None]:
    """Accept connections until the function that this returns is called, which closes ``sock`` and nothing else."""
    if on_trio():
        scope = anyio.CancelScope()
        tasks.start_soon(_accept_trio, sock, tls, client, tasks, scope)
        return scope.cancel
    return await _accept_asyncio(sock, tls, client)


async def _accept_asyncio(
    sock: socket.socket, tls: ssl.SSLContext | None, client: Callable[[], Client]
) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def wire() -> AsyncioWire:
        receiver = client()
        return AsyncioWire(receiver, receiver.connected)

    if not is_unix(sock):
        timeout = None if tls is None else _TLS_TIMEOUT
        server = await loop.create_server(wire, sock=sock, backlog=BACKLOG, ssl=tls, ssl_handshake_timeout=timeout)
    else:
        # Or else it removes the file from Python 3.13 on, which may be one that other processes listen on.
        options: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        server = await loop.create_unix_server(wire, sock=sock, backlog=BACKLOG, **options)
    return server.close


async def _accept_trio(
    sock: socket.socket,
    tls: ssl.SSLContext | None,
    client: Callable[[], Client],
    tasks: TaskGroup,
    scope: anyio.CancelScope,
) -> None:
    import trio

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    with scope:
        try:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    if exc.errno not in _EXHAUSTED:
                        raise
                    await anyio.sleep(_EXHAUSTED_PAUSE)
                    continue
                if tls is None:
                    _connect(_TrioStream(stream), client)
                else:
                    tasks.start_soon(_encrypt, stream, tls, client)
        finally:
            listener.socket.close()


async def _encrypt(stream: "trio.SocketStream", tls: ssl.SSLContext, client: Callable[[], Client]) -> None:
    import trio

    encrypted = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
    done = False
    try:
        with anyio.move_on_after(_TLS_TIMEOUT):
            await encrypted.do_handshake()
            done = True
    except (trio.BrokenResourceError, ssl.SSLError):
        pass
    finally:
        if not done:
            stream.socket.close()
    if done:
        _connect(_TrioStream(encrypted), client)


def _connect(stream: ByteStream, client: Callable[[], Client]) -> None:
    receiver = client()
    receiver.connected(AnyioWire(stream, receiver))


class _TrioStream(ByteStream):
    """A stream of trio's as one of anyio's."""

    def __init__(self, stream: "trio.abc.Stream") -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        import trio

        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.ClosedResourceError as exc:
            raise anyio.ClosedResourceError from exc
        except trio.BrokenResourceError as exc:
            raise anyio.BrokenResourceError from exc
        if not data:
            raise anyio.EndOfStream
        return bytes(data)

    async def send(self, item: bytes) -> None:
        import trio

        try:
            await self._stream.send_all(item)
        except trio.ClosedResourceError as exc:
            raise anyio.ClosedResourceError from exc
        except trio.BrokenResourceError as exc:
            raise anyio.BrokenResourceError from exc

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        await self._stream.aclose()
