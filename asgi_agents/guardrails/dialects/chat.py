"""OpenAI chat completions, and the completions before them, as many servers speak them."""

from collections.abc import Mapping, Sequence
from typing import Final

from ..framing import Framer, Unit
from ..json_text import JSON, Path
from ..operations import End, Follow, Form, Mark, Operation, Piece, Text, Whole
from ..slots import Call, Kind, Slot, SlotKey
from ..sse import SSEFramer
from .base import (
    NAMES,
    Mapped,
    Reply,
    Stop,
    index_of,
    mapping,
    sequence,
    sse,
    str_or_none,
    text_or_none,
    to_json,
    wholes,
)
from .base import (
    Form as DialectForm,
)

_TOP: Final = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "obfuscation"}
)
_CHOICE: Final = frozenset({"index", "delta", "message", "text", "logprobs", "finish_reason", "stop_reason"})
# Of a delta or a message: what has text in parts, and of which kind. The rest is strings of unknown meaning.
_FIELDS: Final[dict[str, Kind]] = {
    "content": "output",
    "refusal": "output",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
}
_ERRORS: Final = {True: ("server_error", "guardrail_error"), False: ("invalid_request_error", "content_filter")}


def error(stop: Stop) -> Mapped:
    """The error object that OpenAI's clients raise for."""
    kind, code = _ERRORS[stop.failure]
    return {"error": {"message": stop.message, "type": kind, "param": None, "code": code}}


class Chat:
    """The dialect."""

    name = "openai.chat"
    form: DialectForm = "json"
    repeats = False

    def knows_path(self, path: str) -> bool:
        return path.rstrip("/").endswith(("/chat/completions", "/completions"))

    def knows(self, value: JSON) -> bool:
        if not isinstance(value, dict):
            return False
        return isinstance(value.get("choices"), list) or str(value.get("object", "")).startswith("chat.completion")

    def call(self, value: JSON) -> Call:
        request = mapping(value, "the body")
        tools: list[str] = []
        for tool in sequence(request.get("tools"), "tools"):
            described = mapping(tool, "tools[]")
            of = described.get(str(described.get("type")))
            if isinstance(of, dict) and isinstance(of.get("name"), str):
                tools.append(str(of["name"]))
        return Call(
            dialect=self.name,
            model=str_or_none(request.get("model")),
            user=str_or_none(request.get("user")),
            stream=request.get("stream") is True,
            tools=tuple(tools),
        )

    def request(self, value: JSON) -> list[Operation]:
        request = mapping(value, "the body")
        operations: list[Operation] = []
        names: dict[str, str] = {}
        for index, message in enumerate(sequence(request.get("messages"), "messages")):
            operations += _request_message(mapping(message, "messages[]"), ("messages", index), names)
        for field in ("prompt", "suffix", "prediction"):
            operations += wholes(request.get(field), (field,), "input")
        return operations

    def answer(self, value: JSON) -> list[Operation]:
        answer = mapping(value, "the body")
        operations = _unknown(answer, _TOP, ())
        for position, choice in enumerate(sequence(answer.get("choices"), "choices")):
            read = mapping(choice, "choices[]")
            index = index_of(read.get("index"), "choices[].index")
            operations += _choice(read, index, ("choices", position), Calls(), "message")
        return [*operations, End()]

    def framer(self, media_type: str) -> Framer:
        return SSEFramer()

    def reader(self, media_type: str) -> "ChatReader":
        return ChatReader()

    def reply(self, stop: Stop) -> Reply:
        return Reply(stop.status, "application/json", to_json(error(stop)))


class Calls:
    """The tool calls of a stream: servers repeat an index for another call, and leave the id out after the first."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[SlotKey, tuple[str | None, int]] = {}

    def key(self, at: SlotKey, call_id: str | None) -> tuple[SlotKey, SlotKey | None]:
        """The key of the call at an index, and that of the one before it there if this is another."""
        known = self._ids.get(at)
        if known is None:
            self._ids[at] = (call_id, 0)
            return (*at, 0), None
        before, count = known
        if not call_id or call_id == before:
            return (*at, count), None
        if before is None:
            self._ids[at] = (call_id, count)
            return (*at, count), None
        self._ids[at] = (call_id, count + 1)
        return (*at, count + 1), (*at, count)


class ChatReader:
    """Reads one stream."""

    __slots__ = ("_calls", "_channels", "_closed", "_open", "_seen", "_template", "_usage")

    def __init__(self) -> None:
        self._template: Mapped = {}
        self._usage: JSON = None
        self._calls = Calls()
        # Of each choice that was read: which field its text was in last.
        self._channels: dict[int, str | None] = {}
        self._seen: set[int] = set()
        # Of what has left.
        self._open: set[int] = set()
        self._closed: set[int] = set()

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation]:
        chunk = mapping(value, "an event")
        if not self._template:
            self._template = {
                name: chunk[name]
                for name in ("id", "object", "created", "model", "system_fingerprint")
                if name in chunk
            }
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        operations = _unknown(chunk, _TOP, ())
        mark: list[str | int] = []
        for position, given in enumerate(sequence(chunk.get("choices"), "choices")):
            choice = mapping(given, "choices[]")
            index = index_of(choice.get("index"), "choices[].index")
            if index not in self._seen:
                self._seen.add(index)
                mark += ("open", index)
            read = _choice(choice, index, ("choices", position), self._calls, "delta")
            operations += self._switched(index, read)
            if choice.get("finish_reason") is not None:
                operations.append(End(("choices", index)))
                mark += ("closed", index)
        if mark:
            operations.append(Mark(tuple(mark)))
        return operations

    def _switched(self, index: int, operations: list[Operation]) -> list[Operation]:
        """Reasoning ends where the answer begins, and the other way round."""
        for operation in operations:
            if type(operation) is Text and operation.text and operation.instead is None:
                field = str(operation.slot.key[2])
                before = self._channels.get(index)
                self._channels[index] = field
                if before is not None and before != field:
                    return [End(("choices", index, before)), *operations]
        return operations

    def leaves(self, mark: tuple[str | int, ...], dropped: bool) -> Mapping[Path, str]:
        for what, index in zip(mark[::2], mark[1::2], strict=True):
            if what == "open":
                self._open.add(int(index))
            else:
                self._open.discard(int(index))
                self._closed.add(int(index))
        return {}

    def ending(self, stop: Stop) -> bytes:
        if stop.failure:
            return sse(error(stop))
        # Those that were read and have not left are among what the client asked for, too.
        going = (self._seen | {0}) - self._closed
        choices: list[JSON] = [
            {
                "index": index,
                "delta": {} if index in self._open else {"role": "assistant"},
                "finish_reason": "content_filter",
            }
            for index in sorted(going)
        ]
        if self._template.get("object") == "text_completion":
            choices = [
                {"index": mapping(choice, "")["index"], "text": "", "finish_reason": "content_filter"}
                for choice in choices
            ]
        template: Mapped = {"id": "", "object": "chat.completion.chunk", "created": 0, "model": "", **self._template}
        last = {**template, "choices": choices, **({} if self._usage is None else {"usage": self._usage})}
        return (sse(last) if choices else b"") + b"data: [DONE]\n\n"


def _unknown(value: Mapped, known: frozenset[str], path: Path) -> list[Operation]:
    """The strings under keys that the dialect does not know."""
    operations: list[Operation] = []
    for name in value.keys() - known - NAMES:
        operations += wholes(value[name], (*path, name), "output")
    return operations


def _choice(choice: Mapped, index: int, path: Path, calls: Calls, field: str) -> list[Operation]:
    operations = _unknown(choice, _CHOICE, path)
    key: SlotKey = ("choices", index)
    texts: list[Path] = []
    joined: list[str] = []
    if (text := text_or_none(choice.get("text"), "text")) is not None:
        operations.append(Text(Slot((*key, "text"), "output", "assistant"), (*path, "text"), text))
        texts.append((*path, "text"))
        joined.append(text)
    # Servers write `message` in streams too, and some write both.
    for name in ("delta", "message"):
        if choice.get(name) is not None:
            operations += _delta(mapping(choice[name], name), key, (*path, name), calls, texts, joined)
    if choice.get("logprobs") is not None:
        operations += _logprobs(choice["logprobs"], key, (*path, "logprobs"), texts, "".join(joined))
    return operations


def _delta(
    delta: Mapped, key: SlotKey, path: Path, calls: Calls, texts: list[Path], joined: list[str]
) -> list[Operation]:
    operations: list[Operation] = []
    for name, value in delta.items():
        if value is None or name == "role":
            continue
        at = (*path, name)
        if name == "tool_calls":
            operations += _tool_calls(sequence(value, name), key, at, calls)
        elif name == "function_call":
            operations += _tool_call(mapping(value, name), (*key, "function_call"), at, None)
        elif isinstance(value, str):
            kind = _FIELDS.get(name, "output")
            operations.append(Text(Slot((*key, name), kind, "assistant"), at, value))
            texts.append(at)
            if name in ("content", "refusal"):
                joined.append(value)
        elif name == "annotations":
            # They say where in the content something is.
            operations += [Follow(at, "[]", text=(*path, "content")), *wholes(value, at, "output", key=key)]
        elif name == "audio":
            transcript = mapping(value, name).get("transcript")
            if isinstance(transcript, str):
                operations.append(Text(Slot((*key, "audio"), "output", "assistant"), (*at, "transcript"), transcript))
        else:
            # Content in parts, and what single servers have beside it.
            kind = "reasoning" if name.startswith("reasoning") else "output"
            operations += _parts(value, (*key, name), at, kind, texts)
    return operations


def _parts(value: JSON, key: SlotKey, path: Path, kind: Kind, texts: list[Path]) -> list[Operation]:
    """Text in parts: ``[{"type": "text", "text": "…"}, {"type": "thinking", "thinking": […]}]``."""
    operations: list[Operation] = []
    if isinstance(value, list):
        for index, element in enumerate(value):
            operations += _parts(element, key, (*path, index), kind, texts)
    elif isinstance(value, dict):
        thinking = value.get("type") in ("thinking", "reasoning.text", "reasoning.summary")
        for name, member in value.items():
            if name not in NAMES and name != "format":
                operations += _parts(member, (*key, name), (*path, name), "reasoning" if thinking else kind, texts)
        if "signature" in value:
            operations += [Follow((*path, "signature"), "null", text=(*path, name)) for name in ("text", "thinking")]
    elif isinstance(value, str):
        operations.append(Text(Slot(key, kind, "assistant"), path, value))
        texts.append(path)
    return operations


def _tool_calls(given: list[JSON], key: SlotKey, path: Path, calls: Calls) -> list[Operation]:
    operations: list[Operation] = []
    for position, element in enumerate(given):
        call = mapping(element, "tool_calls[]")
        index = call.get("index")
        at: SlotKey = (*key, "tool_calls", index if type(index) is int else position)
        call_key, ended = calls.key(at, str_or_none(call.get("id")))
        if ended is not None:
            operations.append(End(ended))
        custom = call.get("custom")
        if custom is not None:
            operations += _tool_call(mapping(custom, "custom"), call_key, (*path, position, "custom"), "text")
        else:
            function = mapping(call.get("function") or {}, "function")
            operations += _tool_call(function, call_key, (*path, position, "function"), None)
    return operations


def _tool_call(function: Mapped, key: SlotKey, path: Path, form: Form | None) -> list[Operation]:
    slot = Slot(key, "tool_call", "assistant", str_or_none(function.get("name")))
    name = "input" if form == "text" else "arguments"
    given = function.get(name)
    if given is None:
        return [Piece(slot, form=form or "json")]
    if isinstance(given, str):
        return [Piece(slot, (*path, name), given, form or "json")]
    return [Piece(slot), *wholes(given, (*path, name), "tool_call", key=key, tool=slot.tool, skip=frozenset())]


def _logprobs(given: JSON, key: SlotKey, path: Path, texts: list[Path], text: str) -> list[Operation]:
    """The tokens once more. They can't be made to agree with a changed text, so they are left out with it."""
    operations: list[Operation] = [Follow(path, "null", text=at) for at in texts]
    value = mapping(given, "logprobs")
    tokens: list[str] = []
    for name in ("content", "refusal"):
        for entry in sequence(value.get(name), name):
            token = mapping(entry, "logprobs[]").get("token")
            if isinstance(token, str):
                tokens.append(token)
    tokens += [token for token in sequence(value.get("tokens"), "tokens") if isinstance(token, str)]
    joined = "".join(tokens)
    if joined and joined != text:
        operations.append(Text(Slot((*key, "logprobs"), "output", "assistant"), path, joined, "null"))
    return operations


def _request_message(message: Mapped, path: Path, names: dict[str, str]) -> list[Operation]:
    role = text_or_none(message.get("role"), "role")
    operations: list[Operation] = []
    tool = str_or_none(message.get("name"))
    is_result = role in ("tool", "function")
    if is_result:
        tool = names.get(str(message.get("tool_call_id")), tool)
    kind: Kind = "tool_result" if is_result else "input"
    for name in ("content", "refusal", "reasoning_content"):
        content = message.get(name)
        at: Path = (*path, name)
        if content is None:
            continue
        if isinstance(content, str):
            operations.append(Whole(Slot(at, kind, role, tool if is_result else None), at, content))
            continue
        for index, part in enumerate(sequence(content, name)):
            read = mapping(part, "content[]")
            for field in ("text", "refusal"):
                if (text := text_or_none(read.get(field), field)) is not None:
                    where: Path = (*at, index, field)
                    operations.append(Whole(Slot(where, kind, role, tool if is_result else None), where, text))
    calls = sequence(message.get("tool_calls"), "tool_calls")
    for element in calls:
        call = mapping(element, "tool_calls[]")
        called = call.get("function") or call.get("custom")
        if isinstance(called, dict) and isinstance(called.get("name"), str):
            names[str(call.get("id"))] = str(called["name"])
    operations += _tool_calls(calls, path, (*path, "tool_calls"), Calls())
    if message.get("function_call") is not None:
        function = mapping(message["function_call"], "function_call")
        operations += _tool_call(function, (*path, "function_call"), (*path, "function_call"), None)
    return [*operations, End(path)]
