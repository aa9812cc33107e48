"""HTTP with aiohttp, for agents under load: asyncio only, needs the ``aiohttp`` extra."""

import asyncio
import functools
import ssl
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, cast

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler

from .answer_end import AnswerEnd
from .connections import KEEPALIVE_EXPIRY
from .readable import is_readable

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
        self._session = aiohttp.ClientSession(
            connector=_connector(tls, uds),
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


def _connector(tls: ssl.SSLContext, uds: str | None) -> aiohttp.BaseConnector:
    # limit=0 is none: no call should wait for another's connection.
    def make(**options: Any) -> aiohttp.BaseConnector:
        options["limit"] = 0
        return aiohttp.TCPConnector(ssl=tls, **options) if uds is None else aiohttp.UnixConnector(uds, **options)

    connector: Any = make(keepalive_timeout=KEEPALIVE_EXPIRY)
    # There is no public way to say what the connections are made of. Where this one is gone none is used again.
    if not (hasattr(connector, "_factory") and all(hasattr(ResponseHandler, name) for name in _OVERRIDDEN)):
        return make(force_close=True)
    connector._factory = functools.partial(_Handler, loop=asyncio.get_running_loop())
    return cast(aiohttp.BaseConnector, connector)


class _Handler(ResponseHandler):
    """A connection that is not used again once anything has come after an answer.

    aiohttp itself looks for that when a connection goes back to its pool, and not at what comes later: it would be
    taken for the answer to the next request. A byte that comes after a request was begun can't be told from the start
    of its answer.
    """

    # Of the latest request; None before the first.
    _answer: AnswerEnd | None = None

    def set_response_params(self, *args: Any, **params: Any) -> None:
        # aiohttp calls this when it begins a request.
        self._answer = AnswerEnd()
        super().set_response_params(*args, **params)

    def data_received(self, data: bytes) -> None:
        # Without data, aiohttp asks itself to go on with what it holds.
        if data:
            if self._answer is None or self._answer.ended:
                if self.transport is not None:
                    self.transport.abort()
                return
            self._answer.feed(data)
        super().data_received(data)

    @property
    def should_close(self) -> bool:
        """Whether it must not go back to the pool."""
        return super().should_close or self._answer is None or not self._answer.ended

    def is_connected(self) -> bool:
        """Whether it can be used; for a connection in the pool, also whether there is nothing that it has not read."""
        if not super().is_connected():
            return False
        idle = self._answer is not None and self._answer.ended
        return not (idle and self.transport is not None and is_readable(self.transport.get_extra_info("socket")))


_OVERRIDDEN: Final = ("data_received", "is_connected", "set_response_params", "should_close")
