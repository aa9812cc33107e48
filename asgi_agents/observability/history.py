"""An agent's figures of the last ten minutes, in slots of ten seconds. Pure: the time is given."""

import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Final

from msgspec import Struct

from .histograms import SIZE, percentile

#: Seconds in a slot, and how many of them are remembered.
SLOT_SECONDS: Final = 10
SLOTS: Final = 60


class Totals(Struct, frozen=True):
    """All that was counted up to one moment: calls by outcome, and their durations in buckets."""

    calls: int = 0
    denials: int = 0
    failures: int = 0
    buckets: Sequence[int] = (0,) * SIZE

    def since(self, earlier: "Totals") -> "Totals":
        """What was counted after ``earlier``."""
        return Totals(
            self.calls - earlier.calls,
            self.denials - earlier.denials,
            self.failures - earlier.failures,
            [now - then for now, then in zip(self.buckets, earlier.buckets, strict=True)],
        )

    def packed(self) -> "Totals":
        """The same values in a fifth of the memory."""
        return Totals(self.calls, self.denials, self.failures, array("Q", self.buckets))


class TimeSlot(Struct, frozen=True, kw_only=True):
    """The figures of ten seconds. The percentiles are seconds, None if there were no calls."""

    calls: int
    denials: int
    failures: int
    p50: float | None
    p99: float | None


class Latency(Struct, frozen=True, kw_only=True):
    """Percentiles of the durations of the last ten minutes' calls, in seconds; None if there were no calls."""

    p50: float | None
    p90: float | None
    p99: float | None


class _Ended(Struct, frozen=True):
    number: int
    totals: Totals
    slot: TimeSlot


class History:
    """Remembers what the totals were at the end of each slot in which anything was counted.

    Counting itself costs only a comparison with :attr:`until`: whoever counts calls :meth:`turn` first once that time
    has come.

    :param totals: returns what was counted so far.
    """

    def __init__(self, totals: Callable[[], Totals]) -> None:
        self._totals = totals
        self._slot = 0
        #: When the current slot ends, on the clock of whoever counts.
        self.until = -math.inf
        self._ended: deque[_Ended] = deque()
        # Up to the oldest slot that is remembered.
        self._before = Totals()
        # Several threads may count. Reentrant: what reads the slots ends the current one first.
        self._lock = RLock()

    def turn(self, now: float) -> None:
        """End the current slot if its time is up at ``now``."""
        with self._lock:
            if now >= self.until:
                self._turn(now)

    def _turn(self, now: float) -> None:
        if self.until > -math.inf:
            # Sixty of them are kept for each agent.
            totals = self._totals().packed()
            self._ended.append(_Ended(self._slot, totals, _slot(totals.since(self._latest))))
        self._slot = int(now // SLOT_SECONDS)
        self.until = (self._slot + 1) * SLOT_SECONDS
        while self._ended and self._ended[0].number <= self._slot - SLOTS:
            self._before = self._ended.popleft().totals

    def slots(self, now: float) -> Sequence[TimeSlot]:
        """The slots up to the current one, oldest first."""
        with self._lock:
            self.turn(now)
            slots = [_EMPTY] * SLOTS
            for ended in self._ended:
                slots[SLOTS - 1 - (self._slot - ended.number)] = ended.slot
            slots[-1] = _slot(self._totals().since(self._latest))
            return slots

    def latency(self, now: float) -> Latency:
        """The percentiles over all of them."""
        with self._lock:
            self.turn(now)
            buckets = self._totals().since(self._before).buckets
        return Latency(p50=percentile(buckets, 0.5), p90=percentile(buckets, 0.9), p99=percentile(buckets, 0.99))

    @property
    def _latest(self) -> Totals:
        """What was counted when the last slot ended."""
        return self._ended[-1].totals if self._ended else self._before


def _slot(totals: Totals) -> TimeSlot:
    return TimeSlot(
        calls=totals.calls,
        denials=totals.denials,
        failures=totals.failures,
        p50=percentile(totals.buckets, 0.5),
        p99=percentile(totals.buckets, 0.99),
    )


_EMPTY: Final = TimeSlot(calls=0, denials=0, failures=0, p50=None, p99=None)
