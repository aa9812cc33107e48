"""How many connections were guarded, and how many of them were stopped."""

import time
from collections.abc import Callable

from .history import History, Totals


class GuardedTraffic:
    """The connections of a manager's middlewares.

    :param begun: returns how many were guarded so far.
    :ivar started_at: since when they are counted, in seconds since the epoch; ``started`` is the same in monotonic
        seconds.
    :ivar history: of the last ten minutes. Its calls are the connections, its denials those that an agent has stopped
        by what it has said, its failures those that an agent has stopped by failing. It has no durations.
    """

    def __init__(self, begun: Callable[[], int]) -> None:
        self._begun = begun
        self._denied = 0
        self._failed = 0
        self.started_at = time.time()
        self.started = time.monotonic()
        self.history = History(self.totals)

    def stopped(self, *, failed: bool) -> None:
        """Count a connection that was stopped; ``failed``: because an agent fails closed."""
        if failed:
            self._failed += 1
        else:
            self._denied += 1

    def totals(self) -> Totals:
        """The counts so far."""
        return Totals(self._begun(), self._denied, self._failed)
