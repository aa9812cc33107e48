"""Sends the head of a request together with its body.

httpcore writes them one after the other: two system calls, and a peer that is woken for a head it can do nothing with
yet, cost more than all the rest of a short call.
"""

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

_SocketOptions = Iterable[httpcore.SOCKET_OPTION]


class OneWriteBackend(httpcore.AsyncNetworkBackend):
    """Connects as httpcore does on anyio."""

    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _SocketOptions | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return OneWriteStream(await self._backend.connect_tcp(host, port, timeout, local_address, socket_options))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: _SocketOptions | None = None
    ) -> httpcore.AsyncNetworkStream:
        return OneWriteStream(await self._backend.connect_unix_socket(path, timeout, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class OneWriteStream(httpcore.AsyncNetworkStream):
    """Keeps what ends like a head back until something else is written, or an answer is waited for."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._held = b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if not self._held and buffer.endswith(b"\r\n\r\n"):
            self._held = buffer
            return
        await self._stream.write(self._take() + buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            await self._stream.write(self._take(), timeout)
        return await self._stream.read(max_bytes, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return OneWriteStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _take(self) -> bytes:
        held, self._held = self._held, b""
        return held
