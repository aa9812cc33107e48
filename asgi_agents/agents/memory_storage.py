"""Counts of rate limits in memory, of so many keys at most. Needs the ``ratelimit`` extra.

The library's own storage for memory keeps as many keys as clients send, looks through all of them as it counts, and
runs on asyncio alone.
"""

import time
from heapq import heappop, heappush
from math import floor
from threading import Lock
from typing import Final

from limits.aio.storage import SlidingWindowCounterSupport, Storage
from limits.storage.base import TimestampedSlidingWindow

from .shared_counts import SharedCounts

# So many counts that are over are removed with each that begins: more than one, and none for which others would wait.
_SWEPT: Final = 4


class MemoryStorage(Storage, SlidingWindowCounterSupport, TimestampedSlidingWindow):
    """A storage for the strategies of ``limits``. No method of it ever suspends.

    Of keys beyond ``max_keys``, those whose counts end first are put away, where they share a fixed number of counts
    (:class:`SharedCounts`). So a client can't have its count forgotten by sending many other keys. It may be given the
    count of another that was put away: the limit is then reached too early, and never too late.
    """

    STORAGE_SCHEME = None

    def __init__(self, max_keys: int) -> None:
        super().__init__()
        self._max_keys = max_keys
        # Each key's count, until when it holds, in seconds since the epoch, and how long its window is in seconds.
        self._counts: dict[str, tuple[int, float, float]] = {}
        # The same keys by when their counts end. What was cleared meanwhile, or has begun anew, is in here too.
        self._ends: list[tuple[float, str]] = []
        self._shared = SharedCounts(max_keys)
        # Event loops run in threads of their own.
        self._lock = Lock()

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        with self._lock:
            return self._add(key, expiry, amount, time.time())

    async def get(self, key: str) -> int:
        count, until, _ = self._counts.get(key, (0, 0.0, 0.0))
        return count if until > time.time() else 0

    async def get_expiry(self, key: str) -> float:
        return self._counts.get(key, (0, time.time(), 0.0))[1]

    async def clear(self, key: str) -> None:
        self._counts.pop(key, None)

    async def reset(self) -> int:
        with self._lock:
            count = len(self._counts)
            self._counts.clear()
            self._ends.clear()
            self._shared.clear()
        return count

    async def check(self) -> bool:
        return True

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        now = time.time()
        # Nobody else counts between the look and the step.
        with self._lock:
            previous, previous_ttl, current, _ = self._window(key, expiry, now)
            if floor(previous * previous_ttl / expiry) + current + amount > limit:
                return False
            # The count is that of the window before during the next one.
            self._add(self.sliding_window_keys(key, expiry, now)[1], 2 * expiry, amount, now)
            return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        with self._lock:
            return self._window(key, expiry, time.time())

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        for each in self.sliding_window_keys(key, expiry, time.time()):
            self._counts.pop(each, None)

    # These are called with the lock held.

    def _window(self, key: str, expiry: int, now: float) -> tuple[int, float, int, float]:
        """The counts of the window before and of the current one, and for how many seconds each matters."""
        previous, current = (self._count(each, 2 * expiry, now) for each in self.sliding_window_keys(key, expiry, now))
        left = expiry - now % expiry
        return previous, left, current, left + expiry

    def _count(self, key: str, expiry: float, now: float) -> int:
        count, until, _ = self._counts.get(key, (0, 0.0, expiry))
        return count if until > now else self._shared.find(key, expiry, now)[0]

    def _add(self, key: str, expiry: float, amount: int, now: float) -> int:
        count, until, _ = self._counts.get(key, (0, 0.0, expiry))
        if until <= now:
            count, until = self._shared.find(key, expiry, now)
            self._make_room(now)
            until = until or now + expiry
            heappush(self._ends, (until, key))
        count += amount
        self._counts[key] = count, until, expiry
        return count

    def _make_room(self, now: float) -> None:
        """Remove some of the counts that are over, and put others away until there is room for one more."""
        swept = 0
        while self._ends and (len(self._counts) >= self._max_keys or (swept < _SWEPT and self._ends[0][0] <= now)):
            until, key = heappop(self._ends)
            swept += 1
            found = self._counts.get(key)
            if found is None or found[1] != until:
                continue
            del self._counts[key]
            if until > now:
                self._shared.put(key, found[0], until, found[2], now)
