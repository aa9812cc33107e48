"""The messages of one stream of Envoy's external processing, for the two tasks that wait for them. No I/O."""

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ...concurrency.background import Signal, asyncio_loop
from .ext_proc_messages import Side

M = TypeVar("M")

#: Bytes of messages of one stream that nobody has taken before no more are read. In the mode FULL_DUPLEX_STREAMED Envoy
#: sends bodies without waiting for answers: without a bound, a client that sends faster than an agent judges would fill
#: the memory.
MAX_WAITING_BYTES: Final = 256 * 1024
#: The same where all streams together hold what they may.
FEW_WAITING_BYTES: Final = 16 * 1024
#: What a message counts for beside its bytes: the objects that it is kept in.
MESSAGE_BYTES: Final = 512


class Held:
    """What all streams of a server, or to a processor, hold together.

    :param limit: bytes. Beyond it streams hold :data:`FEW_WAITING_BYTES` each.
    :param most: bytes that are never exceeded. None: a message of each stream is read in any case, and those that were
        taken do not count.
    """

    def __init__(self, limit: int, most: int | None = None) -> None:
        self.total = 0
        self.most_of_all = most
        self._limit = limit

    @property
    def most(self) -> int:
        """How many bytes a stream may hold now before no more are read."""
        return MAX_WAITING_BYTES if self.total < self._limit else FEW_WAITING_BYTES


class TwoSides(Generic[M]):
    """Messages about the request for one task, and those about the response for another, each in order.

    :param pause: called when so much waits that no more is to be read; ``resume``: read on.
    :param held: counts what waits, with that of other streams.
    :param refuse: called when all streams hold more than they may after a message of this one. Nobody takes any more
        then.
    """

    def __init__(
        self,
        pause: Callable[[], object],
        resume: Callable[[], object],
        held: Held,
        refuse: Callable[[], object] = lambda: None,
    ) -> None:
        self._pause = pause
        self._resume = resume
        self._refuse = refuse
        self._shared = held
        self._queues: dict[Side, deque[tuple[M, int]]] = {side: deque() for side in Side}
        self._everyones: M | None = None
        self._waiting: dict[Side, Signal] = {}
        self._waiting_for_the_end: list[Signal] = []
        self._held = 0
        # Bytes of the message that was taken last, until :meth:`done`.
        self._taken = dict.fromkeys(Side, 0)
        self._paused = self._discarded = False
        #: Whether nothing more comes. What waits can still be taken.
        self.ended = False
        self._error: Exception | None = None

    @property
    def exhausted(self) -> bool:
        """Whether nothing more comes, and nothing waits to be taken."""
        return self.ended and not any(self._queues.values())

    def put(self, message: M, side: Side | None, size: int) -> None:
        """A message has come. ``side`` None: it is for both, and nothing behind it counts."""
        if self._everyones is not None or self._discarded:
            return
        if side is None:
            self._everyones = message
            self._wake()
            return
        size += MESSAGE_BYTES
        self._queues[side].append((message, size))
        self._count(size)
        shared = self._shared
        if shared.most_of_all is not None and shared.total > shared.most_of_all:
            self.discard()
            self._refuse()
            return
        if self._held > shared.most and not self._paused:
            self._paused = True
            self._pause()
        waiting = self._waiting.pop(side, None)
        if waiting is not None:
            waiting.set()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes, because of ``error`` or in order."""
        if not self.ended:
            self._error = error
            self.ended = True
            self._wake()
            for signal in self._waiting_for_the_end:
                signal.set()

    def waits(self, side: Side) -> bool:
        """Whether a message of that side alone waits to be taken."""
        return bool(self._queues[side])

    def take(self, side: Side) -> M | None:
        """The next message of that side, if it is there."""
        queue = self._queues[side]
        if not queue:
            return self._everyones
        message, size = queue.popleft()
        self._count(-size)
        self.done(side)
        if self._shared.most_of_all is not None and not self._discarded:
            self._taken[side] = size
            self._shared.total += size
        if self._paused and self._held <= self._shared.most // 2:
            self._paused = False
            self._resume()
        return message

    def done(self, side: Side) -> None:
        """Nobody needs the message any more that was taken last of that side. To take the next one says so as well."""
        self._shared.total -= self._taken[side]
        self._taken[side] = 0

    async def next(self, side: Side) -> M | None:
        """The next message of that side, of which one task waits; None where the stream has ended in order before.

        Raises what the stream has ended with. Safe to cancel: no message is lost.
        """
        while True:
            message = self.take(side)
            if message is not None:
                return message
            if self.ended:
                if self._error is not None:
                    raise self._error
                return None
            waiting = self._waiting[side] = Signal(asyncio_loop())
            await waiting

    async def first(self) -> M | None:
        """The first message of either side, which stays where it is; None where there is none."""
        while True:
            for queue in self._queues.values():
                if queue:
                    return queue[0][0]
            if self.ended:
                if self._error is not None:
                    raise self._error
                return None
            waiting = Signal(asyncio_loop())
            self._waiting = dict.fromkeys(Side, waiting)
            await waiting

    async def wait_ended(self) -> None:
        """Wait until nothing more comes."""
        if not self.ended:
            waiting = Signal(asyncio_loop())
            self._waiting_for_the_end.append(waiting)
            await waiting

    def discard(self) -> None:
        """Nobody takes any more, of what has come and of what still comes."""
        self._discarded = True
        for queue in self._queues.values():
            queue.clear()
        self._count(-self._held)
        for side in Side:
            self.done(side)

    def _count(self, size: int) -> None:
        self._held += size
        self._shared.total += size

    def _wake(self) -> None:
        for waiting in self._waiting.values():
            waiting.set()
        self._waiting.clear()
