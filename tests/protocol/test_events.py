from typing import Any

import pytest

from asgi_agents.protocol import (
    EVENT_CLASSES,
    PROTOCOL_VERSION,
    ConfigureEvent,
    Event,
    EventType,
    GuardrailInspectEvent,
    Headers,
    InspectionType,
    Opcode,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    WebSocketFrameEvent,
)
from tests.support.sample_events import METADATA

EVENTS: list[Event] = [
    ConfigureEvent(agent_id="waf", config={"rules": [1]}),
    RequestHeadersEvent(metadata=METADATA, method="GET", uri="/", headers=Headers({"Host": ["a"]})),
    RequestBodyChunkEvent(correlation_id="c", data=b"x", is_last=True),
    ResponseHeadersEvent(correlation_id="c", status=200, headers=Headers({"x": ["1", "2"]})),
    ResponseBodyChunkEvent(correlation_id="c", data=b"x", is_last=True),
    RequestCompleteEvent(
        correlation_id="c",
        status=200,
        duration_ms=1,
        request_body_size=0,
        response_body_size=0,
        upstream_attempts=1,
    ),
    WebSocketFrameEvent(
        correlation_id="c", opcode=Opcode.TEXT, data=b"x", client_to_server=True, frame_index=0, client_ip=""
    ),
    GuardrailInspectEvent(correlation_id="c", inspection_type=InspectionType.PII_DETECTION, content="x"),
]


def test_the_protocol_is_version_2() -> None:
    assert PROTOCOL_VERSION == 2


def test_every_event_type_has_a_class_that_knows_its_type() -> None:
    assert set(EVENT_CLASSES) == set(EventType)
    assert all(cls.event_type is event_type for event_type, cls in EVENT_CLASSES.items())
    assert {type(event) for event in EVENTS} == set(EVENT_CLASSES.values())


@pytest.mark.parametrize(
    ("kind", "spelling"),
    [
        (EventType, "configure request_headers request_body_chunk response_headers response_body_chunk "),
        (EventType, "request_complete websocket_frame guardrail_inspect"),
        (Opcode, "text binary ping pong close continuation"),
        (InspectionType, "prompt_injection pii_detection"),
    ],
)
def test_enums_are_spelt_as_on_the_wire(kind: Any, spelling: str) -> None:
    assert {kind(word).value for word in spelling.split()} == set(spelling.split())


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event_type.value)
def test_events_are_frozen(event: Event) -> None:
    for field in event.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(event, field, None)


def test_a_header_is_asked_for_in_any_case_and_its_first_value_counts() -> None:
    request = RequestHeadersEvent(
        metadata=METADATA, method="GET", uri="/", headers=Headers({"x-a": ["1", "2"], "x-b": []})
    )
    response = ResponseHeadersEvent(correlation_id="c", status=200, headers=request.headers)

    for event in (request, response):
        assert event.header("X-A") == "1"
        assert event.header("x-b") is None
        assert event.header("x-c") is None


def test_a_request_has_the_correlation_id_of_its_metadata() -> None:
    assert RequestHeadersEvent(metadata=METADATA, method="GET", uri="/", headers=Headers()).correlation_id == "c"


def test_logging_an_event_does_not_log_header_values() -> None:
    event = RequestHeadersEvent(
        metadata=METADATA, method="GET", uri="/", headers=Headers({"authorization": ["Bearer hunter2"]})
    )

    assert "hunter2" not in repr(event)
