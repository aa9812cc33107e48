"""When agents are configured, retried and closed: from the first user that enters a manager to the last that leaves.

Each event loop has users of its own, and a task of its own for each of them that retries the agents that are down.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import Lock

import anyio

from .concurrency.background import BackgroundTask
from .concurrency.event_loop import EventLoop
from .errors import AgentError
from .guard import Guard
from .retirement import Retirements

#: Leaves what was entered. A second call does nothing.
Leave = Callable[[], Awaitable[None]]


class Lifecycle:
    """Configures agents, retries those that are down, and closes them.

    :param guards: returns the agents that there are now.
    :param retirements: those that were replaced or removed. :meth:`shutdown` does not wait for them any longer.
    :param aside: returns those that are out of their places for a while. They are closed with the others.
    """

    def __init__(
        self,
        guards: Callable[[], Sequence[Guard]],
        retirements: Retirements,
        aside: Callable[[], Sequence[Guard]] = tuple,
    ) -> None:
        self._guards = guards
        self._aside = aside
        self._retirements = retirements
        # Users of several event loops come and go in threads of their own.
        self._lock = Lock()
        self._users: dict[EventLoop, int] = {}
        # One of each retry task: it is called with an agent that was added.
        self._watchers: list[Callable[[Guard], None]] = []
        #: What runs beside the retry task of each user, until that user leaves.
        self.companions: list[Callable[[], Awaitable[object]]] = []
        # What each task has entered and not left, by the id of the task.
        self._entered: dict[int, list[Leave]] = {}

    async def initialize(self) -> None:
        """Configure all agents, in parallel. One that is down is configured later.

        Raises :class:`AgentError` when that is one with ``require_at_startup``.
        """
        async with anyio.create_task_group() as tasks:
            for guard in self._guards():
                tasks.start_soon(try_to_configure, guard)
        for guard in self._guards():
            if guard.config.require_at_startup:
                try:
                    await guard.configuring.configure()
                except AgentError as exc:
                    raise type(exc)(f"agent {guard.config.id!r} is required at startup: {exc}") from exc

    async def shutdown(self) -> None:
        """Close the connections that belong to the running event loop."""
        errors: list[Exception] = []
        # What an agent is configured with does not belong to one event loop.
        in_use = any(loop.alive and not loop.is_current for loop in tuple(self._users))

        async def close(guard: Guard) -> None:
            try:
                await guard.client.aclose()
            except Exception as exc:
                # The others are to be closed all the same.
                errors.append(exc)
            if not in_use:
                guard.configuring.forget()

        # At once: each may have to wait for calls under way.
        async with anyio.create_task_group() as tasks:
            for guard in (*self._guards(), *self._aside()):
                tasks.start_soon(close, guard)
            tasks.start_soon(self._retirements.hasten)
        if errors:
            raise errors[0]

    async def start(self) -> Leave:
        """Count a user of the running event loop, and :meth:`initialize`. Returns the function to leave with.

        Until then a task of the event loop retries the agents that are down. When the last user of an event loop
        leaves, the connections of that event loop are closed.
        """
        loop = EventLoop()
        with self._lock:
            self._users[loop] = self._users.get(loop, 0) + 1
        tasks: list[BackgroundTask] = []
        left = False

        async def leave() -> None:
            nonlocal left
            if left:
                return
            left = True
            with self._lock:
                self._users[loop] -= 1
                is_last = not self._users[loop]
                if is_last:
                    del self._users[loop]
            with anyio.CancelScope(shield=True):
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    await task.wait()
                if is_last:
                    await self.shutdown()

        try:
            await self.initialize()
        except BaseException:
            await leave()
            raise
        tasks += map(BackgroundTask, (self._keep_configuring, *self.companions))
        return leave

    async def start_in_task(self) -> None:
        """:meth:`start`, until the running task calls :meth:`stop_in_task`."""
        leave = await self.start()
        self._entered.setdefault(anyio.get_current_task().id, []).append(leave)

    async def stop_in_task(self) -> None:
        """Leave what the running task has entered last. Tasks may leave in any order."""
        task = anyio.get_current_task().id
        leave = self._entered[task].pop()
        if not self._entered[task]:
            del self._entered[task]
        await leave()

    def watch(self, guard: Guard) -> None:
        """Retry an agent that was added, if it is not configured, on every event loop that has users."""
        for watch in tuple(self._watchers):
            watch(guard)

    async def _keep_configuring(self) -> None:
        """Ask the agents that are down again and again, each in its own time, until cancelled."""

        async def retry(guard: Guard) -> None:
            while not guard.configured and guard in self._guards():
                await anyio.sleep(guard.configuring.delay)
                await try_to_configure(guard)

        loop = EventLoop()
        async with anyio.create_task_group() as tasks:

            def watch_here(guard: Guard) -> None:
                if not guard.configured:
                    tasks.start_soon(retry, guard)

            async def watch_from_elsewhere(guard: Guard) -> None:
                # This task may have ended since another thread has asked for it.
                if watch in self._watchers:
                    watch_here(guard)

            def watch(guard: Guard) -> None:
                if loop.is_current:
                    watch_here(guard)
                else:
                    loop.start_soon(partial(watch_from_elsewhere, guard))

            self._watchers.append(watch)
            try:
                for guard in self._guards():
                    watch(guard)
                await anyio.sleep_forever()
            finally:
                self._watchers.remove(watch)


async def try_to_configure(guard: Guard) -> None:
    """Ask an agent to take its configuration. Where it fails, the guard has logged it and will be asked again."""
    with suppress(AgentError):
        await guard.configuring.configure()
