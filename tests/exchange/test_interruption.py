"""Ending a wait from outside, whatever else is cancelled at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest

from asgi_agents.exchange.interruption import Interruption
from tests.support.asgi import settle


async def never() -> str:
    await anyio.sleep_forever()
    raise AssertionError


async def test_what_comes_is_returned() -> None:
    async def soon() -> str:
        await anyio.lowlevel.checkpoint()
        return "here"

    assert await Interruption().wait_for(soon) == "here"


async def test_an_interrupted_wait_returns_nothing_and_can_be_done_again() -> None:
    interruption = Interruption()
    found: list[str | None] = []

    async def wait_twice() -> None:
        found.append(await interruption.wait_for(never))
        found.append(await interruption.wait_for(never))
        # Nothing is left of it.
        await anyio.lowlevel.checkpoint()
        found.append("on")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_twice)
        for number in (1, 2):
            await settle()
            interruption.interrupt()
            interruption.interrupt()
            await settle()
            assert found[:number] == [None] * number
    assert found == [None, None, "on"]


async def test_to_interrupt_nobody_is_forgotten() -> None:
    interruption = Interruption()
    interruption.interrupt()

    async def soon() -> str:
        await anyio.lowlevel.checkpoint()
        return "here"

    assert await interruption.wait_for(soon) == "here"


@pytest.mark.parametrize("interrupted_first", [False, True])
async def test_a_cancellation_is_not_lost_in_an_interruption(interrupted_first: bool) -> None:
    interruption = Interruption()
    went_on = False
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                nonlocal went_on
                await interruption.wait_for(never)
                await anyio.lowlevel.checkpoint()
                went_on = True

            tasks.start_soon(wait)
            await settle()
            steps: list[Callable[[], object]] = [interruption.interrupt, scope.cancel]
            for step in steps if interrupted_first else reversed(steps):
                step()
    assert scope.cancelled_caught
    assert not went_on


async def in_a_group() -> str:
    """As what Starlette's ``BaseHTTPMiddleware`` gives for a receive: its end takes a while."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(never)
        await never()
    raise AssertionError


@pytest.mark.parametrize("function", [never, in_a_group])
@pytest.mark.parametrize("between", range(4))
@pytest.mark.parametrize("interrupted_first", [False, True])
async def test_a_scope_of_the_task_that_waits_takes_its_own_cancellation(
    interrupted_first: bool, between: int, function: Callable[[], Awaitable[str]]
) -> None:
    interruption = Interruption()
    steps: list[Callable[[], object]] = [interruption.interrupt]

    async def interrupt_and_cancel() -> None:
        await settle()
        for step in steps if interrupted_first else reversed(steps):
            step()
            for _ in range(between):
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            steps.append(scope.cancel)
            tasks.start_soon(interrupt_and_cancel)
            await interruption.wait_for(function)
            await anyio.sleep_forever()
        assert scope.cancelled_caught
    # Nothing is left of either.
    await anyio.lowlevel.checkpoint()


async def test_a_deadline_around_the_wait_holds() -> None:
    with anyio.move_on_after(0.01) as scope:
        await Interruption().wait_for(never)
    assert scope.cancelled_caught
    await anyio.lowlevel.checkpoint()


async def test_what_is_raised_comes_out() -> None:
    async def fail() -> str:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await Interruption().wait_for(fail)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_task_that_is_cancelled_without_a_scope_is_cancelled() -> None:
    interruption = Interruption()
    task = asyncio.create_task(interruption.wait_for(never))
    await settle()
    interruption.interrupt()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_cancellation_that_was_swallowed_earlier_does_not_count() -> None:
    interruption = Interruption()

    async def stubborn() -> str | None:
        with suppress(asyncio.CancelledError):
            await anyio.sleep_forever()
        return await interruption.wait_for(never)

    task = asyncio.create_task(stubborn())
    await settle()
    task.cancel()
    await settle()
    interruption.interrupt()
    assert await task is None
    assert task.cancelling() == 1
