"""What is left of counts that memory has no room for: a fixed number of counts, which keys share."""

from array import array
from secrets import randbits
from typing import Final

_MOST: Final = 2**62


class SharedCounts:
    """Counts of keys that were put away, of which none is ever smaller than it was.

    Several keys may share a place, which has the largest of their counts. Who shares one with whom depends on a secret
    of this process.

    :param places: how many there are. Each takes 16 bytes for each window in which counts were put away, of which two
        overlap for each length.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._secret = randbits(64)
        # By the length of a window in seconds, and which of these stretches of time it ends in: the counts, and until
        # when they hold.
        self._windows: dict[tuple[float, int], tuple[array[int], array[float]]] = {}

    def put(self, key: str, count: int, until: float, expiry: float, now: float) -> None:
        """Keep ``count`` until then; times are seconds since the epoch, ``expiry`` is the length of its window."""
        name = (expiry, int(until // expiry))
        window = self._windows.get(name)
        if window is None:
            for length, number in [*self._windows]:
                if (number + 1) * length <= now:
                    del self._windows[length, number]
            window = self._windows[name] = (array("q", bytes(8 * self._places)), array("d", bytes(8 * self._places)))
        counts, untils = window
        place = hash((self._secret, key)) % self._places
        counts[place] = max(counts[place], min(count, _MOST))
        untils[place] = max(untils[place], until)

    def find(self, key: str, expiry: float, now: float) -> tuple[int, float]:
        """At least what was put away of ``key`` and still holds, and until when; ``(0, 0.0)`` for nothing."""
        count, until = 0, 0.0
        if self._windows:
            place = hash((self._secret, key)) % self._places
            # All of them: the clock may have been set back.
            for (length, _), (counts, untils) in self._windows.items():
                if length == expiry and untils[place] > now:
                    count, until = max(count, counts[place]), max(until, untils[place])
        return count, until

    def clear(self) -> None:
        """Forget all."""
        self._windows.clear()
