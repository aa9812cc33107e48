"""The events of one stream or body, in their order, and which of them may leave.

An event leaves when all of its text may, and all events before it have left. One whose text nobody changed leaves as it
came, to the byte.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from .escapes import judge_runs
from .framing import Unit, UnreadableError
from .held_call import HeldCall
from .held_event import HeldEvent, Leaves
from .judges import Inspection, Judges
from .operations import (
    Begin,
    Drop,
    End,
    Escaped,
    FieldText,
    Follow,
    Key,
    Mark,
    Operation,
    Piece,
    Remove,
    Repeat,
    Shadowed,
    Text,
    Whole,
)
from .records import Record
from .slot_text import Outcome, SlotText, WholeText
from .slots import Decision, Slot, SlotKey

#: How many bytes of events wait at most.
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
# How many complete texts are judged at once.
_MAX_WHOLE: Final = 16
# How many complete texts are kept that need not be judged again, and how long they are at most.
_MAX_CLEAN: Final = 64
_MAX_CLEAN_TEXT: Final = 16 * 1024
# How many slots are remembered that seem to have ended.
_MAX_ENDED: Final = 256
# How many slots are remembered that have left changed, where nothing looks at that.
_MAX_CHANGED: Final = 256

# What a text leaves as; also None where its event is left out, for those that know that.
_After = TypeVar("_After", bound=str | None)
_Kept = TypeVar("_Kept")


class _Streamed:
    """A slot whose parts leave as they are judged, and the events that they stand in."""

    __slots__ = ("key", "owners", "record", "release", "text")

    def __init__(self, key: SlotKey, record: Record | None, release: "Release") -> None:
        self.key = key
        self.owners: deque[tuple[HeldEvent, Text]] = deque()
        self.record = record
        self.release = release
        self.text: SlotText

    def released(self, after: str) -> None:
        event, text = self.owners.popleft()
        self.release.held -= len(text.text)
        if self.record is not None:
            self.record.left(text.text, after)
        if after == text.text:
            event.waiting -= 1
            return
        self.release.changed.add(self.key)
        if text.span is not None:
            event.span_released(text.span, text.text, after)
        elif text.instead is None:
            event.released(text.path, text.text, after)
        else:
            event.waiting -= 1
            event.instead[text.path] = text.instead


class Release:
    """Holds the events of one stream or body until they may leave.

    :param repeats: whether slots are repeated.
    :param outcome: that of another, if both have the same judges.
    :param strict: whether a tool call that can't be judged stops them. Otherwise it passes, and is counted.
    """

    __slots__ = (
        "_calls",
        "_calls_ended",
        "_clean",
        "_comments",
        "_ended",
        "_events",
        "_judges",
        "_leaves",
        "_open",
        "_records",
        "_repeats",
        "_strict",
        "_whole",
        "_whole_waiting",
        "changed",
        "held",
        "held_bytes",
        "longest_delay",
        "outcome",
    )

    def __init__(
        self,
        judges: Judges,
        leaves: Leaves,
        *,
        repeats: bool = False,
        outcome: Outcome | None = None,
        strict: bool = True,
    ) -> None:
        self._judges = judges
        self._strict = strict
        self._leaves = leaves
        self._repeats = repeats
        self._events: deque[HeldEvent] = deque()
        self._open: dict[SlotKey, _Streamed] = {}
        # Slots that may go on although they seem to have ended.
        self._ended: dict[SlotKey, _Streamed] = {}
        self._calls: dict[SlotKey, HeldCall] = {}
        # What can't go on, for all of it has left. Where JSON goes on, both parts of it are no JSON.
        self._calls_ended: dict[SlotKey, None] = {}
        self._records: dict[SlotKey, Record] = {}
        # Complete texts that nobody has changed: some are there again in every event.
        self._clean: dict[Slot, str] = {}
        # How many comments wait.
        self._comments = 0
        self._whole = 0
        self._whole_waiting: deque[tuple[Slot, str, Callable[[str], None]]] = deque()
        #: Slots of which text has left changed.
        self.changed: set[SlotKey] = set()
        #: How many code points of text wait.
        self.held = 0
        #: How many bytes of events wait.
        self.held_bytes = 0
        #: Seconds; how long an event has waited at most.
        self.longest_delay = 0.0
        self.outcome = Outcome() if outcome is None else outcome

    @property
    def waiting(self) -> int:
        """How many events wait."""
        return len(self._events)

    @property
    def full(self) -> bool:
        """Whether nothing more should come before there are verdicts."""
        # This is asked for every token.
        for streamed in self._open.values():
            if streamed.text.full:
                return True
        if self._ended and any(streamed.text.full for streamed in self._ended.values()):
            return True
        return self.held_bytes > MAX_HELD_BYTES // 2 and self.outcome.judging

    @property
    def open(self) -> int:
        """How many slots have not ended."""
        return len(self._open) + len(self._calls)

    def forget_changes(self) -> None:
        """Forget which slots have left changed, where no operation looks at that."""
        if len(self.changed) > _MAX_CHANGED:
            self.changed.clear()

    def wake_at(self) -> float | None:
        """When there may be something to judge although nothing else happens."""
        times = [at for streamed in self._open.values() if (at := streamed.text.wake_at()) is not None]
        return min(times) if times else None

    def inspections(self) -> list[Inspection]:
        """What is to be judged and was not handed out before."""
        outcome = self.outcome
        return outcome.hand_out() if outcome.inspections else []

    def verdict(self, inspection: Inspection, decisions: Sequence[Decision], now: float) -> None:
        """What a judge says of a window.

        :raises AgentProtocolError: for a decision that is not about the window. It is still to be judged.
        """
        inspection.judged.decide(inspection, decisions)
        self.outcome.in_flight.discard(inspection)
        if self.outcome.blocked is None:
            inspection.judged.advance(now)

    def hold_to_end(self, inspection: Inspection, now: float) -> None:
        """Judge the text of a window again, with all that is still to come of its slot."""
        inspection.judged.hold_to_end(inspection.judge)
        self.outcome.in_flight.discard(inspection)
        inspection.judged.advance(now)

    def add(self, unit: Unit, operations: Sequence[Operation], now: float, *, is_json: bool = True) -> HeldEvent:
        """The next event, and what its dialect says of it. Returns what holds it.

        :param is_json: whether its data is JSON. Otherwise it is text, and the only path is the empty one.
        :raises UnreadableError: for a tool call that is no JSON, too long, or goes on behind its end, and when too much
            waits.
        """
        event = HeldEvent(unit, now, is_json)
        # Until all of it was read. It never leaves if that can't be done.
        event.waiting = 1
        self._events.append(event)
        self.held_bytes += len(unit.raw)
        if self.held_bytes > MAX_HELD_BYTES:
            raise UnreadableError(f"{self.held_bytes} bytes of events wait, expected at most {MAX_HELD_BYTES}")
        touched: dict[SlotKey, _Streamed] = {}
        for operation in operations:
            match operation:
                case Text():
                    self._text(event, operation, now, touched)
                case Mark(value):
                    event.mark = value
                case End(key):
                    self._end(key, touched)
                case Begin(key):
                    for slot_key in _within(touched, key):
                        # It may have ended in this event. Another slot takes its place, also among the touched ones.
                        touched.pop(slot_key).text.advance(now)
                    _forget(self._ended, key)
                    _forget(self._records, key)
                    _forget(self._calls_ended, key)
                case Piece():
                    self._piece(event, operation, now, touched)
                case Whole(slot, path, text, instead):
                    event.waiting += 1
                    self._judge_whole(
                        slot, text, self._hold(text, partial(event.released, path, text, instead=instead))
                    )
                case Key(slot, path, text):
                    event.waiting += 1
                    self._judge_whole(slot, text, self._hold(text, partial(event.key_released, path, text)))
                case Shadowed(slot, start, end, text):
                    event.waiting += 1
                    released = partial(event.span_released, (start, end), text)
                    self._judge_whole(slot, text, self._hold(text, released))
                case FieldText(slot, start, end, text):
                    event.waiting += 1
                    released = partial(event.line_released, (start, end), text)
                    self._judge_whole(slot, text, self._hold(text, released))
                case Escaped(slot, text, runs, known):
                    event.waiting += 1
                    read = self._hold(text, partial(event.released, (), text))
                    judge_runs(text, runs, slot, self._judge_whole, read, known=known)
                case Repeat():
                    self._repeat(event, operation)
                case Follow() | Drop() | Remove():
                    event.later.append(operation)
        for streamed in touched.values():
            streamed.text.advance(now)
        event.waiting -= 1
        return event

    def add_comment(self, unit: Unit, now: float) -> None:
        """What says nothing to the reader of the stream."""
        event = HeldEvent(unit, now, False)
        event.comment = True
        self._events.append(event)
        self.held_bytes += len(unit.raw)
        self._comments += 1

    def comments(self) -> list[bytes]:
        """Comments that wait behind events which do: they overtake those."""
        if not self._comments:
            return []
        out = [event.unit.raw for event in self._events if event.comment]
        self._events = deque(event for event in self._events if not event.comment)
        self.held_bytes -= sum(map(len, out))
        self._comments = 0
        return out

    def finish(self, now: float) -> None:
        """There are no more events: all slots have ended.

        :raises UnreadableError: for a tool call that is no JSON.
        """
        touched: dict[SlotKey, _Streamed] = {}
        self._end((), touched)
        for streamed in touched.values():
            streamed.text.advance(now)

    def tick(self, now: float) -> None:
        """Ask for what is due."""
        for streamed in self._open.values():
            streamed.text.advance(now)

    def leave(self, now: float, left: list[HeldEvent] | None = None) -> list[bytes]:
        """The events that may leave.

        :param left: takes what has held them.
        """
        events = self._events
        out: list[bytes] = []
        while events and not events[0].waiting:
            event = events.popleft()
            self.held_bytes -= len(event.unit.raw)
            if event.comment:
                self._comments -= 1
            if now - event.since > self.longest_delay:
                self.longest_delay = now - event.since
            out.append(event.unit.raw if event.is_plain else event.leave(self.changed, self._leaves))
            if left is not None:
                left.append(event)
        return out

    def discard(self, now: float) -> None:
        """Let go of all that waits."""
        if self._events:
            self.longest_delay = max(self.longest_delay, now - self._events[0].since)
        self._events.clear()
        self._open.clear()
        self._ended.clear()
        self._calls.clear()
        self._whole_waiting.clear()
        self._comments = self.held = self.held_bytes = 0

    def _hold(self, text: str, released: Callable[[_After], None]) -> Callable[[_After], None]:
        """``released``, until which ``text`` is counted as waiting."""
        size = len(text)
        self.held += size

        def counted(after: _After) -> None:
            self.held -= size
            released(after)

        return counted

    def _text(self, event: HeldEvent, text: Text, now: float, touched: dict[SlotKey, _Streamed]) -> None:
        slot = text.slot
        key = (*slot.key, slot.kind)
        streamed = self._open.get(key)
        if streamed is None and (streamed := self._ended.pop(key, None)) is not None:
            streamed.text.resume()
            self._open[key] = streamed
        if streamed is None:
            those = self._judges.of(slot)
            if those is None:
                return
            streamed = _Streamed(slot.key, self._record(key), self)
            streamed.text = SlotText(slot, *those, self.outcome, streamed.released)
            self._open[key] = streamed
        streamed.owners.append((event, text))
        event.waiting += 1
        self.held += len(text.text)
        if streamed.record is not None:
            streamed.record.came(text.text)
        streamed.text.feed(text.text, now)
        touched[key] = streamed

    def _record(self, key: SlotKey) -> Record | None:
        return self._records.setdefault(key, Record()) if self._repeats else None

    def _end(self, key: SlotKey, touched: dict[SlotKey, _Streamed]) -> None:
        for slot_key in _within(self._open, key):
            streamed = touched[slot_key] = self._open.pop(slot_key)
            streamed.text.finish()
            if streamed.record is not None:
                streamed.record.ended()
            _remember(self._ended, slot_key, streamed)
        for slot_key in _within(self._calls, key):
            call = self._calls.pop(slot_key)
            if call.form != "json":
                _remember(self._calls_ended, call.slot.key, None)
            self._finish(call)

    def _piece(self, event: HeldEvent, piece: Piece, now: float, touched: dict[SlotKey, _Streamed]) -> None:
        those = self._judges.of(piece.slot)
        if those is None:
            return
        if piece.form == "signed" and not those[0]:
            # Nobody may change it, so it need not be held whole.
            if piece.path is not None:
                self._text(event, Text(piece.slot, piece.path, piece.text), now, touched)
            return
        key = (*piece.slot.key, piece.slot.kind)
        call = self._calls.get(key)
        if call is None:
            if piece.text and piece.slot.key in self._calls_ended:
                if self._strict:
                    raise UnreadableError("a tool call or signed reasoning goes on behind its end")
                self.outcome.unreadable += 1
                return
            call = self._calls[key] = HeldCall(piece.slot, piece.form, self._judge_whole, strict=self._strict)
        event.waiting += 1
        released = partial(event.released, piece.path, piece.text)
        record = self._record(key)
        if record is not None:
            record.came(piece.text)
            released = partial(_recorded, record, piece.text, released)
        call.add(piece.text, self._hold(piece.text, released))

    def _finish(self, call: HeldCall) -> None:
        call.finish()
        if call.passes:
            self.outcome.unreadable += 1

    def _judge_whole(self, slot: Slot, text: str, released: Callable[[str], None]) -> None:
        those = self._judges.of(slot)
        if those is None or not text or self._clean.get(slot) == text:
            released(text)
        elif self._whole >= _MAX_WHOLE:
            self._whole_waiting.append((slot, text, released))
        else:
            self._whole += 1
            WholeText(slot, text, *those, self.outcome, partial(self._whole_released, slot, text, released))

    def _whole_released(self, slot: Slot, text: str, released: Callable[[str], None], after: str) -> None:
        self._whole -= 1
        if after == text and len(self._clean) < _MAX_CLEAN and len(text) <= _MAX_CLEAN_TEXT:
            self._clean[slot] = text
        while self._whole_waiting and self._whole < _MAX_WHOLE:
            self._judge_whole(*self._whole_waiting.popleft())
        released(after)

    def _repeat(self, event: HeldEvent, repeat: Repeat) -> None:
        if self._judges.of(repeat.slot) is None:
            return
        record = self._records.get((*repeat.slot.key, repeat.slot.kind))
        if record is not None and (begin := record.find(repeat.text)) is not None:
            event.later.append((record, repeat.path, repeat.text, begin))
            return
        event.waiting += 1
        if repeat.form == "json":
            call = HeldCall(repeat.slot, "json", self._judge_whole, strict=self._strict)
            call.add(repeat.text, self._hold(repeat.text, partial(event.released, repeat.path, repeat.text)))
            self._finish(call)
        else:
            released = self._hold(repeat.text, partial(event.released, repeat.path, repeat.text))
            self._judge_whole(repeat.slot, repeat.text, released)


def _within(slots: Mapping[SlotKey, object], key: SlotKey) -> list[SlotKey]:
    """Those whose keys begin with ``key``."""
    count = len(key)
    return [slot_key for slot_key in slots if slot_key[:count] == key]


def _forget(slots: dict[SlotKey, _Kept], key: SlotKey) -> None:
    for slot_key in _within(slots, key):
        del slots[slot_key]


def _remember(slots: dict[SlotKey, _Kept], key: SlotKey, kept: _Kept) -> None:
    """The oldest one is forgotten for it where there are too many."""
    if len(slots) >= _MAX_ENDED:
        del slots[next(iter(slots))]
    slots[key] = kept


def _recorded(record: Record, before: str, released: Callable[[str | None], None], after: str | None) -> None:
    record.left(before, after or "")
    released(after)
