"""A circuit breaker as a pure state machine: no I/O, no event loop, and the clock is given.

::

    CLOSED     every call passes; `failure_threshold` failures in a row, or a
               share of failures of `failure_rate`                     -> OPEN
    OPEN       no call passes; after `reset_timeout` seconds            -> HALF_OPEN
               at once, when the agent is known to be back              -> HALF_OPEN
    HALF_OPEN  at most `half_open_max_calls` calls at a time pass;
               `success_threshold` successes                            -> CLOSED
               one failure                                              -> OPEN

How a call counts while the breaker is CLOSED:

=====================================================  ========================  ======================
how the call ended                                     failures in a row         failure rate
=====================================================  ========================  ======================
success                                                ends the row              one success
failure; no success and no failure that counted in     one more                  one failure
the row has ended since the call began
failure; a failure that counted in the row has ended   not counted: they         one failure
since the call began                                   overlapped
failure; a success has ended since the call began      not counted: the agent    one failure
                                                       has answered since
given up (:meth:`CircuitBreaker.release`)              nothing                   nothing
refused                                                nothing                   nothing
let through before the latest change of state          nothing                   nothing
=====================================================  ========================  ======================

So calls that fail together count once in a row: five body chunks that time out together are one event. An outage that
makes overlapping calls fail is found by the failure rate, in which each failure counts.

The failure rate is the share of failures among the calls that have ended within the last `window` seconds, all of them
since the breaker was last closed. It opens the breaker at a failure, when at least `minimum_calls` calls are in the
window and the share is `failure_rate` or more. A success never opens it. After HALF_OPEN -> CLOSED the window is empty;
trials don't count in it. The counts are exact; the edge of the window is not: a call leaves the window when it is
between nine tenths of `window` and `window` old.

Calls are ordered by a logical clock, not by time: it counts successes, failures that counted in the row, and changes of
state. A call carries the moment at which it was let through. If it is the present moment when the call fails, none of
these has happened since.

The outcome of a call that was let through before the latest change of state is ignored: it says nothing about the agent
in the present state.
"""

import math
import time
from collections.abc import Callable
from enum import StrEnum

from ..policy import CircuitBreakerConfig
from .failure_window import FailureWindow


class BreakerState(StrEnum):
    """The three states."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Decides which calls may pass.

    Each moment that :meth:`acquire` returns must be given back exactly once, to :meth:`success`, :meth:`failure` or
    :meth:`release`.

    Nothing happens between the start and the end of a call that can't suspend. If :func:`time.monotonic` was before
    :attr:`no_recent_failures_until` when such a call began, and it succeeds, its caller may add 1 to :attr:`answered`
    instead of calling :meth:`acquire` and :meth:`success`. The outcome is the same.

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
        #: Successes while closed.
        self.answered = 0
        #: Before this time on :func:`time.monotonic` a success may be counted by adding to :attr:`answered` alone. It
        #: is in the past unless the breaker is closed, and always with another ``clock``.
        self.no_recent_failures_until = -math.inf
        self._comparable = clock is time.monotonic
        self._state = BreakerState.CLOSED
        # The logical clock is this and `answered` together.
        self._ticks = 0
        # The moment of the latest change of state.
        self._changed_at = 0
        # Failures in a row, and what `answered` was at the last of them: if it has gone up since, the row has ended.
        self._failures = 0
        self._answered_before = 0
        self._window = None if config.failure_rate is None else FailureWindow(config.window, clock())
        self._successes = 0
        self._trials = 0
        self._opened_at = 0.0
        self._set_no_recent_failures_until()

    @property
    def state(self) -> BreakerState:
        """The state now; time alone turns OPEN into HALF_OPEN."""
        if self._state is BreakerState.OPEN and self._clock() - self._opened_at >= self._config.reset_timeout:
            self._enter(BreakerState.HALF_OPEN)
        return self._state

    @property
    def observed(self) -> BreakerState:
        """The state, for readers in other threads: reading it changes nothing."""
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
        """Seconds until the next trial may pass, at the latest; 0 unless open. :meth:`try_again` makes it sooner."""
        if self.observed is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._opened_at + self._config.reset_timeout - self._clock())

    @property
    def would_refuse(self) -> bool:
        """Whether :meth:`acquire` would return None now. Takes no half-open slot."""
        state = self.state
        return state is BreakerState.OPEN or (
            state is BreakerState.HALF_OPEN and self._trials >= self._config.half_open_max_calls
        )

    def acquire(self) -> int | None:
        """Let a call through and return the moment at which it begins, or None to refuse it."""
        if self._state is not BreakerState.CLOSED:
            if self.would_refuse:
                return None
            self._trials += 1
        return self.answered + self._ticks

    def success(self, began: int) -> None:
        """The call was answered."""
        if began < self._changed_at:
            return
        if self._state is BreakerState.CLOSED:
            self._turn_window()
            self.answered += 1
            return
        self._trials -= 1
        self._successes += 1
        if self._successes >= self._config.success_threshold:
            self._enter(BreakerState.CLOSED)

    def failure(self, began: int) -> None:
        """The call failed."""
        if began < self._changed_at:
            return
        if (
            self._state is BreakerState.HALF_OPEN
            or self._count_in_row(began) >= self._config.failure_threshold
            or self._rate_is_too_high()
        ):
            self._enter(BreakerState.OPEN)

    def release(self, began: int) -> None:
        """The call was given up before it had an outcome: give its half-open slot back, count nothing."""
        if began >= self._changed_at and self._state is BreakerState.HALF_OPEN:
            self._trials -= 1

    def try_again(self) -> None:
        """Let trials through at once if the breaker is open: the agent seems to be back."""
        if self.state is BreakerState.OPEN:
            self._enter(BreakerState.HALF_OPEN)

    def _count_in_row(self, began: int) -> int:
        """Count the failure of a call in the row if it belongs there; returns how long the row is."""
        if began == self.answered + self._ticks:
            if self.answered > self._answered_before:
                self._failures = 0
                self._answered_before = self.answered
            self._failures += 1
            self._ticks += 1
        return self._failures

    def _rate_is_too_high(self) -> bool:
        """Count a failure in the window, and judge the share of failures."""
        window, rate = self._window, self._config.failure_rate
        if window is None or rate is None:
            return False
        self._turn_window()
        window.fail()
        failures, calls = window.totals(self.answered)
        return calls >= self._config.minimum_calls and failures / calls >= rate

    def _turn_window(self) -> None:
        if self._window is not None and (now := self._clock()) >= self._window.until:
            self._window.turn(now, self.answered)
            self._set_no_recent_failures_until()

    def _set_no_recent_failures_until(self) -> None:
        if self._state is not BreakerState.CLOSED:
            self.no_recent_failures_until = -math.inf
        elif self._window is None:
            self.no_recent_failures_until = math.inf
        elif self._comparable:
            self.no_recent_failures_until = self._window.until

    def _enter(self, state: BreakerState) -> None:
        previous, self._state = self._state, state
        self._ticks += 1
        self._changed_at = self.answered + self._ticks
        self._failures = self._successes = self._trials = 0
        if state is BreakerState.OPEN:
            self._opened_at = self._clock()
        elif state is BreakerState.CLOSED and self._window is not None:
            self._window.clear(self._clock(), self.answered)
        self._set_no_recent_failures_until()
        if self._on_change is not None:
            self._on_change(previous, state)
