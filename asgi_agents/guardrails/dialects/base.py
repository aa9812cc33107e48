"""What a dialect is, and what dialects have in common."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, Protocol

from msgspec import Struct

from .. import json_text
from ..framing import Framer, Unit, UnreadableError
from ..json_text import JSON, Path
from ..operations import Operation, Whole
from ..slots import Call, Kind, Slot, SlotKey

#: What the events of a stream are.
Form = Literal["json", "text", "either"]
Mapped = dict[str, JSON]


class Stop(Struct, frozen=True):
    """Why a call is stopped, as its client is told.

    :ivar message: the reason.
    :ivar status: what an answer that has not started has. 4xx: blocked. 5xx: a guardrail has failed.
    """

    message: str
    status: int = 400

    @property
    def failure(self) -> bool:
        return self.status >= 500


class Reply(Struct, frozen=True):
    """A whole answer that takes the place of the app's."""

    status: int
    media_type: str
    body: bytes


class Reader(Protocol):
    """Reads one stream."""

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation] | None:
        """What an event says, in order. None for one that says nothing and may overtake those that are held.

        :param value: its JSON, or the text of one that is no JSON.
        :raises UnreadableError: for an event that is none of the dialect's.
        """
        ...

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        """An event with a mark leaves, or is left out. Returns JSON to put in place of values in it."""
        ...

    def ending(self, stop: Stop) -> bytes | None:
        """How the stream ends after what has left. None: no client would understand anything, so cut it off."""
        ...


class Dialect(Protocol):
    """A way in which apps and clients write calls, answers and streams."""

    @property
    def name(self) -> str: ...

    @property
    def form(self) -> Form:
        """What the events of a stream are: JSON, text, or JSON where they are and text otherwise."""
        ...

    @property
    def repeats(self) -> bool:
        """Whether events of a stream look back at slots."""
        ...

    def knows_path(self, path: str) -> bool:
        """Whether requests for ``path`` are in this dialect."""
        ...

    def knows(self, value: JSON) -> bool:
        """Whether a body, or an event of a stream, has the shape of this dialect."""
        ...

    def call(self, value: JSON) -> Call:
        """What a request asks for; without its scope."""
        ...

    def request(self, value: JSON) -> list[Operation]:
        """The text of a request. Raises UnreadableError for a body that is not in this dialect."""
        ...

    def answer(self, value: JSON) -> list[Operation]:
        """The text of an answer that is no stream. Raises UnreadableError for a body that is not in this dialect."""
        ...

    def framer(self, media_type: str) -> Framer:
        """What cuts a stream of this type into units."""
        ...

    def reader(self, media_type: str) -> Reader:
        """What reads a stream of this type."""
        ...

    def reply(self, stop: Stop) -> Reply:
        """The whole answer to a call that is stopped before anything has left."""
        ...


#: Strings that name something and are no text: the values of these keys are never judged where a shape is unknown.
NAMES: Final = frozenset(
    {
        *(
            "id",
            "object",
            "type",
            "model",
            "role",
            "event",
            "status",
            "item_id",
            "call_id",
            "response_id",
            "created_at",
        ),
        *("toolCallId", "tool_call_id", "system_fingerprint", "service_tier", "finish_reason", "obfuscation"),
        *("encrypted_content", "signature", "thoughtSignature", "mimeType", "mime_type", "mediaType", "media_type"),
    }
)


def to_json(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def sse(value: object, event: str | None = None) -> bytes:
    """A server-sent event whose data is JSON."""
    return (b"event: " + event.encode() + b"\n" if event else b"") + b"data: " + to_json(value) + b"\n\n"


def mapping(value: JSON, what: str) -> Mapped:
    """``value``, which is an object, or else :class:`UnreadableError`."""
    if not isinstance(value, dict):
        raise UnreadableError(f"{what}: expected an object, got {_name(value)}")
    return value


def sequence(value: JSON, what: str) -> list[JSON]:
    """``value``, which is an array, or null as an empty one, or else :class:`UnreadableError`."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise UnreadableError(f"{what}: expected an array, got {_name(value)}")
    return value


def text_or_none(value: JSON, what: str) -> str | None:
    """``value``, which is a string or null, or else :class:`UnreadableError`."""
    if value is not None and not isinstance(value, str):
        raise UnreadableError(f"{what}: expected a string, got {_name(value)}")
    return value


def str_or_none(value: JSON) -> str | None:
    """``value`` if it is a string."""
    return value if isinstance(value, str) else None


def index_of(value: JSON, what: str) -> int:
    """``value``, which is an index, or null as 0, or else :class:`UnreadableError`."""
    if value is None:
        return 0
    if type(value) is not int:
        raise UnreadableError(f"{what}: expected an integer, got {_name(value)}")
    return value


def strings_in(value: JSON, path: Path, *, skip: frozenset[str] = NAMES) -> Iterator[tuple[Path, str]]:
    """Every string in ``value`` and its path, without those under the keys to ``skip``."""
    stack: list[tuple[Path, JSON]] = [(path, value)]
    while stack:
        at, inner = stack.pop()
        if isinstance(inner, str):
            yield at, inner
        elif isinstance(inner, dict):
            stack += [((*at, key), member) for key, member in reversed(inner.items()) if key not in skip]
        elif isinstance(inner, list):
            stack += [((*at, index), element) for index, element in reversed(list(enumerate(inner)))]


def wholes(
    value: JSON,
    path: Path,
    kind: Kind,
    *,
    key: SlotKey = (),
    role: str | None = None,
    tool: str | None = None,
    skip: frozenset[str] = NAMES,
) -> list[Operation]:
    """Every string in a value of unknown shape, each as a slot of its own."""
    return [
        Whole(Slot((*key, json_text.pointer(at)), kind, role, tool), at, text)
        for at, text in strings_in(value, path, skip=skip)
        if text
    ]


def _name(value: JSON) -> str:
    return "null" if value is None else type(value).__name__
