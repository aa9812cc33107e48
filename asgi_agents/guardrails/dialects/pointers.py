"""JSON of an app's own, whose text is where some JSON pointers lead."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from ...errors import ConfigurationError
from ..dialect import Form, Stop, StopReply
from ..framing import Framer, Unit
from ..json_text import JSON, Path, pointer
from ..ndjson import LineFramer
from ..operations import Operation, Text, Whole
from ..slots import Call, Kind, Slot
from ..sse import SSEFramer
from .base import sse, str_or_none, to_json, wholes
from .unknown import PathReader


class Pointers:
    """A dialect by JSON pointers (RFC 6901). ``*`` stands for every element of an array and every member of an object.

    A string that a pointer leads to is text; where it leads to an array or object, all strings in that are.

    :param path: of requests: their path ends with this.
    :param request: where text is in requests, ``input``. None: every string is text.
    :param answer: where text is in answers that are no streams, ``output``. None: every string is text.
    :param stream: where text is in the events or lines of a stream. It is joined by pointer. None: every string is
        text.
    """

    form: Form = "json"
    repeats = False

    def __init__(
        self,
        path: str,
        *,
        request: Sequence[str] | None = None,
        answer: Sequence[str] | None = None,
        stream: Sequence[str] | None = None,
        name: str = "json",
    ) -> None:
        self.name: Final = name
        self._path = path
        self._request = _parsed("request", request)
        self._answer = _parsed("answer", answer)
        self._stream = _parsed("stream", stream)

    def knows_path(self, path: str) -> bool:
        return path.endswith(self._path)

    def knows(self, value: JSON) -> bool:
        return False

    def call(self, value: JSON, path: str) -> Call:
        model = str_or_none(value.get("model")) if isinstance(value, dict) else None
        return Call(dialect=self.name, model=model)

    def request(self, value: JSON) -> list[Operation]:
        return _found(value, self._request, "input")

    def answer(self, value: JSON) -> list[Operation]:
        return _found(value, self._answer, "output")

    def framer(self, media_type: str) -> Framer:
        return SSEFramer() if media_type == "text/event-stream" else LineFramer()

    def reader(self, media_type: str) -> "PointerReader | PathReader":
        lines = media_type != "text/event-stream"
        if self._stream is None:
            return PathReader(lambda stop: _ending(stop, lines))
        return PointerReader(self._stream, lines=lines)

    def reply(self, stop: Stop) -> StopReply:
        return StopReply(stop.status, "application/json", to_json({"error": {"message": stop.message}}))


class PointerReader:
    """Reads one stream."""

    __slots__ = ("_lines", "_pointers")

    def __init__(self, pointers: Sequence[tuple[str, ...]], *, lines: bool) -> None:
        self._pointers = pointers
        self._lines = lines

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation]:
        return [
            Text(Slot((index,), "output"), path, text)
            for index, parts in enumerate(self._pointers)
            for path, text in _strings(value, parts, ())
        ]

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        return {}

    def ending(self, stop: Stop) -> bytes:
        return _ending(stop, self._lines)


def _ending(stop: Stop, lines: bool) -> bytes:
    if lines:
        return to_json({"error": stop.message}) + b"\n"
    return sse({"error": {"message": stop.message}}, "error")


def _parsed(
    field: Literal["request", "answer", "stream"], given: Sequence[str] | None
) -> Sequence[tuple[str, ...]] | None:
    if given is None:
        return None
    if isinstance(given, str):
        raise ConfigurationError(f"{field}={given!r:.80}, expected a list: [{given!r:.80}]")
    for text in given:
        if text and not text.startswith("/"):
            raise ConfigurationError(f"{field}: expected a JSON pointer such as '/messages/*/text', got {text!r:.80}")
    return [tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]) for text in given]


def _found(value: JSON, pointers: Sequence[tuple[str, ...]] | None, kind: Kind) -> list[Operation]:
    if pointers is None:
        return wholes(value, (), kind, skip=frozenset())
    found = {path: text for parts in pointers for path, text in _strings(value, parts, ())}
    return [Whole(Slot((pointer(path),), kind), path, text) for path, text in found.items()]


def _strings(value: JSON, parts: tuple[str, ...], path: Path) -> list[tuple[Path, str]]:
    """The strings where a pointer leads, from ``value``, which is at ``path``."""
    if isinstance(value, str):
        return [] if parts else [(path, value)]
    items: list[tuple[str | int, JSON]] = []
    if isinstance(value, dict):
        items = [(key, member) for key, member in value.items() if not parts or parts[0] in (key, "*")]
    elif isinstance(value, list):
        items = [(index, element) for index, element in enumerate(value) if not parts or parts[0] in (str(index), "*")]
    return [found for key, inner in items for found in _strings(inner, parts[1:], (*path, key))]
