"""Server-sent events (WHATWG HTML, section 9.2.6), and the texts that many of them make together.

A model writes an address in many events. What has to be read together:

- Data that are an object, an array or a string of JSON: the strings at the same place. An ``index`` beside them or
  above tells several texts at that place apart.
- Any other data: as they are, one after the other.

An event is passed on when it is sure what becomes of each text in it. Two kinds of text don't hold it up: one of which
the next ``PATIENCE`` events say nothing, and one that is the same word in every event, like a name or an id. If such a
text goes on and makes an address of what has been passed on, only the rest of that can be redacted.

All else stays as it is, to the byte, unless there are personal data in it: comments, names, ids and the ends of lines.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .edits import Edit, edited
from .errors import UnreadableError
from .json_text import decoded, edits_for, path_of, scan
from .lines import LIMIT, Lines
from .patterns import CONTEXT, find, settled

#: Events.
PATIENCE = 3
# Texts that are known still, though they don't hold up anything.
_REMEMBERED = 1000

_DATA = re.compile(r"data(?:: ?([^\r\n]*))?(?=[\r\n]|\Z)")
_LETTER = re.compile("[a-zA-Z]")
_MARK = "\xef\xbb\xbf"
_PLAIN = 0


@dataclass(slots=True, eq=False)
class _Event:
    """A block of lines up to an empty one. ``unsettled``: how many of its texts hold it up."""

    raw: str
    edits: list[Edit] = field(default_factory=list)
    unsettled: int = 0
    passed: bool = False

    def redact(self, start: int, end: int, label: str) -> None:
        # A blank at the beginning of data would be taken for the one that may stand behind the colon: put that there.
        self.edits.append(Edit(start, end, label or " " if self.raw[start - 1 : start] == ":" else label))


@dataclass(slots=True, eq=False)
class _Part:
    """A piece of a text: where it begins in that, and where in the event each of its characters is."""

    event: _Event
    start: int
    end: int
    places: Sequence[int]
    holds: bool = True

    def let_go(self) -> None:
        if self.holds:
            self.holds = False
            self.event.unsettled -= 1


class _RunningText:
    """A text that comes in events."""

    def __init__(self) -> None:
        self.last_event = 0
        # The piece of which nothing but repetitions have come, if that is so.
        self._only_piece: str | None = None
        # `_text` begins at `_origin` of the whole; what is before `_settled` is only context.
        self._text = ""
        self._origin = self._settled = 0
        self._parts: deque[_Part] = deque()

    def add(self, event: _Event, text: str, places: Sequence[int], number: int) -> None:
        end = self._origin + len(self._text)
        self._parts.append(_Part(event, end, end + len(text), places))
        self._text += text
        self.last_event = number
        event.unsettled += 1
        if end == 0:
            self._only_piece = text if _LETTER.search(text) else None
        elif text == self._only_piece:
            self.give_up()
        else:
            self._only_piece = None

    def settle(self, last: bool = False) -> None:
        """Redact what is sure, and let go of the events that have nothing else."""
        found, edge = settled(self._text, self._settled - self._origin, last)
        for kind, start, end in found:
            self._drop_parts(self._origin + start)
            self._redact(kind, start, end)
        self._settled = edge + self._origin
        self._drop_parts(self._settled)
        context = max(0, edge - CONTEXT)
        self._text, self._origin = self._text[context:], self._origin + context

    def give_up(self) -> None:
        """Hold up no event any longer. What looks like personal data so far is redacted, whatever may come."""
        for found in find(self._text, self._settled - self._origin):
            self._redact(*found)
        for part in self._parts:
            part.let_go()

    def _redact(self, kind: str, start: int, end: int) -> None:
        start, end, label = start + self._origin, end + self._origin, f"[{kind}]"
        for part in self._parts:
            if part.start >= end:
                break
            if part.end > start and not part.event.passed:
                first, behind = max(start, part.start) - part.start, min(end, part.end) - part.start
                part.event.redact(part.places[first], part.places[behind], label)
                # The label takes the place of the first piece, the others go.
                label = ""

    def _drop_parts(self, end: int) -> None:
        while self._parts and self._parts[0].end <= end:
            self._parts.popleft().let_go()


class EventStreamRedactor:
    """Redacts the events, and what their texts say together. Every event stays, if with less text or none."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._block: list[str] = []
        self._size = 0
        self._begun = False
        self._events: deque[_Event] = deque()
        self._passed: list[str] = []
        self._number = 0
        self._texts: OrderedDict[int, _RunningText] = OrderedDict()
        self._recent: deque[list[_RunningText]] = deque()

    def feed(self, data: bytes, last: bool) -> bytes:
        """See :class:`example_app.redaction.Redactor`."""
        for line in self._lines.feed(data, last):
            self._block.append(line)
            self._size += len(line)
            if line[0] in "\r\n":
                self._take_event()
                # At once, so that what becomes of an event does not depend on how much has come with it.
                self._pass_on()
            elif self._size > LIMIT:
                raise UnreadableError("an event is too long to be held")
        if last:
            # What is not ended by an empty line is no event, but may be read as one.
            self._take_event()
            for text in self._texts.values():
                text.settle(last=True)
            self._pass_on()
        passed = "".join(self._passed)
        self._passed.clear()
        return passed.encode("latin-1")

    def _pass_on(self) -> None:
        while self._events and not self._events[0].unsettled:
            event = self._events.popleft()
            event.passed = True
            self._passed.append(edited(event.raw, event.edits))

    def _take_event(self) -> None:
        event = _Event("".join(self._block))
        values: list[tuple[int, int]] = []
        position = 0
        for line in self._block:
            mark = 0 if self._begun or not line.startswith(_MARK) else len(_MARK)
            self._begun = True
            value = _DATA.match(line, mark)
            if value is None:
                for kind, start, end in find(line):
                    event.redact(position + start, position + end, f"[{kind}]")
            elif value[1] is None:
                values.append((position + value.end(), position + value.end()))
            else:
                values.append((position + value.start(1), position + value.end(1)))
            position += len(line)
        self._block, self._size = [], 0
        self._events.append(event)
        if values:
            self._number += 1
            self._take_data(event, values)

    def _take_data(self, event: _Event, values: list[tuple[int, int]]) -> None:
        text = "\n".join(event.raw[start:end] for start, end in values)
        places = [place for start, end in values for place in range(start, end + 1)]
        touched: dict[int, _RunningText] = {}
        try:
            # A number is more likely a piece of a text.
            scalars = list(scan(text)) if text.lstrip(" \t\r\n")[:1] in ("{", "[", '"') else None
        except UnreadableError:
            scalars = None
        if scalars is None:
            self._add(touched, _PLAIN, event, text, places)
        for scalar in scalars or ():
            if scalar.kind == "string":
                content, inner = decoded(text, scalar.start, scalar.end)
                self._add(touched, path_of(scalar), event, content, [places[place] for place in inner])
            else:
                for edit in edits_for(text, scalar):
                    event.redact(places[edit.start], places[edit.end], edit.text)
        self._settle(touched)

    def _add(
        self, touched: dict[int, _RunningText], path: int, event: _Event, text: str, places: Sequence[int]
    ) -> None:
        if not text:
            return
        # Whatever it may be a piece of: this is what the event says by itself.
        for kind, start, end in find(text):
            event.redact(places[start], places[end], f"[{kind}]")
        running = self._texts.get(path)
        if running is None:
            running = self._texts[path] = _RunningText()
        self._texts.move_to_end(path)
        running.add(event, text, places, self._number)
        touched[path] = running

    def _settle(self, touched: dict[int, _RunningText]) -> None:
        for running in touched.values():
            running.settle()
        self._recent.append(list(touched.values()))
        if len(self._recent) > PATIENCE:
            for running in self._recent.popleft():
                if running.last_event <= self._number - PATIENCE:
                    running.give_up()
        while len(self._texts) > _REMEMBERED:
            path, oldest = next(iter(self._texts.items()))
            if oldest.last_event > self._number - PATIENCE:
                break
            del self._texts[path]
