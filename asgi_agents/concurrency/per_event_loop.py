"""What belongs to one event loop, made where it is first needed and closed with the loop."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from threading import RLock, get_ident
from typing import Generic, Protocol, TypeVar

from anyio.lowlevel import RunVar

from .background import on_trio
from .event_loop import EventLoop


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
        # Those that have any, and who changes that. Reentrant: the garbage collector may end a keeper at any time.
        self._loops: set[EventLoop] = set()
        self._lock = RLock()

    def peek(self) -> C | None:
        """The running event loop's, if there are any; None also where no event loop runs."""
        # Read once: another thread may change it meanwhile.
        latest = self._latest
        if latest is not None and not on_trio():
            thread, known, connections = latest
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

    async def aclose_everywhere(self) -> None:
        """:meth:`aclose` on every event loop. Waits for the running one's only."""
        with self._lock:
            loops = tuple(self._loops)
        for loop in loops:
            if not loop.is_current:
                loop.start_soon(self.aclose)
        await self.aclose()

    async def _keep(self) -> AsyncGenerator[C, None]:
        connections = self._make()
        loop = EventLoop()
        with self._lock:
            # Event loops that were thrown away before their end are still among them.
            self._loops = {loop, *(known for known in self._loops if known.alive)}
        try:
            yield connections
        finally:
            try:
                await connections.aclose()
            finally:
                # The sockets know their loop: what is kept by the loop must not keep it alive.
                self._current.set(None)
                self._latest = None
                with self._lock:
                    self._loops.discard(loop)
