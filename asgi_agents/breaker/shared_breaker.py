"""A circuit breaker that calls on several event loops share."""

from threading import RLock
from typing import Any

from .breaker import BreakerState, CircuitBreaker


class SharedBreaker(CircuitBreaker):
    """Like :class:`CircuitBreaker`, for several threads: one method runs at a time.

    Otherwise two threads could each see the last half-open slot as free, or one could count its success in a state that
    the other has just left. Callers add 1 to :attr:`answered` without the lock. That is atomic as well: with its
    global lock, CPython switches threads where a function is called or a loop begins again, and nowhere else. A build
    without that lock may lose some of these successes.
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
        with self._lock:
            return CircuitBreaker.acquire(self)

    def success(self, began: int) -> None:
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
