"""One stream of bytes: framer, dialect and release in a row."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from .dialect import Dialect, Reader, Stop, is_bound
from .framing import Beside, Unit, UnreadableError, decoded
from .json_text import JSON, Loader, Path
from .judged_stream import Ending, JudgedStream
from .judges import Blocked, Judges
from .mixed_release import MixedRelease
from .operations import End, FieldText, Operation
from .release import Release
from .shadowed import shadowed
from .slots import Slot

_DONE: Final = (End(),)
# With what the data of an event begins that may be JSON or text; where other events were text, strings are that too.
_MAY_BE_JSON: Final = {False: ("{", "[", '"'), True: ("{", "[")}
_BLANKS: Final = " \t\r\n"
# At least one comment: a line end alone may be half of one that was cut in two, and belong to what waits.
_COMMENTS: Final = re.compile(rb"(?:\xef\xbb\xbf)?(?:(?:\r\n|\n|\r)*+:[^\r\n]*+)++[\r\n]*+")


class Stream(JudgedStream[bytes]):
    """One stream on its way through guardrails. Feed it bytes, judge what it asks for, send what it gives.

    :param dialects: the one that the stream is in, or those that it may be in, all of one framing. The first event that
        one of them knows tells. The last one reads those before it, and all where none is known.
    :param strict: whether the stream is stopped at what can't be read. It is passed unjudged otherwise.
    """

    __slots__ = (
        "_dialects",
        "_framer",
        "_has_text",
        "_loader",
        "_media_type",
        "_now",
        "_out",
        "_reader",
        "_reader_of_others",
        "_sent",
        "_strict",
        "dialect",
        "started",
    )

    def __init__(self, dialects: Sequence[Dialect], media_type: str, judges: Judges, *, strict: bool = True) -> None:
        self._dialects = dialects
        self._media_type = media_type
        self._framer = dialects[0].framer(media_type)
        repeats = any(dialect.repeats for dialect in dialects)
        either = any(dialect.form == "either" for dialect in dialects)
        super().__init__((MixedRelease if either else Release)(judges, self._leaves, repeats=repeats))
        self._strict = strict
        self._now = 0.0
        self._out: list[bytes] = []
        self._loader = Loader()
        # The end of what was taken.
        self._sent = b""
        # Whether any event was text that is no JSON.
        self._has_text = False
        self._reader: Reader | None = None
        # What reads events that are in none, before the first one that is.
        self._reader_of_others: Reader | None = None
        #: The dialect, once an event was read: the last one while none is known.
        self.dialect: Dialect | None = None
        if len(dialects) == 1:
            self._choose(dialects[0])
        #: Whether anything has left.
        self.started = False

    @property
    def full(self) -> bool:
        """Whether the app's next ``send`` has to wait for verdicts."""
        return self.ending is None and self._release.full

    @property
    def held_bytes(self) -> int:
        """How many bytes wait."""
        return self._release.held_bytes + self._framer.held

    def wake_at(self) -> float | None:
        """When :meth:`tick` is to be called if nothing else happens before."""
        return None if self.ending is not None else self._release.wake_at()

    def feed(self, data: bytes, now: float) -> None:
        """The next bytes of the app."""
        if self.ending is not None:
            return
        try:
            units = self._framer.feed(data)
        except UnreadableError as exc:
            units = [Unit(self._framer.rest(), b"", 0)]
            self._not_readable(exc)
        self._add(units, now)

    def end(self, now: float) -> None:
        """The app has sent everything."""
        if self.ending is not None:
            return
        self.finished = True
        self._add(self._framer.end(), now)
        if self.ending is None:
            try:
                self._release.finish(now)
            except UnreadableError as exc:
                self.fail(Stop(str(exc), 503))
            self._leave(now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.ending is None:
            self._release.tick(now)
            self._leave(now)

    def fail(self, stop: Stop) -> None:
        """Stop the stream; its client is told so behind what may leave. What waits is discarded."""
        if self.ending is None:
            self._leave(self._now)
            self._stop(stop, None)

    def take(self) -> bytes:
        """What may leave now. Comments overtake what has to wait for longer."""
        if comments := self._release.comments():
            self._out += comments
            self.started = True
        if not self._out:
            return b""
        out = b"".join(self._out) if len(self._out) > 1 else self._out[0]
        self._out.clear()
        self._sent = (self._sent + out)[-4:]
        return out

    def _choose(self, dialect: Dialect) -> Reader:
        self.dialect = dialect
        self._reader = dialect.reader(self._media_type)
        return self._reader

    def _add(self, units: Sequence[Unit], now: float) -> None:
        for unit in units:
            if self.ending is not None:
                return
            operations: Sequence[Operation] | None = ()
            is_json = True
            try:
                if unit.data is None:
                    operations = None if _COMMENTS.fullmatch(unit.raw) else ()
                elif unit.data.strip() == b"[DONE]":
                    operations = _DONE
                elif unit.data:
                    operations, is_json = self._read(unit, unit.data)
                if unit.beside is not None:
                    operations = [*_beside(unit, unit.beside), *(operations or ())]
            except UnreadableError as exc:
                self._not_readable(exc)
                if self.ending is not None:
                    return
            if operations is None:
                self._release.add_comment(unit, now)
                continue
            try:
                self._release.add(unit, operations, now, is_json=is_json)
            except UnreadableError as exc:
                # Where arguments are no JSON, there is nothing to fall back to.
                self.unreadable += 1
                self.fail(Stop(str(exc), 503))
                return
        self._leave(now)

    def _read(self, unit: Unit, data: bytes) -> tuple[Sequence[Operation] | None, bool]:
        """What an event says, and whether it is JSON."""
        text = decoded(data)
        form = (self.dialect or self._dialects[-1]).form
        value: JSON = text
        is_json = form == "json"
        if is_json:
            value = self._loader.loads(text)
        elif form == "either" and text.lstrip(_BLANKS).startswith(_MAY_BE_JSON[self._has_text]):
            try:
                parsed = self._loader.loads(text)
            except UnreadableError:
                pass
            else:
                # Numbers in brackets are as good as text.
                if not isinstance(parsed, list) or any(isinstance(inner, str | dict | list) for inner in parsed):
                    value, is_json = parsed, True
            self._has_text = self._has_text or not is_json
        elif form == "either":
            self._has_text = True
        reader = self._reader
        operations = self._first_known(unit, value) if reader is None else reader.read(unit, value)
        if is_json and self._loader.duplicates and operations is not None:
            operations = [*shadowed(text, "output"), *operations]
        return operations, is_json

    def _first_known(self, unit: Unit, value: JSON) -> Sequence[Operation] | None:
        """What an event says while none was in a dialect: events of an app's own may precede those of one."""
        last = self._dialects[-1]
        knowing = next((dialect for dialect in self._dialects if dialect is not last and dialect.knows(value)), None)
        if knowing is not None:
            operations = self._choose(knowing).read(unit, value)
            return None if operations is None else [End(), *operations]
        if self._reader_of_others is None:
            self.dialect = last
            self._reader_of_others = last.reader(self._media_type)
        return self._reader_of_others.read(unit, value)

    def _not_readable(self, exc: UnreadableError) -> None:
        self.unreadable += 1
        if self._strict:
            self.fail(Stop(str(exc), 503))

    def _leave(self, now: float) -> None:
        self._now = now
        try:
            out = self._release.leave(now)
        except UnreadableError as exc:
            self.unreadable += 1
            self._stop(Stop(str(exc), 503), None)
            return
        if out:
            self._out += out
            self.started = self.started or any(out)
        blocked = self._release.outcome.blocked
        if blocked is not None:
            self._stop(Stop(blocked.block.reason), blocked)

    def _leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        return {} if self._reader is None else self._reader.leaves(mark, dropped)

    def _stop(self, stop: Stop, blocked: Blocked | None) -> None:
        if self.ending is not None:
            return
        # Where no event was in a dialect, the one that knows its request can end it best.
        called = self._dialects[0]
        reader = self._reader or self._choose(called if is_bound(called) else self._dialects[-1])
        last = reader.ending(stop)
        self.ending = Ending(stop, blocked, last is None)
        self._release.discard(self._now)
        self._framer.rest()
        if last:
            self._out.append(self._framer.between(b"".join(self._out)[-4:] or self._sent) + last)


def _beside(unit: Unit, beside: Beside) -> list[Operation]:
    """The text of a unit beside its data."""
    if beside.strays:
        raise UnreadableError("expected fields of events, got lines of another form")
    operations: list[Operation] = []
    for start, end in beside.texts:
        text = decoded(unit.raw[start:end], start)
        operations.append(FieldText(Slot(("beside", start), "output"), start, end, text))
    return operations
