"""Which cases of a table the test command of the README takes, where parameters are multiplied with one another."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from math import gcd
from typing import Final, TypeVar
from zlib import crc32

#: The names of a case's values, one for each ``parametrize`` and each fixture with parameters.
Case = Sequence[str]
_Item = TypeVar("_Item")


# What most tests run on, one after the other.
_EVENT_LOOPS: Final = frozenset({"asyncio", "trio"})
#: Of so many cases or more, each is taken on one event loop.
MANY: Final = 8


def beyond_pairs(cases: Sequence[tuple[_Item, Case]]) -> Iterator[_Item]:
    """The cases that hold no pair of values that others don't hold.

    Nearly every fault that depends on several parameters depends on two of them. Of three or more parameters, the cases
    that are not returned hold every pair; of fewer parameters they are all the cases.

    Event loops are no values of pairs where there are :data:`MANY` cases: those that are not returned take turns on
    them. A fault of one event loop shows in one of so many.
    """
    loops = _EVENT_LOOPS if len(cases) >= MANY else frozenset[str]()
    alike: dict[Case, list[_Item]] = {}
    for item, case in cases:
        alike.setdefault(tuple(value for value in case if value not in loops), []).append(item)
    others, seen = list(alike), set[object]()
    # How often a value was taken on the first of the event loops, on the second, and so on.
    taken: Counter[tuple[int, str, int]] = Counter()
    for place in _far_from_one_another(len(others)):
        values, items = others[place], alike[others[place]]
        pairs = set(combinations(enumerate(values), min(2, len(values))))
        if pairs <= seen:
            yield from items
        elif len(items) > 1 and loops:
            # The one on which these values were seen least; of several, one that no order of the cases decides.
            first = crc32(repr(values).encode()) % len(items)
            turns = [(first + turn) % len(items) for turn in range(len(items))]
            loop = min(turns, key=lambda turn: sum(taken[at, value, turn] for at, value in enumerate(values)))
            taken.update((at, value, loop) for at, value in enumerate(values))
            yield from (item for turn, item in enumerate(items) if turn != loop)
        seen |= pairs


def _far_from_one_another(count: int) -> Iterator[int]:
    """All places, in an order in which neighbours differ in most parameters: fewer cases hold every pair then."""
    step = max(1, round(count * 0.618))
    while gcd(step, count) > 1:
        step += 1
    return (place * step % count for place in range(count))
