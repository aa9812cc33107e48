"""Which of several members takes a call. No I/O."""

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def less_loaded(candidates: Sequence[T], load: Callable[[T], Any]) -> T:
    """Of two that are drawn by chance, the one with less load; ``candidates`` has at least one.

    It spreads calls nearly as well as the least loaded of all would, without the herd: callers that know nothing of one
    another don't all take the same one (M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
    """
    count = len(candidates)
    if count == 1:
        return candidates[0]
    # Several times as fast as randrange.
    one = int(random.random() * count)  # noqa: S311 - no secret
    other = int(random.random() * (count - 1))  # noqa: S311
    if other >= one:
        other += 1
    first, second = candidates[one], candidates[other]
    return second if load(second) < load(first) else first
