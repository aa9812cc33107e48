"""Members whose calls fail get none for a while. No I/O."""

import random
from typing import Final

# Failures in a row that take a member out of rotation, and for how many seconds: doubled each time, up to a minute.
_EJECT_AFTER: Final = 5
_FIRST_EJECTION: Final = 5.0
_MAX_EJECTION: Final = 60.0
# The share of its calls that a member gets which fails as often and can't be spared.
_SHARE_OF_THE_FAILING: Final = 0.2


class Ejection:
    """Of one member. All moments are on one monotonic clock, in seconds."""

    __slots__ = ("_ejections", "failures", "until")

    def __init__(self) -> None:
        #: In a row, since the latest answer or ejection.
        self.failures = 0
        self._ejections = 0
        #: Until when it is ejected.
        self.until = 0.0

    def left_out(self, now: float) -> bool:
        """Whether others should get the next call, as far as there are any.

        So it is while the member is ejected, and most of the time where it would be if it could be spared.
        """
        if self.failures >= _EJECT_AFTER:
            return random.random() >= _SHARE_OF_THE_FAILING  # noqa: S311 - no secret
        return now < self.until

    def answered(self) -> None:
        """A call was answered."""
        self.failures = self._ejections = 0

    def failed(self, now: float, *, spared: bool = True) -> None:
        """A call has failed by the member's fault.

        :param spared: whether others can do without it; see :func:`can_be_spared`. Else it stays, and its next failure
            asks again.
        """
        if now < self.until:
            # Calls that were under way when it was ejected don't count.
            return
        self.failures += 1
        if self.failures >= _EJECT_AFTER and spared:
            self.failures = 0
            self.until = now + min(_MAX_EJECTION, _FIRST_EJECTION * 2.0 ** min(self._ejections, 8))
            self._ejections += 1


def can_be_spared(others: int, members: int) -> bool:
    """Whether one of the ``members`` that can be called may be ejected, ``others`` being those that are not ejected.

    Half of them stay at least. Where more fail, it is hardly their own fault, and what was left would have to take the
    calls of all.
    """
    return 2 * others >= members
