"""Streams as providers send them, with texts of the test's own in them."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from asgi_agents.guardrails.dialects.base import Dialect
from asgi_agents.guardrails.dialects.chat import Chat

Texts = Mapping[str, str]


class Cut:
    """Cuts texts into parts, and shuffles the parts of independent slots into each other."""

    def __init__(self, rng: random.Random, *, longest: int = 9) -> None:
        self._rng = rng
        self._longest = longest

    def __call__(self, text: str) -> list[str]:
        parts = []
        while text:
            size = self._rng.randrange(self._longest + 1)
            parts.append(text[:size])
            text = text[size:]
        return parts

    def mixed(self, *streams: list[Any]) -> Iterator[Any]:
        left = [list(reversed(stream)) for stream in streams if stream]
        while left:
            stream = self._rng.choice(left)
            yield stream.pop()
            if not stream:
                left.remove(stream)

    def bytes(self, data: bytes, *, longest: int = 200) -> list[bytes]:
        pieces = []
        while data:
            size = self._rng.randrange(1, longest + 1)
            pieces.append(data[:size])
            data = data[size:]
        return pieces


class Sample(Protocol):
    """A stream of one dialect.

    :ivar texts: the names of the slots that it has. Those that begin with ``json`` are JSON.
    """

    name: str
    dialect: Dialect
    media_type: str

    @property
    def texts(self) -> tuple[str, ...]: ...

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        """The events."""
        ...

    def read(self, data: bytes) -> dict[str, set[str]]:
        """What a client makes of a stream: of each slot what it is, wherever that is said."""
        ...


def dumps(value: Any, style: int) -> str:
    match style % 3:
        case 0:
            return json.dumps(value)
        case 1:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        case _:
            return json.dumps(value, ensure_ascii=False)


def sse(value: Any, style: int, event: str | None = None) -> bytes:
    end = "\r\n" if style % 4 == 3 else "\n"
    head = f"event: {event}{end}" if event else ""
    colon = "data:" if style % 5 == 4 else "data: "
    return f"{head}{colon}{dumps(value, style)}{end}{end}".encode()


def events_of(data: bytes) -> Iterator[Any]:
    """The JSON of the events of a stream, read as the simplest client does."""
    for line in data.decode().replace("\r\n", "\n").split("\n"):
        if line.startswith("data:") and "[DONE]" not in line:
            yield json.loads(line.removeprefix("data:"))


class Collected:
    """Joins text by slot."""

    def __init__(self) -> None:
        self._joined: dict[str, str] = {}
        self.said: dict[str, set[str]] = {}

    def add(self, name: str, text: str | None) -> None:
        self._joined[name] = self._joined.get(name, "") + (text or "")

    def say(self, name: str, text: str) -> None:
        self.said.setdefault(name, set()).add(text)

    def done(self) -> dict[str, set[str]]:
        for name, text in self._joined.items():
            self.say(name, text)
        return self.said


class ChatSample:
    name = "chat"
    dialect: Dialect = Chat()
    media_type = "text/event-stream"
    texts = ("reasoning", "content 0", "content 1", "json call 0", "json call 1")

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        def chunk(index: int, delta: Any, finish: str | None = None, **more: Any) -> Any:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
            return {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1694268190,
                "model": "gpt-4o-mini",
                "system_fingerprint": "fp_44709d6fcb",
                "choices": [choice],
            }

        def content(index: int, text: str) -> list[Any]:
            return [
                chunk(
                    index,
                    {"content": part},
                    logprobs={
                        "content": [
                            {"token": part, "logprob": -1.5e-05, "bytes": list(part.encode()), "top_logprobs": []}
                        ],
                        "refusal": None,
                    },
                )
                for part in cut(text)
            ]

        def call(index: int, text: str) -> list[Any]:
            first = {
                "index": index,
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": "send", "arguments": ""},
            }
            deltas = [first, *({"index": index, "function": {"arguments": part}} for part in cut(text))]
            return [chunk(0, {"tool_calls": [delta]}) for delta in deltas]

        first = [
            chunk(0, {"role": "assistant", "content": "", "refusal": None}),
            *(chunk(0, {"reasoning_content": part}) for part in cut(texts["reasoning"])),
            *content(0, texts["content 0"]),
            *cut.mixed(call(0, texts["json call 0"]), call(1, texts["json call 1"])),
            chunk(0, {}, "tool_calls"),
        ]
        second = [
            chunk(1, {"role": "assistant", "content": ""}),
            *content(1, texts["content 1"]),
            chunk(1, {}, "stop"),
        ]
        usage = {
            **chunk(0, {}),
            "choices": [],
            "usage": {"prompt_tokens": 9, "completion_tokens": 99, "total_tokens": 108},
        }
        events = [*cut.mixed(first, second), usage]
        return [*(sse(event, style) for style, event in enumerate(events)), b"data: [DONE]\n\n"]

    def read(self, data: bytes) -> dict[str, set[str]]:
        slots = Collected()
        for event in events_of(data):
            for choice in event["choices"]:
                index, delta = choice["index"], choice["delta"]
                if "reasoning_content" in delta:
                    slots.add("reasoning", delta["reasoning_content"])
                if "content" in delta:
                    slots.add(f"content {index}", delta["content"])
                for call in delta.get("tool_calls", ()):
                    slots.add(f"json call {call['index']}", call["function"]["arguments"])
                tokens = "".join(entry["token"] for entry in (choice["logprobs"] or {"content": ()})["content"])
                assert tokens in ("", delta.get("content"))
        return slots.done()


SAMPLES: Final[list[Sample]] = [ChatSample()]
Maker = Callable[[random.Random], str]
