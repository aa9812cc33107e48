"""Objects that belong to one event loop: made when first needed, closed when the event loop ends."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from threading import RLock, get_ident
from typing import Generic, Protocol, TypeVar

import anyio
from anyio.lowlevel import RunVar

from .background import on_trio
from .event_loop import EventLoop


class Closable(Protocol):
    """An object that has to be closed while its event loop still runs."""

    async def aclose(self) -> None:
        """Close it."""
        ...


C = TypeVar("C", bound=Closable)


class _Kept(Generic[C]):
    """The object of an event loop, and the generator that closes it; None: that is under way."""

    __slots__ = ("closed", "connections", "generator")

    def __init__(self, connections: C, generator: AsyncGenerator[C, None]) -> None:
        self.connections = connections
        self.generator: AsyncGenerator[C, None] | None = generator
        self.closed = anyio.Event()


class PerEventLoop(Generic[C]):
    """One object of ``make`` for each event loop, closed when that event loop ends.

    An ending event loop finalises the async generators that are still alive (asyncio and uvloop in
    ``shutdown_asyncgens``, trio in ``run``). A generator that waits at its ``yield`` therefore notices the end even
    without a shutdown: ``TestClient(app)`` outside ``with`` runs a new event loop for each request.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._current: RunVar[_Kept[C] | None]
        self._current = RunVar("asgi_agents.connections", default=None)
        # The latest result of `peek`, with its thread and event loop. To ask asyncio or a RunVar for the running event
        # loop takes longer than the rest of a call's bookkeeping: both ask the system for the process id each time.
        self._latest: tuple[int, weakref.ref[asyncio.AbstractEventLoop], C] | None = None
        # The event loops that have an object. Reentrant: the garbage collector may close a generator at any time.
        self._loops: set[EventLoop] = set()
        self._lock = RLock()

    def peek(self) -> C | None:
        """The object of the running event loop. None if it has none yet, or if no event loop runs."""
        # Read once: another thread may change it meanwhile.
        latest = self._latest
        if latest is not None and not on_trio():
            thread, known, connections = latest
            loop = known()
            # A thread runs one event loop at a time.
            if thread == get_ident() and loop is not None and loop.is_running():
                return connections
        try:
            current = self._current.get()
        except RuntimeError:
            return None
        if current is None:
            return None
        if not on_trio():
            self._latest = get_ident(), weakref.ref(asyncio.get_running_loop()), current.connections
        return current.connections

    async def get(self) -> C:
        """The object of the running event loop; made if it has none yet."""
        current = self._current.get()
        if current is None:
            generator = self._keep()
            current = _Kept(await anext(generator), generator)
            self._current.set(current)
        return current.connections

    async def aclose(self) -> None:
        """Close the object of the running event loop, if there is one; :meth:`get` makes a new one once it is closed.

        It may be closed by several users at a time: all wait until it is.
        """
        current = self._current.get()
        if current is None:
            return
        generator, current.generator = current.generator, None
        if generator is None:
            await current.closed.wait()
            return
        try:
            await generator.aclose()
        finally:
            current.closed.set()

    async def aclose_everywhere(self) -> None:
        """Call :meth:`aclose` on every event loop, and wait for it on the running one only."""
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
            # Drop the event loops that no longer exist: some are abandoned without an end.
            self._loops = {loop, *(known for known in self._loops if known.alive)}
        try:
            yield connections
        finally:
            try:
                await connections.aclose()
            finally:
                # Sockets refer to their event loop: what the event loop holds must not keep it alive.
                self._current.set(None)
                self._latest = None
                with self._lock:
                    self._loops.discard(loop)
