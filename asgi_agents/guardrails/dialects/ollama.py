"""Ollama's chat and generate: lines of JSON."""

from collections.abc import Mapping, Sequence
from typing import Final

from ..dialect import Form, Stop, StopReply
from ..framing import Framer, Unit
from ..json_text import JSON, Path
from ..ndjson import LineFramer
from ..operations import End, Follow, Operation, Piece, Text, Whole
from ..slots import Call, Kind, Slot
from ..uncovered import Uncovered
from .base import Mapped, mapping, sequence, str_or_none, text_or_none, to_json, wholes

_KINDS: Final[tuple[tuple[str, Kind], ...]] = (("thinking", "reasoning"), ("content", "output"), ("response", "output"))
# What is read otherwise, or has no text in it.
_KNOWN: Final = frozenset(
    {
        *("model", "created_at", "message", "response", "content", "thinking", "role", "tool_name", "tool_calls"),
        *("images", "image", "done", "done_reason", "context", "logprobs", "remote_model", "remote_host"),
    }
)


# What a line has one of.
_LINE: Final = frozenset({"done", "message", "response", "error"})


class Ollama:
    """The dialect."""

    name = "ollama"
    form: Form = "json"
    repeats = False

    def knows_path(self, path: str) -> bool:
        return path.rstrip("/").endswith(("/api/chat", "/api/generate"))

    def knows(self, value: JSON) -> bool:
        if not isinstance(value, dict) or type(value.get("done")) is not bool:
            return False
        return isinstance(value.get("message"), dict) or isinstance(value.get("response"), str)

    def call(self, value: JSON, path: str) -> Call:
        request = mapping(value, "the body")
        names: list[str] = []
        for tool in sequence(request.get("tools"), "tools"):
            function = mapping(tool, "tools[]").get("function")
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                names.append(str(function["name"]))
        return Call(
            dialect=self.name,
            model=str_or_none(request.get("model")),
            # It streams unless it is told not to.
            stream=request.get("stream") is not False,
            tools=tuple(names),
        )

    def request(self, value: JSON) -> list[Operation]:
        request = mapping(value, "the body")
        operations: list[Operation] = []
        for name, role in (("system", "system"), ("prompt", "user"), ("suffix", "user")):
            if (text := text_or_none(request.get(name), name)) is not None:
                operations.append(Whole(Slot((name,), "input", role), (name,), text))
        for index, given in enumerate(sequence(request.get("messages"), "messages")):
            message = mapping(given, "messages[]")
            path: Path = ("messages", index)
            role_of = text_or_none(message.get("role"), "role")
            is_result = role_of == "tool"
            tool = str_or_none(message.get("tool_name") or message.get("name")) if is_result else None
            for name in ("content", "thinking"):
                if (text := text_or_none(message.get(name), name)) is not None:
                    at: Path = (*path, name)
                    operations.append(Whole(Slot(at, "tool_result" if is_result else "input", role_of, tool), at, text))
            operations += _tool_calls(message, path)
        return operations

    def answer(self, value: JSON) -> list[Operation]:
        answer = mapping(value, "the body")
        return Uncovered().beside(answer, _line(answer))

    def framer(self, media_type: str) -> Framer:
        return LineFramer()

    def reader(self, media_type: str) -> "OllamaReader":
        return OllamaReader()

    def reply(self, stop: Stop) -> StopReply:
        return StopReply(stop.status, "application/json", to_json({"error": stop.message}))


class OllamaReader:
    """Reads one stream."""

    __slots__ = ("_channel", "_uncovered")

    def __init__(self) -> None:
        # Which text has come last.
        self._channel: Slot | None = None
        self._uncovered = Uncovered()

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation]:
        line = mapping(value, "a line")
        if not line.keys() & _LINE:
            return self._uncovered.joined(unit, line)
        operations: list[Operation] = []
        for operation in _line(line):
            if type(operation) is Text and operation.text and operation.instead is None:
                # Thinking ends where the answer begins. Not the other way round: a model may think in the middle of a
                # word, and clients join what it says.
                before = self._channel
                if before is not None and before != operation.slot and before.kind == "reasoning":
                    operations.append(End(before.key))
                self._channel = operation.slot
            operations.append(operation)
        if line.get("done") is True:
            operations.append(End())
        return self._uncovered.beside(line, operations)

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        return {}

    def ending(self, stop: Stop) -> bytes:
        return to_json({"error": stop.message}) + b"\n"


def _line(line: Mapped) -> list[Operation]:
    operations: list[Operation] = []
    message = line.get("message")
    texts: list[Path] = []
    said = ""
    for holder, path in ((line, ()), (mapping(message, "message") if message is not None else {}, ("message",))):
        for name, kind in _KINDS:
            if (text := text_or_none(holder.get(name), name)) is not None:
                at: Path = (*path, name)
                operations.append(Text(Slot(at, kind, "assistant"), at, text))
                texts.append(at)
                said += text
        for name in holder.keys() - _KNOWN:
            operations += wholes(holder[name], (*path, name), "output")
    if message is not None:
        operations += _tool_calls(mapping(message, "message"), ("message",))
    if line.get("logprobs"):
        tokens = [mapping(entry, "logprobs[]").get("token") for entry in sequence(line["logprobs"], "logprobs")]
        joined = "".join(token for token in tokens if isinstance(token, str))
        operations += [Follow(("logprobs",), "null", text=at) for at in texts]
        if joined and joined != said:
            operations.append(Text(Slot(("logprobs",), "output", "assistant"), ("logprobs",), joined, "null"))
    if line.get("context") is not None:
        # The answer once more, as the numbers of its tokens.
        operations.append(Follow(("context",), "null", key=("response",)))
    return operations


def _tool_calls(message: Mapped, path: Path) -> list[Operation]:
    operations: list[Operation] = []
    for index, given in enumerate(sequence(message.get("tool_calls"), "tool_calls")):
        function = mapping(mapping(given, "tool_calls[]").get("function"), "function")
        tool = str_or_none(function.get("name"))
        arguments = function.get("arguments")
        at: Path = (*path, "tool_calls", index, "function", "arguments")
        if isinstance(arguments, str):
            slot = Slot(at, "tool_call", "assistant", tool)
            operations += [Piece(slot, at, arguments), End(at)]
        else:
            operations += wholes(arguments, at, "tool_call", role="assistant", tool=tool, skip=frozenset())
    return operations
