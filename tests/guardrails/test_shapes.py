"""Shapes of events that single servers send: the text in them is judged, joined where it was cut."""

import json
from typing import Any

import pytest

from asgi_agents.guardrails.dialect import Dialect, Stop
from asgi_agents.guardrails.dialects.anthropic import Anthropic
from asgi_agents.guardrails.dialects.chat import Chat
from asgi_agents.guardrails.dialects.gemini import Gemini
from asgi_agents.guardrails.dialects.ollama import Ollama
from asgi_agents.guardrails.dialects.responses import Responses
from asgi_agents.guardrails.dialects.ui_message import UIMessages
from asgi_agents.guardrails.judges import Judge, Judges
from asgi_agents.guardrails.stream import Stream
from tests.guardrails.detectors import detector
from tests.guardrails.driving import EVERYTHING, LOCAL, Driver, passed

SSE = "text/event-stream"
FIRST, REST = "a@exa", "mple.com"


def choice(delta: Any, **more: Any) -> Any:
    return {"choices": [{"index": 0, "delta": delta, **more}]}


def gemini(*parts: Any, **more: Any) -> Any:
    return {"candidates": [{"content": {"parts": list(parts)}, **more}]}


def block(delta: Any) -> Any:
    return {"type": "content_block_delta", "index": 0, "delta": delta}


# Each has FIRST and REST in it, one behind the other in one text.
SHAPES: list[tuple[Dialect, list[Any]]] = [
    (Chat(), [{"object": "text_completion", "choices": [{"index": 0, "text": text}]} for text in (FIRST, REST)]),
    (Chat(), [choice({"audio": {"id": "x", "data": "AAAA", "transcript": text}}) for text in (FIRST, REST)]),
    (Chat(), [choice({"content": [{"type": "text", "text": text}]}) for text in (FIRST, REST)]),
    (
        Chat(),
        [
            choice({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]})
            for text in (FIRST, REST)
        ],
    ),
    (
        Chat(),
        [
            choice({"reasoning_details": [{"type": "reasoning.text", "text": text, "signature": "s"}]})
            for text in (FIRST, REST)
        ],
    ),
    (Chat(), [choice({"reasoning": text}) for text in (FIRST, REST)]),
    (Chat(), [choice({"refusal": text}) for text in (FIRST, REST)]),
    (Chat(), [choice({"annotations": [{"title": FIRST + REST}]})]),
    (Chat(), [{"error": {"message": FIRST + REST, "code": 500}}]),
    (
        Gemini(),
        [
            gemini(
                {
                    "functionCall": {
                        "name": "send",
                        "partialArgs": [{"jsonPath": "$.to", "stringValue": text, "willContinue": more}],
                        "willContinue": more,
                    }
                }
            )
            for text, more in ((FIRST, True), (REST, False))
        ],
    ),
    (Gemini(), [gemini({"executable_code": {"code": FIRST + REST}})]),
    (Gemini(), [gemini({"codeExecutionResult": {"output": FIRST + REST}})]),
    (Gemini(), [gemini({"other": FIRST + REST}), gemini({"text": "x"}, finishMessage=FIRST + REST)]),
    (
        Gemini(),
        [gemini({"text": FIRST, "thought": True, "thoughtSignature": "s"}), gemini({"text": REST, "thought": True})],
    ),
    (Ollama(), [{"response": text, "done": False} for text in (FIRST, REST)]),
    (Ollama(), [{"error": FIRST + REST}]),
    (
        Ollama(),
        [
            {
                "message": {
                    "content": "",
                    "tool_calls": [{"function": {"name": "x", "arguments": '{"t":"a@example.com"}'}}],
                }
            }
        ],
    ),
    (Responses(), [{"type": "response.new.delta", "delta": text, "output_index": 0} for text in (FIRST, REST)]),
    (
        Responses(),
        [
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {"type": "custom_tool_call", "name": "x", "input": FIRST},
            },
            {"type": "response.custom_tool_call_input.delta", "output_index": 0, "delta": REST},
            {"type": "response.custom_tool_call_input.done", "output_index": 0},
        ],
    ),
    (
        Responses(),
        [
            {"type": "response.content_part.added", "output_index": 0, "part": {"type": "output_text", "text": FIRST}},
            {"type": "response.output_text.delta", "output_index": 0, "delta": REST, "logprobs": [{"token": REST}]},
        ],
    ),
    (
        Responses(),
        [
            {
                "type": "response.output_item.done",
                "output_index": 0,
                "item": {"type": "mcp_call", "output": FIRST + REST},
            }
        ],
    ),
    (Responses(), [{"type": "error", "message": FIRST + REST}]),
    (
        Anthropic(),
        [
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": FIRST}},
            block({"type": "text_delta", "text": REST}),
        ],
    ),
    (
        Anthropic(),
        [
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {
                    "type": "web_search_tool_result",
                    "content": [{"title": FIRST + REST, "encrypted_content": "x"}],
                },
            }
        ],
    ),
    (
        Anthropic(),
        [
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "tool_use", "name": "x", "input": {"to": FIRST + REST}},
            }
        ],
    ),
    (Anthropic(), [{"type": "message_start", "message": {"content": [{"type": "text", "text": FIRST + REST}]}}]),
    (Anthropic(), [{"type": "error", "error": {"message": FIRST + REST}}]),
    (UIMessages(), [{"type": "tool-output-available", "toolCallId": "x", "output": {"r": FIRST + REST}}]),
    (UIMessages(), [{"type": "tool-output-error", "toolCallId": "x", "errorText": FIRST + REST}]),
    (UIMessages(), [{"type": "tool-input-error", "toolCallId": "x", "input": {}, "errorText": FIRST + REST}]),
    (UIMessages(), [{"type": "error", "errorText": FIRST + REST}]),
    (UIMessages(), [{"type": "source-document", "sourceId": "x", "title": FIRST + REST}]),
    (
        UIMessages(),
        [
            {"type": "reasoning-delta", "id": "r", "delta": FIRST, "providerMetadata": {}},
            {"type": "reasoning-delta", "id": "r", "delta": REST},
            {"type": "reasoning-end", "id": "r", "providerMetadata": {"anthropic": {"signature": "s"}}},
        ],
    ),
]


def stream_of(dialect: Dialect, events: list[Any]) -> tuple[str, list[bytes]]:
    if dialect.name == "ollama":
        return "application/x-ndjson", [json.dumps(event).encode() + b"\n" for event in events]
    return SSE, [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]


@pytest.mark.parametrize(("dialect", "events"), SHAPES)
def test_text_is_found_and_joined(dialect: Dialect, events: list[Any]) -> None:
    media_type, data = stream_of(dialect, events)
    sent = passed(dialect, media_type, data, EVERYTHING)
    assert FIRST.encode() not in sent
    assert REST.encode() not in sent
    assert b"[0]" in sent
    assert b'"signature": "s"' not in sent
    assert b'"thoughtSignature": "s"' not in sent
    for line in sent.split(b"\n"):
        if line:
            json.loads(line.removeprefix(b"data: "))
    assert passed(dialect, media_type, data) == b"".join(data)


def test_signed_reasoning_streams_where_nobody_may_change_it() -> None:
    judge = Judge(name="local", limits=LOCAL.limits, redacts=False)
    drive = Driver(Stream([Anthropic()], SSE, Judges([judge])), {"local": detector()})
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
    events = [
        start,
        block({"type": "thinking_delta", "thinking": "hm,\n"}),
        block({"type": "signature_delta", "signature": "s"}),
    ]
    _, data = stream_of(Anthropic(), events)
    for event in data:
        drive.feed(event)
    assert drive.sent == b"".join(data)


def test_a_stream_that_ends_within_a_tool_call_is_a_failure() -> None:
    stream = Stream([Chat()], SSE, Judges([LOCAL]))
    drive = Driver(stream, {"local": EVERYTHING})
    _, data = stream_of(
        Chat(), [choice({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "x", "arguments": '{"a'}}]})]
    )
    drive.feed(data[0])
    drive.end()
    assert stream.ending is not None
    assert stream.ending.stop.failure
    assert b'"name"' not in drive.sent


def test_a_completion_of_text_is_ended_in_its_own_shape() -> None:
    stream = Stream([Chat()], SSE, Judges([LOCAL]))
    _, data = stream_of(Chat(), SHAPES[0][1])
    stream.feed(b"".join(data), 0.0)
    stream._stop(Stop("no"), None)
    last = json.loads(stream.take().split(b"\n\n")[0].removeprefix(b"data: "))
    assert last["choices"] == [{"index": 0, "text": "", "finish_reason": "content_filter"}]
