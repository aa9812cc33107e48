"""Work that one task does while other tasks wait for its end."""

from threading import RLock

from .event_loop import SharedEvent


class OneAtATime:
    """Lets one task at a time do a piece of work, of the tasks on all event loops. The others wait for its end."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may close a coroutine of this thread, and with it what it does, at any time.
        self._lock = RLock()
        self._under_way: SharedEvent | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a task is doing it."""
        return self._under_way is not None

    def begin(self) -> SharedEvent | None:
        """Begin the work: None means that the caller does it, and calls :meth:`end` afterwards.

        Otherwise another task is doing it, and the event that is returned is set when that task calls :meth:`end`.
        """
        with self._lock:
            if self._under_way is None:
                self._under_way = SharedEvent()
                return None
            return self._under_way

    def end(self) -> None:
        """The work is done, or was given up."""
        with self._lock:
            under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.set()
