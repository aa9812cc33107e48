"""Agents that were replaced or removed are closed once no connection needs them, whichever event loop has changed them.

The event loop that serves is that of the test. The other one runs in a thread, and ends while the connection is open.
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio
import pytest

from asgi_agents import AgentManager
from asgi_agents.manager import registry_of
from asgi_agents.registry import AgentRegistry
from tests.support.changes import take_a_file

from .test_manager import REQUEST, Fake, config, fake

# Reached only by what would never have ended.
PATIENCE: Final = 30.0
ENDS: Final = {"at once": 0, "after a step": 1, "later": 20}


async def replaced(manager: AgentManager) -> None:
    """Cancelled once the other one is in place, as a command is that is not waited for."""
    await _begun(partial(manager.replace_agent, config("a", Fake())))


async def removed(manager: AgentManager) -> None:
    await _begun(partial(manager.remove_agent, "a"))


async def _begun(change: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(change)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def replaced_by_a_file(manager: AgentManager) -> None:
    await take_a_file(manager, config("a", Fake()))


async def removed_by_a_file(manager: AgentManager) -> None:
    await take_a_file(manager)


Change = Callable[[AgentManager], Awaitable[None]]
CHANGES: Final[list[Change]] = [replaced, removed, replaced_by_a_file, removed_by_a_file]
each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
each_end = pytest.mark.parametrize("steps", ENDS.values(), ids=ENDS)
each_other = pytest.mark.parametrize("other", ["asyncio", "trio"], ids="in a thread on {}".format)


class Held:
    """An agent that a connection has which is open."""

    def __init__(self) -> None:
        self.manager = AgentManager([config("a", Fake()), config("b", Fake())])
        self.registry: AgentRegistry = registry_of(self.manager)
        self.guard = self.registry.guard("a")
        self.transport = fake(self.manager, "a")
        self._route = self.registry.resolved_route(None)
        self._route.held += 1

    def let_go(self) -> None:
        self._route.held -= 1

    @property
    def is_closed(self) -> bool:
        return self.guard.configuring.closed or self.transport.closed > 0

    @property
    def is_forgotten(self) -> bool:
        """Whether nothing refers to it any more."""
        registry = self.registry
        return not (
            registry._retirements._under_way
            or registry._retirements.open
            or registry._leaving
            or any(guard.predecessor is not None for guard in registry.guards())
            or self.guard in registry.metered
        )

    async def closed(self) -> None:
        with anyio.fail_after(PATIENCE):
            while not self.is_forgotten:  # noqa: ASYNC110 - tasks of other event loops make it so
                await anyio.sleep(0.001)
        assert self.transport.closed == 1


async def elsewhere(backend: str, function: Callable[[], Awaitable[Any]], steps: int = 0) -> None:
    """Run it on an event loop that ends that many steps afterwards."""

    async def main() -> None:
        await function()
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()

    await anyio.to_thread.run_sync(partial(anyio.run, main, backend=backend))


@asynccontextmanager
async def used_elsewhere(manager: AgentManager, backend: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """While an event loop of a thread runs that has a user, until the function is called that this gives."""
    entered, leave, left, end = (threading.Event() for _ in range(4))

    async def enter() -> None:
        async with manager:
            entered.set()
            await anyio.to_thread.run_sync(leave.wait)
        left.set()
        # It has no users any more, and what looks on it may end at any time.
        await anyio.to_thread.run_sync(end.wait)

    async def leave_elsewhere() -> None:
        leave.set()
        await anyio.to_thread.run_sync(left.wait)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(elsewhere, backend, enter)
        try:
            await anyio.to_thread.run_sync(entered.wait)
            yield leave_elsewhere
        finally:
            leave.set()
            end.set()


@each_end
@each_change
@each_other
async def test_a_connection_keeps_its_agent_where_another_event_loop_has_changed_it_and_ends(
    other: str, change: Change, steps: int
) -> None:
    it = Held()
    async with it.manager:
        await elsewhere(other, lambda: change(it.manager), steps)
        assert not it.is_closed
        it.let_go()
        await it.closed()


@each_change
@each_other
async def test_what_is_changed_again_and_again_elsewhere_leaves_nothing_behind(other: str, change: Change) -> None:
    it = Held()
    it.let_go()
    async with it.manager:
        for _ in range(3):
            await elsewhere(other, lambda: change(it.manager))
            if it.registry.find("a") is None:
                await it.manager.add_agent(config("a", Fake()))
        await it.closed()


@each_change
@each_other
async def test_the_last_user_of_an_event_loop_that_leaves_closes_no_agent_of_a_connection_elsewhere(
    other: str, change: Change
) -> None:
    it = Held()

    async def enter() -> None:
        async with it.manager:
            await change(it.manager)

    async with it.manager:
        await elsewhere(other, enter)
        assert not it.guard.configuring.closed
        # What belonged to the other event loop is closed.
        closed, it.transport.closed = it.transport.closed, 0
        assert closed == 1
        it.let_go()
        await it.closed()


@each_end
@each_change
@each_other
async def test_whoever_uses_the_manager_next_sees_to_what_an_event_loop_has_left(
    other: str, change: Change, steps: int
) -> None:
    it = Held()
    await elsewhere(other, lambda: change(it.manager), steps)
    assert not it.is_closed
    async with it.manager:
        assert not it.is_closed
        it.let_go()
        await it.closed()


@each_end
@each_change
@each_other
async def test_an_event_loop_that_serves_without_users_sees_to_that_too(other: str, change: Change, steps: int) -> None:
    it = Held()
    await elsewhere(other, lambda: change(it.manager), steps)
    # The next connection finds other agents than those before.
    assert (await it.manager.process_request_headers(REQUEST)).is_allow
    assert not it.is_closed
    it.let_go()
    await it.closed()


def test_routes_are_resolved_also_where_no_event_loop_runs() -> None:
    it = Held()
    anyio.run(removed_by_a_file, it.manager)
    assert [agent.guard.config.id for agent in it.registry.resolved_route(None).agents] == ["b"]
    assert not it.is_closed


@each_end
@each_change
@each_other
async def test_a_shutdown_closes_what_an_event_loop_has_left(other: str, change: Change, steps: int) -> None:
    it = Held()
    await elsewhere(other, lambda: change(it.manager), steps)
    assert not it.is_closed
    await it.manager.shutdown()
    assert it.is_forgotten
    assert it.transport.closed == 1


@each_change
@each_other
async def test_the_last_of_several_users_to_leave_closes_it_also_while_the_event_loop_of_another_runs(
    other: str, change: Change
) -> None:
    it = Held()
    async with used_elsewhere(it.manager, other) as leave_elsewhere:
        async with it.manager:
            await change(it.manager)
            await leave_elsewhere()
            assert not it.guard.configuring.closed
        assert it.is_forgotten


@each_change
@each_other
async def test_one_that_cannot_be_closed_keeps_no_other_open(
    other: str, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    it = Held()
    standing = fake(it.manager, "b")

    async def fail() -> None:
        raise OSError("no such luck")

    it.guard.client.aclose = fail  # type: ignore[method-assign]

    async with used_elsewhere(it.manager, other):
        async with it.manager:
            await change(it.manager)
            standing.closed = 0
        assert standing.closed == 1
        assert "agent 'a': its connections could not be closed" in caplog.text
        it.let_go()


@pytest.mark.parametrize("change", [replaced_by_a_file, removed_by_a_file], ids=lambda change: change.__name__)
async def test_a_shutdown_right_after_a_change_misses_nothing(change: Change) -> None:
    # On trio tasks begin in any order.
    for _ in range(20):
        it = Held()
        async with it.manager:
            await change(it.manager)
        assert it.is_forgotten
        assert it.transport.closed == 1
