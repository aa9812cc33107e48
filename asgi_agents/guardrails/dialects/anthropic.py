"""Anthropic's messages."""

from collections.abc import Mapping, Sequence
from typing import Final

from ..dialect import Form, Stop, StopReply
from ..framing import Framer, Unit
from ..json_text import JSON, Path
from ..operations import Begin, End, Mark, Operation, Passed, Piece, Remove, Text, Whole
from ..slots import Call, Kind, Slot, SlotKey
from ..sse import SSEFramer
from ..uncovered import Uncovered
from .base import Mapped, index_of, mapping, sequence, sse, str_or_none, text_or_none, to_json, wholes

# Of what is encrypted or encoded, for the server alone.
_OPAQUE: Final = frozenset(
    {"type", "id", "tool_use_id", "data", "signature", "encrypted_content", "encrypted_index", "media_type"}
)
_ERRORS: Final = {400: "invalid_request_error", 503: "overloaded_error", 504: "timeout_error"}
# The block types whose input arrives in parts, and is held whole.
_TOOL_USE: Final = "tool_use"
_DELTAS: Final[dict[str, Kind]] = {
    "text_delta": "output",
    "thinking_delta": "reasoning",
    "input_json_delta": "tool_call",
}


def error(stop: Stop) -> Mapped:
    """The error object that Anthropic's clients raise for."""
    kind = _ERRORS.get(stop.status, "api_error" if stop.failure else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": stop.message}}


class Anthropic:
    """The dialect."""

    name = "anthropic.messages"
    form: Form = "json"
    repeats = False

    def knows_path(self, path: str) -> bool:
        return path.rstrip("/").endswith("/v1/messages")

    def knows(self, value: JSON) -> bool:
        match value:
            case {"type": "message", "content": [*_]} | {"type": "message_start", "message": {}}:
                return True
        return False

    def call(self, value: JSON, path: str) -> Call:
        request = mapping(value, "the body")
        metadata = request.get("metadata")
        names = [str_or_none(mapping(tool, "tools[]").get("name")) for tool in sequence(request.get("tools"), "tools")]
        return Call(
            dialect=self.name,
            model=str_or_none(request.get("model")),
            user=str_or_none(metadata.get("user_id")) if isinstance(metadata, dict) else None,
            stream=request.get("stream") is True,
            tools=tuple(name for name in names if name is not None),
        )

    def request(self, value: JSON) -> list[Operation]:
        request = mapping(value, "the body")
        tools: dict[str, str] = {}
        operations = _content(request.get("system"), ("system",), "input", "system", tools)
        for index, given in enumerate(sequence(request.get("messages"), "messages")):
            message = mapping(given, "messages[]")
            role = text_or_none(message.get("role"), "role")
            operations += _content(message.get("content"), ("messages", index, "content"), "input", role, tools)
        return operations

    def answer(self, value: JSON) -> list[Operation]:
        answer = mapping(value, "the body")
        operations = _content(answer.get("content"), ("content",), "output", "assistant", {})
        for name in ("error", "stop_details"):
            operations += wholes(answer.get(name), (name,), "output")
        return Uncovered().beside(answer, operations)

    def framer(self, media_type: str) -> Framer:
        return SSEFramer()

    def reader(self, media_type: str) -> "AnthropicReader":
        return AnthropicReader()

    def reply(self, stop: Stop) -> StopReply:
        return StopReply(stop.status, "application/json", to_json(error(stop)))


class AnthropicReader:
    """Reads one stream."""

    __slots__ = (
        "_blocks",
        "_delta_left",
        "_dropped",
        "_message",
        "_open",
        "_started",
        "_stopped",
        "_thought",
        "_uncovered",
        "_usage",
    )

    def __init__(self) -> None:
        # What was read: the type and the tool of each block that is open, and the message.
        self._blocks: dict[int, Slot] = {}
        self._message: Mapped = {}
        self._uncovered = Uncovered()
        self._usage: Mapped = {}
        # Whether there was signed reasoning, which may be left out.
        self._thought = False
        # What has left, by its index there.
        self._started = False
        self._open: set[int] = set()
        self._delta_left = False
        self._stopped = False
        # Blocks of signed reasoning that were left out: those behind them move up.
        self._dropped: set[int] = set()

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation] | None:
        event = mapping(value, "an event")
        kind = event.get("type")
        if kind == "content_block_delta":
            return self._delta(event)
        if kind == "ping" and len(event) == 1:
            return None
        operations = self._operations(event)
        if operations is None:
            return self._uncovered.joined(unit, event)
        return self._uncovered.beside(event, operations)

    def _operations(self, event: Mapped) -> list[Operation] | None:
        match event.get("type"):
            case "content_block_start":
                return self._start(event)
            case "content_block_stop":
                index = index_of(event.get("index"), "index")
                slot = self._blocks.pop(index, None)
                held: list[Operation] = [Piece(slot, form="signed")] if slot and slot.kind == "reasoning" else []
                return [*held, End(("content", index)), Mark(("stop", index))]
            case "message_start":
                self._message = mapping(event.get("message"), "message")
                if isinstance(usage := self._message.get("usage"), dict):
                    self._usage = usage
                content = _content(self._message.get("content"), ("message", "content"), "output", "assistant", {})
                return [*content, Mark(("start",))]
            case "message_delta":
                if isinstance(usage := event.get("usage"), dict):
                    self._usage = {**self._usage, **usage}
                details = mapping(event.get("delta") or {}, "delta").get("stop_details")
                return [*wholes(details, ("delta", "stop_details"), "output"), Mark(("delta",))]
            case "message_stop":
                return [End(), Mark(("stopped",))]
            case "error":
                return wholes(event, (), "output")
        return None

    def _start(self, event: Mapped) -> list[Operation]:
        index = index_of(event.get("index"), "index")
        block = mapping(event.get("content_block"), "content_block")
        kind = str(block.get("type"))
        path: Path = ("content_block",)
        operations: list[Operation] = []
        if kind.endswith(_TOOL_USE):
            slot = Slot(("content", index), "tool_call", "assistant", str_or_none(block.get("name")))
            operations = [Piece(slot), *_tool_use(block, path, slot)]
        elif kind == "thinking":
            slot = Slot(("content", index), "reasoning", "assistant")
            self._thought = True
            text = text_or_none(block.get("thinking"), "thinking")
            operations.append(Piece(slot, (*path, "thinking") if text else None, text or "", "signed"))
        elif kind == "text":
            slot = Slot(("content", index), "output", "assistant")
            text = text_or_none(block.get("text"), "text")
            if text:
                operations.append(Text(slot, (*path, "text"), text))
            operations += wholes(block.get("citations"), (*path, "citations"), "output", skip=_OPAQUE)
        else:
            of: Kind = "tool_result" if kind.endswith("_result") else "output"
            slot = Slot(("content", index), of, "assistant")
            operations += wholes(block, path, of, skip=_OPAQUE)
        self._blocks[index] = slot
        if slot.kind != "output":
            # Clients join the text of blocks of one index, though they hold each block for another.
            operations.insert(0, Begin(slot.key))
        return [*operations, Mark(("block", index))]

    def _delta(self, event: Mapped) -> list[Operation]:
        index = index_of(event.get("index"), "index")
        delta = mapping(event.get("delta"), "delta")
        slot = self._blocks.get(index) or Slot(("content", index), "output", "assistant")
        kind = _DELTAS.get(str(delta.get("type")), slot.kind)
        if kind != slot.kind != "tool_result":
            # It is the delta that clients go by.
            slot = Slot(slot.key, kind, "assistant")
        operations: list[Operation] = []
        # Beside its type.
        text: str | None = None
        match delta.get("type"):
            case "text_delta":
                text = text_or_none(delta.get("text"), "text")
                operations.append(Text(slot, ("delta", "text"), text or ""))
            case "input_json_delta":
                text = text_or_none(delta.get("partial_json"), "partial_json")
                operations.append(Piece(slot, ("delta", "partial_json"), text or ""))
            case "thinking_delta":
                text = text_or_none(delta.get("thinking"), "thinking")
                operations.append(Piece(slot, ("delta", "thinking"), text or "", "signed"))
            case "signature_delta":
                operations.append(Piece(slot, form="signed"))
            case _:
                # Citations say where in the sources something is, which nobody changes.
                operations += wholes(delta, ("delta",), slot.kind, skip=_OPAQUE)
        if self._thought:
            operations.append(Mark(("part", index)))
        if (
            text is not None
            and len(event) == 3
            and len(delta) == 2
            and "index" in event
            and not self._uncovered.joining
        ):
            return operations
        return self._uncovered.beside(event, operations)

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        match mark:
            case ("start",):
                self._started = True
            case ("delta",):
                self._delta_left = True
            case ("stopped",):
                self._stopped = True
            case (str(what), int(index)):
                if dropped:
                    self._dropped.add(index)
                    return {}
                now = index - sum(before < index for before in self._dropped)
                if what == "block":
                    self._open.add(now)
                elif what == "stop":
                    self._open.discard(now)
                return {("index",): str(now)} if now != index else {}
        return {}

    def ending(self, stop: Stop) -> bytes:
        if self._stopped:
            # A client that has read the end would raise for anything behind it, or never look.
            return b""
        if stop.failure:
            return sse(error(stop), "error")
        out: list[bytes] = []
        if not self._started:
            message: Mapped = {
                "id": "msg_0",
                "type": "message",
                "role": "assistant",
                "model": "",
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "output_tokens": 0},
                **self._message,
                "content": [],
                "stop_reason": None,
            }
            out.append(sse({"type": "message_start", "message": message}, "message_start"))
        out += [
            sse({"type": "content_block_stop", "index": index}, "content_block_stop") for index in sorted(self._open)
        ]
        if not self._delta_left:
            details: Mapped = {"type": "refusal", "category": None, "explanation": stop.message}
            delta: Mapped = {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}
            usage: Mapped = {"output_tokens": 0, **self._usage}
            out.append(sse({"type": "message_delta", "delta": delta, "usage": usage}, "message_delta"))
        out.append(sse({"type": "message_stop"}, "message_stop"))
        return b"".join(out)


def _tool_use(block: Mapped, path: Path, slot: Slot) -> list[Operation]:
    """The input of a tool, as far as the block has it."""
    given = block.get("input")
    return wholes(given, (*path, "input"), "tool_call", key=slot.key, tool=slot.tool, skip=frozenset())


def _content(content: JSON, path: Path, kind: Kind, role: str | None, tools: dict[str, str]) -> list[Operation]:
    """The text of a message: a string, or blocks."""
    if isinstance(content, str):
        return [Whole(Slot(path, kind, role), path, content)]
    operations: list[Operation] = []
    for index, given in enumerate(sequence(content, "content")):
        operations += _block(mapping(given, "content[]"), (*path, index), kind, role, tools)
    return operations


def _block(block: Mapped, path: Path, kind: Kind, role: str | None, tools: dict[str, str]) -> list[Operation]:
    name = str(block.get("type"))
    if name == "text":
        text = text_or_none(block.get("text"), "text")
        at: Path = (*path, "text")
        citations = wholes(block.get("citations"), (*path, "citations"), kind, role=role, skip=_OPAQUE)
        return [Whole(Slot(at, kind, role), at, text or ""), *citations]
    if name.endswith(_TOOL_USE):
        tool = str_or_none(block.get("name"))
        tools[str(block.get("id"))] = tool or ""
        return _tool_use(block, path, Slot(path, "tool_call", role, tool))
    if name.endswith("tool_result"):
        used = tools.get(str(block.get("tool_use_id")))
        return wholes(block.get("content"), (*path, "content"), "tool_result", role=role, tool=used, skip=_OPAQUE)
    if name == "thinking":
        key: SlotKey = (*path, "thinking")
        text = text_or_none(block.get("thinking"), "thinking") or ""
        if kind == "input":
            # The client returns what it was given, with its signature: it is to arrive as it is.
            return [Passed(key)] if block.get("signature") else [Whole(Slot(key, kind, role), key, text)]
        return [Whole(Slot(key, "reasoning", role), key, text), Remove(path, key)]
    if name == "document":
        source = block.get("source")
        operations: list[Operation] = []
        if isinstance(source, dict) and source.get("type") in ("text", "content"):
            skip = _OPAQUE - {"data"}
            operations += wholes(source, (*path, "source"), kind, role=role, skip=skip)
        for field in ("title", "context"):
            operations += wholes(block.get(field), (*path, field), kind, role=role)
        return operations
    return wholes(block, path, kind, role=role, skip=_OPAQUE)
