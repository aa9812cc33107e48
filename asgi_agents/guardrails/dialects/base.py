"""What dialects have in common."""

import json
from collections.abc import Iterator
from typing import Final

from .. import json_text
from ..framing import TooComplexError, UnreadableError
from ..json_text import JSON, Path
from ..operations import Operation, Whole
from ..slots import Kind, Slot, SlotKey

Mapped = dict[str, JSON]

#: How many texts a body or an event may have: each takes some kilobytes of memory, and a call of its judges.
MAX_TEXTS: Final = 20_000
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
    """Every string in ``value`` and its path, without those under the keys to ``skip``.

    :raises TooComplexError: for more than :data:`MAX_TEXTS` of them.
    """
    stack: list[tuple[Path, JSON]] = [(path, value)]
    left = MAX_TEXTS
    while stack:
        at, inner = stack.pop()
        if isinstance(inner, str):
            left -= 1
            if left < 0:
                raise TooComplexError(f"more than {MAX_TEXTS} texts")
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
