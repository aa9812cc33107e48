"""What belongs to one event loop, made where it is first needed and closed with the loop."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from threading import get_ident
from typing import Generic, Protocol, TypeVar

from anyio.lowlevel import RunVar

from .background import on_trio


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
