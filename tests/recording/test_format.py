"""The lines of a recording: what was written is read again, and nothing else is."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from asgi_agents import (
    ConfigureEvent,
    Detection,
    Encoding,
    EventType,
    Failure,
    FailureKind,
    GuardrailInspectEvent,
    GuardrailResponse,
    Severity,
    TextSpan,
)
from asgi_agents.protocol import ALLOW, Answer, decode_answer, encode_event
from asgi_agents.recording.cleaning import Cleaner
from asgi_agents.recording.format import (
    PLAIN_ALLOW,
    AgentLine,
    EndLine,
    ExchangeLine,
    RecordingLine,
    compact_answer,
    decode_line,
    encode_line,
    encode_plain,
    failure_line,
)
from asgi_agents.recording.reading import Traffic
from tests.protocol.test_codec import STRATEGIES, responses, steady

OPENING = RecordingLine(version=1, protocol=2, time="2026-01-01T00:00:00Z", bodies=True, redaction="none")
WAF = AgentLine(
    agent="waf",
    transport="in_process",
    events=[EventType.REQUEST_HEADERS],
    body_access="write",
    may_set_host=False,
    timeout=1.0,
    chunk_timeout=5.0,
)
AWKWARD = GuardrailInspectEvent(correlation_id="a\nb", inspection_type="x", content="1\r\n2\u20283")
END = EndLine(exchanges=1, dropped=0, reason="closed")

detections = st.builds(
    Detection,
    category=st.text(min_size=1, max_size=8),
    description=st.text(max_size=8),
    severity=st.sampled_from(Severity),
    confidence=st.none() | st.floats(0, 1),
    span=st.none() | st.builds(TextSpan, st.integers(0, 5), st.integers(5, 9)),
    replacement=st.none() | st.text(max_size=5),
    action=st.none() | st.sampled_from(["redact", "block", "flag"]),
)
inspections = st.builds(
    GuardrailResponse,
    detected=st.booleans(),
    confidence=st.floats(0, 1),
    detections=st.lists(detections, max_size=2),
    redacted_content=st.none() | st.text(max_size=8),
)


def exchange_line(event: Any, answer: Answer, **fields: Any) -> ExchangeLine:
    return ExchangeLine(
        n=1,
        agent="waf",
        at=0.5,
        seconds=0.25,
        event=Raw(encode_event(event, Encoding.JSON)),
        answer=encode_plain(compact_answer(answer)),
        **fields,
    )


@pytest.mark.parametrize(
    "kind", [kind for kind in STRATEGIES if kind is not ConfigureEvent], ids=lambda kind: kind.__name__
)
@steady
@given(data=st.data())
def test_what_is_recorded_is_read_again(
    data: st.DataObject, kind: type[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    event = data.draw(STRATEGIES[kind])
    strategy: st.SearchStrategy[Any] = inspections if event.event_type is EventType.GUARDRAIL_INSPECT else responses
    answer: Answer = data.draw(strategy)
    path = tmp_path_factory.getbasetemp() / f"{kind.__name__}.jsonl"
    cleaner = Cleaner(bodies=True, redact=None)
    cleaned, said = cleaner.event(event), cleaner.answer(answer)

    assert (cleaned.left_out, cleaned.redacted, said.left_out, said.redacted) == ({}, False, {}, False)
    line = exchange_line(cleaned.value, said.value, route="/{rest:path}", chunk=True)
    path.write_bytes(encode_line(OPENING) + encode_line(WAF) + encode_line(line) + encode_line(END))
    with Traffic(path) as traffic:
        (exchange,) = traffic.exchanges()
        assert (traffic.opening, traffic.agents, traffic.end, traffic.torn) == (OPENING, {"waf": WAF}, END, False)
    assert exchange.event == event
    assert exchange.decoded_answer() == answer
    assert (exchange.line, exchange.about.route, exchange.about.chunk) == (3, "/{rest:path}", True)


@steady
@given(answer=responses)
def test_what_an_answer_says_by_default_takes_no_room(answer: Answer) -> None:
    compact = compact_answer(answer)
    assert all(value not in (None, [], {}) and value is not False for name, value in compact.items())
    assert decode_answer(bytes(encode_plain(compact)), Encoding.JSON, EventType.REQUEST_HEADERS) == answer


def test_a_plain_allow_is_the_shortest_answer() -> None:
    assert compact_answer(ALLOW) == PLAIN_ALLOW
    assert decode_answer(bytes(encode_plain(PLAIN_ALLOW)), Encoding.JSON, EventType.REQUEST_HEADERS) is ALLOW


@pytest.mark.parametrize("kind", FailureKind)
def test_a_failure_is_read_again(kind: FailureKind) -> None:
    failure = failure_line(Failure(kind, "not this", 1.5), "in words")
    line = ExchangeLine(n=1, agent="waf", at=0, seconds=0, event=Raw(b"{}"), failure=failure)
    found = decode_line(encode_line(line)[:-1])
    assert isinstance(found, ExchangeLine)
    assert found.failure == failure
    assert (failure.kind, failure.message, failure.retry_after) == (kind, "in words", 1.5)


def test_each_line_ends_and_has_no_end_within(tmp_path: Path) -> None:
    for line in (OPENING, WAF, END, exchange_line(AWKWARD, ALLOW)):
        encoded = encode_line(line)
        assert encoded.endswith(b"}\n")
        assert encoded.count(b"\n") == 1
