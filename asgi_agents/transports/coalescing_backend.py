"""Sends the head of a request together with its body, and refuses a connection on which unread bytes have come.

httpcore writes them one after the other: two system calls, and a peer that is woken for a head it can do nothing with
yet, cost more than all the rest of a short call.
"""

import ssl
from collections.abc import Iterable
from typing import Any

import anyio.abc
import httpcore

from ..concurrency.background import on_trio

_SocketOptions = Iterable[httpcore.SOCKET_OPTION]


class CoalescingBackend(httpcore.AsyncNetworkBackend):
    """Connects as httpcore does on anyio. Each stream is a :class:`CoalescingStream`.

    :param address: where to connect to by TCP, whatever the host of a request is; empty: to that host.
    """

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _SocketOptions | None = None,
    ) -> httpcore.AsyncNetworkStream:
        where = self._address or host
        return CoalescingStream(await self._backend.connect_tcp(where, port, timeout, local_address, socket_options))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: _SocketOptions | None = None
    ) -> httpcore.AsyncNetworkStream:
        return CoalescingStream(await self._backend.connect_unix_socket(path, timeout, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class CoalescingStream(httpcore.AsyncNetworkStream):
    """Keeps what ends like a head back until something else is written, or an answer is waited for.

    A head that is not the first is refused where the agent has sent something since its last answer: that must not be
    taken for the answer to this request (RFC 9112, section 6.3). httpcore then closes the connection and makes another.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._held = b""
        self._has_read = False

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if not self._held and buffer.endswith(b"\r\n\r\n"):
            if self._has_read and self._has_unread():
                raise httpcore.ConnectionNotAvailable
            self._held = buffer
            return
        await self._stream.write(self._take() + buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            await self._stream.write(self._take(), timeout)
        self._has_read = True
        return await self._stream.read(max_bytes, timeout)

    def _has_unread(self) -> bool:
        """Whether something has come that httpcore has not read."""
        if self._stream.get_extra_info("is_readable"):
            return True
        tls = self._stream.get_extra_info("ssl_object")
        if tls is not None:
            # Several records may have come at once, of which one was read.
            try:
                tls.read(1)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return True
            else:
                return True
        return not on_trio() and _is_queued(self._stream)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return CoalescingStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _take(self) -> bytes:
        held, self._held = self._held, b""
        return held


def _is_queued(stream: Any) -> bool:
    """Whether anyio, on asyncio, keeps something that has come and was not read."""
    try:
        inner = stream._stream
        # Under TLS.
        inner = getattr(inner, "transport_stream", inner)
        if isinstance(inner, anyio.abc.UNIXSocketStream):
            # Reads from its socket only when it is asked to.
            return False
        return bool(inner._protocol.read_queue)
    except AttributeError:
        # There is no public way to it. Where this one is gone no connection is used twice: that is slow, and not wrong.
        return True
