"""Limits how many calls to an agent are under way at a time, on all event loops together."""

from collections import deque
from functools import partial
from threading import RLock

from .event_loop import Wakeup


class SharedLimiter:
    """Like :class:`~.limiter.Limiter`, for tasks of several event loops, each in a thread of its own.

    Each waiting task is woken by its own event loop. The tasks of all event loops are in one queue.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: Permits held.
        # An attribute, because every call reads it.
        self.taken = 0
        self._queue: deque[_Waiter] = deque()
        # Reentrant: the garbage collector may close a coroutine of this thread, and so give a permit back, at any time.
        self._lock = RLock()

    @property
    def waiting(self) -> int:
        """How many tasks wait for a permit."""
        return len(self._queue)

    def try_acquire(self) -> bool:
        """Take a permit if one is free and no task waits for one."""
        with self._lock:
            if self.taken >= self.limit:
                return False
            self.taken += 1
            return True

    async def acquire(self) -> None:
        """Wait for a permit. When cancelled, holds none."""
        if self.try_acquire():
            return
        waiter = _Waiter()
        with self._lock:
            # Another thread may have given one back meanwhile.
            if self.try_acquire():
                return
            self._queue.append(waiter)
        try:
            await waiter.wait()
        except BaseException:
            with self._lock:
                if waiter.granted:
                    # The task got the permit in the same moment as the cancellation: pass the permit on.
                    self.release()
                else:
                    self._queue.remove(waiter)
            raise

    def resize(self, limit: int) -> None:
        """Change the limit. If it becomes smaller, permits that are taken stay so until they are given back."""
        with self._lock:
            self.limit = limit
            self._grant()

    def release(self) -> None:
        """Give a permit back. The first waiting task gets it."""
        with self._lock:
            self.taken -= 1
            if self._queue:
                self._grant()

    def _grant(self) -> None:
        """Give the free permits to waiting tasks, except to those whose event loop does not run.

        These get theirs when their event loop runs again.
        """
        passed_over: list[_Waiter] = []
        while self._queue and self.taken < self.limit:
            waiter = self._queue.popleft()
            waiter.granted = waiter.wake()
            if waiter.granted:
                self.taken += 1
            else:
                passed_over.append(waiter)
                if not waiter.passed_over:
                    waiter.passed_over = True
                    waiter.when_its_loop_runs(partial(self._look_again, waiter))
        self._queue.extendleft(reversed(passed_over))

    def _look_again(self, waiter: "_Waiter") -> None:
        with self._lock:
            waiter.passed_over = False
            self._grant()


class _Waiter(Wakeup):
    """A task in the queue."""

    __slots__ = ("granted", "passed_over")

    def __init__(self) -> None:
        super().__init__()
        self.granted = False
        #: Whether the task is to be looked at again when its event loop runs.
        self.passed_over = False
