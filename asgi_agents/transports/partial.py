"""Frames that have begun to come and have not ended: how long they may take, and how much they may hold."""

import time
from collections.abc import Callable
from typing import Protocol

from ..concurrency.background import Timer
from ..protocol import stream
from ..protocol.stream import FrameReader


class FrameDeadline:
    """Calls ``expired`` where a frame has not come whole within :data:`~asgi_agents.protocol.stream.FRAME_TIMEOUT`.

    There is at most one timer for each deadline that could pass, and none as long as frames come in one read.
    """

    def __init__(self, reader: FrameReader, expired: Callable[[str], object]) -> None:
        self._reader = reader
        self._expired = expired
        self._timer = Timer(self._look)
        self._armed = False
        self._number = 0
        self._began = 0.0

    def note(self) -> None:
        """Call this whenever something was read, and a frame is pending."""
        if self._number != self._reader.divided:
            self._number = self._reader.divided
            self._began = time.monotonic()
        if not self._armed:
            self._armed = True
            self._timer.arm(stream.FRAME_TIMEOUT)

    def close(self) -> None:
        """Nothing more comes."""
        self._timer.disarm()

    def _look(self) -> None:
        self._armed = False
        if not self._reader.pending:
            return
        left = self._began + stream.FRAME_TIMEOUT - time.monotonic()
        if left > 0:
            self._armed = True
            self._timer.arm(left)
        else:
            self._expired(f"a frame that has begun was not complete within {stream.FRAME_TIMEOUT:g} s")


class Holder(Protocol):
    """A connection, as far as its pending frame is concerned."""

    def fail(self, fault: str) -> None:
        """Close at once."""
        ...


class PartialFrames:
    """How many bytes the pending frames of several connections hold together.

    Where it is too much, the connection whose frame has been coming for longest is closed.
    """

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._limit = limit
        # In the order in which they began to hold anything.
        self._held: dict[Holder, int] = {}

    def note(self, holder: Holder, size: int) -> None:
        """``holder`` holds ``size`` bytes now; 0 where it holds none."""
        self.total += size - self._held.get(holder, 0)
        if not size:
            self._held.pop(holder, None)
            return
        self._held[holder] = size
        while self.total > self._limit:
            oldest = next(iter(self._held))
            self.total -= self._held.pop(oldest)
            oldest.fail(f"the frames that its connections have begun come to more than {self._limit} bytes")
