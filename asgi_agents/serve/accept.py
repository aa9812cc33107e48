"""Connections of a listening socket, on asyncio and on trio."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import anyio
from anyio import CancelScope, create_task_group
from anyio.abc import ByteStream, TaskGroup

from ..concurrency.background import on_trio
from ..transports.wire import AnyioWire, AsyncioWire, Receiver, Wire
from .sockets import BACKLOG, describe

if TYPE_CHECKING:
    import trio

logger = logging.getLogger("asgi_agents.serve")

# Seconds that a client may take for its TLS handshake.
_TLS_TIMEOUT: Final = 5.0
# Of one connection: it was gone before it was accepted, or its network is (accept(2) names these for Linux).
_GONE: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "ECONNRESET", "ETIMEDOUT", "EPROTO", "ENOPROTOOPT", "EOPNOTSUPP"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENONET"),
    )
    if hasattr(errno, name)
)
# Of the listening socket: nothing will ever be accepted from it.
_UNUSABLE: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
# Of the system, such as no more file descriptors or memory: some may be free again after these seconds.
_PAUSE: Final = 0.1


class Client(Receiver, Protocol):
    """What is at the server's end of a connection."""

    def connected(self, wire: Wire) -> None:
        """Called once, first."""
        ...


class Accepting:
    """Accepts the connections of ``sock`` until :meth:`stop`, which closes the socket and nothing else.

    Who is accepted is served: between a connection that the system hands over and the ``client`` that has it, the
    server may be told to stop. So :meth:`settled` says when the last one has arrived.

    :param alone: nobody else accepts from the socket. Who waits there when it is closed would be reset, so that all of
        them are accepted first.
    """

    def __init__(
        self,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        client: Callable[[], Client],
        tasks: TaskGroup,
        *,
        alone: bool,
    ) -> None:
        self._sock = sock
        self._alone = alone
        self._tls = tls
        self._client = client
        self._accepting = CancelScope()
        self._settled = anyio.Event()
        sock.setblocking(False)
        sock.listen(BACKLOG)
        tasks.start_soon(self._run)

    def stop(self) -> None:
        """Accept no more. What the system has not handed over yet is left to others who listen on the same socket, if
        there may be any.
        """
        self._accepting.cancel()

    async def settled(self) -> None:
        """Wait until all who were accepted are connected, or have failed to say hello in time. After :meth:`stop`."""
        await self._settled.wait()

    async def _run(self) -> None:
        try:
            async with create_task_group() as arrivals:
                try:
                    with self._accepting:
                        await self._accept(arrivals)
                    if self._alone:
                        self._accept_all(arrivals)
                finally:
                    self._sock.close()
        finally:
            self._settled.set()

    async def _accept(self, arrivals: TaskGroup) -> None:
        warned = False
        while True:
            # It is cancelled here, or in the pause. A cancellation that met `accept` itself would lose a connection.
            await anyio.wait_readable(self._sock)
            fault = self._accept_all(arrivals)
            if fault is not None:
                if not warned:
                    logger.warning("%s: connections have to wait: %s", describe(self._sock), fault)
                await anyio.sleep(_PAUSE)
            warned = fault is not None

    def _accept_all(self, arrivals: TaskGroup) -> OSError | None:
        """Accept who waits. Returns what keeps the system from handing over more of them."""
        # Linux lets one more wait than it was told.
        for _ in range(BACKLOG + 1):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                # That was all, or another process was faster.
                break
            except OSError as exc:
                if exc.errno in _GONE:
                    continue
                if exc.errno in _UNUSABLE:
                    raise
                return exc
            sock.setblocking(False)
            if on_trio():
                self._arrive_on_trio(sock, arrivals)
            else:
                arrivals.start_soon(self._arrive_on_asyncio, sock)
        return None

    async def _arrive_on_asyncio(self, sock: socket.socket) -> None:
        made: list[AsyncioWire] = []

        def wire() -> AsyncioWire:
            receiver = self._client()
            made.append(AsyncioWire(receiver, receiver.connected))
            return made[-1]

        timeout = None if self._tls is None else _TLS_TIMEOUT
        # A TLS handshake that failed, or a client that has gone, is not for the log: anyone can cause that.
        with suppress(OSError):
            try:
                await asyncio.get_running_loop().connect_accepted_socket(
                    wire, sock, ssl=self._tls, ssl_handshake_timeout=timeout
                )
            except BaseException:
                # The event loop closes the connection. It may have told of it before, in the same turn, and uvloop does
                # not say then that it is lost.
                for each in made:
                    each.give_up()
                raise

    def _arrive_on_trio(self, sock: socket.socket, arrivals: TaskGroup) -> None:
        import trio

        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        if self._tls is None:
            self._connect(_TrioStream(stream))
        else:
            arrivals.start_soon(self._encrypt, stream, self._tls)

    async def _encrypt(self, stream: "trio.SocketStream", tls: ssl.SSLContext) -> None:
        import trio

        done = False
        try:
            encrypted = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            with anyio.move_on_after(_TLS_TIMEOUT):
                await encrypted.do_handshake()
                done = True
        except (trio.BrokenResourceError, ssl.SSLError):
            pass
        finally:
            if not done:
                stream.socket.close()
        if done:
            self._connect(_TrioStream(encrypted))

    def _connect(self, stream: ByteStream) -> None:
        receiver = self._client()
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
