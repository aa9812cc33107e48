"""How many bytes a served address holds for its clients.

These are events without an answer, frames that have begun to come, and answers that a client does not read.

A connection that holds its share is not read from until some of it is answered, so that its client has to wait. What it
sends meanwhile stays in the socket, cancellations and the end of the connection among it. Therefore a connection whose
events go unanswered for :data:`PATIENCE` seconds is read again: its events are then refused at once instead of kept.
"""

import logging
from collections.abc import Callable
from typing import Final

from ..concurrency.background import Timer
from ..messages.throttle import Throttle
from ..protocol.stream import MAX_FRAME_BYTES, FrameReader
from ..transports.partial import FrameDeadline
from ..transports.wire import Wire

logger: Final = logging.getLogger("asgi_agents.serve")

#: Bytes that are held over all connections of an address, if not said otherwise. Above twice as many, and a frame, the
#: connection that sends more is closed.
MAX_HELD_BYTES: Final = 32 * 1024 * 1024
#: The part of it that the unanswered events of one connection may hold.
SHARE: Final = 1 / 8
#: A connection that holds no more than this is always read from, whatever others hold.
SMALL_BYTES: Final = 64 * 1024
#: Seconds for which a connection with unanswered events is not read from.
PATIENCE: float = 5.0
#: Seconds for a client that is slow to read to catch up with its answers.
READ_TIMEOUT: float = 30.0
#: What an unanswered event counts for beside its frame: the objects that keep account of it.
EVENT_BYTES: Final = 512
# The part of what is left that a connection may hold when there is too much.
_PART_OF_THE_REST: Final = 1 / 8

# What a wire may read at a time.
_READ_BYTES: Final = 256 * 1024


class Budget:
    """What all connections of an address hold together.

    :param limit: bytes.
    """

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self.limit = limit
        self.share = max(1, int(limit * SHARE))
        #: What is never exceeded.
        self.most = 2 * limit + MAX_FRAME_BYTES
        self.total = 0
        # In the order in which they began to hold anything, and to wait.
        self._holding: dict[Intake, None] = {}
        self._waiting: dict[Intake, None] = {}
        self._complaints = Throttle()

    def may_read(self, intake: "Intake") -> bool:
        """Whether more may be read on a connection.

        When there is too much, always on the one that has held something for longest: its frame comes to an end, and is
        not in the way then. Also on those that hold no more than a part of what is left up to twice the limit. The more
        connections hold, the smaller that part is. So a few that hold as much as they can do not keep the others from
        being read.
        """
        if intake.unanswered + intake.unread >= self.share:
            return False
        return (
            self.total < self.limit
            or intake.held <= max(SMALL_BYTES, (2 * self.limit - self.total) * _PART_OF_THE_REST)
            or next(iter(self._holding)) is intake
        )

    def changed(self, intake: "Intake", by: int) -> None:
        """``intake`` holds so much more than before."""
        self.total += by
        if intake.held:
            self._holding.setdefault(intake)
        else:
            self._holding.pop(intake, None)
        if by < 0 and self._waiting:
            self._wake()

    def wait(self, intake: "Intake") -> None:
        """Resume ``intake`` when it may read again."""
        self._waiting[intake] = None

    def forget(self, intake: "Intake") -> None:
        """It waits no longer."""
        self._waiting.pop(intake, None)

    def log_refusal(self, name: str, share: int) -> None:
        """Say that events are refused, once a minute."""
        if self._complaints.due("refusal"):
            logger.warning(
                "%s: refuses events of a connection that has more than %d bytes of them unanswered for %g s "
                "(logged once a minute)",
                name,
                share,
                PATIENCE,
            )

    def _wake(self) -> None:
        # Each may read that much before anybody looks again.
        room = max(1, (self.limit - self.total) // _READ_BYTES)
        for intake in tuple(self._waiting):
            if self.may_read(intake):
                intake.resume()
                room -= 1
                if not room:
                    return


class Intake:
    """What one connection holds, and whether it is read from.

    :param name: whom it is for, in the log.
    :param fail: closes the connection, and says why.
    """

    def __init__(self, budget: Budget, reader: FrameReader, name: str, fail: Callable[[str], object]) -> None:
        #: Bytes of events that are not answered, of the frame that has begun, and of answers that are not read.
        self.unanswered = 0
        self.partial = 0
        self.unread = 0
        #: Whether events are to be refused rather than kept.
        self.refusing = False
        self._budget = budget
        self._reader = reader
        self._name = name
        self._fail = fail
        self._wire: Wire | None = None
        self._deadline = FrameDeadline(reader, fail)
        self._patience = Timer(self._read_on)
        self._paused = self._closed = False
        self._refused_from = 0

    @property
    def held(self) -> int:
        """All of it."""
        return self.unanswered + self.partial + self.unread

    def start(self, wire: Wire) -> None:
        """Pause and resume reading on ``wire``."""
        self._wire = wire

    def add(self, size: int) -> None:
        """Count an unanswered event of ``size`` bytes; below 0: one that was answered."""
        if not self._closed:
            self.unanswered += size
            self._budget.changed(self, size)

    def add_unread(self, size: int) -> None:
        """So many bytes more were written to a client that is slow to read."""
        if not self._closed:
            self.unread += size
            self._budget.changed(self, size)
            if self._budget.total > self._budget.most:
                self._fail(f"it does not read its answers, and {_too_much(self._budget)}")

    def caught_up(self) -> None:
        """The client has read them."""
        if not self._closed:
            unread, self.unread = self.unread, 0
            self._budget.changed(self, -unread)

    def noted(self) -> None:
        """What was read has been handled: go on reading, pause, or close the connection."""
        if self._closed:
            return
        reader = self._reader
        grown = (reader.held if reader.pending else 0) - self.partial
        if grown:
            self.partial += grown
            self._budget.changed(self, grown)
        if reader.pending:
            self._deadline.note()
        budget = self._budget
        if self.refusing and self.unanswered - self._refused_from > budget.share:
            self._fail(f"it goes on sending events while {self.unanswered} bytes of them are unanswered")
        elif budget.total > budget.most:
            self._fail(_too_much(budget))
        elif budget.may_read(self):
            self.refusing = False
        elif not (self.refusing or self._paused) and self._wire is not None:
            self._paused = True
            budget.wait(self)
            self._patience.arm(PATIENCE)
            self._wire.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self._budget.forget(self)
        self._patience.disarm()
        if self._wire is not None and not self._closed:
            self._wire.resume_reading()

    def close(self) -> None:
        """The connection is gone."""
        if self._closed:
            return
        self._patience.disarm()
        self._deadline.close()
        self._budget.forget(self)
        held = self.held
        self.unanswered = self.partial = self.unread = 0
        self._closed = True
        self._budget.changed(self, -held)

    def _read_on(self) -> None:
        """Reading has paused for :data:`PATIENCE` seconds: read again, and refuse events if there is still no room."""
        if not self._budget.may_read(self):
            if not (self.unanswered or self.unread):
                # It is others that hold too much. Its own frame has a deadline.
                self._patience.arm(PATIENCE)
                return
            self.refusing = True
            self._refused_from = self.unanswered
            self._budget.log_refusal(self._name, self._budget.share)
        self.resume()


def _too_much(budget: Budget) -> str:
    return f"all connections together hold more than {budget.most} bytes"
