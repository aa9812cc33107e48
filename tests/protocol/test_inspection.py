"""The spans of detections, and what the short answers may contain."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_agents.errors import AgentProtocolError
from asgi_agents.protocol import (
    Acknowledgement,
    Detection,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    InspectionType,
    Severity,
    TextSpan,
    check_acknowledgement,
    check_inspection,
    decode_event,
    encode_event,
)
from asgi_agents.protocol.inspection import count_code_points

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# One to four bytes of UTF-8 each.
texts = st.text(st.sampled_from("aé€😀\n\0"), max_size=12)


def found(*spans: TextSpan | None) -> GuardrailResponse:
    detections = [Detection(category="c", description="d", span=span) for span in spans]
    return GuardrailResponse(detected=True, detections=detections)


def spans_of(answer: GuardrailResponse) -> list[TextSpan | None]:
    return [detection.span for detection in answer.detections]


# Bytes


@steady
@given(st.data(), texts)
def test_a_span_in_bytes_is_the_same_text_in_code_points(data: st.DataObject, content: str) -> None:
    offset = st.integers(0, len(content))
    expected = [
        TextSpan(*sorted(pair)) for pair in data.draw(st.lists(st.tuples(offset, offset), max_size=5), "code points")
    ]
    in_bytes = [TextSpan(len(content[: span.start].encode()), len(content[: span.end].encode())) for span in expected]

    converted = count_code_points(found(None, *in_bytes), content)

    assert spans_of(converted) == [None, *expected]
    for span, counted in zip(expected, in_bytes, strict=True):
        assert content.encode()[counted.start : counted.end].decode() == content[span.start : span.end]


@steady
@given(texts, st.integers(-3, 60), st.integers(-3, 60))
def test_every_span_in_bytes_is_converted_or_refused(content: str, start: int, end: int) -> None:
    data = content.encode()
    boundaries = [len(content[:index].encode()) for index in range(len(content) + 1)]
    answer = found(TextSpan(0, 0), TextSpan(start, end))

    if start in boundaries and end in boundaries and start <= end:
        span = spans_of(count_code_points(answer, content))[1]
        assert span is not None
        assert (span.start, span.end) == (boundaries.index(start), boundaries.index(end))
        return
    with pytest.raises(AgentProtocolError) as refused:
        count_code_points(answer, content)
    at_fault = {"start": start, "end": end}
    field = str(refused.value).removeprefix("detections[1].span.").partition(":")[0]
    assert at_fault[field] not in boundaries or end < start
    assert len(data) == boundaries[-1]


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (TextSpan(1, 3), "detections[0].span.start: expected the beginning of a character, got byte 1 within one"),
        (TextSpan(0, 1), "detections[0].span.end: expected the beginning of a character, got byte 1 within one"),
        (TextSpan(0, 4), "detections[0].span.end: expected at most 3, the bytes of the content, got 4"),
        (TextSpan(-1, 2), "detections[0].span.start: expected at least 0, got -1"),
        (TextSpan(2, 0), "detections[0].span.end: expected at least its start, got 0"),
    ],
)
def test_a_span_in_bytes_that_means_no_text_is_refused_by_name(span: TextSpan, message: str) -> None:
    with pytest.raises(AgentProtocolError) as refused:
        count_code_points(found(span), "éa")
    assert str(refused.value) == message


def test_many_spans_of_a_long_content_are_converted_in_one_pass() -> None:
    content = "é" * 200_000
    converted = count_code_points(found(*(TextSpan(2 * at, 2 * at + 2) for at in range(50_000))), content)
    assert spans_of(converted)[-1] == TextSpan(49_999, 50_000)


def test_an_answer_without_spans_stays_as_it_is() -> None:
    answer = found(None)
    assert count_code_points(answer, "é") is answer


# Code points


@steady
@given(texts, st.integers(-3, 20), st.integers(-3, 20))
def test_a_span_is_within_the_content(content: str, start: int, end: int) -> None:
    answer = found(TextSpan(start, end))
    if 0 <= start <= end <= len(content):
        assert check_inspection(answer, content) is answer
        return
    with pytest.raises(AgentProtocolError, match=r"^detections\[0\]\.span\.(start|end): expected at (least|most) "):
        check_inspection(answer, content)


def test_a_span_behind_the_end_is_most_likely_one_in_bytes() -> None:
    with pytest.raises(AgentProtocolError) as refused:
        check_inspection(found(TextSpan(0, 3)), "éa")
    assert str(refused.value) == (
        "detections[0].span.end: expected at most 2, the code points of the content, got 3; "
        "a remote agent that counts bytes needs span_unit='bytes'"
    )


# The rest


@pytest.mark.parametrize("severity", list(Severity))
def test_a_severity_may_be_given_as_its_word(severity: Severity) -> None:
    given_as_word: Any = severity.value
    detection = Detection(category="c", description="d", severity=given_as_word)
    assert detection.severity is severity


def test_a_short_answer_that_is_right_is_returned_as_it_is() -> None:
    answer = found(TextSpan(0, 1))
    acknowledgement = Acknowledgement(success=False, error="no")
    assert check_inspection(answer, "x") is answer
    assert check_acknowledgement(acknowledgement) is acknowledgement


# What agents are asked


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("inspection_type", ["pii_detection", "prompt_injection", "toxicity", "x-own.1"])
def test_an_inspection_type_is_any_token_and_those_of_the_protocol_are_constants(
    encoding: Encoding, inspection_type: str
) -> None:
    event = GuardrailInspectEvent(correlation_id="c", inspection_type=inspection_type, content="")
    known = inspection_type in set(InspectionType)

    received: Event = decode_event(encode_event(event, encoding), encoding)

    for given_type in (event.inspection_type, received.inspection_type):  # type: ignore[union-attr]
        assert given_type == inspection_type
        assert isinstance(given_type, InspectionType) is known
    assert received.event_type is EventType.GUARDRAIL_INSPECT


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"inspection_type": ""}, ValueError, "inspection_type: expected a token such as 'pii_detection', got ''"),
        ({"inspection_type": "a\n"}, ValueError, r"inspection_type: expected a token .*, got 'a\\n'"),
        ({"inspection_type": 1}, TypeError, "inspection_type: expected a str, got int"),
        ({"content": b"x"}, TypeError, "content: expected str, got bytes"),
        ({"content": None}, TypeError, "content: expected str, got NoneType"),
        ({"model": 1}, TypeError, "model: expected str, got int"),
        ({"categories": "pii"}, TypeError, "categories: expected a sequence of strings, got str"),
        ({"categories": [1]}, TypeError, "categories: expected str, got int"),
        ({"metadata": ["a"]}, TypeError, "metadata: expected a mapping of strings to strings, got list"),
        ({"metadata": {"a": 1}}, TypeError, "metadata: expected str, got int"),
    ],
    ids=repr,
)
def test_a_question_that_is_wrong_says_which_field_is(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    right: dict[str, Any] = {"correlation_id": "c", "inspection_type": "pii_detection", "content": "x"}
    with pytest.raises(error, match=f"^{message}$"):
        GuardrailInspectEvent(**right | fields)


@steady
@given(st.text(st.sampled_from("a\ud800\udfff😀"), max_size=8))
def test_a_surrogate_is_replaced_by_one_character(text: str) -> None:
    event = GuardrailInspectEvent(correlation_id="c", inspection_type="x", content=text)
    assert [a if b != "\ufffd" else "\ufffd" for a, b in zip(text, event.content, strict=True)] == list(event.content)
    event.content.encode()
