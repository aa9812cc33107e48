import itertools
import sys

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from asgi_agents.concurrency.limiter import Limiter
from asgi_agents.concurrency.shared_limiter import SharedLimiter


@pytest.fixture(params=[Limiter, SharedLimiter], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds promise the same to the tasks of one event loop."""
    monkeypatch.setattr(sys.modules[__name__], "Limiter", request.param)


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await checkpoint()


class Queue:
    """Calls that want a permit, each in a task and a scope of its own; they keep what they get."""

    def __init__(self, limiter: Limiter, tasks: TaskGroup) -> None:
        self.limiter = limiter
        self.tasks = tasks
        self.granted: list[int] = []
        self.cancelled: list[int] = []
        self.scopes: list[anyio.CancelScope] = []

    async def join(self, count: int = 1) -> None:
        for _ in range(count):
            number = len(self.scopes)
            self.scopes.append(anyio.CancelScope())
            self.tasks.start_soon(self._wait, number)
            # One after the other, so that the queue has the order of the numbers.
            await settle()

    async def _wait(self, number: int) -> None:
        with self.scopes[number] as scope:
            await self.limiter.acquire()
            self.granted.append(number)
        if scope.cancelled_caught:
            self.cancelled.append(number)


def test_only_so_many_permits_are_given() -> None:
    limiter = Limiter(2)

    assert [limiter.try_acquire() for _ in range(4)] == [True, True, False, False]
    assert (limiter.taken, limiter.waiting, limiter.limit) == (2, 0, 2)


def test_a_permit_that_was_given_back_can_be_taken_again() -> None:
    limiter = Limiter(1)

    for _ in range(3):
        assert limiter.try_acquire()
        limiter.release()

    assert limiter.taken == 0


async def test_a_free_permit_is_taken_without_yielding() -> None:
    limiter = Limiter(1)
    others = []

    async def other() -> None:
        others.append(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await limiter.acquire()
        assert others == []


async def test_a_free_permit_is_taken_even_in_a_cancelled_scope() -> None:
    limiter = Limiter(1)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await limiter.acquire()
        limiter.release()

    assert not scope.cancelled_caught
    assert limiter.taken == 0


async def test_who_came_first_is_served_first() -> None:
    limiter = Limiter(2)
    async with anyio.create_task_group() as tasks:
        queue = Queue(limiter, tasks)
        await queue.join(6)
        assert queue.granted == [0, 1]
        assert (limiter.taken, limiter.waiting) == (2, 4)

        for served in range(3, 7):
            limiter.release()
            await settle()
            assert queue.granted == list(range(served))
            assert limiter.taken == 2


async def test_nobody_jumps_the_queue() -> None:
    limiter = Limiter(1)
    async with anyio.create_task_group() as tasks:
        queue = Queue(limiter, tasks)
        await queue.join(2)

        limiter.release()
        # The permit belongs to the one in the queue, though that has not run yet.
        assert not limiter.try_acquire()
        assert (limiter.taken, limiter.waiting) == (1, 0)

        await settle()
        assert queue.granted == [0, 1]


async def test_a_call_that_is_cancelled_in_the_queue_leaves_it_with_nothing() -> None:
    limiter = Limiter(1)
    async with anyio.create_task_group() as tasks:
        queue = Queue(limiter, tasks)
        await queue.join(4)

        queue.scopes[2].cancel()
        await settle()
        assert queue.cancelled == [2]
        assert limiter.waiting == 2

        for _ in range(2):
            limiter.release()
            await settle()
        assert queue.granted == [0, 1, 3]
        assert limiter.taken == 1


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_permit_that_comes_in_the_moment_of_the_cancellation_is_not_lost(cancel_first: bool) -> None:
    limiter = Limiter(1)
    async with anyio.create_task_group() as tasks:
        queue = Queue(limiter, tasks)
        await queue.join(3)

        if cancel_first:
            queue.scopes[1].cancel()
        limiter.release()
        queue.scopes[1].cancel()
        await settle()

        # Either it got away with its permit, or the next in the queue has it.
        assert len(queue.granted) == 2
        assert limiter.taken == 1
        assert limiter.waiting == (1 if 1 in queue.granted else 0)
        tasks.cancel_scope.cancel()
    assert limiter.waiting == 0


async def test_the_last_one_in_the_queue_gives_its_permit_back_when_it_is_cancelled_at_the_grant() -> None:
    limiter = Limiter(1)
    async with anyio.create_task_group() as tasks:
        queue = Queue(limiter, tasks)
        await queue.join(2)

        limiter.release()
        queue.scopes[1].cancel()
        await settle()

        holders = len(queue.granted) - 1
        assert limiter.taken == holders
        assert limiter.try_acquire() is (holders == 0)


OPERATIONS = ["release", "cancel 1", "cancel 2", "cancel 3"]


@pytest.mark.parametrize("limit", [1, 2])
async def test_whatever_is_released_and_cancelled_in_one_moment_no_permit_is_lost_or_doubled(limit: int) -> None:
    together: list[tuple[str, ...]] = [
        operations for size in range(1, 5) for operations in itertools.permutations(OPERATIONS, size)
    ] + [("release", "release", "cancel 1"), ("cancel 1", "release", "release"), ("release", "cancel 1", "release")]
    for operations in together:
        limiter = Limiter(limit)
        for _ in range(limit):
            assert limiter.try_acquire()
        held = limit
        async with anyio.create_task_group() as tasks:
            queue = Queue(limiter, tasks)
            await queue.join(4)
            for operation in operations:
                if operation == "release":
                    if held:
                        held -= 1
                        limiter.release()
                else:
                    queue.scopes[int(operation[-1])].cancel()
            await settle()

            assert limiter.taken == held + len(queue.granted), operations
            assert limiter.taken <= limit
            assert limiter.waiting == 4 - len(queue.granted) - len(queue.cancelled)
            assert not (limiter.waiting and limiter.taken < limit), "a permit lies idle while someone waits"
            waiting = set(range(4)).difference(queue.granted, queue.cancelled)
            assert not waiting or max(queue.granted, default=-1) < min(waiting), "someone jumped the queue"

            while limiter.taken:
                limiter.release()
                await settle()
        assert (limiter.taken, limiter.waiting) == (0, 0)
        assert sorted(queue.granted + queue.cancelled) == [0, 1, 2, 3]


async def test_no_more_than_the_limit_are_ever_at_work() -> None:
    limiter = Limiter(3)
    at_work = most = 0

    async def work(number: int) -> None:
        nonlocal at_work, most
        await limiter.acquire()
        try:
            at_work += 1
            most = max(most, at_work)
            for _ in range(number % 4):
                await checkpoint()
            at_work -= 1
        finally:
            limiter.release()

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(work, number)

    assert most == 3
    assert (limiter.taken, limiter.waiting) == (0, 0)


def test_it_belongs_to_no_event_loop_while_nobody_waits(anyio_backend_name: str) -> None:
    limiter = Limiter(1)

    async def use() -> None:
        async with anyio.create_task_group() as tasks:
            queue = Queue(limiter, tasks)
            await queue.join(2)
            limiter.release()
            await settle()
            limiter.release()

    for _ in range(3):
        anyio.run(use, backend=anyio_backend_name)

    assert (limiter.taken, limiter.waiting) == (0, 0)
