from typing import Any

import pytest

from asgi_agents import (
    AgentResponse,
    Block,
    GuardrailInspectEvent,
    Headers,
    InspectionType,
    RequestCompleteEvent,
    ResponseHeadersEvent,
)
from asgi_agents import ResponseBodyChunkEvent as Chunk
from example_app.redactor import PiiRedactor


async def _begin(agent: PiiRedactor, correlation_id: str, content_type: str) -> None:
    headers = Headers({"content-type": [content_type]})
    assert (
        await agent.on_response_headers(
            ResponseHeadersEvent(correlation_id=correlation_id, status=200, headers=headers)
        )
        is None
    )


async def _pass(agent: PiiRedactor, correlation_id: str, data: bytes, last: bool = False) -> bytes:
    answer = await agent.on_response_body_chunk(Chunk(correlation_id=correlation_id, data=data, is_last=last))
    if answer is None:
        return data
    assert answer.response_body_mutation is not None
    assert answer.response_body_mutation.data is not None
    return answer.response_body_mutation.data


async def _complete(agent: PiiRedactor, correlation_id: str) -> None:
    await agent.on_request_complete(
        RequestCompleteEvent(
            correlation_id=correlation_id,
            status=200,
            duration_ms=1,
            request_body_size=0,
            response_body_size=0,
            upstream_attempts=1,
        )
    )


async def test_connections_do_not_mix() -> None:
    agent = PiiRedactor()
    await _begin(agent, "1", "text/plain")
    await _begin(agent, "2", "text/plain")
    assert await _pass(agent, "1", b"to bob@exa") == b"to "
    assert await _pass(agent, "2", b"on example") == b"on "
    assert await _pass(agent, "1", b"mple.org.", last=True) == b"[email]."
    assert await _pass(agent, "2", b".com", last=True) == b"example.com"


async def test_what_is_not_text_passes() -> None:
    agent = PiiRedactor()
    await _begin(agent, "1", "image/png")
    assert await _pass(agent, "1", b"bob@example.org", last=True) == b"bob@example.org"


async def _head(status: int = 200, **fields: list[str]) -> AgentResponse | None:
    headers = Headers({name.replace("_", "-"): values for name, values in fields.items()})
    return await PiiRedactor().on_response_headers(
        ResponseHeadersEvent(correlation_id="1", status=status, headers=headers)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"content_type": ["text/plain; charset=utf-16"]},
        {"content_type": ["application/json"], "content_encoding": ["gzip"]},
        {"content_type": ["application/json"], "content_encoding": ["identity", "br"]},
        {"content_encoding": ["identity, gzip"]},
        {"content_type": ["image/png", "text/plain"]},
        {"content_type": ["multipart/mixed; boundary=x"]},
        {"content_type": ["text/plain"], "status": 206},
    ],
)
async def test_what_cannot_be_read_is_refused(fields: dict[str, Any]) -> None:
    answer = await _head(**fields)
    assert answer is not None
    assert isinstance(answer.decision, Block)
    assert (answer.decision.status, answer.decision.body) == (500, "The response can't be inspected")


@pytest.mark.parametrize(
    "fields",
    [
        {"content_type": ["image/png"], "content_encoding": ["gzip"], "status": 206},
        {"content_type": ["application/json; charset=utf-8"], "content_encoding": ["Identity"]},
        {"content_type": ["text/plain", "text/plain"]},
        {},
    ],
)
async def test_what_can_be_read_or_need_not_be_is_not_refused(fields: dict[str, Any]) -> None:
    assert await _head(**fields) is None


@pytest.mark.parametrize(
    ("content_type", "data"),
    [("application/json", b'{"a": '), ("text/plain", b"b\0o\0b\0"), ("application/x-ndjson", b"{}\nbob@example.org\n")],
)
@pytest.mark.parametrize("size", [0, 40_000])
async def test_a_body_that_is_not_what_it_says_is_refused(content_type: str, data: bytes, size: int) -> None:
    agent = PiiRedactor()
    await _begin(agent, "1", content_type)
    answer = await agent.on_response_body_chunk(Chunk(correlation_id="1", data=data + b" " * size, is_last=True))
    assert answer is not None
    assert isinstance(answer.decision, Block)
    assert (answer.decision.status, answer.decision.body) == (500, "The response can't be inspected")


async def test_large_bodies_are_redacted_as_small_ones_are() -> None:
    agent = PiiRedactor()
    await _begin(agent, "1", "application/json")
    assert await _pass(agent, "1", b'["bob@example.org"' + b" " * 40_000 + b"]", last=True) == (
        b'["[email]"' + b" " * 40_000 + b"]"
    )


async def test_state_goes_when_the_connection_has_ended_even_in_the_middle() -> None:
    agent = PiiRedactor()
    await _begin(agent, "1", "text/plain")
    await _pass(agent, "1", b"bob@exa")
    await _complete(agent, "1")
    await _complete(agent, "never begun")
    with pytest.raises(KeyError):
        await _pass(agent, "1", b"mple.org", last=True)


async def test_guardrail_tells_what_it_found_and_what_is_left() -> None:
    event = GuardrailInspectEvent(
        correlation_id="1", inspection_type=InspectionType.PII_DETECTION, content="für bob@example.org"
    )
    answer = await PiiRedactor().on_guardrail_inspect(event)
    assert answer is not None
    assert answer.detected
    assert answer.redacted_content == "für [email]"
    (detection,) = answer.detections
    assert detection.span is not None
    assert event.content[detection.span.start : detection.span.end] == "bob@example.org"
    assert "bob" not in detection.description


async def test_guardrail_has_no_opinion_on_prompt_injection() -> None:
    event = GuardrailInspectEvent(
        correlation_id="1", inspection_type=InspectionType.PROMPT_INJECTION, content="bob@example.org"
    )
    assert await PiiRedactor().on_guardrail_inspect(event) is None
