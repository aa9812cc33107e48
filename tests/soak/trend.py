"""Whether a series of samples grows. No I/O.

Samples of one process resemble those before them, so neighbours are averaged in blocks, and where the blocks still
resemble each other the test is told so. The slope is Theil and Sen's, the median of the slopes of all pairs; the test
is Mann and Kendall's, with the variance for ties, and enlarged by ``(1 + r) / (1 - r)`` where ``r``, the correlation of
each block with the next, is above zero. The interval of the slope follows from the same variance (Sen, 1968).
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise
from math import sqrt
from statistics import NormalDist, fmean, median
from typing import Final, NamedTuple

#: Samples of one block.
BLOCK: Final = 4
#: A slope is distinguishable from zero where less than this is left to chance.
SIGNIFICANCE: Final = 0.01
_CONFIDENCE: Final = 0.95
# Of what is constant, or nearly alternates, nothing is gained.
_MAX_CORRELATION: Final = 0.9


class Trend(NamedTuple):
    """How a series behaves: slope and its interval are per unit of ``x``, ``p`` is two-sided."""

    blocks: int
    slope: float
    low: float
    high: float
    p: float
    correlation: float

    def grows(self, relevant: float) -> bool:
        """Whether it grows for certain, and by at least ``relevant`` per unit of ``x``."""
        return self.p < SIGNIFICANCE and self.slope >= relevant


def trend(x: Sequence[float], y: Sequence[float], block: int = BLOCK) -> Trend:
    """Of ``y`` over ``x``, both in order; a last block that is not full is left out.

    :raises ValueError: for less than three blocks.
    """
    xs, ys = _blocks(x, block), _blocks(y, block)
    if len(xs) < 3:
        raise ValueError(f"{len(x)} samples, expected at least {3 * block}")
    slopes = sorted((b - a) / (t - s) for (s, a), (t, b) in combinations(zip(xs, ys, strict=True), 2))
    slope = median(slopes)
    # What is left without the slope is what the blocks have in common with their neighbours.
    correlation = _correlation([value - slope * at for at, value in zip(xs, ys, strict=True)])
    deviation = sqrt(_variance(ys) * (1 + correlation) / (1 - correlation))
    low, high = _interval(slopes, deviation)
    return Trend(len(xs), slope, low, high, _p(ys, deviation), correlation)


def _blocks(values: Sequence[float], block: int) -> list[float]:
    return [fmean(values[start : start + block]) for start in range(0, len(values) - block + 1, block)]


def _p(ys: Sequence[float], deviation: float) -> float:
    score = sum((b > a) - (b < a) for a, b in combinations(ys, 2))
    if not deviation or abs(score) <= 1:
        return 1.0
    return 2 * (1 - NormalDist().cdf((abs(score) - 1) / deviation))


def _variance(ys: Sequence[float]) -> float:
    def term(n: int) -> int:
        return n * (n - 1) * (2 * n + 5)

    return (term(len(ys)) - sum(map(term, Counter(ys).values()))) / 18


def _interval(slopes: Sequence[float], deviation: float) -> tuple[float, float]:
    reach = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) * deviation
    last = len(slopes) - 1
    low, high = round((last - reach) / 2), round((last + reach) / 2)
    return slopes[max(0, low)], slopes[min(last, high)]


def _correlation(values: Sequence[float]) -> float:
    mean = fmean(values)
    centred = [value - mean for value in values]
    total = sum(value * value for value in centred)
    if total <= 0:
        return 0.0
    together = sum(a * b for a, b in pairwise(centred))
    return min(_MAX_CORRELATION, max(0.0, together / total))
