"""When a file that was refused because of an agent is taken again: the same file, with an agent that may be back."""

import math
import random
from typing import Final

import anyio

#: Seconds before the second try, and the most.
FIRST: Final = 1.0
MOST: Final = 60.0


class Retry:
    """The time of the next try: twice as long after each, up to :data:`MOST` seconds.

    Half of the wait is random, so that not all processes ask the agent at once when it is back.
    """

    def __init__(self) -> None:
        self._tries = 0
        self._due = math.inf

    @property
    def left(self) -> float:
        """Seconds until the next try; infinite where there is to be none."""
        return self._due - anyio.current_time()

    def note(self, failed: object, *, first: bool) -> None:
        """A try is over; ``failed`` is True where there is to be another.

        :param first: there was a new reason for it, such as a change of the file.
        """
        if failed is not True:
            self._due = math.inf
            return
        self._tries = 0 if first else self._tries + 1
        longest = min(MOST, FIRST * 2.0 ** min(self._tries, 16))
        self._due = anyio.current_time() + longest * (0.5 + random.random() / 2)  # noqa: S311 - no secret
