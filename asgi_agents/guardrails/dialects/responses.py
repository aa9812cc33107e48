"""OpenAI's Responses. Its streams say everything up to five times, so events look back at slots."""

from collections.abc import Mapping, Sequence
from typing import Final

from ..dialect import Form, Stop, StopReply
from ..framing import Framer, Unit
from ..json_text import JSON, Path
from ..operations import Begin, Drop, End, Follow, Operation, Passed, Piece, Repeat, Text, Whole
from ..operations import Form as Held
from ..slots import Call, Kind, Slot, SlotKey
from ..sse import SSEFramer
from ..uncovered import Uncovered
from .base import Mapped, mapping, sequence, sse, str_or_none, strings_in, text_or_none, to_json, wholes
from .chat import error

# Items that are calls: which field has what is called, and what that is.
_CALLS: Final[dict[str, tuple[str, Held]]] = {
    "function_call": ("arguments", "json"),
    "mcp_call": ("arguments", "json"),
    "mcp_approval_request": ("arguments", "json"),
    "custom_tool_call": ("input", "text"),
    "code_interpreter_call": ("code", "text"),
}
# Events that continue or end a call, without `.delta` and `.done`.
_CALL_EVENTS: Final[dict[str, tuple[str, Held]]] = {
    "response.function_call_arguments": ("arguments", "json"),
    "response.mcp_call_arguments": ("arguments", "json"),
    "response.custom_tool_call_input": ("input", "text"),
    "response.code_interpreter_call_code": ("code", "text"),
}
# Events that continue or end a text: where the item has it, which index leads to it, which field repeats it.
_TEXT_EVENTS: Final[dict[str, tuple[str, str, str]]] = {
    "response.output_text": ("content", "content_index", "text"),
    "response.refusal": ("content", "content_index", "refusal"),
    "response.reasoning_text": ("content", "content_index", "text"),
    "response.reasoning_summary_text": ("summary", "summary_index", "text"),
}
_RESPONSE_EVENTS: Final = frozenset(
    f"response.{name}" for name in ("created", "queued", "in_progress", "completed", "incomplete", "failed")
)
# What a response repeats of its request, and has many strings: they are judged together, and left out together.
_REPEATED: Final = (("tools", "[]"), ("text", "{}"))
_DELTA: Final[Path] = ("delta",)
_RESULTS: Final = frozenset({"output", "outputs", "results", "error"})
_OPAQUE: Final = frozenset(
    {
        *("type", "id", "call_id", "item_id", "status", "encrypted_content", "result", "file_id", "obfuscation"),
        *("partial_image_b64", "output_format", "quality", "size", "background"),
    }
)


class Responses:
    """The dialect."""

    name = "openai.responses"
    form: Form = "json"
    repeats = True

    def knows_path(self, path: str) -> bool:
        return path.rstrip("/").endswith("/responses")

    def knows(self, value: JSON) -> bool:
        if not isinstance(value, dict):
            return False
        kind = value.get("type")
        if not isinstance(kind, str):
            return value.get("object") == "response" and isinstance(value.get("output"), list)
        if kind in _RESPONSE_EVENTS:
            return isinstance(value.get("response"), dict)
        return kind.startswith("response.") and bool(value.keys() & {"output_index", "item_id", "item"})

    def call(self, value: JSON, path: str) -> Call:
        request = mapping(value, "the body")
        names = [
            str_or_none(tool.get("name")) or str_or_none(tool.get("type"))
            for tool in (mapping(given, "tools[]") for given in sequence(request.get("tools"), "tools"))
        ]
        return Call(
            dialect=self.name,
            model=str_or_none(request.get("model")),
            user=str_or_none(request.get("safety_identifier")) or str_or_none(request.get("user")),
            stream=request.get("stream") is True,
            tools=tuple(name for name in names if name is not None),
        )

    def request(self, value: JSON) -> list[Operation]:
        request = mapping(value, "the body")
        operations = wholes(request.get("instructions"), ("instructions",), "input", role="system")
        given = request.get("input")
        if isinstance(given, str):
            return [*operations, *wholes(given, ("input",), "input", role="user")]
        for index, element in enumerate(sequence(given, "input")):
            item = mapping(element, "input[]")
            path: Path = ("input", index)
            kind = str(item.get("type", "message"))
            if kind in _CALLS:
                operations += _call(item, path, path)
            elif kind.endswith("_output"):
                operations += wholes(item.get("output"), (*path, "output"), "tool_result", skip=_OPAQUE | {"image_url"})
            elif kind == "reasoning":
                operations += wholes(item.get("summary"), (*path, "summary"), "reasoning")
            else:
                role = str_or_none(item.get("role"))
                content = item.get("content")
                skip = _OPAQUE | {"image_url", "file_data", "data", "detail", "role"}
                operations += wholes(content, (*path, "content"), "input", role=role, skip=skip)
        prompt = request.get("prompt")
        if isinstance(prompt, dict):
            operations += wholes(prompt.get("variables"), ("prompt", "variables"), "input")
        return operations

    def answer(self, value: JSON) -> list[Operation]:
        response = mapping(value, "the body")
        return Uncovered().beside(response, _response(response, ()))

    def framer(self, media_type: str) -> Framer:
        return SSEFramer()

    def reader(self, media_type: str) -> "ResponsesReader":
        return ResponsesReader()

    def reply(self, stop: Stop) -> StopReply:
        return StopReply(stop.status, "application/json", to_json(error(stop)))


class ResponsesReader:
    """Reads one stream."""

    __slots__ = ("_sequence_number", "_tools", "_uncovered")

    def __init__(self) -> None:
        self._sequence_number = -1
        self._uncovered = Uncovered()
        # The names of the tools that are called, by the key of the item.
        self._tools: dict[SlotKey, str | None] = {}

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation]:
        event = mapping(value, "an event")
        kind = str(event.get("type"))
        if type(number := event.get("sequence_number")) is int:
            self._sequence_number = number
        base, _, what = kind.rpartition(".")
        if not kind.startswith("response.") and kind != "error":
            return self._uncovered.joined(unit, event)
        operations = self._operations(event, kind, base, what)
        usual: Mapped | None = None
        obfuscation = event.get("obfuscation", "x")
        is_one = len(operations) == 1 and isinstance(only := operations[0], Text | Piece) and only.path == _DELTA
        if is_one and isinstance(obfuscation, str) and obfuscation.isalnum():
            # Of a delta with one text, the rest is the same from event to event.
            usual = {
                **event,
                "delta": None,
                "obfuscation": None,
                "sequence_number": None if type(number) is int else number,
            }
        return self._uncovered.beside(event, operations, usual=usual)

    def _operations(self, event: Mapped, kind: str, base: str, what: str) -> list[Operation]:
        key = _item_key(event)
        if base in _TEXT_EVENTS:
            return self._text(event, base, what, key)
        if base in _CALL_EVENTS:
            return self._call(event, base, what, key)
        if kind in _RESPONSE_EVENTS:
            response = event.get("response")
            return [] if response is None else [*_ends(kind), *_response(mapping(response, "response"), ("response",))]
        if kind == "response.output_item.added":
            return self._item_added(event, key)
        if kind == "response.output_item.done":
            item = event.get("item")
            return [] if item is None else [End(key), *_item(mapping(item, "item"), key, ("item",))]
        if base in ("response.content_part", "response.reasoning_summary_part"):
            return _part_event(event, what, key)
        if kind == "response.output_text.annotation.added":
            slot: SlotKey = (*key, "content", _index(event, "content_index"))
            return [Drop(slot), *wholes(event.get("annotation"), ("annotation",), "output", skip=_OPAQUE)]
        if base == "response.audio":
            return []
        if what == "delta" and isinstance(event.get("delta"), str):
            # Of a kind that is not known: its parts belong together, until something ends it.
            unknown = Slot((*key, base), "output", "assistant")
            return [Text(unknown, ("delta",), str(event["delta"]))]
        ended: list[Operation] = [End((*key, base))] if what == "done" else []
        return [*ended, *wholes(event, (), "output", skip=_OPAQUE)]

    def _text(self, event: Mapped, base: str, what: str, key: SlotKey) -> list[Operation]:
        place, index, field = _TEXT_EVENTS[base]
        kind: Kind = "reasoning" if "reasoning" in base else "output"
        slot = Slot((*key, place, _index(event, index)), kind, "assistant")
        if what == "delta":
            text = text_or_none(event.get("delta"), "delta") or ""
            return [Text(slot, ("delta",), text), *tokens(event, slot, ("logprobs",), text, ("delta",))]
        text = text_or_none(event.get(field), field) or ""
        follow: list[Operation] = [Follow(("logprobs",), "[]", key=slot.key)] if "logprobs" in event else []
        return [End(slot.key), Repeat(slot, (field,), text), *follow]

    def _call(self, event: Mapped, base: str, what: str, key: SlotKey) -> list[Operation]:
        field, form = _CALL_EVENTS[base]
        slot = Slot((*key, "call"), "tool_call", "assistant", self._tools.get(key))
        if what == "delta":
            return [Piece(slot, ("delta",), text_or_none(event.get("delta"), "delta") or "", form)]
        text = text_or_none(event.get(field), field)
        repeated: list[Operation] = [] if text is None else [Repeat(slot, (field,), text, form)]
        return [End(slot.key), *repeated]

    def _item_added(self, event: Mapped, key: SlotKey) -> list[Operation]:
        if event.get("item") is None:
            return []
        item = mapping(event["item"], "item")
        called = _CALLS.get(str(item.get("type")))
        if called is None:
            return [Begin(key), *_item(item, key, ("item",))]
        field, form = called
        self._tools[key] = str_or_none(item.get("name"))
        slot = Slot((*key, "call"), "tool_call", "assistant", self._tools[key])
        text = text_or_none(item.get(field), field)
        return [Begin(key), Piece(slot, ("item", field) if text else None, text or "", form)]

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        return {}

    def ending(self, stop: Stop) -> bytes:
        told = mapping(error(stop)["error"], "error")
        event: Mapped = {
            "type": "error",
            "sequence_number": self._sequence_number + 1,
            "code": told["code"],
            "message": stop.message,
            "param": None,
            "error": told,
        }
        return sse(event, "error")


def _ends(kind: str) -> list[Operation]:
    return [End()] if kind.rpartition(".")[2] in ("completed", "incomplete", "failed") else []


def _index(event: Mapped, name: str) -> int:
    index = event.get(name)
    return index if type(index) is int else 0


def _item_key(event: Mapped) -> SlotKey:
    index = event.get("output_index")
    return ("output", index if type(index) is int else str(event.get("item_id", "")))


def _response(response: Mapped, path: Path) -> list[Operation]:
    operations: list[Operation] = []
    for index, item in enumerate(sequence(response.get("output"), "output")):
        operations += _item(mapping(item, "output[]"), ("output", index), (*path, "output", index))
    for name, instead in _REPEATED:
        if response.get(name):
            operations += _repeated(response[name], (*path, name), instead)
    for name in ("error", "output_text"):
        operations += wholes(response.get(name), (*path, name), "output", skip=frozenset({"code"}))
    return operations


def _repeated(value: JSON, path: Path, instead: str) -> list[Operation]:
    strings = list(strings_in(value, path, skip=frozenset()))
    joined = "\n".join(text for _, text in strings)
    return [Whole(Slot(("repeated", path[-1]), "output"), path, joined, instead), *(Passed(at) for at, _ in strings)]


def _item(item: Mapped, key: SlotKey, path: Path) -> list[Operation]:
    """A whole item: its texts repeat what deltas have said, where there were any."""
    kind = str(item.get("type"))
    operations: list[Operation] = []
    if kind in _CALLS:
        operations += _call(item, key, path)
        for name in item.keys() & _RESULTS:
            operations += wholes(item[name], (*path, name), "tool_result", skip=_OPAQUE)
        return operations
    if kind not in ("message", "reasoning"):
        # Searches, images and what is not known: calls and results in one.
        return wholes(item, path, "tool_result" if kind.endswith("_output") else "tool_call", skip=_OPAQUE)
    for name in ("content", "summary"):
        for index, part in enumerate(sequence(item.get(name), name)):
            of: Kind = "reasoning" if kind == "reasoning" else "output"
            slot = Slot((*key, name, index), of, "assistant")
            operations += _part(mapping(part, f"{name}[]"), slot, (*path, name, index))
    return operations


def _part(part: Mapped, slot: Slot, path: Path) -> list[Operation]:
    operations: list[Operation] = []
    for name in ("text", "refusal", "transcript"):
        if isinstance(text := part.get(name), str):
            operations.append(Repeat(slot, (*path, name), text))
            # They can't be made to agree with a changed text.
            operations += [
                Follow((*path, field), "[]", text=(*path, name))
                for field in ("annotations", "logprobs")
                if part.get(field)
            ]
    operations += wholes(part.get("annotations"), (*path, "annotations"), slot.kind, skip=_OPAQUE)
    return operations


def _call(item: Mapped, key: SlotKey, path: Path) -> list[Operation]:
    field, form = _CALLS[str(item.get("type"))]
    slot = Slot((*key, "call"), "tool_call", "assistant", str_or_none(item.get("name")))
    text = text_or_none(item.get(field), field)
    return [] if text is None else [Repeat(slot, (*path, field), text, form)]


def _part_event(event: Mapped, what: str, key: SlotKey) -> list[Operation]:
    place, index = ("summary", "summary_index") if "summary_index" in event else ("content", "content_index")
    part = mapping(event.get("part"), "part")
    kind: Kind = "reasoning" if "reasoning" in str(part.get("type")) or place == "summary" else "output"
    slot = Slot((*key, place, _index(event, index)), kind, "assistant")
    if what == "done":
        return [End(slot.key), *_part(part, slot, ("part",))]
    return [
        Text(slot, ("part", name), text)
        for name in ("text", "refusal", "transcript")
        if isinstance(text := part.get(name), str) and text
    ]


def tokens(event: Mapped, slot: Slot, path: Path, text: str, at: Path) -> list[Operation]:
    """The tokens of the ``text`` at the path ``at`` once more: the ``logprobs`` of an event are at ``path``.

    They can't be made to agree with a changed text, so they are left out with it. Where they don't spell it, they are
    judged as another.
    """
    given = event.get("logprobs")
    if not given:
        return []
    entries = [mapping(entry, "logprobs[]").get("token") for entry in sequence(given, "logprobs")]
    joined = "".join(token for token in entries if isinstance(token, str))
    operations: list[Operation] = [Follow(path, "[]", text=at)]
    if joined and joined != text:
        operations.append(Text(Slot((*slot.key, "logprobs"), slot.kind, slot.role), path, joined, "[]"))
    return operations
