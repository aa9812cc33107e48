"""Counts of rate limits in memory, of so many keys at most. Needs the ``ratelimit`` extra.

The library's own storage for memory keeps as many keys as clients send, looks through all of them as it counts, and
runs on asyncio alone.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable
from math import floor
from threading import Lock

from limits.aio.storage import SlidingWindowCounterSupport, Storage
from limits.storage.base import TimestampedSlidingWindow


class MemoryStorage(Storage, SlidingWindowCounterSupport, TimestampedSlidingWindow):
    """A storage for the strategies of ``limits``. No method of it ever suspends.

    At ``max_keys`` keys, the one that was not counted for the longest time is forgotten. A client that is at its limit
    is counted all the time, so that this takes as many other keys within the time between two of its requests.
    """

    STORAGE_SCHEME = None

    def __init__(self, max_keys: int) -> None:
        super().__init__()
        self._max_keys = max_keys
        # Each key's count, and until when it holds, in seconds since the epoch. The key that was used last is last.
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()
        # Event loops run in threads of their own.
        self._lock = Lock()

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        return self._add(key, expiry, amount)

    async def get(self, key: str) -> int:
        return self._count(key)

    async def get_expiry(self, key: str) -> float:
        return self._counts.get(key, (0, time.time()))[1]

    async def clear(self, key: str) -> None:
        self._counts.pop(key, None)

    async def reset(self) -> int:
        with self._lock:
            count = len(self._counts)
            self._counts.clear()
        return count

    async def check(self) -> bool:
        return True

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        # Also where it is over the limit, and nothing is added.
        self._note_use(self.sliding_window_keys(key, expiry, time.time()))
        previous, previous_ttl, current, _ = self._window(key, expiry)
        if floor(previous * previous_ttl / expiry) + current + amount > limit:
            return False
        # The count is that of the window before during the next one.
        self._add(self.sliding_window_keys(key, expiry, time.time())[1], 2 * expiry, amount)
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        return self._window(key, expiry)

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        for each in self.sliding_window_keys(key, expiry, time.time()):
            self._counts.pop(each, None)

    def _window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """The counts of the window before and of the current one, and for how many seconds each matters."""
        now = time.time()
        previous_key, current_key = self.sliding_window_keys(key, expiry, now)
        left = expiry - now % expiry
        return self._count(previous_key), left, self._count(current_key), left + expiry

    def _note_use(self, keys: Iterable[str]) -> None:
        """They are not the next to be forgotten."""
        with self._lock:
            for key in keys:
                if key in self._counts:
                    self._counts.move_to_end(key)

    def _count(self, key: str) -> int:
        count, until = self._counts.get(key, (0, 0.0))
        return count if until > time.time() else 0

    def _add(self, key: str, expiry: float, amount: int) -> int:
        now = time.time()
        with self._lock:
            count, until = self._counts.get(key, (0, 0.0))
            if until <= now:
                count, until = 0, now + expiry
            self._counts[key] = count + amount, until
            self._counts.move_to_end(key)
            while len(self._counts) > self._max_keys:
                self._counts.popitem(last=False)
        return count + amount
