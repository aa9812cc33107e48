"""When agents are configured, retried and closed: from the first user that enters a manager to the last that leaves.

Each event loop has users of its own, and a task of its own for each of them that retries the agents that are down.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import anyio
from anyio import CancelScope
from msgspec import Struct

from .calls.configuring import give
from .concurrency.background import BackgroundTask
from .concurrency.event_loop import EventLoop, SharedEvent
from .concurrency.users import Leave, Users
from .errors import AgentError, reworded
from .guard import Guard
from .retirement import Retirements

logger: Final = logging.getLogger("asgi_agents")

# Seconds that connections may take to be made, with which an agent is configured that another guard configures too.
_HANDOVER_TIMEOUT: Final = 10.0


class Companion(Protocol):
    """What apps of a manager have run in the background."""

    async def run(self) -> None:
        """Until cancelled, once for each user of the manager."""
        ...


C = TypeVar("C", bound=Companion)


class _Work(Struct, eq=False):
    """What may open connections on an event loop, and whether those were closed meanwhile."""

    loop: EventLoop
    late: bool = False


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
        self._users = Users()
        retirements.loops = lambda: self._users.loops
        # One of each retry task: it is called with an agent that was added.
        self._watchers: list[Callable[[Guard], None]] = []
        #: What runs beside the retry task of each user, until that user leaves.
        self.companions: list[Callable[[], Awaitable[object]]] = []
        self._shared: dict[tuple[type[Companion], Hashable], Companion] = {}
        #: Those that are under way.
        self.handovers: list[Handover] = []
        # Changes of agents that are under way.
        self._work: list[_Work] = []

    def present(self) -> Sequence[Guard]:
        """The guards of the agents that there are now, and of those that are out of their places for a while."""
        return (*self._guards(), *self._aside())

    def leading(self) -> Sequence[Guard]:
        """All that may configure an agent: those that have left their places and are not closed, and then those that
        are :meth:`present`.
        """
        return (*self._retirements.open, *self.present())

    def leave(self, guards: Iterable[Guard]) -> None:
        """They were replaced or removed. From now on they hand over what those give that lead to their agents."""
        for guard in guards:
            if not guard.stands_in:
                self._retirements.begin(guard)
        self._settle()

    @asynccontextmanager
    async def placing(self, guard: Guard) -> AsyncIterator[None]:
        """While a guard is put in a new place: no former one hands its agent another configuration, nor later on."""
        async with _held(former for former in self._retirements.open if _may_share_agent(guard, former)):
            yield
            self._settle()

    async def push(self, guard: Guard, config: Any) -> None:
        """:meth:`Guard.push_config`, also for the former ones that lead to the agent, and the one it stands in for."""
        following = [one for one in self._retirements.open if one.configuring.follows(guard.configuring)]
        async with self.connecting(), _held(following, guard):
            await guard.push_config(config)
            for own in self._aside():
                if own.config.id == guard.config.id and not own.stands_in:
                    give(own.configuring, config)
                    own.config = replace(own.config, config=config)
            self._settle()

    @asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """While agents are configured that are in place afterwards: what that opens is closed again where the last user
        of the event loop leaves meanwhile. Nobody else would close it.
        """
        work = _Work(EventLoop())
        self._work.append(work)
        try:
            yield
        finally:
            self._work.remove(work)
            if work.late and work.loop not in self._users.loops:
                with CancelScope(shield=True):
                    try:
                        await self.shutdown()
                    except Exception:
                        logger.exception("connections to agents could not be closed")

    def _settle(self) -> None:
        """Those that have left their places follow whoever leads to their agents now, of the same id if there is one.

        Where the agent is one object, ids may differ.
        """
        present = [guard for guard in self.present() if not guard.stands_in]
        for former in self._retirements.open:
            for guard in sorted(present, key=lambda guard: guard.config.id == former.config.id):
                former.configuring.follow(guard.configuring)

    def companion(self, kind: type[C], key: Hashable, make: Callable[[], C]) -> C:
        """One that runs beside the others, which is made once for each key."""
        known = self._shared.get((kind, key))
        if isinstance(known, kind):
            return known
        made = self._shared[kind, key] = make()
        self.companions.append(made.run)
        return made

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
                    raise reworded(exc, f"agent {guard.config.id!r} is required at startup: {exc}") from exc

    async def shutdown(self) -> None:
        """Close the connections that belong to the running event loop."""
        errors: list[Exception] = []
        for work in tuple(self._work):
            work.late = work.late or work.loop.is_current
        # What an agent is configured with does not belong to one event loop.
        in_use = self._users.are_elsewhere

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
            for guard in self.present():
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
        self._users.add(loop)
        self._retirements.look()
        tasks: list[BackgroundTask] = []
        left = False

        async def leave() -> None:
            nonlocal left
            if left:
                return
            left = True
            is_last = self._users.remove(loop)
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

    async def start_on_loop(self) -> None:
        """:meth:`start`, until any task of the running event loop calls :meth:`stop_on_loop`."""
        self._users.entered(await self.start())

    async def stop_on_loop(self) -> None:
        """Leave what was entered last on the running event loop. It makes no difference which task has entered it.

        Raises :class:`RuntimeError` where nothing was. What another event loop has entered, if that is the only one, is
        left there.
        """
        if not await self._users.leave():
            raise RuntimeError("AgentManager: it is left on an event loop on which it was not entered")

    def watch(self, guard: Guard) -> None:
        """Retry an agent that was added, if it is not configured, on every event loop that has users."""
        for watch in tuple(self._watchers):
            watch(guard)

    async def _keep_configuring(self) -> None:
        """Ask the agents that are down again and again, each in its own time, until cancelled."""

        retried: set[Guard] = set()

        async def retry(guard: Guard) -> None:
            try:
                while not guard.configured and guard in self._guards():
                    await anyio.sleep(guard.configuring.delay)
                    # It may have been replaced or removed meanwhile.
                    if guard in self._guards():
                        await try_to_configure(guard)
            finally:
                retried.remove(guard)

        loop = EventLoop()
        async with anyio.create_task_group() as tasks:

            def watch_here(guard: Guard) -> None:
                if not guard.configured and guard not in retried:
                    retried.add(guard)
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
                # No name of this function is bound to one for as long as it sleeps: it may be replaced meanwhile.
                deque(map(watch, self._guards()), maxlen=0)
                await anyio.sleep_forever()
            finally:
                self._watchers.remove(watch)


async def try_to_configure(guard: Guard) -> None:
    """Ask an agent to take its configuration. Where it fails, the guard has logged it and will be asked again."""
    with suppress(AgentError):
        await guard.configuring.configure()


class Handover:
    """Has new agents take their configuration before they are put in place, and takes that back where they are not.

    An agent that is one object, or at one address, has one configuration. Where a new guard leads to an agent that
    another one leads to already, the agent is asked last: once all others have taken theirs. Until it is left, the
    guards that are in place don't configure such agents. Of several handovers to one agent each waits for those before.

    :param new: guards that are in no place yet.
    :param lifecycle: of the guards that are in place.
    """

    def __init__(self, new: Iterable[Guard], lifecycle: Lifecycle) -> None:
        self._new = tuple(new)
        self._lifecycle = lifecycle
        # Those that were asked: they may have taken their configuration, also where they have failed.
        self._asked: tuple[Guard, ...] = ()
        # Those whose turn it has.
        self._holding: frozenset[Guard] = frozenset()
        self._held = AsyncExitStack()
        self._over = SharedEvent()

    async def __aenter__(self) -> Self:
        self._lifecycle.handovers.append(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with CancelScope(shield=True):
                if exc is None:
                    await self._held.aclose()
                else:
                    await self._take_back()
        finally:
            self._lifecycle.handovers.remove(self)
            self._over.set()

    async def configure(self, fatal: Callable[[str, AgentError], bool]) -> Mapping[str, AgentError]:
        """Ask them; returns the errors of those that do not take it, by id.

        :param fatal: whether no more are to be asked after such an error.
        """
        handovers = tuple(self._lifecycle.handovers)
        for before in handovers[: handovers.index(self)]:
            if any(_may_share_agent(guard, other) for guard in self._new for other in before._new):
                await before._over.wait()
        last = self._sharing(self._leading_to_agents_of(self._new))
        failures = await self._ask([guard for guard in self._new if guard not in last], fatal)
        # Until nobody has come to one of the agents while it was asked: who it has listened to last is not known then.
        while not any(fatal(*failure) for failure in failures.items()):
            others = self._leading_to_agents_of(self._new)
            if self._holding.issuperset(others) and all(guard in self._asked for guard in self._new):
                break
            self._holding = frozenset()
            await self._held.aclose()
            await self._held.enter_async_context(_held(others))
            self._holding = frozenset(others)
            sharing = self._sharing(others)
            last = [guard for guard in self._new if guard in sharing or guard not in self._asked]
            for guard in last:
                failures.pop(guard.config.id, None)
                if guard in self._asked:
                    guard.configuring.lose()
                    guard.configuring.try_again()
            failures |= await self._ask(last, fatal)
        return failures

    async def _ask(self, guards: Sequence[Guard], fatal: Callable[[str, AgentError], bool]) -> dict[str, AgentError]:
        self._asked = (*self._asked, *guards)
        return await _configure_all(guards, fatal)

    def _leading_to_agents_of(self, new: Sequence[Guard]) -> Sequence[Guard]:
        """The guards that may configure the agents of ``new`` ones as well."""
        return [guard for guard in self._lifecycle.leading() if any(_may_share_agent(one, guard) for one in new)]

    def _sharing(self, others: Sequence[Guard]) -> Sequence[Guard]:
        return [guard for guard in self._new if any(_may_share_agent(guard, other) for other in others)]

    def _has_lost(self, guard: Guard, asked: Sequence[Guard]) -> bool:
        """Whether the agent of ``guard`` may have lost its configuration to these."""
        held = guard in self._holding
        return any(one.configuring.overwrites(guard.configuring, held=held) for one in asked)

    def done(self, previous: Iterable[Guard]) -> None:
        """They are in place of ``previous``, which may still have calls, and are not to configure their agents back."""
        self._lifecycle.leave(previous)

    async def _take_back(self) -> None:
        """Close them, and hand the agents that are in place their configuration again, as far as they may have lost it.

        One that does not take it again is not configured: it is treated by its failure mode, and asked again.
        """
        others = self._leading_to_agents_of(self._asked)
        sharing = [guard for guard in self._sharing(others) if guard in self._asked]
        try:
            for new in sharing:
                for guard in others:
                    new.configuring.follow(guard.configuring)
            # What is cut short while it configures an agent may do so all the same, and later.
            with anyio.move_on_after(_HANDOVER_TIMEOUT):
                for new in sharing:
                    await new.configuring.handed_over()
            async with anyio.create_task_group() as tasks:
                for guard in self._new:
                    tasks.start_soon(_close, guard)
        finally:
            await self._held.aclose()
            # Nobody has lost anything to those that could not be connected to, such as at a mistaken address.
            asked = [guard for guard in self._asked if guard.configuring.may_have_configured]
            lost = [guard for guard in self._leading_to_agents_of(asked) if self._has_lost(guard, asked)]
            lost = [guard for guard in lost if guard.configuring.lose()]
        present = self._lifecycle.present()
        async with anyio.create_task_group() as tasks:
            for guard in lost:
                # Others are asked before their next call.
                if guard in present:
                    tasks.start_soon(self._restore, guard)

    async def _restore(self, guard: Guard) -> None:
        guard.configuring.logged = False
        try:
            await guard.configuring.configure()
        except AgentError as exc:
            logger.error(
                "agent %r was asked to take another configuration, which is not in force, and does not take its own"
                " again: %s; it is treated by its failure mode and asked again",
                guard.config.id,
                exc,
            )
            self._lifecycle.watch(guard)
        finally:
            guard.configuring.logged = True


@asynccontextmanager
async def _held(guards: Iterable[Guard], pushing: Guard | None = None) -> AsyncIterator[None]:
    """None of them hands its agent a configuration meanwhile, save ``pushing``, which is given another one."""
    those = {*guards, *(() if pushing is None else (pushing,))}
    async with AsyncExitStack() as held:
        # All who hold several do so in the same order: nobody waits for one who waits for him.
        for guard in sorted(those, key=id):
            configuring = guard.configuring
            await held.enter_async_context(configuring.turn() if guard is pushing else configuring.held())
        yield


def _may_share_agent(new: Guard, other: Guard) -> bool:
    return not other.stands_in and new.configuring.may_share_agent(other.configuring)


async def _close(guard: Guard) -> None:
    try:
        await guard.client.retire()
    except Exception:
        # The agents in place are to have their configuration all the same.
        logger.exception("agent %r: its connections could not be closed", guard.config.id)


async def _configure_all(guards: Sequence[Guard], fatal: Callable[[str, AgentError], bool]) -> dict[str, AgentError]:
    """Ask agents to take their configuration, all at once, and at the first fatal error no further."""
    failures: dict[str, AgentError] = {}

    async def configure(guard: Guard) -> None:
        try:
            await guard.configuring.configure()
        except AgentError as exc:
            failures[guard.config.id] = exc
            if fatal(guard.config.id, exc):
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for guard in guards:
            tasks.start_soon(configure, guard)
    return failures
