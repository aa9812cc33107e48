"""The calls of the last seconds by outcome, in a fixed number of buckets. Pure: the time is given.

A bucket covers a tenth of the window. A call is counted in the bucket in which it ends, and a bucket is dropped whole.
So a call counts for at least nine tenths of the window, and never for longer than the window.
"""

from typing import Final

#: How many buckets a window has.
BUCKETS: Final = 10


class FailureWindow:
    """Counts failures and successes over the last ``seconds``.

    Successes are not counted here. The owner has a counter of its own, which only ever goes up, and gives its value as
    ``successes``: that a call has succeeded costs the owner one addition. For this to be exact, the owner calls
    :meth:`turn` before it counts a success at or after :attr:`until`.

    :param seconds: 0.001 or more.
    :param now: the time on the owner's clock.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self._width = seconds / BUCKETS
        self.clear(now, 0)

    def clear(self, now: float, successes: int) -> None:
        """Forget everything that was counted."""
        self._number = now // self._width
        #: When the current bucket ends.
        self.until = (self._number + 1) * self._width
        # By number modulo their number. The current bucket has no successes here yet: they are those since `_before`.
        self._failures = [0] * BUCKETS
        self._successes = [0] * BUCKETS
        self._before = successes

    def turn(self, now: float, successes: int) -> None:
        """End the current bucket if its time is up, and drop those that have left the window."""
        if now < self.until:
            return
        # A quotient may be rounded down to the number of the bucket whose end has come.
        number = max(now // self._width, self._number + 1)
        passed = number - self._number
        if passed >= BUCKETS:
            self.clear(now, successes)
            return
        self._successes[int(self._number % BUCKETS)] = successes - self._before
        self._before = successes
        for later in range(1, int(passed) + 1):
            index = int((self._number + later) % BUCKETS)
            self._failures[index] = self._successes[index] = 0
        self._number = number
        self.until = (number + 1) * self._width

    def fail(self) -> None:
        """Count a failure now; :meth:`turn` comes first."""
        self._failures[int(self._number % BUCKETS)] += 1

    def totals(self, successes: int) -> tuple[int, int]:
        """The failures in the window, and all calls in it; :meth:`turn` comes first."""
        failures = sum(self._failures)
        return failures, failures + sum(self._successes) + successes - self._before
