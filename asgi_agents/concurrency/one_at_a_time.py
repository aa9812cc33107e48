"""Work that one task does while others wait for it to end."""

from threading import RLock

from .event_loop import SharedEvent


class OneAtATime:
    """Lets one task at a time do something, of all tasks on all event loops. The others wait until it has ended."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may close a coroutine of this thread, and with it what it does, at any time.
        self._lock = RLock()
        self._under_way: SharedEvent | None = None

    def begin(self) -> SharedEvent | None:
        """Returns None if the caller is to do it, and to call :meth:`end` afterwards.

        Otherwise another task is doing it. Returns what is set when that has called :meth:`end`.
        """
        with self._lock:
            if self._under_way is None:
                self._under_way = SharedEvent()
                return None
            return self._under_way

    def end(self) -> None:
        """It was done, or given up."""
        with self._lock:
            under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.set()
