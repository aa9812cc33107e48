"""Which call an answer is for. No I/O.

An agent owes one answer to each event that it was sent:

- An answer that names a call is for that call.
- An answer that names a correlation id is for the oldest call with that id.
- An answer that names neither is for the oldest call of all.

A call that was given up stays pending until its answer comes, which is then discarded. If it were removed earlier, its
answer would be taken for that to the next call, and all later answers would go to the wrong calls as well.
"""

import time
from itertools import count
from typing import Any, Final

from msgspec import UNSET

from ...concurrency.background import Signal
from ...protocol.stream import CallIds

_NUMBERS: Final = count(1)


class PendingCall:
    """One event that has been sent, or is about to be.

    :ivar answered: set when there is a ``payload``, which the wire format decodes (None: a plain allow), or a
        ``fault``, or the ``deadline`` (:func:`time.monotonic`) has passed.
    :ivar plain: the frame, without its length, that answers it with a plain allow, where that is known.
    :ivar abandoned: whether nobody waits for the answer any more.
    :ivar size: bytes of the event's frame.
    :ivar position: its number among all calls of its connection, in the order in which they were sent.
    """

    __slots__ = (
        "abandoned",
        "answered",
        "correlation_id",
        "deadline",
        "expired",
        "fault",
        "number",
        "payload",
        "plain",
        "position",
        "sent_at",
        "size",
    )

    def __init__(self, correlation_id: str, deadline: float, answered: Signal) -> None:
        self.correlation_id = correlation_id
        self.number = next(_NUMBERS)
        self.answered = answered
        self.deadline = deadline
        self.expired = False
        self.payload: Any = b""
        self.plain: bytes | None = None
        self.fault: str | None = None
        self.abandoned = False
        self.size = 0
        self.position = 0
        self.sent_at = 0.0

    def fail(self, fault: str) -> None:
        """There will be no answer."""
        self.fault = fault
        self.answered.set()


class PendingCalls:
    """The calls of one connection that are owed an answer, oldest first."""

    __slots__ = ("_added", "_calls", "_plain", "late_answers", "size", "unmatched_answers", "waited_for")

    def __init__(self) -> None:
        self._calls: dict[int, PendingCall] = {}
        self._plain: dict[bytes, PendingCall] = {}
        self._added = 0
        #: Calls that somebody waits for.
        self.waited_for = 0
        #: Bytes of the events of all calls.
        self.size = 0
        #: Answers to calls that nobody waited for any more, and answers to no call.
        self.late_answers = 0
        self.unmatched_answers = 0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def oldest(self) -> PendingCall | None:
        """The call that was sent first."""
        return next(iter(self._calls.values()), None)

    def add(self, call: PendingCall) -> None:
        """``call`` is sent now."""
        call.sent_at = time.monotonic()
        self._added += 1
        call.position = self._added
        self._calls[call.number] = call
        if call.plain is not None:
            self._plain[call.plain] = call
        self.waited_for += 1
        self.size += call.size

    def abandon(self, call: PendingCall) -> None:
        """Nobody waits for it any more; the agent still owes the answer."""
        if call.number in self._calls and not call.abandoned:
            call.abandoned = True
            self.waited_for -= 1

    def is_waited_for(self, correlation_id: str) -> bool:
        """Whether somebody waits for an answer about that request."""
        return any(call.correlation_id == correlation_id and not call.abandoned for call in self._calls.values())

    def expire(self, now: float) -> tuple[list[PendingCall], float | None]:
        """The calls whose deadline has passed, now abandoned, and the first deadline of the rest."""
        expired, first = [], None
        for call in self._calls.values():
            if call.abandoned:
                continue
            if call.deadline <= now:
                self.abandon(call)
                expired.append(call)
            elif first is None or call.deadline < first:
                first = call.deadline
        return expired, first

    def match(self, ids: CallIds, *, before: int | None = None) -> PendingCall | None:
        """Remove the call that an answer with ``ids`` is for, and return it; None where there is none.

        An answer that doesn't name its call is for none that was sent at the position ``before`` or later.
        """
        if ids.call_id is not UNSET:
            assert isinstance(ids.call_id, int)
            call = self._calls.get(ids.call_id)
            if call is not None and ids.correlation_id and ids.correlation_id != call.correlation_id:
                call = None
        elif ids.correlation_id:
            # Most answer in order, so that it is among the first.
            call = next((call for call in self._calls.values() if call.correlation_id == ids.correlation_id), None)
        else:
            call = self.oldest
        if call is not None and before is not None and ids.call_id is UNSET and call.position >= before:
            call = None
        if call is None:
            self.unmatched_answers += 1
        else:
            self._remove(call)
        return call

    def match_plain(self, frame: bytes) -> PendingCall | None:
        """Remove the call that ``frame`` answers with a plain allow, and return it.

        None where the frame is anything else, or a plain allow with other bytes than :attr:`PendingCall.plain`.
        """
        call = self._plain.get(frame)
        if call is not None:
            self._remove(call)
        return call

    def _remove(self, call: PendingCall) -> None:
        del self._calls[call.number]
        if call.plain is not None:
            del self._plain[call.plain]
        self.size -= call.size
        if call.abandoned:
            self.late_answers += 1
        else:
            self.waited_for -= 1

    def clear(self) -> list[PendingCall]:
        """Remove all; returns those that somebody waits for."""
        waiting = [call for call in self._calls.values() if not call.abandoned]
        self._calls.clear()
        self._plain.clear()
        self.waited_for = self.size = 0
        return waiting
