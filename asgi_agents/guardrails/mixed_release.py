"""Events of which some are JSON and some are text: two releases in a row.

A client that shows the events of a stream as text shows those, too, that happen to be JSON. Their keys and numbers are
no text to a reader of JSON, but they are to this one. So once there was an event of text, one of JSON is judged twice.
First its strings are, decoded and joined by their paths. Then all of it is, as it leaves the first, as a part of the
text that it stands in. It stays JSON, for clients that take what is JSON for such: a number in which something is found
becomes a string.
"""

from collections.abc import Sequence
from typing import Final

from .framing import Unit, decoded
from .held_event import HeldEvent, Leaves
from .json_text import decode, literals
from .judges import Inspection, Judges
from .operations import AsText, End, Operation, Text
from .release import Release
from .slot_text import Outcome
from .slots import Decision, Slot

# Each is a part of the text, with the like of what a token takes.
_MAX_LITERALS: Final = 1000


class MixedRelease:
    """Holds the events of one stream until they may leave, as :class:`Release` does, whatever they are."""

    __slots__ = ("_finished", "_has_text", "_json", "_of_text", "outcome")

    def __init__(self, judges: Judges, leaves: Leaves, *, repeats: bool = False, strict: bool = True) -> None:
        self._json = Release(judges, leaves, repeats=repeats, strict=strict)
        #: What comes of both.
        self.outcome: Outcome = self._json.outcome
        self._of_text = Release(judges, leaves, outcome=self.outcome)
        # Whether there was an event of text. Nothing is in the second release before.
        self._has_text = False
        # Whether there will be no more events.
        self._finished = False

    @property
    def waiting(self) -> int:
        """How many events wait."""
        return self._json.waiting + self._of_text.waiting

    @property
    def full(self) -> bool:
        """Whether nothing more should come before there are verdicts."""
        return self._json.full or self._of_text.full

    @property
    def held(self) -> int:
        """How many code points of text wait."""
        return self._json.held + self._of_text.held

    @property
    def held_bytes(self) -> int:
        """How many bytes of events wait."""
        return self._json.held_bytes + self._of_text.held_bytes

    @property
    def longest_delay(self) -> float:
        """Seconds; how long an event has waited at most."""
        return max(self._json.longest_delay, self._of_text.longest_delay)

    @property
    def open(self) -> int:
        """How many slots have not ended."""
        return self._json.open + self._of_text.open

    def forget_changes(self) -> None:
        """Forget which slots have left changed, where no operation looks at that."""
        self._json.forget_changes()
        self._of_text.forget_changes()

    def wake_at(self) -> float | None:
        """When there may be something to judge although nothing else happens."""
        times = [at for release in (self._json, self._of_text) if (at := release.wake_at()) is not None]
        return min(times) if times else None

    def inspections(self) -> list[Inspection]:
        """What is to be judged and was not handed out before."""
        return self._json.inspections()

    def verdict(self, inspection: Inspection, decisions: Sequence[Decision], now: float) -> None:
        """What a judge says of a window.

        :raises AgentProtocolError: for a decision that is not about the window. It is still to be judged.
        """
        self._json.verdict(inspection, decisions, now)

    def hold_to_end(self, inspection: Inspection, now: float) -> None:
        """Judge the text of a window again, with all that is still to come of its slot."""
        self._json.hold_to_end(inspection, now)

    def add(self, unit: Unit, operations: Sequence[Operation], now: float, *, is_json: bool = True) -> None:
        """The next event, and what its dialect says of it.

        :raises UnreadableError: as :meth:`Release.add` does.
        """
        # A string alone is as good as text.
        is_text = not is_json or (unit.data or b"").lstrip().startswith(b'"')
        self._has_text = self._has_text or is_text
        if not is_text:
            event = self._json.add(unit, operations, now)
            if self._has_text:
                event.as_text = [operation for operation in operations if isinstance(operation, AsText | End)]
        elif self._json.waiting:
            self._json.add(unit, (), now, is_json=is_json).as_text = operations
        else:
            self._of_text.add(unit, operations, now, is_json=is_json)

    def add_comment(self, unit: Unit, now: float) -> None:
        """What says nothing to the reader of the stream."""
        self._json.add_comment(unit, now)

    def comments(self) -> list[bytes]:
        """Comments that wait behind events which do: they overtake those."""
        return [*self._of_text.comments(), *self._json.comments()]

    def finish(self, now: float) -> None:
        """There are no more events: all slots have ended.

        :raises UnreadableError: as :meth:`Release.finish` does.
        """
        self._finished = True
        self._json.finish(now)

    def tick(self, now: float) -> None:
        """Ask for what is due."""
        self._json.tick(now)
        self._of_text.tick(now)

    def leave(self, now: float, left: list[HeldEvent] | None = None) -> list[bytes]:
        """The events that may leave.

        :param left: takes what has held them. Of what is left out it need not.
        :raises UnreadableError: when too much waits.
        """
        if not self._has_text:
            return self._json.leave(now, left)
        events: list[HeldEvent] = []
        for raw, event in zip(self._json.leave(now, events), events, strict=True):
            if event.comment:
                self._of_text.add_comment(event.unit, now)
            elif raw or not event.unit.raw:
                unit = event.unit if raw is event.unit.raw else event.unit.again(raw)
                operations: list[Operation] = []
                is_json = event.is_json
                for operation in event.as_text:
                    if not isinstance(operation, AsText):
                        operations.append(operation)
                    elif (parts := _parts(operation.slot, unit)) is not None:
                        operations += parts
                    else:
                        operations.append(Text(operation.slot, (), decoded(unit.data or b"")))
                        is_json = False
                self._of_text.add(unit, operations, now, is_json=is_json).since = event.since
        if self._finished and not self._json.waiting:
            self._of_text.finish(now)
        return self._of_text.leave(now, left)

    def discard(self, now: float) -> None:
        """Let go of all that waits."""
        self._json.discard(now)
        self._of_text.discard(now)


def _parts(slot: Slot, unit: Unit) -> list[Operation] | None:
    """The JSON of an event as parts of a text. It stays JSON: what is changed is its literals, each as a string.

    None: there are too many, so that all of it is one part, and may be no JSON any more.
    """
    data = decoded(unit.data or b"")
    parts: list[Operation] = []
    at = 0
    for start, end in literals(data):
        if len(parts) > 2 * _MAX_LITERALS:
            return None
        literal = data[start:end]
        quotes = literal.startswith('"')
        parts.append(Text(slot, (), data[at : start + quotes], span=(0, 0)))
        parts.append(Text(slot, (), decode(literal) if quotes else literal, span=(start, end)))
        at = end - quotes
    parts.append(Text(slot, (), data[at:], span=(0, 0)))
    return parts
