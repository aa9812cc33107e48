"""How many calls to an agent may be under way."""

from collections import deque

import anyio


class Limiter:
    """First come, first served, permits.

    Unlike :class:`anyio.CapacityLimiter` and :class:`anyio.Semaphore` it never yields when a permit is free, and is
    tied to no event loop while nobody waits: ``TestClient(app)`` runs each request in a new one.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._queue: deque[anyio.Event] = deque()

    @property
    def taken(self) -> int:
        """Permits held."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._queue)

    def try_acquire(self) -> bool:
        """Take a permit if one is free; never jumps the queue."""
        if self._taken >= self.limit:
            return False
        self._taken += 1
        return True

    async def acquire(self) -> None:
        """Wait for a permit. When cancelled, holds none."""
        if self.try_acquire():
            return
        granted = anyio.Event()
        self._queue.append(granted)
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():
                # The permit came in the same moment as the cancellation: pass it on.
                self.release()
            else:
                self._queue.remove(granted)
            raise

    def resize(self, limit: int) -> None:
        """Change the limit. Permits over a smaller one are not taken back, only not given out again."""
        self.limit = limit
        while self._queue and self._taken < limit:
            self._taken += 1
            self._queue.popleft().set()

    def release(self) -> None:
        """Give a permit back, to the first in the queue if there is one."""
        if self._queue and self._taken <= self.limit:
            self._queue.popleft().set()
        else:
            self._taken -= 1
