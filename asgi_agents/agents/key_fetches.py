"""A fetch of keys that is under way, and the calls that wait for it."""

from threading import Lock
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from ..concurrency.event_loop import SharedEvent

# Of the longest patience: what is less is no time to wait.
_WORTH_IT: Final = 0.25


class KeyFetch:
    """:param since: when it began, by :func:`time.monotonic`."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._done = SharedEvent()
        self._waiting = 0
        # Calls may come on several event loops, each in a thread of its own.
        self._lock = Lock()

    def end(self) -> None:
        """Wake all that wait."""
        self._done.set()

    async def wait(self) -> None:
        """Wait for the end, however long it takes."""
        await self._done.wait()

    async def ends_within(self, patience: float, most: float) -> bool:
        """Whether it ends within so many seconds, and within half of what is left of the deadline of the call.

        :param most: how many calls may wait at a time. False at once for further ones.
        """
        with self._lock:
            if self._waiting >= most:
                return False
            self._waiting += 1
        try:
            # The deadline of a call is there once it has suspended.
            await checkpoint()
            left = anyio.current_effective_deadline() - anyio.current_time()
            patience, longest = min(patience, left / 2), patience
            # Whoever has waited long for a permit gives it back at once: others wait for it behind him.
            if patience < longest * _WORTH_IT:
                return False
            with anyio.move_on_after(patience) as scope:
                await self._done.wait()
            return not scope.cancelled_caught
        finally:
            with self._lock:
                self._waiting -= 1
