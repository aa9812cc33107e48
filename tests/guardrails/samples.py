"""Streams as providers send them, with texts of the test's own in them."""

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from asgi_agents.guardrails.dialect import Dialect
from asgi_agents.guardrails.dialects.anthropic import Anthropic
from asgi_agents.guardrails.dialects.chat import Chat
from asgi_agents.guardrails.dialects.gemini import Gemini
from asgi_agents.guardrails.dialects.mcp import MCP
from asgi_agents.guardrails.dialects.ollama import Ollama
from asgi_agents.guardrails.dialects.pointers import Pointers
from asgi_agents.guardrails.dialects.responses import Responses
from asgi_agents.guardrails.dialects.ui_message import UIMessages
from asgi_agents.guardrails.dialects.unknown import Events, Lines, PlainText
from asgi_agents.guardrails.sse import SSEFramer

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

    :ivar texts: the names of the slots that it has. Those that begin with ``json`` are JSON; those that begin with
        ``signed`` are left out if anything in them is to be changed.
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


class AnthropicSample:
    name = "anthropic"
    dialect: Dialect = Anthropic()
    media_type = "text/event-stream"
    texts = ("signed thinking", "text", "json call", "json second", "cited", "last")

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        def block(index: int, start: Any, deltas: list[Any]) -> list[Any]:
            return [
                {"type": "content_block_start", "index": index, "content_block": start},
                *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
                {"type": "content_block_stop", "index": index},
            ]

        def deltas(kind: str, field: str, text: str) -> list[Any]:
            return [{"type": kind, field: part} for part in cut(text)]

        def call(index: int, text: str) -> list[Any]:
            start = {"type": "tool_use", "id": f"toolu_{index}", "name": "send", "input": {}}
            return block(index, start, deltas("input_json_delta", "partial_json", text))

        def citation(text: str) -> Any:
            where = {"document_index": 0, "document_title": None, "start_char_index": 0, "end_char_index": len(text)}
            return {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": text, **where}}

        message: dict[str, Any] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 25, "output_tokens": 1},
        }
        thinking = [
            *deltas("thinking_delta", "thinking", texts["signed thinking"]),
            {"type": "signature_delta", "signature": "EqQBCgIYAhIM"},
        ]
        events = [
            {"type": "message_start", "message": message},
            *block(0, {"type": "thinking", "thinking": "", "signature": ""}, thinking),
            *block(1, {"type": "text", "text": ""}, deltas("text_delta", "text", texts["text"])),
            *call(2, texts["json call"]),
            *call(3, texts["json second"]),
            *block(4, {"type": "text", "text": "", "citations": []}, [citation(texts["cited"])]),
            *block(5, {"type": "text", "text": ""}, deltas("text_delta", "text", texts["last"])),
            {
                "type": "message_delta",
                "delta": {"stop_reason": "tool_use", "stop_sequence": None},
                "usage": {"output_tokens": 89},
            },
            {"type": "message_stop"},
        ]
        return [sse(event, style, event["type"]) for style, event in enumerate(events)]

    def read(self, data: bytes) -> dict[str, set[str]]:
        slots = Collected()
        names: list[str] = []
        calls = iter(("json call", "json second"))
        texts = iter(("text", "cited", "last"))
        for event in events_of(data):
            match event["type"]:
                case "content_block_start":
                    assert event["index"] == len(names)
                    kind = event["content_block"]["type"]
                    names.append("signed thinking" if kind == "thinking" else next(calls if "tool" in kind else texts))
                case "content_block_delta":
                    name, delta = names[event["index"]], event["delta"]
                    for field in ("text", "thinking", "partial_json"):
                        slots.add(name, delta.get(field))
                    slots.add(name, delta.get("citation", {}).get("cited_text"))
                case "content_block_stop":
                    assert event["index"] == len(names) - 1
        return slots.done()


class ResponsesSample:
    name = "responses"
    dialect: Dialect = Responses()
    media_type = "text/event-stream"
    texts = ("summary", "text", "second", "json call", "custom")

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        def about(output: int, **more: Any) -> Any:
            return {"item_id": f"item_{output}", "output_index": output, **more}

        def parted(base: str, text: str, done: str, **where: Any) -> list[Any]:
            return [
                *({"type": f"{base}.delta", **where, "delta": part} for part in cut(text)),
                {"type": f"{base}.done", **where, done: text},
            ]

        def token(text: str) -> list[Any]:
            return [{"token": text, "logprob": -0.25, "top_logprobs": [], "bytes": list(text.encode())}]

        def part(text: str) -> Any:
            end = len(text)
            annotation = {"type": "url_citation", "start_index": 0, "end_index": end, "url": "http://x", "title": "x"}
            return {"type": "output_text", "text": text, "annotations": [annotation], "logprobs": token(text)}

        def item(output: int, kind: str, **more: Any) -> list[Any]:
            whole = {"id": f"item_{output}", "type": kind, "status": "completed", **more}
            items.append(whole)
            empty = {key: [] if isinstance(value, list) else value for key, value in whole.items()}
            for field in {"arguments", "input"} & empty.keys():
                empty[field] = ""
            return [
                {
                    "type": "response.output_item.added",
                    "output_index": output,
                    "item": {**empty, "status": "in_progress"},
                },
                {"type": "response.output_item.done", "output_index": output, "item": whole},
            ]

        items: list[Any] = []
        summary = {"type": "summary_text", "text": texts["summary"]}
        where = about(0, summary_index=0)
        added, done = item(0, "reasoning", summary=[summary])
        events = [
            {"type": "response.created", "response": {"id": "resp_1", "object": "response", "output": []}},
            added,
            {"type": "response.reasoning_summary_part.added", **where, "part": {**summary, "text": ""}},
            *parted("response.reasoning_summary_text", texts["summary"], "text", **where),
            {"type": "response.reasoning_summary_part.done", **where, "part": summary},
            done,
        ]
        added, done = item(1, "message", role="assistant", content=[part(texts["text"]), part(texts["second"])])
        events.append(added)
        for index, name in enumerate(("text", "second")):
            where = about(1, content_index=index)
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            deltas = parted("response.output_text", texts[name], "text", **where)
            for event in deltas:
                event["logprobs"] = token(event.get("delta", event.get("text")))
            annotation = {**where, "annotation_index": 0, "annotation": part(texts[name])["annotations"][0]}
            events += [
                {"type": "response.content_part.added", **where, "part": empty},
                *deltas[:-1],
                {"type": "response.output_text.annotation.added", **annotation},
                deltas[-1],
                {"type": "response.content_part.done", **where, "part": part(texts[name])},
            ]
        events.append(done)
        calls = (
            (2, "function_call", "arguments", "json call", "response.function_call_arguments"),
            (3, "custom_tool_call", "input", "custom", "response.custom_tool_call_input"),
        )
        for output, kind, field, name, base in calls:
            added, done = item(output, kind, call_id="call_1", name="send", **{field: texts[name]})
            events += [added, *parted(base, texts[name], field, **about(output)), done]
        response = {"id": "resp_1", "object": "response", "status": "completed", "output": items}
        events.append({"type": "response.completed", "response": response})
        return [sse({**event, "sequence_number": number}, number, event["type"]) for number, event in enumerate(events)]

    def read(self, data: bytes) -> dict[str, set[str]]:
        slots = Collected()
        names = {(0, 0): "summary", (1, 0): "text", (1, 1): "second", (2, 0): "json call", (3, 0): "custom"}

        def part(output: int, index: int, part: Any) -> None:
            slots.say(names[output, index], part["text"])
            for entry in part.get("logprobs", ()):
                assert entry["token"] == part["text"]
            for annotation in part.get("annotations", ()):
                assert annotation["end_index"] == len(part["text"])

        def item(output: int, item: Any) -> None:
            for index, inner in enumerate((item.get("content") or item.get("summary")) or ()):
                part(output, index, inner)
            for field in {"arguments", "input"} & item.keys():
                slots.say(names[output, 0], item[field])

        for event in events_of(data):
            kind = event["type"]
            where = (event.get("output_index", 0), event.get("content_index", event.get("summary_index", 0)))
            if kind.endswith(".delta"):
                slots.add(names[where], event["delta"])
                assert "".join(entry["token"] for entry in event.get("logprobs", ())) in ("", event["delta"])
            elif "_part.done" in kind:
                part(*where, event["part"])
            elif kind == "response.output_item.done":
                item(where[0], event["item"])
            elif kind == "response.completed":
                for output, whole in enumerate(event["response"]["output"]):
                    item(output, whole)
            elif kind.endswith(".done"):
                for field in {"text", "arguments", "input"} & event.keys():
                    slots.say(names[where], event[field])
        return slots.done()


def pairs(parts: list[str]) -> Iterator[tuple[str, str]]:
    for index in range(0, len(parts), 2):
        yield parts[index], "".join(parts[index + 1 : index + 2])


def gemini_chunks(texts: Texts, cut: Cut) -> list[Any]:
    """What both of its framings carry."""

    def chunk(index: int, *parts: Any, finish: str | None = None, **more: Any) -> Any:
        candidate = {"content": {"parts": list(parts), "role": "model"}, "index": index, **more}
        if finish:
            candidate["finishReason"] = finish
        usage = {"promptTokenCount": 4, "totalTokenCount": 9}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"}

    def grounded(text: str) -> Any:
        segment = {"startIndex": 0, "endIndex": len(text.encode()), "text": text}
        return {"groundingSupports": [{"segment": segment, "groundingChunkIndices": [0]}]}

    call = {"name": "send", "args": json.loads(texts["json call"])}
    first = [
        *(chunk(0, {"text": part, "thought": True}) for part in cut(texts["thought"])),
        *(chunk(0, {"text": part}) for part in cut(texts["text 0"])),
        chunk(0, {"functionCall": call, "thoughtSignature": "CpQB"}),
        chunk(0, {"text": ""}, finish="STOP", groundingMetadata=grounded(texts["text 0"])),
    ]
    second = [
        *(chunk(1, {"text": part}, {"text": more}) for part, more in pairs(cut(texts["text 1"]))),
        chunk(1, {"text": ""}, finish="STOP"),
    ]
    return list(cut.mixed(first, second))


def read_gemini(chunks: Iterator[Any]) -> dict[str, set[str]]:
    slots = Collected()
    for chunk in chunks:
        for candidate in chunk["candidates"]:
            for part in candidate["content"]["parts"]:
                if "text" in part:
                    slots.add("thought" if part.get("thought") else f"text {candidate['index']}", part["text"])
                if "functionCall" in part:
                    slots.say("json call", json.dumps(part["functionCall"]["args"]))
            for support in candidate.get("groundingMetadata", {}).get("groundingSupports", ()):
                slots.say("text 0", support["segment"]["text"])
    return slots.done()


class GeminiSample:
    name = "gemini"
    dialect: Dialect = Gemini()
    media_type = "text/event-stream"
    texts = ("thought", "text 0", "text 1", "json call")

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        return [sse(chunk, style) for style, chunk in enumerate(gemini_chunks(texts, cut))]

    def read(self, data: bytes) -> dict[str, set[str]]:
        return read_gemini(events_of(data))


class GeminiArraySample(GeminiSample):
    name = "gemini array"
    media_type = "application/json"

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        chunks = gemini_chunks(texts, cut)
        elements = [dumps(chunk, style).encode() for style, chunk in enumerate(chunks)]
        return [b"[" + elements[0], *(b"\n,\r\n" + element for element in elements[1:]), b"\n]\n"]

    def read(self, data: bytes) -> dict[str, set[str]]:
        return read_gemini(iter(json.loads(data)))


class OllamaSample:
    name = "ollama"
    dialect: Dialect = Ollama()
    media_type = "application/x-ndjson"
    texts = ("thinking", "content", "json call")

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        def line(message: Any, **more: Any) -> Any:
            return {
                "model": "qwen3",
                "created_at": "2026-01-01T00:00:00.000000Z",
                "message": {"role": "assistant", "content": "", **message},
                "done": False,
                **more,
            }

        def token(text: str) -> Any:
            return [{"token": text, "logprob": -0.5}]

        call = {"function": {"name": "send", "arguments": json.loads(texts["json call"])}}
        lines = [
            *(line({"thinking": part}) for part in cut(texts["thinking"])),
            *(line({"content": part}, logprobs=token(part)) for part in cut(texts["content"])),
            line({"tool_calls": [call]}),
            line({}, done=True, done_reason="stop", total_duration=4883583458, eval_count=282),
        ]
        ends = (b"\n", b"\r\n")
        return [dumps(line, style).encode() + ends[style % 2] for style, line in enumerate(lines)]

    def read(self, data: bytes) -> dict[str, set[str]]:
        slots = Collected()
        for text in data.decode().split("\n")[:-1]:
            line = json.loads(text)
            slots.add("thinking", line["message"].get("thinking"))
            slots.add("content", line["message"]["content"])
            for call in line["message"].get("tool_calls", ()):
                slots.say("json call", json.dumps(call["function"]["arguments"]))
            for entry in line.get("logprobs") or ():
                assert entry["token"] == line["message"]["content"]
        return slots.done()


class UIMessageSample:
    name = "ui message"
    dialect: Dialect = UIMessages()
    media_type = "text/event-stream"
    texts = ("reasoning", "text a", "text b", "json call", "json data")

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        def part(kind: str, name: str, text: str) -> list[Any]:
            return [
                {"type": f"{kind}-start", "id": name},
                *({"type": f"{kind}-delta", "id": name, "delta": delta} for delta in cut(text)),
                {"type": f"{kind}-end", "id": name},
            ]

        call = {"toolCallId": "call_1", "toolName": "send"}
        called = [
            {"type": "tool-input-start", **call},
            *(
                {"type": "tool-input-delta", "toolCallId": "call_1", "inputTextDelta": delta}
                for delta in cut(texts["json call"])
            ),
            {"type": "tool-input-available", **call, "input": json.loads(texts["json call"])},
        ]
        events = [
            {"type": "start", "messageId": "msg_1"},
            {"type": "start-step"},
            *part("reasoning", "r", texts["reasoning"]),
            *cut.mixed(part("text", "a", texts["text a"]), part("text", "b", texts["text b"]), called),
            {"type": "data-report", "data": json.loads(texts["json data"])},
            {"type": "finish-step"},
            {"type": "finish"},
        ]
        return [*(sse(event, style) for style, event in enumerate(events)), b"data: [DONE]\n\n"]

    def read(self, data: bytes) -> dict[str, set[str]]:
        slots = Collected()
        names = {"r": "reasoning", "a": "text a", "b": "text b"}
        for event in events_of(data):
            match event["type"]:
                case "text-delta" | "reasoning-delta":
                    slots.add(names[event["id"]], event["delta"])
                case "tool-input-delta":
                    slots.add("json call", event["inputTextDelta"])
                case "tool-input-available":
                    slots.say("json call", json.dumps(event["input"]))
                case "data-report":
                    slots.say("json data", json.dumps(event["data"]))
        return slots.done()


class LinesSample:
    name = "lines"
    dialect: Dialect = Lines()
    media_type = "application/jsonl"
    texts = ("token", "note")

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        tokens = [{"id": "1", "token": part} for part in cut(texts["token"])]
        notes = [{"more": [{"note": part}], "n": 1} for part in cut(texts["note"])]
        return [dumps(line, style).encode() + b"\n" for style, line in enumerate(cut.mixed(tokens, notes))]

    def read(self, data: bytes) -> dict[str, set[str]]:
        slots = Collected()
        for text in data.decode().split("\n")[:-1]:
            line = json.loads(text)
            slots.add("token", line.get("token"))
            slots.add("note", line["more"][0]["note"] if "more" in line else "")
        return slots.done()


class EventsSample:
    name = "events"
    dialect: Dialect = Events()
    media_type = "text/event-stream"
    texts = ("text", "json text")

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        # Lines of their own can't be cut out of the data of an event, so the text has none.
        def event(part: str) -> bytes:
            return b"event: token\n" + b"".join(b"data: " + line.encode() + b"\n" for line in part.split("\n")) + b"\n"

        return [*map(event, cut(texts["text"])), sse(json.loads(texts["json text"]), 0, "all")]

    def read(self, data: bytes) -> dict[str, set[str]]:
        slots = Collected()
        for unit in SSEFramer().feed(data):
            text = (unit.data or b"").decode()
            if unit.event == b"all":
                slots.say("json text", text)
            else:
                slots.add("text", text)
        return slots.done()


class TextSample:
    name = "text"
    dialect: Dialect = PlainText()
    media_type = "text/plain"
    texts = ("text",)

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        return [part.encode() for part in cut(texts["text"])]

    def read(self, data: bytes) -> dict[str, set[str]]:
        return {"text": {data.decode()}}


class PointersSample:
    name = "pointers"
    dialect: Dialect = Pointers("/say", stream=["/said/*/text"])
    media_type = "text/event-stream"
    texts = ("text",)

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        events = [{"other": "alice", "said": [{"text": part}]} for part in cut(texts["text"])]
        return [sse(event, style) for style, event in enumerate(events)]

    def read(self, data: bytes) -> dict[str, set[str]]:
        slots = Collected()
        for event in events_of(data):
            slots.add("text", event["said"][0]["text"])
        return slots.done()


class MCPSample:
    """The answer to a call of a tool that says how far it is, and has the client's model asked."""

    name = "mcp"
    dialect: Dialect = MCP()
    media_type = "text/event-stream"
    texts = ("progress", "log", "system", "said", "json input", "result", "json data")

    def stream(self, texts: Texts, cut: Cut) -> list[bytes]:
        said = {"role": "user", "content": {"type": "text", "text": texts["said"]}}
        use = {"type": "tool_use", "id": "t1", "name": "send", "input": json.loads(texts["json input"])}
        sampling = {"messages": [said, {"role": "assistant", "content": [use]}], "systemPrompt": texts["system"]}
        progress = {"progressToken": "p-1", "progress": 1, "total": 2, "message": texts["progress"]}
        resource = {"uri": "file:///x", "mimeType": "text/plain", "text": texts["result"]}
        content = [{"type": "text", "text": texts["result"]}, {"type": "resource", "resource": resource}]
        result = {"content": content, "structuredContent": json.loads(texts["json data"]), "isError": False}
        messages: list[Any] = [
            {"method": "notifications/progress", "params": progress},
            {"method": "notifications/message", "params": {"level": "info", "data": {"note": texts["log"]}}},
            {"id": "s-1", "method": "sampling/createMessage", "params": {**sampling, "maxTokens": 100}},
            {"id": 7, "result": result},
        ]
        return [
            f"id: {number}\n".encode() + sse({"jsonrpc": "2.0", **message}, number, "message")
            for number, message in enumerate(messages)
        ]

    def read(self, data: bytes) -> dict[str, set[str]]:
        slots = Collected()
        for unit in SSEFramer().feed(data):
            match json.loads(unit.data or b""):
                case {"method": "notifications/progress", "params": params}:
                    slots.say("progress", params["message"])
                    assert params["progressToken"] == "p-1"
                case {"method": "notifications/message", "params": params}:
                    slots.say("log", params["data"]["note"])
                case {"method": "sampling/createMessage", "params": params}:
                    slots.say("system", params["systemPrompt"])
                    slots.say("said", params["messages"][0]["content"]["text"])
                    slots.say("json input", json.dumps(params["messages"][1]["content"][0]["input"]))
                case {"id": 7, "result": result}:
                    slots.say("result", result["content"][0]["text"])
                    slots.say("result", result["content"][1]["resource"]["text"])
                    slots.say("json data", json.dumps(result["structuredContent"]))
                case other:
                    raise AssertionError(other)
        return slots.done()


SAMPLES: Final[list[Sample]] = [
    ChatSample(),
    AnthropicSample(),
    ResponsesSample(),
    GeminiSample(),
    GeminiArraySample(),
    OllamaSample(),
    UIMessageSample(),
    LinesSample(),
    EventsSample(),
    TextSample(),
    PointersSample(),
    MCPSample(),
]
