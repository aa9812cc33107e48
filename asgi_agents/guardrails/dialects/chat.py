"""OpenAI chat completions, and the completions before them, as many servers speak them."""

from collections.abc import Mapping, Sequence
from typing import Final

from ..dialect import Form, Stop, StopReply
from ..framing import Framer, Unit
from ..json_text import JSON, Path
from ..operations import End, Mark, Operation, Text
from ..slots import Call
from ..sse import SSEFramer
from ..uncovered import Uncovered
from .base import Mapped, index_of, mapping, sequence, sse, str_or_none, to_json, wholes
from .chat_parts import Calls, choice_texts, request_message

# Of the path of a text that is a member of a delta itself.
_LENGTH: Final = 4
_OBJECTS: Final = ("chat.completion.chunk", "chat.completion", "text_completion")
# What a choice has, of an answer or of a stream.
_IN_CHOICE: Final = frozenset({"delta", "message", "text", "finish_reason"})
_ERRORS: Final = {True: ("server_error", "guardrail_error"), False: ("invalid_request_error", "content_filter")}


def error(stop: Stop) -> Mapped:
    """The error object that OpenAI's clients raise for."""
    kind, code = _ERRORS[stop.failure]
    return {"error": {"message": stop.message, "type": kind, "param": None, "code": None if stop.malformed else code}}


class Chat:
    """The dialect."""

    name = "openai.chat"
    form: Form = "json"
    repeats = False

    def knows_path(self, path: str) -> bool:
        return path.rstrip("/").endswith(("/chat/completions", "/completions"))

    def knows(self, value: JSON) -> bool:
        if not isinstance(value, dict):
            return False
        choices = value.get("choices")
        if not isinstance(choices, list):
            return False
        if not choices:
            # Usage, and what filters say of the prompt, come without a choice.
            return bool(value.keys() & {"object", "usage", "prompt_filter_results"})
        return all(isinstance(choice, dict) and choice.keys() & _IN_CHOICE for choice in choices)

    def call(self, value: JSON, path: str) -> Call:
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
            operations += request_message(mapping(message, "messages[]"), ("messages", index), names)
        for field in ("prompt", "suffix", "prediction"):
            operations += wholes(request.get(field), (field,), "input")
        return operations

    def answer(self, value: JSON) -> list[Operation]:
        answer = mapping(value, "the body")
        operations: list[Operation] = []
        for position, choice in enumerate(sequence(answer.get("choices"), "choices")):
            read = mapping(choice, "choices[]")
            index = index_of(read.get("index"), "choices[].index")
            operations += choice_texts(read, index, ("choices", position), Calls())
        return Uncovered().beside(answer, operations)

    def framer(self, media_type: str) -> Framer:
        return SSEFramer()

    def reader(self, media_type: str) -> "ChatReader":
        return ChatReader()

    def reply(self, stop: Stop) -> StopReply:
        return StopReply(stop.status, "application/json", to_json(error(stop)))


class ChatReader:
    """Reads one stream."""

    __slots__ = ("_calls", "_channels", "_closed", "_open", "_seen", "_template", "_uncovered", "_usage")

    def __init__(self) -> None:
        self._template: Mapped = {}
        self._usage: JSON = None
        self._uncovered = Uncovered()
        self._calls = Calls()
        # Of each choice that was read: which field its text was in last.
        self._channels: dict[int, str | None] = {}
        self._seen: set[int] = set()
        # Of what has left.
        self._open: set[int] = set()
        self._closed: set[int] = set()

    def read(self, unit: Unit, value: JSON) -> Sequence[Operation]:
        chunk = mapping(value, "an event")
        choices = chunk.get("choices")
        if choices is None and "error" not in chunk and chunk.get("object") not in _OBJECTS:
            return self._uncovered.joined(unit, chunk)
        if not self._template:
            self._template = {
                name: chunk[name]
                for name in ("id", "object", "created", "model", "system_fingerprint")
                if name in chunk
            }
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        operations: list[Operation] = []
        mark: list[str | int] = []
        for position, given in enumerate(sequence(choices, "choices")):
            choice = mapping(given, "choices[]")
            index = index_of(choice.get("index"), "choices[].index")
            if index not in self._seen:
                self._seen.add(index)
                mark += ("open", index)
            read = choice_texts(choice, index, ("choices", position), self._calls)
            operations += self._switched(index, read)
            # Some servers have an empty one in every event before the last.
            if choice.get("finish_reason"):
                operations.append(End(("choices", index)))
                mark += ("closed", index)
        if mark:
            operations.append(Mark(tuple(mark)))
        return self._with_uncovered(chunk, operations)

    def _with_uncovered(self, chunk: Mapped, operations: list[Operation]) -> list[Operation]:
        usual: Mapped | None = None
        match chunk:
            case {"choices": [{"delta": {} as delta} as choice]} if len(delta) == len(operations) == 1:
                # Of a delta with one text, the rest is the same from event to event.
                obfuscation = chunk.get("obfuscation", "x")
                text = operations[0]
                is_own = type(text) is Text and len(text.path) == _LENGTH and text.path[2] == "delta"
                if is_own and isinstance(obfuscation, str) and obfuscation.isalnum():
                    usual = {**chunk, "obfuscation": None, "choices": {**mapping(choice, ""), "delta": None}}
        return self._uncovered.beside(chunk, operations, usual=usual)

    def _switched(self, index: int, operations: list[Operation]) -> list[Operation]:
        """Reasoning ends where the answer begins.

        Not the other way round: a model may think in the middle of a word, and clients join what it says.
        """
        for operation in operations:
            if type(operation) is Text and operation.text and operation.instead is None:
                field = str(operation.slot.key[2])
                before = self._channels.get(index)
                self._channels[index] = field
                if before is not None and before != field and before.startswith("reasoning"):
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
