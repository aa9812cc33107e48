"""Agents that were replaced or removed: each is closed once no connection needs it any more."""

import logging
from collections.abc import Callable, Sequence

import anyio
from anyio import CancelScope
from msgspec import Struct

from .concurrency.background import BackgroundTask
from .concurrency.event_loop import EventLoop
from .guard import Guard

logger = logging.getLogger("asgi_agents")


class _UnderWay(Struct, frozen=True):
    """A retirement, and the event loop on which it is waited for."""

    loop: EventLoop
    task: BackgroundTask


class Retirements:
    """Closes agents in tasks of their own. So it happens also where the caller is cancelled."""

    def __init__(self) -> None:
        self._under_way: dict[Guard, _UnderWay] = {}
        # Those that have left their places and are not closed. Event loops have threads of their own: a dictionary is
        # copied in one step.
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

    async def retire(
        self, guard: Guard, needed: Callable[[], bool], timeout: float, then: Callable[[], object]
    ) -> None:
        """Close ``guard`` as soon as it is not ``needed``, or after ``timeout`` seconds, and call ``then``.

        Returns when that is done, and raises what closing has raised. Where it is cancelled, it is done all the same,
        and what closing raises is logged.
        """
        errors: list[Exception] = []
        waited_for = True

        async def drain_and_close() -> None:
            try:
                with anyio.move_on_after(timeout):
                    while needed():  # noqa: ASYNC110 - an event would cost every connection, this only an operator
                        await anyio.sleep(0.02)
            finally:
                guard.configuring.close()
                try:
                    with CancelScope(shield=True):
                        await guard.client.retire()
                except Exception as exc:
                    errors.append(exc)
                    if not waited_for:
                        logger.exception("agent %r: its connections could not be closed", guard.config.id)
                finally:
                    self._under_way.pop(guard, None)
                    self._forget_closed()
                    then()

        task = BackgroundTask(drain_and_close)
        if not task.ended:
            self._under_way[guard] = _UnderWay(EventLoop(), task)
        try:
            await task.wait()
        finally:
            waited_for = False
        if errors:
            raise errors[0]

    async def hasten(self) -> None:
        """Close at once what waits on this event loop, and what belongs to it of agents that wait on others."""
        for guard, under_way in tuple(self._under_way.items()):
            if under_way.loop.is_current:
                under_way.task.cancel()
                await under_way.task.wait()
            else:
                await guard.client.aclose()
