"""Gemini's ``generateContent`` and ``streamGenerateContent``, over server-sent events and as an array of JSON."""

from collections.abc import Mapping, Sequence
from typing import Final

from ..dialect import Form, Stop, StopReply
from ..framing import Framer, Unit
from ..json_array import ArrayFramer
from ..json_text import JSON, Path
from ..operations import Begin, End, Follow, Mark, Operation, Passed, Piece, Text, Whole
from ..slots import Call, Kind, Slot, SlotKey
from ..sse import SSEFramer
from ..uncovered import Uncovered
from .base import NAMES, Mapped, index_of, mapping, sequence, sse, str_or_none, text_or_none, to_json, wholes

# What looks back at the text of a candidate, and can't be made to agree with a changed one.
_LOOKS_BACK: Final = (
    "groundingMetadata",
    "citationMetadata",
    "logprobsResult",
    "citation_metadata",
    "grounding_metadata",
)
_STATUS: Final = {400: "INVALID_ARGUMENT", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
# Of a candidate: what is read otherwise, or has no text in it.
_CANDIDATE: Final = frozenset(
    {"content", "finishReason", "finish_reason", "safetyRatings", "safety_ratings", *_LOOKS_BACK}
)
_NUMBERS: Final = frozenset((int,))
_IN_CHUNK: Final = frozenset({"candidates", "promptFeedback", "usageMetadata", "error"})
_IN_CANDIDATE: Final = frozenset({"content", "finishReason", "finish_reason", "finishMessage", "finish_message"})
_PART: Final = frozenset({"text", "thought", "thoughtSignature", "thought_signature", "inlineData", "inline_data"})
_OPAQUE: Final = NAMES | {"data", "fileUri", "file_uri", "name", "thought_signature"}


class Gemini:
    """The dialect."""

    name = "gemini"
    form: Form = "json"
    repeats = False

    def knows_path(self, path: str) -> bool:
        return path.endswith((":generateContent", ":streamGenerateContent"))

    def knows(self, value: JSON) -> bool:
        return isinstance(value, dict) and _is_chunk(value)

    def knows_array(self, value: JSON) -> bool:
        """Whether an answer has the shape of a stream: an array of what its events are."""
        return isinstance(value, list) and bool(value) and all(isinstance(it, dict) and _is_chunk(it) for it in value)

    def call(self, value: JSON, path: str) -> Call:
        request = mapping(value, "the body")
        names: list[str] = []
        for given in sequence(request.get("tools"), "tools"):
            declared = _either(mapping(given, "tools[]"), "functionDeclarations")
            functions = [mapping(function, "functions") for function in sequence(declared, "functionDeclarations")]
            names += [name for function in functions if isinstance(name := function.get("name"), str)]
        # https://ai.google.dev/api: models/{model}:{method}
        resource, _, method = path.rpartition(":")
        return Call(
            dialect=self.name,
            model=resource.rpartition("/")[2] or None,
            stream="stream" in method.lower(),
            tools=tuple(names),
        )

    def request(self, value: JSON) -> list[Operation]:
        request = mapping(value, "the body")
        operations: list[Operation] = []
        for name in ("systemInstruction", "system_instruction"):
            if isinstance(given := request.get(name), dict):
                operations += _request_parts(given, (name,), "system")
            else:
                operations += wholes(given, (name,), "input", role="system")
        contents = request.get("contents")
        # One content may stand for a list of it.
        listed = (
            [((), contents)]
            if isinstance(contents, dict)
            else [((index,), content) for index, content in enumerate(sequence(contents, "contents"))]
        )
        for where, given in listed:
            content = mapping(given, "contents[]")
            operations += _request_parts(content, ("contents", *where), str_or_none(content.get("role")) or "user")
        return operations

    def answer(self, value: JSON) -> list[Operation]:
        if not isinstance(value, list):
            return Uncovered().beside(answer := mapping(value, "the body"), _chunk(answer, ()))
        reader = GeminiReader(array=True)
        return [
            operation
            for index, chunk in enumerate(value)
            for operation in reader.operations(mapping(chunk, "[]"), (index,))
        ]

    def framer(self, media_type: str) -> Framer:
        return SSEFramer() if media_type == "text/event-stream" else ArrayFramer()

    def reader(self, media_type: str) -> "GeminiReader":
        return GeminiReader(array=media_type != "text/event-stream")

    def reply(self, stop: Stop) -> StopReply:
        return StopReply(stop.status, "application/json", to_json(_error(stop)))


class GeminiReader:
    """Reads one stream."""

    __slots__ = ("_array", "_channels", "_closed", "_elements", "_seen", "_template", "_uncovered")

    def __init__(self, *, array: bool) -> None:
        self._template: Mapped = {}
        self._uncovered = Uncovered()
        # Of each candidate that was read: whether its text was of thought or answer last.
        self._channels: dict[int, Slot] = {}
        # Whether the stream is an array, how many elements of it have left, which candidates were read, and which of
        # them have ended in what has left.
        self._array = array
        self._elements = 0
        self._seen: set[int] = set()
        self._closed: set[int] = set()

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation]:
        chunk = mapping(value, "an event")
        if "candidates" not in chunk and not chunk.keys() & _IN_CHUNK:
            return [*self._uncovered.joined(unit, chunk), Mark(("element", 0))]
        for name in ("usageMetadata", "modelVersion", "responseId"):
            if name in chunk:
                self._template[name] = chunk[name]
        mark: list[str | int] = []
        for candidate in sequence(chunk.get("candidates"), "candidates"):
            read = mapping(candidate, "candidates[]")
            index = index_of(read.get("index"), "index")
            self._seen.add(index)
            if read.get("finishReason"):
                mark += ("closed", index)
        return [*self.operations(chunk), Mark(("element", 0, *mark))]

    def operations(self, chunk: Mapped, path: Path = ()) -> list[Operation]:
        """What an event, or the element of an array at ``path``, says."""
        operations = self._switched(_chunk(chunk, path))
        usual: Mapped | None = None
        match chunk:
            case {"candidates": [{"content": {"parts": [{"text": _} as part]} as content} as candidate]} if (
                len(operations) == len(mapping(part, "")) == 1
            ):
                # Of a chunk with one text, the rest is the same from event to event, but for how much was used.
                used = chunk.get("usageMetadata") or {}
                if isinstance(used, dict) and set(map(type, used.values())) <= _NUMBERS:
                    usual = {
                        **chunk,
                        "usageMetadata": None,
                        "candidates": {**mapping(candidate, ""), "content": {**mapping(content, ""), "parts": None}},
                    }
        return self._uncovered.beside(chunk, operations, path, usual=usual)

    def _switched(self, operations: list[Operation]) -> list[Operation]:
        """Thought ends where the answer begins.

        Not the other way round: a model may think in the middle of a word, and clients join what it says.
        """
        out: list[Operation] = []
        for operation in operations:
            if type(operation) is Text and operation.text and operation.instead is None:
                slot = operation.slot
                index = int(slot.key[1])
                before = self._channels.get(index)
                self._channels[index] = slot
                if before is not None and before != slot and before.kind == "reasoning":
                    out.append(End(before.key))
            out.append(operation)
        return out

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        for what, index in zip(mark[::2], mark[1::2], strict=True):
            match what:
                case "element":
                    self._elements += 1
                case "closed":
                    self._closed.add(int(index))
        return {}

    def ending(self, stop: Stop) -> bytes:
        if stop.failure:
            return self._framed(_error(stop))
        going = (self._seen | {0}) - self._closed
        if not going:
            return b"\r\n]" if self._array else b""
        candidates: list[JSON] = [
            {
                "content": {"parts": [], "role": "model"},
                "finishReason": "SAFETY",
                "finishMessage": stop.message,
                "index": index,
            }
            for index in sorted(going)
        ]
        return self._framed({"candidates": candidates, **self._template})

    def _framed(self, last: Mapped) -> bytes:
        if not self._array:
            return sse(last)
        return (b",\r\n" if self._elements else b"[") + to_json(last) + b"\r\n]"


def _error(stop: Stop) -> Mapped:
    return {"error": {"code": stop.status, "message": stop.message, "status": _STATUS.get(stop.status, "INTERNAL")}}


def _either(value: Mapped, camel: str) -> JSON:
    """The member of a name that may be written in camel case or with underscores: JSON of protocol buffers is both."""
    return value.get(camel, value.get("".join(f"_{char.lower()}" if char.isupper() else char for char in camel)))


def _is_chunk(value: Mapped) -> bool:
    candidates = value.get("candidates")
    if candidates:
        return isinstance(candidates, list) and all(
            isinstance(candidate, dict) and candidate.keys() & _IN_CANDIDATE for candidate in candidates
        )
    return any(
        isinstance(about := value.get(name), dict) and bool(about) for name in ("promptFeedback", "usageMetadata")
    )


def _chunk(chunk: Mapped, at: Path) -> list[Operation]:
    operations: list[Operation] = []
    for position, given in enumerate(sequence(chunk.get("candidates"), "candidates")):
        candidate = mapping(given, "candidates[]")
        index = index_of(candidate.get("index"), "candidates[].index")
        path: Path = (*at, "candidates", position)
        key: SlotKey = ("candidates", index)
        content = mapping(candidate.get("content") or {}, "content")
        for part, value in enumerate(sequence(content.get("parts"), "parts")):
            operations += _part(mapping(value, "parts[]"), (*path, "content", "parts", part), key)
        if candidate.get("finishReason"):
            operations.append(End(key))
        for name in candidate.keys() - _CANDIDATE:
            operations += wholes(candidate[name], (*path, name), "output")
        for name in _LOOKS_BACK:
            if candidate.get(name):
                operations += wholes(candidate[name], (*path, name), "output")
                operations.append(Follow((*path, name), "{}", key=(*key, "output")))
    operations += wholes(chunk.get("error"), (*at, "error"), "output")
    return operations


def _part(part: Mapped, path: Path, key: SlotKey) -> list[Operation]:
    operations: list[Operation] = []
    thought = part.get("thought") is True
    kind: Kind = "reasoning" if thought else "output"
    if (text := text_or_none(part.get("text"), "text")) is not None:
        operations.append(Text(Slot((*key, kind), kind, "model"), (*path, "text"), text))
        if thought and "thoughtSignature" in part:
            # It is none of a changed text.
            operations.append(Follow((*path, "thoughtSignature"), '""', text=(*path, "text")))
    for name, value in part.items():
        if name in _PART:
            continue
        at: Path = (*path, name)
        if name in ("functionCall", "function_call"):
            operations += _function_call(mapping(value, name), at, key)
        elif name in ("executableCode", "executable_code"):
            operations += wholes(value, at, "tool_call", role="model", skip=_OPAQUE)
        elif name in ("codeExecutionResult", "code_execution_result", "functionResponse", "function_response"):
            operations += wholes(value, at, "tool_result", role="model", skip=_OPAQUE)
        else:
            operations += wholes(value, at, "output", skip=_OPAQUE)
    return operations


def _function_call(call: Mapped, path: Path, key: SlotKey) -> list[Operation]:
    tool = str_or_none(call.get("name"))
    operations = wholes(
        call.get("args"), (*path, "args"), "tool_call", key=key, role="model", tool=tool, skip=frozenset()
    )
    # Arguments in parts: each says to which value of the arguments it belongs.
    partial: SlotKey = (*key, "call")
    for name in ("partialArgs", "partial_args"):
        for index, given in enumerate(sequence(call.get(name), name)):
            argument = mapping(given, "partialArgs[]")
            field = "stringValue" if "stringValue" in argument else "string_value"
            text = text_or_none(argument.get(field), field)
            slot = Slot((*partial, str(_either(argument, "jsonPath"))), "tool_call", "model", tool)
            where: Path = (*path, name, index, field)
            operations.append(Piece(slot, where if text is not None else None, text or "", "text"))
    if _either(call, "willContinue") is True:
        operations.append(Piece(Slot((*partial, ""), "tool_call", "model", tool), form="text"))
    else:
        operations += [End(partial), Begin(partial)]
    return operations


def _request_parts(content: Mapped, path: Path, role: str) -> list[Operation]:
    operations: list[Operation] = []
    for index, given in enumerate(sequence(content.get("parts"), "parts")):
        part = mapping(given, "parts[]")
        at: Path = (*path, "parts", index)
        for name, value in part.items():
            where: Path = (*at, name)
            if name == "text":
                text = text_or_none(value, "text") or ""
                # Thought that the client returns is signed: it is to arrive as it is.
                if part.get("thought") is not True or not _either(part, "thoughtSignature"):
                    operations.append(Whole(Slot(where, "input", role), where, text))
                else:
                    operations.append(Passed(where))
            elif name in ("functionCall", "function_call", "executableCode", "executable_code"):
                tool = str_or_none(mapping(value, name).get("name"))
                operations += wholes(value, where, "tool_call", role=role, tool=tool, skip=_OPAQUE)
            elif name in ("functionResponse", "function_response", "codeExecutionResult", "code_execution_result"):
                tool = str_or_none(mapping(value, name).get("name"))
                operations += wholes(value, where, "tool_result", role=role, tool=tool, skip=_OPAQUE)
    return operations
