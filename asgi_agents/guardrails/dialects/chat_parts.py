"""The parts of chat completions: choices, deltas, messages, tool calls."""

from typing import Final

from ..framing import UnreadableError
from ..held_call import MAX_CHARACTERS
from ..json_text import JSON, Path, loads
from ..operations import End, Follow, Form, Operation, Piece, Text, Whole
from ..slots import Kind, Slot, SlotKey
from .base import NAMES, Mapped, mapping, sequence, str_or_none, text_or_none, wholes

# Of a delta or a message: what has text in parts, and of which kind. The rest is strings of unknown meaning.
_FIELDS: Final[dict[str, Kind]] = {
    "content": "output",
    "refusal": "output",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
}


class _Call:
    """The call at an index: its number there, and its arguments as far as they have come, if it has no id."""

    __slots__ = ("_arguments", "_size", "call_id", "number")

    def __init__(self, call_id: str | None, number: int) -> None:
        self.call_id = call_id
        self.number = number
        self._arguments: list[str] = []
        self._size = 0

    def came(self, arguments: str) -> None:
        """More of its arguments."""
        if self.call_id:
            return
        self._size += len(arguments)
        if self._size <= MAX_CHARACTERS:
            self._arguments.append(arguments)
        else:
            # It is refused for its size where anybody judges it.
            self._arguments.clear()

    def is_another(self, call_id: str | None, name: str | None, arguments: str | None) -> bool:
        """Whether what has come now is of another call."""
        if call_id:
            return self.call_id is not None and call_id != self.call_id
        # Some servers give no id to any of them. They send each call whole, with its name.
        begins = bool(name and arguments) and str(arguments).lstrip().startswith("{")
        if not begins or not "".join(self._arguments[-1:]).rstrip().endswith("}"):
            return False
        try:
            loads("".join(self._arguments))
        except UnreadableError:
            return False
        return True


class Calls:
    """The tool calls of a stream: servers repeat an index for another call, and leave the id out after the first."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: dict[SlotKey, _Call] = {}

    def key(
        self, at: SlotKey, call_id: str | None, name: str | None, arguments: str | None
    ) -> tuple[SlotKey, SlotKey | None]:
        """The key of the call at an index, and that of the one before it there if this is another."""
        call = self._latest.get(at)
        ended: SlotKey | None = None
        if call is None:
            call = self._latest[at] = _Call(call_id, 0)
        elif call.is_another(call_id, name, arguments):
            ended = (*at, call.number)
            call = self._latest[at] = _Call(call_id, call.number + 1)
        elif call_id:
            call.call_id = call_id
        if arguments:
            call.came(arguments)
        return (*at, call.number), ended


def choice_texts(choice: Mapped, index: int, path: Path, calls: Calls) -> list[Operation]:
    """The text of a choice, of a stream or an answer: ``index`` names it, ``path`` leads to it."""
    operations: list[Operation] = []
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
        if value is None or name in NAMES:
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
            operations += [Follow(at, "[]", key=(*key, "content")), *wholes(value, at, "output", key=key)]
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


def _tool_calls(listed: list[JSON], key: SlotKey, path: Path, calls: Calls) -> list[Operation]:
    operations: list[Operation] = []
    for position, element in enumerate(listed):
        call = mapping(element, "tool_calls[]")
        index = call.get("index")
        at: SlotKey = (*key, "tool_calls", index if type(index) is int else position)
        custom = call.get("custom")
        function = mapping(call.get("function") or {}, "function")
        given = function if custom is None else mapping(custom, "custom")
        call_key, ended = calls.key(
            at,
            str_or_none(call.get("id")),
            str_or_none(given.get("name")),
            str_or_none(given.get("arguments" if custom is None else "input")),
        )
        if ended is not None:
            operations.append(End(ended))
        if custom is not None:
            operations += _tool_call(given, call_key, (*path, position, "custom"), "text")
            if function:
                operations += _tool_call(function, (*call_key, "function"), (*path, position, "function"), None)
        else:
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


def request_message(message: Mapped, path: Path, names: dict[str, str]) -> list[Operation]:
    """The text of a message of a request.

    :param names: of each tool call of the messages before, by its id: the tool.
    """
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
