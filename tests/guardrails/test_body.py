"""Requests, and answers that are no streams: changed text is written back, everything else stays."""

import json
from typing import Any

import pytest

from asgi_agents.errors import AgentProtocolError, ConfigurationError
from asgi_agents.guardrails.body import Body
from asgi_agents.guardrails.dialect import Dialect, Stop
from asgi_agents.guardrails.dialects.anthropic import Anthropic
from asgi_agents.guardrails.dialects.base import MAX_TEXTS
from asgi_agents.guardrails.dialects.chat import Chat
from asgi_agents.guardrails.dialects.gemini import Gemini
from asgi_agents.guardrails.dialects.known import BUILT_IN, of_answer, of_request
from asgi_agents.guardrails.dialects.ollama import Ollama
from asgi_agents.guardrails.dialects.pointers import Pointers
from asgi_agents.guardrails.dialects.responses import Responses
from asgi_agents.guardrails.dialects.ui_message import UIMessages
from asgi_agents.guardrails.dialects.unknown import Events, PlainText
from asgi_agents.guardrails.framing import TooComplexError, UnreadableError
from asgi_agents.guardrails.judges import Judge, Judges
from asgi_agents.guardrails.slots import Block, Flag, Redact
from asgi_agents.guardrails.uncovered import uncovered
from tests.guardrails.detectors import EMAIL, detector
from tests.guardrails.driving import LOCAL, judged_body

MAIL = "a@example.com"
GONE = "[0]"
TOOLS = [{"type": "function", "function": {"name": "send", "parameters": {}}}]

# Of each dialect a request and an answer: every MAIL in them is text, and has to go.
REQUESTS: list[tuple[Dialect, Any, list[tuple[str, str | None]]]] = [
    (
        Chat(),
        {
            "model": "m",
            "tools": TOOLS,
            "messages": [
                {"role": "system", "content": MAIL},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": MAIL}, {"type": "image_url", "image_url": {"url": "x"}}],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "send", "arguments": json.dumps({"to": MAIL})},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": MAIL},
            ],
        },
        [("input", None), ("input", None), ("tool_call", "send"), ("tool_result", "send")],
    ),
    (Chat(), {"model": "m", "prompt": ["x", MAIL], "suffix": MAIL}, [("input", None)] * 2),
    (
        Responses(),
        {
            "model": "m",
            "instructions": MAIL,
            "input": [
                {"role": "user", "content": MAIL},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": MAIL}]},
                {"type": "function_call", "call_id": "c", "name": "send", "arguments": json.dumps({"to": [MAIL]})},
                {"type": "function_call_output", "call_id": "c", "output": MAIL},
            ],
        },
        [("input", None)] * 3 + [("tool_call", "send"), ("tool_result", None)],
    ),
    (Responses(), {"input": MAIL}, [("input", None)]),
    (
        Anthropic(),
        {
            "model": "m",
            "system": [{"type": "text", "text": MAIL}],
            "messages": [
                {"role": "user", "content": MAIL},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": MAIL},
                        {"type": "tool_use", "id": "t1", "name": "send", "input": {"to": {"x": MAIL}}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": MAIL}]},
                        {"type": "document", "source": {"type": "text", "data": MAIL}, "title": MAIL},
                    ],
                },
            ],
        },
        [("input", None)] * 3 + [("tool_call", "send"), ("tool_result", "send"), ("input", None), ("input", None)],
    ),
    (
        Gemini(),
        {
            "system_instruction": {"parts": [{"text": MAIL}]},
            "contents": [
                {"role": "user", "parts": [{"text": MAIL}]},
                {"role": "model", "parts": [{"functionCall": {"name": "send", "args": {"to": MAIL}}}]},
                {"role": "user", "parts": [{"function_response": {"name": "send", "response": {"r": MAIL}}}]},
            ],
        },
        [("input", None), ("input", None), ("tool_call", "send"), ("tool_result", "send")],
    ),
    (
        Ollama(),
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": MAIL},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "send", "arguments": {"to": MAIL}}}],
                },
                {"role": "tool", "tool_name": "send", "content": MAIL},
            ],
        },
        [("input", None), ("tool_call", "send"), ("tool_result", "send")],
    ),
    (Ollama(), {"model": "m", "system": MAIL, "prompt": MAIL}, [("input", None)] * 2),
    (
        UIMessages(),
        {
            "messages": [
                {"role": "user", "parts": [{"type": "text", "text": MAIL}]},
                {"role": "assistant", "parts": [{"type": "tool-send", "input": {"to": MAIL}, "output": {"r": MAIL}}]},
            ]
        },
        [("input", None), ("tool_call", "send"), ("tool_result", "send")],
    ),
    (Events(), {"anything": [{"at": MAIL}]}, [("input", None)]),
    (Pointers("/x", request=["/a/*/b", "/all"]), {"a": [{"b": MAIL}], "all": {"c": [MAIL]}}, [("input", None)] * 2),
]
ANSWERS: list[tuple[Dialect, Any]] = [
    (
        Chat(),
        {
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": MAIL,
                        "reasoning_content": MAIL,
                        "tool_calls": [
                            {
                                "id": "c",
                                "type": "function",
                                "function": {"name": "s", "arguments": json.dumps({"t": MAIL})},
                            },
                            {"id": "d", "type": "custom", "custom": {"name": "s", "input": MAIL}},
                        ],
                        "annotations": [{"type": "url_citation", "url_citation": {"end_index": 13, "title": "t"}}],
                    },
                    "logprobs": {"content": [{"token": MAIL, "logprob": -1.0}]},
                    "finish_reason": "tool_calls",
                }
            ],
        },
    ),
    (
        Responses(),
        {
            "object": "response",
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": MAIL}]},
                {
                    "type": "message",
                    "content": [
                        {
                            "type": "output_text",
                            "text": MAIL,
                            "annotations": [{"end_index": 13}],
                            "logprobs": [{"token": MAIL}],
                        }
                    ],
                },
                {"type": "function_call", "name": "s", "arguments": json.dumps([MAIL])},
                {"type": "mcp_call", "name": "s", "arguments": "{}", "output": MAIL},
                {"type": "web_search_call", "action": {"query": MAIL}},
            ],
        },
    ),
    (
        Anthropic(),
        {
            "type": "message",
            "content": [
                {"type": "thinking", "thinking": MAIL, "signature": "abc"},
                {"type": "text", "text": MAIL, "citations": [{"cited_text": MAIL}]},
                {"type": "tool_use", "name": "s", "input": {"to": MAIL}},
            ],
        },
    ),
    (
        Gemini(),
        {
            "candidates": [
                {
                    "content": {"parts": [{"text": MAIL}, {"functionCall": {"name": "s", "args": {"x": MAIL}}}]},
                    "groundingMetadata": {"groundingSupports": [{"segment": {"text": MAIL}}]},
                    "logprobsResult": {"chosenCandidates": [{"token": MAIL}]},
                    "finishReason": "STOP",
                }
            ]
        },
    ),
    (Ollama(), {"model": "m", "response": MAIL, "thinking": MAIL, "context": [1, 2], "done": True}),
    (Events(), [MAIL, {"x": MAIL}]),
    (Pointers("/x", answer=["/a"]), {"a": MAIL}),
]


@pytest.mark.parametrize(("dialect", "request_", "kinds"), REQUESTS)
def test_a_request_is_redacted_and_keeps_everything_else(
    dialect: Dialect, request_: Any, kinds: list[tuple[str, str | None]]
) -> None:
    data = json.dumps(request_, indent=1).encode()
    assert judged_body(data, dialect.request, lambda window: ()).data == data
    body = judged_body(data, dialect.request, detector(EMAIL))
    assert body.data == data.replace(MAIL.encode(), GONE.encode())
    found = [(finding.slot.kind, finding.slot.tool) for finding in body.findings]
    assert sorted(map(str, found)) == sorted(map(str, kinds))


@pytest.mark.parametrize(("dialect", "answer"), ANSWERS)
def test_an_answer_is_redacted_and_what_repeats_its_text_agrees(dialect: Dialect, answer: Any) -> None:
    data = json.dumps(answer).encode()
    assert judged_body(data, dialect.answer, lambda window: ()).data == data
    sent = judged_body(data, dialect.answer, detector(EMAIL)).data
    assert sent is not None
    assert MAIL.encode() not in sent
    assert GONE.encode() in sent
    json.loads(sent)


def test_annotations_tokens_and_signed_reasoning_go_with_the_text() -> None:
    chat, responses, anthropic, _, ollama = (
        json.loads(judged_body(json.dumps(answer).encode(), dialect.answer, detector(EMAIL)).data or b"")
        for dialect, answer in ANSWERS[:5]
    )
    assert chat["choices"][0]["message"]["annotations"] == []
    assert chat["choices"][0]["logprobs"] is None
    assert responses["output"][1]["content"][0] == {
        "type": "output_text",
        "text": GONE,
        "annotations": [],
        "logprobs": [],
    }
    assert [block["type"] for block in anthropic["content"]] == ["text", "tool_use"]
    assert ollama["context"] is None


def test_numbers_and_duplicate_keys_stay_as_they_are() -> None:
    data = (
        b'{"messages": [{"role": "user", "content": "a@example.com"}], "seed": 1.0e+2, "n": 1, "n": 2, "messages2": 0}'
    )
    assert judged_body(data, Chat().request, detector(EMAIL)).data == data.replace(b"a@example.com", b"[0]")


def test_a_message_that_a_second_key_hides_is_judged() -> None:
    data = b'{"messages": [{"role": "user", "content": "a@example.com"}], "messages": []}'
    body = judged_body(data, Chat().request, detector(EMAIL))
    assert body.data == data.replace(b"a@example.com", b"[0]")


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"\xff",
        b"[]",
        b'{"messages": {}}',
        b'{"messages": [1]}',
        b'{"messages": [{"role": "user", "content": 1}]}',
        b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}]}',
        b"[" * 100_000,
    ],
)
def test_a_malformed_body_is_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(UnreadableError, match=r"expected|deeper"):
        Body(data, Chat().request, Judges([LOCAL]))


def test_judges_hear_only_the_kinds_that_they_are_for() -> None:
    judge = Judge(name="local", on=frozenset({"tool_result"}))
    body = judged_body(json.dumps(REQUESTS[0][1]).encode(), Chat().request, detector(EMAIL), judge)
    assert [finding.slot.kind for finding in body.findings] == ["tool_result"]
    assert body.data is not None
    assert body.data.count(MAIL.encode()) == 3


def test_a_block_holds_the_body_back() -> None:
    body = judged_body(json.dumps(REQUESTS[0][1]).encode(), Chat().request, lambda window: [Block("no")])
    assert body.data is None
    assert body.blocked is not None
    assert body.blocked.block.reason == "no"


def test_flags_change_nothing() -> None:
    data = json.dumps(REQUESTS[0][1]).encode()
    body = judged_body(data, Chat().request, lambda window: [Flag(0, 1, "x")])
    assert body.data == data
    assert {finding.found.category for finding in body.findings} == {"x"}


def test_a_span_outside_of_the_text_is_an_error_and_the_verdict_is_still_to_come() -> None:
    body = Body(b'{"prompt": "abc"}', Chat().request, Judges([LOCAL]))
    (inspection,) = body.inspections()
    with pytest.raises(AgentProtocolError, match="code points"):
        body.verdict(inspection, [Redact(0, 4)])
    body.verdict(inspection, [Redact(0, 1, "x"), Redact(1, 2, "y"), Redact(1, 3, "z")])
    assert body.data == b'{"prompt": "xy"}'


def test_many_texts_are_judged_a_few_at_a_time() -> None:
    data = json.dumps({"prompt": [f"{MAIL} {number}" for number in range(100)]}).encode()
    body = Body(data, Chat().request, Judges([LOCAL]))
    most = 0
    while inspections := body.inspections():
        most = max(most, len(inspections))
        for inspection in inspections:
            body.verdict(inspection, detector(EMAIL)(inspection.window))
    assert body.data == data.replace(MAIL.encode(), GONE.encode())
    assert most <= 16


def test_redacting_judges_in_a_row_and_one_beside() -> None:
    judges = [Judge(name="first"), Judge(name="beside", redacts=False), Judge(name="second")]
    body = Body(b'{"prompt": "abc"}', Chat().request, Judges(judges))
    first, beside = body.inspections()
    assert (first.judge.name, beside.judge.name) == ("first", "beside")
    body.verdict(first, [Redact(0, 1, "xx")])
    (second,) = body.inspections()
    assert second.window.text == "xxbc"
    body.verdict(second, [Redact(0, 1, "")])
    assert body.data is None
    body.verdict(beside, ())
    assert body.data == b'{"prompt": "xbc"}'


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("/v1/chat/completions", {}, "openai.chat"),
        ("/v1/completions", {}, "openai.chat"),
        ("/openai/deployments/x/chat/completions", {}, "openai.chat"),
        ("/v1/responses", {}, "openai.responses"),
        ("/v1/messages", {"messages": []}, "anthropic.messages"),
        ("/v1beta/models/gemini-2.5-flash:streamGenerateContent", {}, "gemini"),
        ("/api/chat", {}, "ollama"),
        ("/api/generate", {}, "ollama"),
        ("/chat", {"messages": [{"role": "user", "parts": []}]}, "ai-sdk.ui"),
        ("/chat", {"messages": [{"role": "user", "content": "x"}]}, "openai.chat"),
        ("/chat", {"question": "x"}, "unknown"),
    ],
)
def test_the_dialect_of_a_request(path: str, value: Any, name: str) -> None:
    assert of_request(path, value).name == name


def test_the_dialect_of_an_answer_is_that_of_its_shape() -> None:
    for dialect, answer in ANSWERS[:5]:
        assert of_answer(Chat(), answer).name == dialect.name
        assert of_answer(Events(), answer).name == dialect.name
    assert of_answer(Chat(), {"text": "x"}).name == "unknown"
    own = Pointers("/x", answer=["/a"])
    assert of_answer(own, {"a": 1}) is own


@pytest.mark.parametrize(
    ("dialect", "request_", "expected"),
    [
        (Chat(), {"model": "m", "user": "u", "stream": True, "tools": TOOLS}, ("m", "u", True, ("send",))),
        (Responses(), {"model": "m", "tools": [{"type": "function", "name": "send"}]}, ("m", None, False, ("send",))),
        (
            Anthropic(),
            {"model": "m", "metadata": {"user_id": "u"}, "tools": [{"name": "send"}]},
            ("m", "u", False, ("send",)),
        ),
        (Gemini(), {"tools": [{"functionDeclarations": [{"name": "send"}]}]}, (None, None, False, ("send",))),
        (Ollama(), {"model": "m", "tools": TOOLS}, ("m", None, True, ("send",))),
        (UIMessages(), {"messages": []}, (None, None, True, ())),
        (Events(), {"model": "m"}, ("m", None, False, ())),
        (Pointers("/"), {"model": "m"}, ("m", None, False, ())),
    ],
)
def test_what_a_request_asks_for(dialect: Dialect, request_: Any, expected: Any) -> None:
    call = dialect.call(request_, "/")
    assert (call.model, call.user, call.stream, call.tools) == expected
    assert call.dialect == dialect.name


@pytest.mark.parametrize("dialect", [*BUILT_IN, Events(), PlainText(), Pointers("/")], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("status", [400, 503, 504])
def test_a_call_that_is_stopped_is_told_why(dialect: Dialect, status: int) -> None:
    reply = dialect.reply(Stop("the reason", status))
    assert reply.status == status
    assert b"the reason" in reply.body
    if reply.media_type == "application/json":
        assert "error" in json.loads(reply.body)


def test_a_pointer_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected a JSON pointer"):
        Pointers("/", request=["messages"])


def test_a_body_of_too_many_texts_is_not_read() -> None:
    assert len(uncovered({"anything": ["a"] * MAX_TEXTS}, [])) == MAX_TEXTS
    with pytest.raises(TooComplexError, match="more than 20000 texts"):
        uncovered({"anything": ["a"] * (MAX_TEXTS + 1)}, [])
    with pytest.raises(TooComplexError, match="more than 20000 texts"):
        Events().request(["a"] * (MAX_TEXTS + 1))
