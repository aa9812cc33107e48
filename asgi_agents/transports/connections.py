"""Keep-alive connections to one agent, which belong to one event loop."""

import asyncio
import ssl
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from threading import get_ident
from typing import Any, Final, Generic, Protocol, TypeVar

import httpcore
import httpx
from anyio import CancelScope
from anyio.lowlevel import RunVar

from .background import on_trio
from .one_write import OneWriteBackend

# Seconds. Less than the 5 after which uvicorn, hypercorn and Node close an idle connection themselves: a request that
# crosses that close on the wire is lost, and can't be sent again without knowing whether the agent has seen it.
KEEPALIVE_EXPIRY: Final = 4.0

_CONNECTED: Final = frozenset({"connection.connect_tcp.complete", "connection.connect_unix_socket.complete"})


class Connection(httpx.AsyncHTTPTransport):
    """An httpx transport for one connection, which :meth:`aclose` closes whatever was cut short."""

    def __init__(self, ssl_context: ssl.SSLContext, uds: str | None) -> None:
        super().__init__(verify=ssl_context, trust_env=False)
        # httpx has no argument for the backend.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=1,
            max_keepalive_connections=1,
            keepalive_expiry=KEEPALIVE_EXPIRY,
            uds=uds,
            network_backend=OneWriteBackend(),
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

    def __init__(self, ssl_context: ssl.SSLContext, uds: str | None) -> None:
        self._ssl_context = ssl_context
        self._uds = uds
        self._idle: deque[tuple[float, Connection]] = deque()
        self._closed = False

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[httpx.AsyncBaseTransport]:
        """A connection for one call. Leaving with an exception closes it."""
        connection = self._idle.pop()[1] if self._idle else Connection(self._ssl_context, self._uds)
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

    async def aclose(self) -> None:
        """Close the idle connections now, and each of the others when its call ends."""
        self._closed = True
        while self._idle:
            await self._idle.pop()[1].aclose()


class SharedTransport:
    """A transport that does its own pooling, lent to every call."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    def lease(self) -> AbstractAsyncContextManager[httpx.AsyncBaseTransport]:
        """The transport, for one call."""
        return nullcontext(self._transport)

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()


Connections = ConnectionStack | SharedTransport


class Closable(Protocol):
    """What has to be closed while its event loop still runs."""

    async def aclose(self) -> None:
        """Close it."""
        ...


C = TypeVar("C", bound=Closable)


class PerEventLoop(Generic[C]):
    """What ``make`` returns, once for each event loop, and closed when that ends.

    An ending event loop finalises the async generators that are still alive (asyncio and uvloop in
    ``shutdown_asyncgens``, trio in ``run``), so one that waits at its ``yield`` hears of it even where nobody shuts
    anything down: ``TestClient(app)`` outside ``with`` runs a new loop for each request.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._current: RunVar[tuple[C, AsyncGenerator[C, None]] | None]
        self._current = RunVar("asgi_agents.connections", default=None)
        # What was found last, and in which thread's event loop. To ask asyncio or a RunVar which loop is running takes
        # longer than the rest of a call's bookkeeping: it asks the system for the process' id each time.
        self._latest: tuple[int, weakref.ref[asyncio.AbstractEventLoop], C] | None = None

    def peek(self) -> C | None:
        """The running event loop's, if there are any; None also where no event loop runs."""
        if self._latest is not None and not on_trio():
            thread, known, connections = self._latest
            loop = known()
            # A thread runs one at a time.
            if thread == get_ident() and loop is not None and loop.is_running():
                return connections
        try:
            current = self._current.get()
        except RuntimeError:
            return None
        if current is None:
            return None
        if not on_trio():
            self._latest = get_ident(), weakref.ref(asyncio.get_running_loop()), current[0]
        return current[0]

    async def get(self) -> C:
        """The running event loop's."""
        current = self._current.get()
        if current is None:
            keeper = self._keep()
            current = await anext(keeper), keeper
            self._current.set(current)
        return current[0]

    async def aclose(self) -> None:
        """Close the running event loop's, if there are any; :meth:`get` makes new ones."""
        current = self._current.get()
        if current is not None:
            await current[1].aclose()

    async def _keep(self) -> AsyncGenerator[C, None]:
        connections = self._make()
        try:
            yield connections
        finally:
            try:
                await connections.aclose()
            finally:
                # The sockets know their loop: what is kept by the loop must not keep it alive.
                self._current.set(None)
                self._latest = None
