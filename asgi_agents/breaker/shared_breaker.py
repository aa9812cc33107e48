"""A circuit breaker that calls on several event loops share."""

from threading import RLock
from typing import Any, Final

from .breaker import BreakerState, CircuitBreaker

# To look a member of an enumeration up by its name takes long (CPython 3.11).
_CLOSED: Final = BreakerState.CLOSED


class SharedBreaker(CircuitBreaker):
    """Like :class:`CircuitBreaker`, for several threads: one method runs at a time.

    Otherwise two threads could each see the last half-open slot as free, or one could count its success in a state that
    the other has just left. Most calls begin and succeed while the breaker is closed. For these one look, or one
    addition to :attr:`answered`, is all there is to do. That is done without the lock, which takes several times as
    long, here and by callers. It is atomic as well: with its global lock, CPython switches threads where a function is
    called or a loop begins again, and nowhere else. A build without that lock may lose some of these successes.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        # Reentrant: methods call one another, and the callback for a change may read the state.
        self._lock = RLock()
        super().__init__(*args, **options)

    @property
    def state(self) -> BreakerState:
        with self._lock:
            return super().state

    # Not super(): to make that takes longer than what most of these do.

    def acquire(self) -> int | None:
        # Before the state, so that a call is never taken for one that began after a change that it has not seen.
        moment = self.answered + self._ticks
        if self._state is _CLOSED:
            return moment
        with self._lock:
            return CircuitBreaker.acquire(self)

    def success(self, began: int) -> None:
        # The time first: nothing is called between what is looked at and what is counted.
        if self._clock() < self.no_recent_failures_until and began >= self._changed_at:
            self.answered += 1
            return
        with self._lock:
            CircuitBreaker.success(self, began)

    def failure(self, began: int) -> None:
        with self._lock:
            CircuitBreaker.failure(self, began)

    def release(self, began: int) -> None:
        with self._lock:
            CircuitBreaker.release(self, began)

    def try_again(self) -> None:
        with self._lock:
            CircuitBreaker.try_again(self)
