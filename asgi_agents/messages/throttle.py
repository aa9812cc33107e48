"""Log lines that would come again and again."""

import time
from collections.abc import Hashable
from typing import Final

#: Seconds between two lines about the same.
INTERVAL: Final = 60.0
# How many different things are remembered.
_MAX_KEYS: Final = 1000


class Throttle:
    """Lets one line a minute through for each key."""

    __slots__ = ("_quiet_until",)

    def __init__(self) -> None:
        self._quiet_until: dict[Hashable, float] = {}

    def due(self, key: Hashable) -> bool:
        """Whether a line about ``key`` may be logged now. If so, the next one is due in a minute."""
        now = time.monotonic()
        if now < self._quiet_until.get(key, now):
            return False
        if len(self._quiet_until) >= _MAX_KEYS:
            self._quiet_until.clear()
        self._quiet_until[key] = now + INTERVAL
        return True
