"""How many calls to an agent may be under way, on all event loops together."""

from collections import deque
from functools import partial
from threading import RLock

from .event_loop import Wakeup


class SharedLimiter:
    """As :class:`~.limiter.Limiter`, for tasks of several event loops, each in a thread of its own.

    Whoever waits is woken by its own event loop. The order is that in which they came, on whichever event loop.
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
        """Calls in the queue."""
        return len(self._queue)

    def try_acquire(self) -> bool:
        """Take a permit if one is free; never jumps the queue."""
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
                    # The permit came in the same moment as the cancellation: pass it on.
                    self.release()
                else:
                    self._queue.remove(waiter)
            raise

    def resize(self, limit: int) -> None:
        """Change the limit. Permits over a smaller one are not taken back, only not given out again."""
        with self._lock:
            self.limit = limit
            self._grant()

    def release(self) -> None:
        """Give a permit back, to the first in the queue if there is one."""
        with self._lock:
            self.taken -= 1
            self._grant()

    def _grant(self) -> None:
        """Give the free permits to those who wait, except to those whose event loop does not run.

        These are looked at again when it does.
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
        #: Whether it is to be looked at again when its event loop runs.
        self.passed_over = False
