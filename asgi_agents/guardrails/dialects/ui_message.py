"""The AI SDK's UI message stream, which its hooks for browsers read."""

from collections.abc import Mapping, Sequence
from typing import Final

from ..dialect import Form, Stop, StopReply
from ..framing import Framer, Unit
from ..json_text import JSON, Path
from ..operations import Begin, End, Follow, Mark, Operation, Piece, Text, Whole
from ..slots import Call, Kind, Slot, SlotKey
from ..sse import SSEFramer
from ..uncovered import Uncovered
from .base import NAMES, Mapped, mapping, sequence, sse, str_or_none, text_or_none, wholes

_OPAQUE: Final = NAMES | {"url", "messageId", "toolName", "sourceId", "approvalId"}
_TYPES: Final = frozenset(
    {"start", "finish", "start-step", "finish-step", "reset-step", "abort", "error", "message-metadata"}
)


# What the types of chunks that have text or an id have, by how they begin. The first one that fits counts.
_REQUIRED: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("reasoning-delta", ("id", "delta")),
    ("tool-input-delta", ("toolCallId", "inputTextDelta")),
    ("text-", ("id",)),
    ("reasoning-", ("id",)),
    ("tool-", ("toolCallId",)),
    ("data-", ()),
    ("source-", ("sourceId",)),
    ("error", ("errorText",)),
    ("file", ("url",)),
)
# What chunks have. One that begins a stream and has anything else is an app's own.
_KEYS: Final = frozenset(
    {
        *("type", "id", "delta", "messageId", "messageMetadata", "finishReason", "reason", "errorText", "data"),
        *("toolCallId", "toolName", "input", "inputTextDelta", "output", "providerMetadata", "providerExecuted"),
        *("dynamic", "preliminary", "title", "approvalId", "sourceId", "url", "mediaType", "filename", "transient"),
        *("toolMetadata", "approved"),
    }
)


def _is_chunk(value: Mapped, kind: str) -> bool:
    if kind == "text-delta":
        return isinstance(value.get("delta"), str) and isinstance(value.get("id"), str)
    if kind in _TYPES and kind != "error":
        return True
    for prefix, required in _REQUIRED:
        if kind.startswith(prefix):
            return all(name == "data" or isinstance(value.get(name), str) for name in required)
    return False


class UIMessages:
    """The dialect."""

    name = "ai-sdk.ui"
    form: Form = "json"
    repeats = False

    def knows_path(self, path: str) -> bool:
        return False

    def knows(self, value: JSON) -> bool:
        if not isinstance(value, dict):
            return False
        kind = value.get("type")
        if isinstance(kind, str):
            return _is_chunk(value, kind) and value.keys() <= _KEYS
        messages = value.get("messages")
        return (
            isinstance(messages, list)
            and bool(messages)
            and all(isinstance(message, dict) and "parts" in message for message in messages)
        )

    def call(self, value: JSON, path: str) -> Call:
        request = mapping(value, "the body")
        return Call(dialect=self.name, model=str_or_none(request.get("model")), stream=True)

    def request(self, value: JSON) -> list[Operation]:
        request = mapping(value, "the body")
        operations: list[Operation] = []
        for index, given in enumerate(sequence(request.get("messages"), "messages")):
            message = mapping(given, "messages[]")
            role = text_or_none(message.get("role"), "role")
            path: Path = ("messages", index)
            operations += wholes(message.get("content"), (*path, "content"), "input", role=role)
            for position, element in enumerate(sequence(message.get("parts"), "parts")):
                operations += _request_part(mapping(element, "parts[]"), (*path, "parts", position), role)
        return operations

    def answer(self, value: JSON) -> list[Operation]:
        return wholes(value, (), "output", skip=_OPAQUE)

    def framer(self, media_type: str) -> Framer:
        return SSEFramer()

    def reader(self, media_type: str) -> "UIMessageReader":
        return UIMessageReader()

    def reply(self, stop: Stop) -> StopReply:
        # The hooks show the body of an answer with an error's status as it is.
        return StopReply(stop.status, "text/plain; charset=utf-8", stop.message.encode())


class UIMessageReader:
    """Reads one stream."""

    __slots__ = ("_finished", "_open", "_tools", "_uncovered")

    def __init__(self) -> None:
        self._tools: dict[str, str | None] = {}
        self._uncovered = Uncovered()
        # Of what has left: the parts that are open, by their type and id.
        self._open: dict[tuple[str, str], None] = {}
        self._finished = False

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation]:
        chunk = mapping(value, "an event")
        kind = str(chunk.get("type"))
        if not _is_chunk(chunk, kind):
            return self._uncovered.joined(unit, chunk)
        operations = self._operations(chunk, kind)
        usual: Mapped | None = {**chunk, "delta": None} if kind == "text-delta" else None
        return self._uncovered.beside(chunk, operations, usual=usual)

    def _operations(self, chunk: Mapped, kind: str) -> list[Operation]:
        base, _, what = kind.partition("-")
        if base in ("text", "reasoning") and what in ("start", "delta", "end"):
            return self._text(chunk, base, what)
        if kind.startswith("tool-input"):
            return self._tool_input(chunk, kind)
        if kind.startswith("tool-output"):
            key: SlotKey = ("tool", str(chunk.get("toolCallId")))
            tool = self._tools.get(str(chunk.get("toolCallId")))
            return [End(key), *wholes(chunk, (), "tool_result", key=key, tool=tool, skip=_OPAQUE)]
        found = wholes(chunk, (), "output", skip=_OPAQUE)
        return [End(), *found, Mark(("finish",))] if kind in ("finish", "abort") else found

    def _text(self, chunk: Mapped, base: str, what: str) -> list[Operation]:
        part = str(chunk.get("id"))
        slot = Slot((base, part), "reasoning" if base == "reasoning" else "output", "assistant")
        operations: list[Operation] = []
        if what == "delta":
            operations.append(Text(slot, ("delta",), text_or_none(chunk.get("delta"), "delta") or ""))
        else:
            operations.append(Mark((what, base, part)))
        if what != "delta":
            operations.append(Begin(slot.key) if what == "start" else End(slot.key))
        if base == "reasoning" and "providerMetadata" in chunk:
            # The signature of the reasoning, which is none of a changed one.
            operations.append(Follow(("providerMetadata",), "{}", key=slot.key))
        return operations

    def _tool_input(self, chunk: Mapped, kind: str) -> list[Operation]:
        call = str(chunk.get("toolCallId"))
        if "toolName" in chunk:
            self._tools[call] = str_or_none(chunk["toolName"])
        slot = Slot(("tool", call), "tool_call", "assistant", self._tools.get(call))
        match kind:
            case "tool-input-start":
                return [Piece(slot), *wholes(chunk.get("title"), ("title",), "output")]
            case "tool-input-delta":
                text = text_or_none(chunk.get("inputTextDelta"), "inputTextDelta")
                return [Piece(slot, ("inputTextDelta",), text or "")]
        found = wholes(chunk.get("input"), ("input",), "tool_call", key=slot.key, tool=slot.tool, skip=frozenset())
        for name in ("errorText", "title"):
            found += wholes(chunk.get(name), (name,), "output")
        return [End(slot.key), *found]

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        match mark:
            case ("start", str(base), str(part)):
                self._open[base, part] = None
            case ("end", str(base), str(part)):
                self._open.pop((base, part), None)
            case _:
                self._finished = True
        return {}

    def ending(self, stop: Stop) -> bytes:
        if self._finished:
            return b"data: [DONE]\n\n"
        ends = b"".join(sse({"type": f"{base}-end", "id": part}) for base, part in self._open)
        return ends + sse({"type": "error", "errorText": stop.message}) + b"data: [DONE]\n\n"


def _request_part(part: Mapped, path: Path, role: str | None) -> list[Operation]:
    name = str(part.get("type"))
    if name in ("text", "reasoning"):
        text = text_or_none(part.get("text"), "text") or ""
        at: Path = (*path, "text")
        return [Whole(Slot(at, "input", role), at, text)]
    if name.startswith(("tool-", "dynamic-tool")):
        tool = str_or_none(part.get("toolName")) or name.removeprefix("tool-")
        operations: list[Operation] = []
        fields: tuple[tuple[str, Kind], ...] = (
            ("input", "tool_call"),
            ("output", "tool_result"),
            ("errorText", "tool_result"),
        )
        for field, kind in fields:
            found = wholes(part.get(field), (*path, field), kind, role=role, tool=tool, skip=frozenset())
            operations += found
        return operations
    return wholes(part, path, "input", role=role, skip=_OPAQUE)
