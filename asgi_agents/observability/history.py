"""An agent's figures of the last ten minutes, in slots of ten seconds. Pure: the time is given."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import RLock
from typing import Final

from msgspec import Struct

from .histograms import SIZE, packed, percentile, unpacked

#: Seconds in a slot, and how many of them are remembered.
SLOT_SECONDS: Final = 10
SLOTS: Final = 60
# How many of them are a minute.
_MINUTE: Final = 60 // SLOT_SECONDS


class Totals(Struct, frozen=True):
    """All that was counted up to one moment: calls by outcome, and the durations of those that were answered."""

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


class TimeSlot(Struct, frozen=True, kw_only=True):
    """The figures of ten seconds.

    The percentiles are those of the calls that were answered, in seconds; None if there were none.
    """

    calls: int
    denials: int
    failures: int
    p50: float | None
    p99: float | None


class Latency(Struct, frozen=True, kw_only=True):
    """Percentiles of the durations of the last ten minutes' calls that were answered, in seconds; None without any."""

    p50: float | None
    p90: float | None
    p99: float | None


class Rates(Struct, frozen=True, kw_only=True):
    """How often something happened.

    :ivar per_second: calls, or connections, over the last minute.
    :ivar denied: which part of those of the last ten minutes was denied, from 0 to 1; None if there were none.
    :ivar failed: likewise, which part has failed.
    """

    per_second: float
    denied: float | None
    failed: float | None


class _Ended(Struct, frozen=True):
    number: int
    slot: TimeSlot
    # The durations, packed: sixty of them are kept for each agent.
    buckets: Sequence[int]


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
        # What was counted when the last slot ended.
        self._latest = Totals()
        #: Called with the time when a slot has ended.
        self.on_turn: Callable[[float], object] = lambda now: None
        # Several threads may count. Reentrant: what reads the slots ends the current one first.
        self._lock = RLock()

    def turn(self, now: float) -> None:
        """End the current slot if its time is up at ``now``."""
        with self._lock:
            if now >= self.until:
                self._turn(now)
                self.on_turn(now)

    def _turn(self, now: float) -> None:
        if self.until > -math.inf:
            totals = self._totals()
            counted = totals.since(self._latest)
            self._ended.append(_Ended(self._slot, _slot(counted), packed(counted.buckets)))
            self._latest = totals
        self._slot = int(now // SLOT_SECONDS)
        self.until = (self._slot + 1) * SLOT_SECONDS
        while self._ended and self._ended[0].number <= self._slot - SLOTS:
            self._ended.popleft()

    def slots(self, now: float) -> Sequence[TimeSlot]:
        """The slots up to the current one, oldest first."""
        with self._lock:
            self.turn(now)
            slots = [_EMPTY] * SLOTS
            for ended in self._ended:
                slots[SLOTS - 1 - (self._slot - ended.number)] = ended.slot
            slots[-1] = _slot(self._totals().since(self._latest))
            return slots

    def buckets(self, now: float) -> Sequence[Sequence[int]]:
        """The durations in each of these slots, :func:`packed`."""
        with self._lock:
            self.turn(now)
            slots: list[Sequence[int]] = [()] * SLOTS
            for ended in self._ended:
                slots[SLOTS - 1 - (self._slot - ended.number)] = ended.buckets
            slots[-1] = packed(self._totals().since(self._latest).buckets)
            return slots

    def latency(self, now: float) -> Latency:
        """The percentiles over all of them."""
        return latency_of(self.buckets(now))


def latency_of(parts: Iterable[Sequence[int]]) -> Latency:
    """The percentiles of durations that were :func:`packed`."""
    buckets = unpacked(parts)
    return Latency(p50=percentile(buckets, 0.5), p90=percentile(buckets, 0.9), p99=percentile(buckets, 0.99))


def rates_of(slots: Sequence[TimeSlot], now: float, started: float) -> Rates:
    """The rates of what was counted in ``slots`` up to ``now``, since ``started``; both are monotonic seconds."""
    calls = sum(slot.calls for slot in slots)
    # The slots of a minute, and what there is of the current one.
    seconds = min(_MINUTE * SLOT_SECONDS + now % SLOT_SECONDS, max(1.0, now - started))
    return Rates(
        per_second=sum(slot.calls for slot in slots[-1 - _MINUTE :]) / seconds,
        denied=sum(slot.denials for slot in slots) / calls if calls else None,
        failed=sum(slot.failures for slot in slots) / calls if calls else None,
    )


def _slot(totals: Totals) -> TimeSlot:
    return TimeSlot(
        calls=totals.calls,
        denials=totals.denials,
        failures=totals.failures,
        p50=percentile(totals.buckets, 0.5),
        p99=percentile(totals.buckets, 0.99),
    )


_EMPTY: Final = TimeSlot(calls=0, denials=0, failures=0, p50=None, p99=None)
