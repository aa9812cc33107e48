"""What has no dialect of its own: events, lines and bodies of JSON of unknown shape, and text."""

from collections.abc import Callable, Mapping, Sequence

from ..dialect import Form, Stop, StopReply
from ..framing import Framer, Unit
from ..json_text import JSON, Path, pointer
from ..ndjson import LineFramer
from ..operations import AsText, Operation, Text, Whole
from ..plain_text import TextFramer
from ..slots import Call, Kind, Slot
from ..sse import SSEFramer
from .base import NAMES, Mapped, sse, str_or_none, strings_in, to_json, wholes
from .chat import error


class Events:
    """Server-sent events of JSON or text.

    The strings at one path, or the texts of one event type, are parts of one text, which ends with the stream.
    """

    name = "unknown"
    form: Form = "either"
    repeats = False

    def knows_path(self, path: str) -> bool:
        return False

    def knows(self, value: JSON) -> bool:
        return True

    def call(self, value: JSON, path: str) -> Call:
        return _call(self.name, value)

    def request(self, value: JSON) -> list[Operation]:
        return wholes(value, (), "input", skip=frozenset())

    def answer(self, value: JSON) -> list[Operation]:
        return wholes(value, (), "output", skip=frozenset())

    def framer(self, media_type: str) -> Framer:
        return SSEFramer()

    def reader(self, media_type: str) -> "PathReader":
        return PathReader(lambda stop: sse({"type": "error", **error(stop)}, "error"), may_be_text=True)

    def reply(self, stop: Stop) -> StopReply:
        return _reply(stop)


def _last_line(stop: Stop) -> bytes:
    return to_json({"error": stop.message}) + b"\n"


class Lines(Events):
    """Lines of JSON.

    :param ending: makes the last line of a stream that was stopped.
    """

    name = "ndjson"
    form: Form = "json"

    def __init__(self, ending: Callable[[Stop], bytes] = _last_line) -> None:
        self._ending = ending

    def framer(self, media_type: str) -> Framer:
        return LineFramer()

    def reader(self, media_type: str) -> "PathReader":
        return PathReader(self._ending)


class PathReader:
    """Reads a stream of JSON of unknown shape. Every string is a part of the text at its path.

    :param ending: makes the last event of a stream that was stopped.
    :param may_be_text: whether events may be text, too.
    :param kind: of its texts.
    """

    __slots__ = ("_ending", "_kind", "_may_be_text")

    def __init__(
        self, ending: Callable[[Stop], bytes | None], *, may_be_text: bool = False, kind: Kind = "output"
    ) -> None:
        self._ending = ending
        self._may_be_text = may_be_text
        self._kind: Kind = kind

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation]:
        event = (unit.event or b"").decode("utf-8", "replace")
        operations: list[Operation] = []
        for path, text in strings_in(value, (), skip=frozenset()):
            if path and path[-1] in NAMES:
                # Said in every event, and complete in each.
                operations.append(Whole(Slot((event, pointer(path)), self._kind), path, text))
            else:
                operations.append(Text(Slot((event, pointer(path)), self._kind), path, text))
        if self._may_be_text and not isinstance(value, str):
            operations.append(AsText(Slot((event, pointer(())), self._kind)))
        return operations

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        return {}

    def ending(self, stop: Stop) -> bytes | None:
        return self._ending(stop)


class PlainText:
    """A body that is text: all of it is one slot."""

    name = "text"
    form: Form = "text"
    repeats = False

    def knows_path(self, path: str) -> bool:
        return False

    def knows(self, value: JSON) -> bool:
        return isinstance(value, str)

    def call(self, value: JSON, path: str) -> Call:
        return Call(dialect=self.name)

    def request(self, value: JSON) -> list[Operation]:
        return [Whole(Slot(("text",), "input"), (), str(value))]

    def answer(self, value: JSON) -> list[Operation]:
        return [Whole(Slot(("text",), "output"), (), str(value))]

    def framer(self, media_type: str) -> Framer:
        return TextFramer()

    def reader(self, media_type: str) -> "TextReader":
        return TextReader()

    def reply(self, stop: Stop) -> StopReply:
        return StopReply(stop.status, "text/plain; charset=utf-8", stop.message.encode())


class TextReader:
    """Reads a stream of text. It can't be ended so that a client would tell: it is cut off."""

    __slots__ = ("_slot",)

    def __init__(self) -> None:
        self._slot = Slot(("text",), "output")

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation]:
        return [Text(self._slot, (), str(value))]

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        return {}

    def ending(self, stop: Stop) -> bytes | None:
        return None


def _call(name: str, value: JSON) -> Call:
    request: Mapped = value if isinstance(value, dict) else {}
    return Call(
        dialect=name,
        model=str_or_none(request.get("model")),
        user=str_or_none(request.get("user")),
        stream=request.get("stream") is True,
    )


def _reply(stop: Stop) -> StopReply:
    return StopReply(stop.status, "application/json", to_json({"error": {"message": stop.message}}))
