"""Histograms of durations: counts in buckets, from which percentiles and exported histograms are computed."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

#: Upper bounds of the buckets, in seconds: ten in each decade from 1 µs to 100 s, at most 28 % apart.
BOUNDS: Final = (
    *(
        float(f"{mantissa}e{decade}")
        for decade in range(-6, 2)
        for mantissa in (1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.4, 8)
    ),
    100.0,
)

#: The bounds of exported histograms, in seconds. Each is one of :data:`BOUNDS`.
EXPORTED_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_EXPORTED_INDEXES: Final = tuple(BOUNDS.index(bound) for bound in EXPORTED_BOUNDS)
#: One bucket for each bound, and one for durations beyond the last.
SIZE: Final = len(BOUNDS) + 1


class Distribution:
    """Durations in seconds."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.buckets = [0] * SIZE

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.buckets)

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.total += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1

    def merge(self, other: "Distribution") -> None:
        """Add the counts of ``other``."""
        self.total += other.total
        self.buckets = [mine + its for mine, its in zip(self.buckets, other.buckets, strict=True)]

    def exported(self) -> Sequence[int]:
        """For each of :data:`EXPORTED_BOUNDS`, how many durations are at most that; the last entry counts all."""
        below = list(accumulate(self.buckets))
        return (*(below[index] for index in _EXPORTED_INDEXES), below[-1])


def packed(buckets: Sequence[int]) -> Sequence[int]:
    """The buckets that are not empty: index and count of the first, of the second, and so on."""
    return array("Q", [number for pair in enumerate(buckets) if pair[1] for number in pair])


def unpacked(parts: Iterable[Sequence[int]]) -> list[int]:
    """The buckets that were :func:`packed`, those of all ``parts`` together."""
    buckets = [0] * SIZE
    for part in parts:
        for index, count in zip(part[::2], part[1::2], strict=True):
            buckets[index] += count
    return buckets


def percentile(buckets: Sequence[int], fraction: float) -> float | None:
    """The duration in seconds that ``fraction`` of those in ``buckets`` don't exceed; None if the buckets are empty.

    Interpolated within a bucket, so it is off by less than the bucket's width (28 %).
    """
    count = sum(buckets)
    if count == 0:
        return None
    rank = fraction * count
    below = 0
    for index, number in enumerate(buckets):
        if number and below + number >= rank:
            low = BOUNDS[index - 1] if index else 0.0
            high = BOUNDS[index] if index < len(BOUNDS) else BOUNDS[-1]
            return low + (high - low) * max(0.0, rank - below) / number
        below += number
    return BOUNDS[-1]
