"""Agents that were replaced or removed: each is closed once no connection needs it any more.

Whoever changes agents may do so on an event loop that ends right afterwards, while others still serve. So an agent that
is to be closed belongs to no event loop: on each that has users a task looks whether it is needed still, and the first
to find that it is not closes it everywhere. A task that ends with its event loop leaves that to the others.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import anyio
from anyio import CancelScope

from .concurrency.background import BackgroundTask
from .concurrency.event_loop import EventLoop, SharedEvent
from .concurrency.one_at_a_time import OneAtATime
from .evaluation.resolved_route import ResolvedRoute
from .guard import Guard

logger = logging.getLogger("asgi_agents")

# Seconds between two looks whether an agent is needed.
_INTERVAL: Final = 0.02


def _nothing() -> None:
    pass


class Retirement:
    """One agent that is closed as soon as it is not ``needed``, or after ``timeout`` seconds; then ``then`` is called.

    That is done whether anybody waits for it or not.

    :ivar over: whether that is done.
    """

    def __init__(self, guard: Guard, needed: Callable[[], bool], timeout: float, then: Callable[[], object]) -> None:
        self.guard = guard
        self.over = False
        self._needed = needed
        self._until = time.monotonic() + timeout
        self._then = then
        self._closing = OneAtATime()
        self._done = SharedEvent()
        self._waiting = 0
        self._errors: list[Exception] = []
        # Those on which a task looks. Each event loop has a thread of its own, and writes of itself only.
        self._looking: dict[EventLoop, None] = {}

    async def wait(self) -> None:
        """Return when it is done, and raise what closing has raised. Where nobody waits, that is logged."""
        self._waiting += 1
        try:
            await self._done.wait()
        finally:
            self._waiting -= 1
        if self._errors:
            raise self._errors[0]

    async def look(self) -> None:
        """Look again and again on the running event loop, and close it when it is time."""
        loop = EventLoop()
        if loop in self._looking:
            return
        self._looking[loop] = None
        try:
            while not self.over:
                left = self._until - time.monotonic()
                if left <= 0 or not self._needed():
                    await self.close()
                else:
                    await anyio.sleep(min(_INTERVAL, left))
        finally:
            del self._looking[loop]

    async def close_here(self) -> None:
        """Close what belongs to the running event loop. Another one sees to the rest."""
        try:
            await self.guard.client.aclose()
        except Exception:
            # The others are to be closed all the same.
            self._tell()

    def _tell(self) -> None:
        logger.exception("agent %r: its connections could not be closed", self.guard.config.id)

    async def close(self) -> None:
        """Close it now, on every event loop, or wait for whoever does, and take over should that be cancelled."""
        while not self.over:
            under_way = self._closing.begin()
            if under_way is not None:
                await under_way.wait()
                continue
            try:
                if not self.over:
                    await self._close()
            finally:
                self._closing.end()

    async def _close(self) -> None:
        self.guard.configuring.close()
        try:
            with CancelScope(shield=True):
                # Where the event loop ends meanwhile, another one does it again.
                await self.guard.client.retire()
        except Exception as exc:
            self._errors.append(exc)
            if not self._waiting:
                self._tell()
        self.over = True
        try:
            self._then()
        finally:
            self._done.set()


class Retirements:
    """The agents of a manager that were replaced or removed.

    :param routes: returns those that were resolved before a change, while connections hold them.
    :ivar loops: returns the event loops that have users.
    """

    def __init__(self, routes: Callable[[], Iterable[ResolvedRoute]]) -> None:
        self._routes = routes
        self.loops: Callable[[], Iterable[EventLoop]] = tuple
        # Event loops have threads of their own: dictionaries are copied in one step.
        self._under_way: dict[Guard, Retirement] = {}
        # Those that have left their places and are not closed.
        self._open: dict[Guard, None] = {}

    @property
    def open(self) -> Sequence[Guard]:
        """Those that were replaced or removed and may configure their agents still.

        Those are not closed yet, or were while they asked. What an agent is asked then may come later than what another
        guard asks it.
        """
        self._forget_closed()
        return tuple(self._open)

    def _forget_closed(self) -> None:
        for guard in tuple(self._open):
            if guard.configuring.closed and not guard.configuring.asking:
                self._open.pop(guard, None)

    def begin(self, guard: Guard) -> None:
        """It has left its place. :meth:`retire` is to be called, now or later."""
        guard.configuring.leave()
        self._open[guard] = None

    def retire(self, guard: Guard, timeout: float, then: Callable[[], object] = _nothing) -> Retirement:
        """Have ``guard`` closed as soon as nobody needs it, or after ``timeout`` seconds; then call ``then``."""

        def needed() -> bool:
            return (
                guard.busy
                or guard.configuring.asking
                or any(route.connections and guard in route.guards for route in self._routes())
            )

        def over() -> None:
            self._under_way.pop(guard, None)
            self._forget_closed()
            then()

        retirement = self._under_way[guard] = Retirement(guard, needed, timeout, over)
        self.look()
        return retirement

    def retire_each(self, guards: Iterable[Guard], timeout: float) -> None:
        """:meth:`retire` them; nobody waits for that."""
        for guard in guards:
            self.retire(guard, timeout)

    def look(self) -> None:
        """Have all of them looked after here, and wherever there are users.

        To be called on each event loop that comes to have users. Those that were looked after on event loops that have
        ended are not forgotten.
        """
        for retirement in tuple(self._under_way.values()):
            BackgroundTask(retirement.look)
            self._look_elsewhere(retirement)

    def look_if_used_here(self) -> None:
        """:meth:`look`, where an event loop runs. Apps without a lifespan serve on event loops that have no users."""
        if not self._under_way:
            return
        try:
            EventLoop()
        except RuntimeError:
            return
        self.look()

    def _look_elsewhere(self, retirement: Retirement) -> bool:
        """Have it looked after by another event loop that has users; returns whether there is one that runs."""
        running = [loop for loop in self.loops() if not loop.is_current and loop.start_soon(retirement.look)]
        return bool(running)

    async def hasten(self) -> None:
        """Close at once all of them, or what belongs to the running event loop, if another one has users.

        One that looks without having users may be about to end, as that of a user who has left before.
        """
        async with anyio.create_task_group() as tasks:
            for retirement in tuple(self._under_way.values()):
                elsewhere = self._look_elsewhere(retirement)
                tasks.start_soon(retirement.close_here if elsewhere else retirement.close)
