"""The messages of one stream of Envoy's external processing, for the two tasks that wait for them. No I/O."""

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import anyio

from .ext_proc_messages import Side

M = TypeVar("M")

#: Bytes of messages that nobody has taken before no more are read. Envoy's FULL_DUPLEX_STREAMED mode sends bodies
#: without waiting for answers: without a bound, a client that sends faster than an agent judges would fill the memory.
MAX_WAITING_BYTES: Final = 256 * 1024


class TwoSides(Generic[M]):
    """Messages about the request for one task, and those about the response for another, each in order.

    :param pause: called when more than :data:`MAX_WAITING_BYTES` wait: read no more; ``resume``: read on.
    """

    def __init__(self, pause: Callable[[], object], resume: Callable[[], object]) -> None:
        self._pause = pause
        self._resume = resume
        self._queues: dict[Side, deque[tuple[M, int]]] = {side: deque() for side in Side}
        self._everyones: M | None = None
        self._waiting: dict[Side, anyio.Event] = {}
        self._held = 0
        self._paused = False
        self._over = anyio.Event()
        self._error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes. What waits can still be taken."""
        return self._over.is_set()

    def put(self, message: M, side: Side | None, size: int) -> None:
        """A message has come. ``side`` None: it is for both, and nothing behind it counts."""
        if self._everyones is not None:
            return
        if side is None:
            self._everyones = message
            self._wake()
            return
        self._queues[side].append((message, size))
        self._held += size
        if self._held > MAX_WAITING_BYTES and not self._paused:
            self._paused = True
            self._pause()
        waiting = self._waiting.pop(side, None)
        if waiting is not None:
            waiting.set()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes, because of ``error`` or in order."""
        if not self._over.is_set():
            self._error = error
            self._over.set()
            self._wake()

    def take(self, side: Side) -> M | None:
        """The next message of that side, if it is there."""
        queue = self._queues[side]
        if not queue:
            return self._everyones
        message, size = queue.popleft()
        self._held -= size
        if self._paused and self._held <= MAX_WAITING_BYTES // 2:
            self._paused = False
            self._resume()
        return message

    async def next(self, side: Side) -> M | None:
        """The next message of that side; None where the stream has ended in order before there was one.

        Raises what the stream has ended with. Safe to cancel: no message is lost.
        """
        while True:
            message = self.take(side)
            if message is not None:
                return message
            if self._over.is_set():
                if self._error is not None:
                    raise self._error
                return None
            waiting = self._waiting.setdefault(side, anyio.Event())
            await waiting.wait()

    async def first(self) -> M | None:
        """The first message of either side, which stays where it is; None where there is none."""
        while True:
            for queue in self._queues.values():
                if queue:
                    return queue[0][0]
            if self._over.is_set():
                if self._error is not None:
                    raise self._error
                return None
            waiting = anyio.Event()
            self._waiting = dict.fromkeys(Side, waiting)
            await waiting.wait()

    async def wait_ended(self) -> None:
        """Wait until nothing more comes."""
        await self._over.wait()

    def _wake(self) -> None:
        for waiting in self._waiting.values():
            waiting.set()
        self._waiting.clear()
