"""The deadlines of the calls of one connection."""

import math
import time
from collections.abc import Callable

from ...concurrency.background import Timer
from .pending_calls import PendingCall, PendingCalls


class Deadlines:
    """One timer for all calls. It is set once a timeout, and not once a call.

    :param expired: called with each call whose deadline has passed. Nobody waits for it any more, and the agent still
        owes its answer.
    """

    def __init__(self, pending_calls: PendingCalls, expired: Callable[[PendingCall], None]) -> None:
        #: When the timer fires, on :func:`time.monotonic`. A call with an earlier deadline has to set it anew.
        self.next = math.inf
        self._pending_calls = pending_calls
        self._expired = expired
        self._timer = Timer(self._fire)

    def set(self, deadline: float) -> None:
        """Fire at ``deadline``; never where it is infinite."""
        if deadline < math.inf:
            self.next = deadline
            self._timer.arm(max(0.001, deadline - time.monotonic()))

    def close(self) -> None:
        """The connection is over."""
        self._timer.disarm()

    def _fire(self) -> None:
        expired, first = self._pending_calls.expire(time.monotonic())
        for call in expired:
            self._expired(call)
        self.next = math.inf
        if first is not None:
            self.set(first)
