"""Frames that have begun to come and have not ended: how long they may take, and how much they may hold."""

import time
from collections.abc import Callable
from typing import Final, Protocol

from ..concurrency.background import Timer
from ..protocol.stream import FrameReader

#: Seconds for a frame to come, from its first byte to its last.
FRAME_TIMEOUT: float = 30.0
#: Bytes of frames that have begun to come, over all connections to an agent on one event loop.
MAX_PARTIAL_BYTES: Final = 64 * 1024 * 1024


class FrameDeadline:
    """Calls ``expired``, with a message, when a frame has not come whole within :data:`FRAME_TIMEOUT`.

    It sets one timer for each :data:`FRAME_TIMEOUT` at most, and none as long as every frame comes in one read.
    """

    def __init__(self, reader: FrameReader, expired: Callable[[str], object]) -> None:
        self._reader = reader
        self._expired = expired
        self._timer = Timer(self._look)
        self._armed = False
        self._number = 0
        self._began = 0.0

    def note(self) -> None:
        """Call this after each read that leaves a frame pending."""
        if self._number != self._reader.divided:
            self._number = self._reader.divided
            self._began = time.monotonic()
        if not self._armed:
            self._armed = True
            self._timer.arm(FRAME_TIMEOUT)

    def close(self) -> None:
        """Stop: the connection is over."""
        self._timer.disarm()

    def _look(self) -> None:
        self._armed = False
        if not self._reader.pending:
            return
        left = self._began + FRAME_TIMEOUT - time.monotonic()
        if left > 0:
            self._armed = True
            self._timer.arm(left)
        else:
            self._expired(f"a frame that has begun was not complete within {FRAME_TIMEOUT:g} s")


class Holder(Protocol):
    """Who is responsible for a pending frame."""

    def fail(self, fault: str) -> object:
        """Close the connection at once."""
        ...


class PartialFrames:
    """How many bytes the pending frames of several connections hold together.

    Where these are too many, it closes the connection whose frame has been coming for longest.

    :param limit: bytes.
    """

    def __init__(self, limit: int = MAX_PARTIAL_BYTES) -> None:
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


class PartialFrame:
    """The pending frame of one connection: its deadline, and what it takes of the bytes that all share.

    :param fail: closes the connection at once, and says why.
    """

    def __init__(self, reader: FrameReader, shared: PartialFrames, fail: Callable[[str], object]) -> None:
        self.fail = fail
        #: Whether a frame was pending at the latest :meth:`note`.
        self.noted = False
        self._reader = reader
        self._shared = shared
        self._deadline = FrameDeadline(reader, fail)

    def note(self) -> None:
        """Call this after each read that leaves a frame pending, and after the one that completes it."""
        self.noted = self._reader.pending
        if self.noted:
            self._deadline.note()
        self._shared.note(self, self._reader.held)

    def close(self) -> None:
        """The connection is over."""
        self._deadline.close()
        self._shared.note(self, 0)
