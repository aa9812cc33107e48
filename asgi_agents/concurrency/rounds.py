"""What many tasks want at a time is made once, for all of them."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import RunVar

T = TypeVar("T")


class _Round(Generic[T]):
    """``made`` is empty until it has succeeded."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.made: tuple[T, ...] = ()


class Rounds(Generic[T]):
    """On each event loop one task at a time makes something, and the others take what it has made.

    :param anew: whether it is made after it was asked for, or may be what is under way.
    """

    def __init__(self, *, anew: bool) -> None:
        self._anew = anew
        self._current: RunVar[_Round[T] | None] = RunVar("asgi_agents.rounds", default=None)

    async def take(self, make: Callable[[], Awaitable[T]]) -> T:
        """What ``make`` returns to one of those that ask. Where that fails or is cancelled, another of them begins."""
        takes = not self._anew
        while (current := self._current.get()) is not None:
            await current.over.wait()
            if takes and current.made:
                return current.made[0]
            # Whatever is under way now has begun after it was asked for.
            takes = True
        mine: _Round[T] = _Round()
        self._current.set(mine)
        try:
            result = await make()
            mine.made = (result,)
            return result
        finally:
            # Nothing keeps what was made.
            self._current.set(None)
            mine.over.set()
