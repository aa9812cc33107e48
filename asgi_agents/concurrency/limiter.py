"""Limits how many calls to an agent are under way at a time."""

import anyio


class Limiter:
    """Permits, given out in the order in which tasks ask for them.

    Unlike :class:`anyio.CapacityLimiter` and :class:`anyio.Semaphore` it never suspends when a permit is free, and it
    is bound to no event loop while no task waits: ``TestClient(app)`` runs each request in a new event loop.
    """

    __slots__ = ("_queue", "_taken", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        # None until a task waits: each open websocket has some of these. A list, for a deque takes ten times as much
        # memory.
        self._queue: list[anyio.Event] | None = None

    @property
    def taken(self) -> int:
        """How many permits are taken."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many tasks wait for a permit."""
        return len(self._queue or ())

    def try_acquire(self) -> bool:
        """Take a permit if one is free and no task waits for one."""
        if self._taken >= self.limit:
            return False
        self._taken += 1
        return True

    async def acquire(self) -> None:
        """Wait for a permit. When cancelled, holds none."""
        if self.try_acquire():
            return
        granted = anyio.Event()
        if self._queue is None:
            self._queue = []
        queue = self._queue
        queue.append(granted)
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():
                # The task got the permit in the same moment as the cancellation: pass the permit on.
                self.release()
            else:
                queue.remove(granted)
            raise

    def resize(self, limit: int) -> None:
        """Change the limit. If it becomes smaller, permits that are taken stay so until they are given back."""
        self.limit = limit
        while self._queue and self._taken < limit:
            self._taken += 1
            self._queue.pop(0).set()

    def release(self) -> None:
        """Give a permit back. The first waiting task gets it."""
        if self._queue and self._taken <= self.limit:
            self._queue.pop(0).set()
        else:
            self._taken -= 1
