"""Checks of passwords in threads, of which there are few."""

from threading import BoundedSemaphore, Lock
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from ..concurrency.own_threads import OwnThreads
from .passwords import PasswordHash

# Of what is left of the deadline of a call: whoever is late counts for the breaker.
_IN_TIME: Final = 0.8


class PasswordChecks:
    """:param most: how many are under way at a time, on all event loops together."""

    def __init__(self, most: int) -> None:
        self._free = BoundedSemaphore(most)
        self._threads = OwnThreads(most)

    async def is_right(self, known: PasswordHash, password: str) -> bool | None:
        """Whether it is the password. None: so many are under way that it can't be known in time."""
        if not self._free.acquire(blocking=False):
            return None
        # Either the thread has its place, and frees it at its end, or it never begins.
        begun = Lock()

        def check() -> bool:
            if not begun.acquire(blocking=False):
                return False
            try:
                return known.verify(password)
            finally:
                self._free.release()

        try:
            # The deadline of a call is there once it has suspended.
            await checkpoint()
            left = anyio.current_effective_deadline() - anyio.current_time()
            with anyio.move_on_after(left * _IN_TIME):
                return await self._threads.run(check, abandon=True)
            return None
        finally:
            if begun.acquire(blocking=False):
                self._free.release()
