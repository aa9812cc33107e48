"""One object for each event loop, which several may close at a time."""

import anyio
import pytest

from asgi_agents.concurrency.per_event_loop import PerEventLoop


class Slow:
    """Is closed when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = False
        self.begun, self.go = anyio.Event(), anyio.Event()

    async def aclose(self) -> None:
        self.asked += 1
        self.begun.set()
        await self.go.wait()
        self.closed = True


@pytest.mark.parametrize("everywhere", [False, True])
async def test_all_who_close_it_wait_until_it_is_closed(everywhere: bool) -> None:
    """As the guards of two agents do that have one transport, and an app that ends while one of them drains."""
    kept = PerEventLoop(Slow)
    slow = await kept.get()
    ended: list[bool] = []

    async def close() -> None:
        await (kept.aclose_everywhere() if everywhere else kept.aclose())
        ended.append(slow.closed)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(close)
        await slow.begun.wait()
        await anyio.wait_all_tasks_blocked()
        assert ended == []
        # What is being closed is not made anew beside itself.
        assert await kept.get() is slow
        slow.go.set()
    assert (ended, slow.asked) == ([True] * 3, 1)
    assert await kept.get() is not slow
    (await kept.get()).go.set()
    await kept.aclose()


async def test_who_waits_for_it_to_be_closed_is_let_go_when_closing_is_cut_short() -> None:
    kept = PerEventLoop(Slow)
    slow = await kept.get()
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as closing:
                closing.start_soon(kept.aclose)
                await slow.begun.wait()
                tasks.start_soon(kept.aclose)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    assert not slow.closed
    assert await kept.get() is not slow
    (await kept.get()).go.set()
    await kept.aclose()
