"""Keep-alive connections to one agent, which belong to one event loop."""

import math
import re
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Final

import httpcore
import httpx
from anyio import CancelScope

from ..errors import text_of
from .coalescing_backend import CoalescingBackend
from .http1.request import HttpRequest
from .http_answer import HttpAnswer

# Seconds. Less than the 5 after which uvicorn, hypercorn and Node close an idle connection themselves: a request that
# crosses that close on the wire is lost, and can't be sent again without knowing whether the agent has seen it.
KEEPALIVE_EXPIRY: Final = 4.0

# h11 quotes what it could not parse; what an agent sent does not belong in logs.
_QUOTED_BYTES: Final = re.compile(r"(?:bytearray\()?b['\"].*", re.DOTALL)

_CONNECTED: Final = frozenset({"connection.connect_tcp.complete", "connection.connect_unix_socket.complete"})


def describe(exc: BaseException) -> str:
    """What went wrong, for a message."""
    # trio's BrokenResourceError, for one, leaves it to its cause to say what was wrong.
    return f"{type(exc).__name__}: {_QUOTED_BYTES.sub('…', text_of(exc))}"


class HttpConnection(httpx.AsyncHTTPTransport):
    """An httpx transport for one connection, which :meth:`aclose` closes whatever was cut short.

    :param address: where to connect to; empty: to the host of the URL.
    """

    def __init__(self, ssl_context: ssl.SSLContext, uds: str | None, address: str = "") -> None:
        super().__init__(verify=ssl_context, trust_env=False)
        # httpx has no argument for the backend.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=1,
            max_keepalive_connections=1,
            keepalive_expiry=KEEPALIVE_EXPIRY,
            uds=uds,
            network_backend=CoalescingBackend(address),
        )
        self._socket: Any = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.scheme == "https":
            request.extensions["trace"] = self._keep_socket
        return await super().handle_async_request(request)

    @property
    def reusable(self) -> bool:
        """Whether nothing has come after the last response.

        RFC 9112, section 6.3: that must not be processed as another response. httpcore 1.0.9 gives what has come in one
        piece with a response to the next request; only what comes later makes it close the connection by itself.
        """
        return all(_is_read_to_the_end(connection) for connection in self._pool.connections)

    async def aclose(self) -> None:
        with CancelScope(shield=True):
            await super().aclose()
            if self._socket is not None:
                await self._socket.aclose()

    async def _keep_socket(self, name: str, info: dict[str, Any]) -> None:
        # httpcore 1.0.9 leaves the socket of a cancelled TLS handshake to the garbage collector.
        if name in _CONNECTED:
            self._socket = info["return_value"]


def _is_read_to_the_end(connection: Any) -> bool:
    try:
        # There is no public way to it. Where this one is gone nothing is kept, which is slow, and not wrong.
        surplus, _ = connection._connection._h11_state.trailing_data
    except AttributeError:
        return False
    return not surplus


class ConnectionStack:
    """As many connections as there are calls under way; the one used last is used first, so that the rest can expire.

    Not httpcore's own pool, because that does not survive cancellation: a call that is cancelled just after its
    connection was made, which any deadline can do, keeps its slot for good
    (https://github.com/encode/httpcore/issues/1093). Here a call has a connection to itself, and one that was cut
    short is closed and thrown away whole.
    """

    def __init__(self, ssl_context: ssl.SSLContext, uds: str | None, address: str = "") -> None:
        self._ssl_context = ssl_context
        self._uds = uds
        self._address = address
        self._idle: deque[tuple[float, HttpConnection]] = deque()
        self._closed = False

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[httpx.AsyncBaseTransport]:
        """A connection for one call. Leaving with an exception closes it."""
        connection = self._idle.pop()[1] if self._idle else self._make()
        try:
            yield connection
        except BaseException:
            await connection.aclose()
            raise
        if self._closed or not connection.reusable:
            await connection.aclose()
            return
        now = time.monotonic()
        self._idle.append((now, connection))
        while self._idle and self._idle[0][0] < now - KEEPALIVE_EXPIRY:
            await self._idle.popleft()[1].aclose()

    @property
    def idle(self) -> int:
        """Connections that no call uses."""
        return len(self._idle)

    def _make(self) -> HttpConnection:
        return HttpConnection(self._ssl_context, self._uds, self._address)

    async def aclose(self) -> None:
        """Close the idle connections now, and each of the others when its call ends."""
        self._closed = True
        while self._idle:
            await self._idle.pop()[1].aclose()


class SharedTransport:
    """A transport that does its own pooling, lent to every call."""

    #: Connections are its own affair.
    idle = 0

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    def lease(self) -> AbstractAsyncContextManager[httpx.AsyncBaseTransport]:
        """The transport, for one call."""
        return nullcontext(self._transport)

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()


class LeasingPool:
    """Sends with a transport of httpx for each call.

    :param exchange: sends a request with the transport that it is given, and returns the answer.
    """

    def __init__(
        self,
        connections: ConnectionStack | SharedTransport,
        exchange: Callable[[httpx.AsyncBaseTransport, HttpRequest], Awaitable[HttpAnswer]],
    ) -> None:
        self._connections = connections
        self._exchange = exchange

    @property
    def idle(self) -> int:
        """Connections that no call uses."""
        return self._connections.idle

    async def send(self, request: HttpRequest, deadline: float = math.inf) -> HttpAnswer:
        """Send a request and return its answer. Whoever calls it keeps the deadline, and cancels it.

        :raises NotConnectedError: the agent could not be reached.
        :raises Exception: whatever else ``exchange`` raises.
        """
        async with self._connections.lease() as transport:
            return await self._exchange(transport, request)

    async def aclose(self) -> None:
        """Close the idle connections now, and each of the others when its call ends."""
        await self._connections.aclose()
