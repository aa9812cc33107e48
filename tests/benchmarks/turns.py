"""Times things in one process, taking turns."""

import gc
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

#: Does it as often as it is told.
Turn = Callable[[int], Awaitable[Any]]


async def take_turns(
    turns: Sequence[Turn], rounds: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, ...]]:
    """How long each takes to do it once, in each round.

    :param clock: tells the seconds that count: those that pass, or, with :func:`time.process_time`, those in which this
        process has run.
    :param seconds: how long a turn is to take, about. Each does as much in its turn as fits, so that all are disturbed
        alike by whatever else the machine does.

    Every round has an order of its own. Each pays for its own garbage and for nobody else's: nothing is left over when
    its turn comes, and what was there before is not looked through.
    """
    counts = [await _count(turn, seconds, clock) for turn in turns]
    taken: list[list[float]] = [[] for _ in turns]
    order = list(range(len(turns)))
    shuffle = random.Random(0).shuffle  # noqa: S311
    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            shuffle(order)
            for index in order:
                gc.collect()
                taken[index].append(await _time(turns[index], counts[index], clock) / counts[index])
    finally:
        gc.unfreeze()
    return [tuple(each) for each in taken]


async def _count(turn: Turn, seconds: float, clock: Callable[[], float]) -> int:
    """How often it can be done in that time, once it is warm."""
    # The first time, things are made that stay. It may take a whole turn.
    await turn(1)
    count = 1
    while (taken := await _time(turn, count, clock)) < seconds / 4:
        count *= 2
    return max(1, round(count * seconds / taken))


async def _time(turn: Turn, count: int, clock: Callable[[], float]) -> float:
    started = clock()
    await turn(count)
    return clock() - started
