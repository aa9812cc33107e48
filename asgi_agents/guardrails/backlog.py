"""Copies that wait for somebody who may be too slow for them."""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Backlog(Generic[T]):
    """Items that wait, in their order. As soon as too much waits, all of it is dropped, and nothing more is taken.

    What follows a gap could not be read: half an event is none.

    :param most: how much may wait. One item may always, however large it is: its owner has it anyway.
    :param overhead: what each item counts beside its size.
    """

    __slots__ = ("_items", "_most", "_overhead", "_size", "dropped")

    def __init__(self, most: int, overhead: int = 0) -> None:
        self._most = most
        self._overhead = overhead
        self._items: deque[tuple[T, int]] = deque()
        self._size = 0
        #: Whether anything was dropped.
        self.dropped = False

    @property
    def size(self) -> int:
        """How much waits."""
        return self._size

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T, size: int) -> None:
        """The next item."""
        size += self._overhead
        if self.dropped:
            return
        if self._items and self._size + size > self._most:
            self.dropped = True
            self.clear()
            return
        self._items.append((item, size))
        self._size += size

    def take(self) -> T:
        """The oldest item. There has to be one."""
        item, size = self._items.popleft()
        self._size -= size
        return item

    def clear(self) -> None:
        """Let go of all that waits."""
        self._items.clear()
        self._size = 0
