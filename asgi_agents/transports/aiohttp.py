"""HTTP with aiohttp, for agents under load: asyncio only, needs the ``aiohttp`` extra."""

import ssl
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

import aiohttp
import yarl

from .connections import KEEPALIVE_EXPIRY

# The guard's deadline ends a call.
_NO_TIMEOUTS: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)


class AiohttpConnections:
    """Keep-alive connections to one agent, on one event loop.

    :param headers: of every request.
    """

    def __init__(self, url: str, headers: Iterable[tuple[bytes, bytes]], tls: ssl.SSLContext, uds: str | None) -> None:
        # As it is: to quote it anew could change it.
        self._url = yarl.URL(url, encoded=True)
        self._headers = {name.decode(): value.decode() for name, value in headers}
        # limit=0 is none: no call should wait for another's connection.
        connector = (
            aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=KEEPALIVE_EXPIRY)
            if uds is None
            else aiohttp.UnixConnector(uds, limit=0, keepalive_timeout=KEEPALIVE_EXPIRY)
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            # Without its jar it would hand an agent's cookies back with every later event.
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_TIMEOUTS,
            trust_env=False,
            # To decompress would let a short answer become a very long one.
            auto_decompress=False,
        )

    def post(
        self, message: bytes, trace_context: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send ``message``. The connection is closed if the block ends before all of the answer was read."""
        headers = {**self._headers, "content-length": str(len(message)), **trace_context}
        return self._session.post(self._url, data=message, headers=headers, allow_redirects=False)

    async def aclose(self) -> None:
        """Close them."""
        await self._session.close()
