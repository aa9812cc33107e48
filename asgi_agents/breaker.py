"""A circuit breaker as a pure state machine: no I/O, no event loop, and the clock is given.

::

    CLOSED     every call passes; `failure_threshold` failures in a row -> OPEN
    OPEN       no call passes; after `reset_timeout` seconds            -> HALF_OPEN
               at once, when the agent is known to be back              -> HALF_OPEN
    HALF_OPEN  at most `half_open_max_calls` calls at a time pass;
               `success_threshold` successes                            -> CLOSED
               one failure                                              -> OPEN

Every change of state starts a new generation. A call carries the generation it was let through in, and once that has
passed, its outcome says nothing about the state of today: it is ignored.
"""

import time
from collections.abc import Callable
from enum import StrEnum

from .config import CircuitBreakerConfig


class BreakerState(StrEnum):
    """The three states."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Decides which calls may pass.

    Each generation that :meth:`acquire` returns must be given back exactly once, to :meth:`success`, :meth:`failure` or
    :meth:`release`.

    :param clock: monotonic seconds.
    :param on_change: called with the old and the new state, at each change.
    """

    def __init__(
        self,
        config: CircuitBreakerConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[BreakerState, BreakerState], None] | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._on_change = on_change
        #: Whether it is closed, and the last call did not fail: :meth:`acquire` and :meth:`success` change nothing.
        self.calm = True
        self._state = BreakerState.CLOSED
        self._generation = 0
        self._failures = 0
        self._successes = 0
        self._trials = 0
        self._opened_at = 0.0

    @property
    def state(self) -> BreakerState:
        """The state now; time alone turns OPEN into HALF_OPEN."""
        if self._state is BreakerState.OPEN and self._clock() - self._opened_at >= self._config.reset_timeout:
            self._enter(BreakerState.HALF_OPEN)
        return self._state

    @property
    def observed(self) -> BreakerState:
        """The state, for those who look from another thread: reading it changes nothing."""
        state = self._state
        if state is BreakerState.OPEN and self._clock() - self._opened_at >= self._config.reset_timeout:
            return BreakerState.HALF_OPEN
        return state

    @property
    def trials(self) -> int:
        """Calls under way in half-open state."""
        return self._trials

    @property
    def retry_after(self) -> float:
        """Seconds until the next trial may pass; 0 unless open."""
        if self.observed is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._opened_at + self._config.reset_timeout - self._clock())

    @property
    def would_refuse(self) -> bool:
        """Whether :meth:`acquire` would return None now. Takes nothing."""
        state = self.state
        return state is BreakerState.OPEN or (
            state is BreakerState.HALF_OPEN and self._trials >= self._config.half_open_max_calls
        )

    def acquire(self) -> int | None:
        """Let a call through and return its generation, or None to refuse it."""
        if self._state is not BreakerState.CLOSED:
            if self.would_refuse:
                return None
            self._trials += 1
        return self._generation

    def success(self, generation: int) -> None:
        """The call was answered."""
        if generation != self._generation:
            return
        if self._state is BreakerState.CLOSED:
            self._failures = 0
            self.calm = True
            return
        self._trials -= 1
        self._successes += 1
        if self._successes >= self._config.success_threshold:
            self._enter(BreakerState.CLOSED)

    def failure(self, generation: int) -> None:
        """The call failed."""
        if generation != self._generation:
            return
        self.calm = False
        if self._state is BreakerState.CLOSED:
            self._failures += 1
            if self._failures < self._config.failure_threshold:
                return
        self._enter(BreakerState.OPEN)

    def release(self, generation: int) -> None:
        """The call was given up before it had an outcome: give its half-open slot back, count nothing."""
        if generation == self._generation and self._state is BreakerState.HALF_OPEN:
            self._trials -= 1

    def try_again(self) -> None:
        """Let trials in at once if it is open: there is reason to think that the agent is back."""
        if self.state is BreakerState.OPEN:
            self._enter(BreakerState.HALF_OPEN)

    def _enter(self, state: BreakerState) -> None:
        previous, self._state = self._state, state
        self._generation += 1
        self._failures = self._successes = self._trials = 0
        self.calm = state is BreakerState.CLOSED
        if state is BreakerState.OPEN:
            self._opened_at = self._clock()
        if self._on_change is not None:
            self._on_change(previous, state)
