"""Those who use what several event loops share, each in a thread of its own."""

from collections.abc import Awaitable, Callable, Sequence
from threading import Lock

from .event_loop import EventLoop

#: Leaves what was entered. A second call does nothing.
Leave = Callable[[], Awaitable[None]]


class Users:
    """Counts the users of each event loop, and knows what was entered there and not left."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[EventLoop, int] = {}
        self._entered: dict[EventLoop, list[Leave]] = {}

    @property
    def loops(self) -> Sequence[EventLoop]:
        """The event loops that have users."""
        # A dictionary is copied in one step.
        return tuple(self._counts)

    @property
    def are_elsewhere(self) -> bool:
        """Whether an event loop has users that is not the running one."""
        return any(loop.alive and not loop.is_current for loop in self.loops)

    def add(self, loop: EventLoop) -> None:
        """There is another user."""
        with self._lock:
            self._counts[loop] = self._counts.get(loop, 0) + 1

    def remove(self, loop: EventLoop) -> bool:
        """There is a user less. Returns whether it was the last one of that event loop."""
        with self._lock:
            self._counts[loop] -= 1
            is_last = not self._counts[loop]
            if is_last:
                del self._counts[loop]
        return is_last

    def entered(self, leave: Leave) -> None:
        """A user was added that any task of the running event loop may have :meth:`leave`."""
        with self._lock:
            self._entered.setdefault(EventLoop(), []).append(leave)

    async def leave(self) -> bool:
        """Leave what was entered last on the running event loop, by whichever task; returns False if nothing was.

        What another event loop has entered, if that is the only one, is left there then.
        """
        leave = self._last_entered(EventLoop())
        if leave is not None:
            await leave()
            return True
        others = tuple(self._entered)
        leave = self._last_entered(others[0]) if len(others) == 1 else None
        if leave is not None and not others[0].start_soon(leave):
            # It has ended, and what belonged to it with it.
            self.remove(others[0])
        return False

    def _last_entered(self, loop: EventLoop) -> Leave | None:
        with self._lock:
            entered = self._entered.get(loop)
            if not entered:
                return None
            leave = entered.pop()
            if not entered:
                del self._entered[loop]
            return leave
