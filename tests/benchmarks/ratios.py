"""From what rounds came to, to ratios. Each is of what was measured in the same round. No I/O."""

from collections.abc import Sequence
from statistics import fmean, median, quantiles
from typing import NamedTuple

Rounds = Sequence[float]


class Spread(NamedTuple):
    """The median, and between what the middle half of the rounds lies."""

    median: float
    low: float
    high: float


def spread(rounds: Rounds) -> Spread:
    if len(rounds) == 1:
        return Spread(rounds[0], rounds[0], rounds[0])
    low, _, high = quantiles(rounds, n=4, method="inclusive")
    return Spread(median(rounds), low, high)


def fastest(rounds: Rounds) -> float:
    """The mean of the fastest tenth: what it takes when nothing else runs on the machine."""
    return fmean(sorted(rounds)[: max(1, len(rounds) // 10)])


def over(one: Rounds, other: Rounds) -> tuple[float, ...]:
    """``one`` as a multiple of ``other``."""
    return tuple(x / y for x, y in zip(one, other, strict=True))


def added(one: Rounds, bare: Rounds) -> tuple[float, ...]:
    """What ``one`` takes longer than ``bare``, as a share of ``bare``."""
    return tuple((x - y) / y for x, y in zip(one, bare, strict=True))


def added_over(one: Rounds, other: Rounds, bare: Rounds) -> tuple[float, ...]:
    """What ``one`` takes longer than ``bare``, as a multiple of what ``other`` takes longer than that."""
    return tuple((x - z) / (y - z) for x, y, z in zip(one, other, bare, strict=True))
