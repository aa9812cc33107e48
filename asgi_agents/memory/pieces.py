"""A buffer of bytes that come in pieces."""

from collections import deque
from typing import Final

# A bytes object takes some 40 bytes beside its content. Pieces below this size are joined, so many at a time.
_SMALL: Final = 1024
_JOINED: Final = 256


class Pieces:
    """Pieces of bytes in order, which together take little more memory than their content.

    Small pieces are joined, so that what :meth:`popleft` returns is not always what was appended.
    """

    __slots__ = ("_pieces", "_small", "size")

    def __init__(self) -> None:
        #: The bytes of all pieces together.
        self.size = 0
        self._pieces: deque[bytes] = deque()
        # How many of the latest pieces are small ones that were not joined.
        self._small = 0

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def append(self, data: bytes) -> None:
        """Keep ``data``."""
        if not data:
            return
        self.size += len(data)
        self._pieces.append(data)
        if len(data) >= _SMALL:
            self._small = 0
            return
        self._small += 1
        if self._small == _JOINED:
            latest = [self._pieces.pop() for _ in range(_JOINED)]
            self._pieces.append(b"".join(reversed(latest)))
            self._small = 0

    def popleft(self) -> bytes:
        """Remove and return the first piece. Raises IndexError if there is none."""
        data = self._pieces.popleft()
        self.size -= len(data)
        self._small = min(self._small, len(self._pieces))
        return data

    def take(self) -> bytes:
        """Remove all pieces, and return them as one."""
        data = b"".join(self._pieces)
        self.clear()
        return data

    def clear(self) -> None:
        """Remove all pieces."""
        self._pieces.clear()
        self._small = self.size = 0
