"""Which cases of a table the test command of the README takes, where parameters are multiplied with one another."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import gcd
from typing import TypeVar

#: The names of a case's values, one for each ``parametrize`` and each fixture with parameters.
Case = Sequence[str]
_Item = TypeVar("_Item")


def beyond_pairs(cases: Sequence[tuple[_Item, Case]]) -> Iterator[_Item]:
    """The cases that hold no pair of values that others don't hold.

    Nearly every fault that depends on several parameters depends on two of them. Of three or more parameters, the cases
    that are not returned hold every pair; of fewer parameters they are all the cases.
    """
    seen: set[tuple[tuple[int, str], ...]] = set()
    for place in _far_from_one_another(len(cases)):
        item, case = cases[place]
        pairs = set(combinations(enumerate(case), min(2, len(case))))
        if pairs <= seen:
            yield item
        seen |= pairs


def _far_from_one_another(count: int) -> Iterator[int]:
    """All places, in an order in which neighbours differ in most parameters: fewer cases hold every pair then."""
    step = max(1, round(count * 0.618))
    while gcd(step, count) > 1:
        step += 1
    return (place * step % count for place in range(count))
