"""The messages of one direction of a websocket: each is one event, whatever they say together.

A message is JSON or text. Events of a dialect say themselves which text they go on with. Otherwise the strings at one
path are parts of one text, and so are messages that are text. Each part leaves in the message that it came in.

What has no end of its own, as what a person types, seems to have ended when no message has come for a while: the last
text of a conversation would else wait for the next. What comes all the same is judged with what precedes it.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from .dialect import Stop
from .dialects import realtime, realtime_kinds
from .dialects.unknown import PathReader
from .escapes import Run, runs_in
from .framing import TooComplexError, Unit, UnreadableError, decoded
from .held_event import HeldEvent
from .json_text import JSON, Loader, Path
from .judged_stream import Ending, JudgedStream
from .judges import Judges
from .message import MAX_MESSAGE_BYTES, Message, Payload, Reason, read
from .message_release import MessageRelease
from .operations import End, FieldText, Operation, Whole
from .release import MAX_HELD_BYTES
from .shadowed import shadowed
from .slots import Kind, Slot

# Seconds in which nothing leaves although messages wait, after which all texts seem to have ended.
_LONG: Final = 30.0
# How many messages wait, and how many texts have not ended, before all of them seem to have.
_MAX_WAITING: Final = 2048
_MAX_OPEN: Final = 1024
# And how many bytes: there is room for one more message, and for what ends the texts.
_MAX_BYTES: Final = MAX_HELD_BYTES - MAX_MESSAGE_BYTES - 64 * 1024


class MessageReader(Protocol):
    """Reads the messages of one direction that are JSON."""

    def read(self, value: JSON) -> Sequence[Operation]:
        """What a message says, in order.

        :raises UnreadableError: for one that is not as its type promises.
        """
        ...

    def pause(self, long: bool) -> Sequence[Operation]:
        """No message has come for a while. Returns what ends the texts that nothing else ends.

        :param long: whether none has left for a long while, so that all texts are to end.
        """
        ...


class _General:
    """Reads messages of any shape."""

    __slots__ = ("_paths",)

    def __init__(self, kind: Kind) -> None:
        self._paths = PathReader(_cut_off, may_be_text=True, kind=kind)

    def read(self, value: JSON) -> Sequence[Operation]:
        return self._paths.read(_NOTHING, value)

    def pause(self, long: bool) -> Sequence[Operation]:
        return _END


class MessageStream(JudgedStream[list[Payload]]):
    """The messages of one direction on their way through guardrails; used as
    :class:`~asgi_agents.guardrails.stream.Stream` is.

    :param from_client: whether they are the client's: their text is ``input``, and ``output`` otherwise.
    :param strict: whether what can't be read stops them. It is passed unjudged otherwise.
    :param speaks_realtime: whether the app is known to speak OpenAI's Realtime API. Messages are read as events of that
        only where it does: a client chooses what its messages look like, and some of what the app says.
    :param silence: seconds without a message after which texts seem to have ended that have no end of their own.
    """

    _release: MessageRelease

    __slots__ = (
        "_came",
        "_dialect",
        "_general",
        "_kind",
        "_left",
        "_loader",
        "_long",
        "_now",
        "_out",
        "_paused",
        "_silence",
        "_speaks_realtime",
        "_strict",
    )

    def __init__(
        self,
        judges: Judges,
        *,
        from_client: bool,
        strict: bool = True,
        speaks_realtime: bool = False,
        silence: float = 0.5,
    ) -> None:
        self._kind: Kind = "input" if from_client else "output"
        super().__init__(MessageRelease(judges, _changes_nothing, self._kind, self._read_late, strict=strict))
        self._strict = strict
        self._speaks_realtime = speaks_realtime
        self._silence = silence
        self._long = max(_LONG, 2 * silence)
        self._general = _General(self._kind)
        # The reader of a dialect, once a message was in it.
        self._dialect: MessageReader | None = None
        self._loader = Loader()
        self._out: list[Payload] = []
        self._now = 0.0
        # When the latest message came, and whether all has seemed to have ended since.
        self._came = 0.0
        self._paused = True
        # When the latest message left, or none waited.
        self._left = 0.0

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return self._release.waiting

    @property
    def full(self) -> bool:
        """Whether the next message has to wait for verdicts."""
        release = self._release
        if self.ending is not None:
            return False
        many = release.waiting > _MAX_WAITING or release.held_bytes > _MAX_BYTES
        return release.full or (many and release.outcome.judging)

    def wake_at(self) -> float | None:
        """When :meth:`tick` is to be called if nothing else happens before."""
        if self.ending is not None:
            return None
        wake = self._release.wake_at()
        if not self._release.waiting:
            return wake
        silent = self._left + self._long
        if not self._paused:
            silent = min(silent, self._came + self._silence)
        return silent if wake is None else min(wake, silent)

    def feed(self, data: Sequence[Payload], now: float) -> None:
        """The next messages."""
        if not self._release.waiting:
            self._left = now
        for given in data:
            if self.ending is not None:
                return
            self._came, self._paused = now, False
            self._feed(given, now)
        self._leave(now)

    def note_first(self, given: Payload) -> None:
        """The app has sent this before it was sent anything: it tells what the app speaks."""
        if not self._speaks_realtime and len(given) <= MAX_MESSAGE_BYTES:
            try:
                text = given if isinstance(given, str) else decoded(given)
                self._speaks_realtime = realtime_kinds.begins(self._loader.loads(text))
            except UnreadableError:
                pass

    def end(self, now: float) -> None:
        """There are no more messages."""
        if self.ending is None:
            self.finished = True
            try:
                self._release.finish(now)
            except UnreadableError as exc:
                self.unreadable += 1
                self.fail(Stop(str(exc), 503))
            self._leave(now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.ending is not None:
            return
        if not self._paused and now >= self._came + self._silence:
            self._paused = True
            self._pause(now)
        if self._release.waiting and now >= self._left + self._long:
            self._left = now
            self._pause(now, long=True)
        self._release.tick(now)
        self._leave(now)

    def fail(self, stop: Stop) -> None:
        """Stop. What waits is discarded."""
        if self.ending is None:
            self._leave(self._now)
            if self.ending is None:
                self._stop(Ending(stop, None, cut_off=True))

    def take(self) -> list[Payload]:
        """The messages that may leave now."""
        out, self._out = self._out, []
        return out

    def _feed(self, given: Payload, now: float) -> None:
        raw = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else given
        if self._release.open > _MAX_OPEN or self._release.waiting >= _MAX_WAITING:
            self._pause(now)
        self._take_in(Message(given, raw), now)
        if self._release.held_bytes > _MAX_BYTES:
            # Behind it, so that it is judged now and the next one waits for the verdict.
            self._pause(now, long=True)

    def _take_in(self, message: Message, now: float, *, late: bool = False) -> None:
        """The next message, or one of which all that it said behind escapes was judged (``late``)."""
        raw, text = message.raw, ""
        runs: tuple[Run, ...] = ()
        operations: Sequence[Operation] = ()
        is_json = True
        waits = self._release.unread and not late
        try:
            if len(raw) > MAX_MESSAGE_BYTES:
                raise TooComplexError(f"a message of {len(raw)} bytes, expected at most {MAX_MESSAGE_BYTES}")
            if isinstance(message.given, Reason):
                is_json, operations = False, [Whole(Slot(("reason",), self._kind), (), decoded(raw))]
            elif raw:
                text, value, start = read(raw, self._loader)
                is_json = start is not None
                prefix = raw[:start].decode() if start else ""
                if start:
                    text = text[len(prefix) :]
                    message = Message(message.given, raw, start)
                if not late and "\\" in text and not (is_json and self._is_event(value)):
                    runs = runs_in(text, known=is_json)
                if not (runs or waits):
                    operations = self._said(prefix, text, value if is_json else text, is_json)
        except UnreadableError as exc:
            # One that waits is read again.
            if not waits:
                self.unreadable += 1
                if self._strict:
                    self.fail(Stop(str(exc), 503))
                    return
        if runs or waits:
            self._wait(message, text, runs, now, known=is_json)
        else:
            self._add(message, operations, now, is_json=is_json)

    def _add(self, message: Message, operations: Sequence[Operation], now: float, *, is_json: bool = True) -> None:
        try:
            self._release.add(message, operations, now, is_json=is_json)
        except UnreadableError as exc:
            # Too much waits, or arguments are no JSON.
            self.unreadable += 1
            self.fail(Stop(str(exc), 503))

    def _wait(self, message: Message, text: str, runs: tuple[Run, ...], now: float, *, known: bool = True) -> None:
        try:
            self._release.add_escaped(message, text, runs, now, known=known)
        except UnreadableError as exc:
            self.unreadable += 1
            self.fail(Stop(str(exc), 503))

    def _read_late(self, message: Message, now: float) -> None:
        if self.ending is not None:
            return
        if message.given is None:
            self._end_texts(message, now)
        else:
            self._take_in(message, now, late=True)

    def _pause(self, now: float, *, long: bool = False) -> None:
        # As a message, for it comes behind those that wait.
        message = Message(None, _LONG_PAUSE if long else _PAUSE)
        if self._release.unread:
            self._wait(message, "", (), now)
        else:
            self._end_texts(message, now)

    def _end_texts(self, pause: Message, now: float) -> None:
        long = pause.raw == _LONG_PAUSE
        ends = [*self._general.pause(long), *(() if self._dialect is None else self._dialect.pause(long))]
        self._add(pause, ends, now)

    def _said(self, prefix: str, text: str, value: JSON, is_json: bool) -> Sequence[Operation]:
        """What a message says."""
        if not is_json:
            return self._operations(text)
        beside: list[Operation] = []
        if prefix:
            beside.append(FieldText(Slot(("prefix",), self._kind), 0, len(prefix.encode()), prefix))
        if self._loader.duplicates:
            beside += shadowed(text, self._kind)
        return [*beside, *self._operations(value)]

    def _is_event(self, value: JSON) -> bool:
        """Whether it is an event of the dialect, which says itself what is JSON in it, and not only called one.

        Of what is beside the texts of an event, nobody knows what it is.
        """
        if not self._is_known(value):
            return False
        try:
            # By another reader: this one may have to wait for messages before it.
            operations = _reader(self._kind).read(value)
        except UnreadableError:
            return False
        return not any(
            "\\" in operation.text
            for operation in operations
            if isinstance(operation, Whole) and operation.slot.key[:1] == ("uncovered",)
        )

    def _is_known(self, value: JSON) -> bool:
        """Whether it is called an event of the dialect."""
        return self._speaks_realtime and realtime_kinds.knows(value, from_client=self._kind == "input")

    def _operations(self, value: JSON) -> Sequence[Operation]:
        if self._is_known(value):
            if self._dialect is None:
                self._dialect = _reader(self._kind)
            try:
                return self._dialect.read(value)
            except TooComplexError:
                raise
            except UnreadableError:
                # It is called an event of the dialect, and is another app's.
                pass
        return self._general.read(value)

    def _leave(self, now: float) -> None:
        self._now = now
        events: list[HeldEvent] = []
        try:
            out = self._release.leave(now, events)
        except UnreadableError as exc:
            self.unreadable += 1
            self._stop(Ending(Stop(str(exc), 503), None, cut_off=True))
            return
        if out:
            self._left = now
        for raw, event in zip(out, events, strict=True):
            if isinstance(event.unit, Message) and not event.dropped:
                payload = event.unit.leaves_as(raw)
                if payload is not None:
                    self._out.append(payload)
        self._release.forget_changes()
        outcome = self._release.outcome
        self.unreadable += outcome.unreadable
        outcome.unreadable = 0
        blocked = self._release.outcome.blocked
        if blocked is not None:
            self._stop(Ending(Stop(blocked.block.reason), blocked, cut_off=True))

    def _stop(self, ending: Ending) -> None:
        if self.ending is None:
            self.ending = ending
            self._release.discard(self._now)


def _reader(kind: Kind) -> MessageReader:
    """A new reader of the dialect."""
    return realtime.ClientEvents() if kind == "input" else realtime.ServerEvents()


def _cut_off(stop: Stop) -> bytes | None:
    return None


def _changes_nothing(mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
    return {}


_NOTHING: Final = Unit(b"", b"", 0)
# What stands for messages that do not come.
_PAUSE: Final = b"{}"
_LONG_PAUSE: Final = b"{ }"
# Their keys begin with the type of an event, which messages don't have.
_END: Final = (End(("",)),)
