import base64
import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_agents.errors import AgentProtocolError
from asgi_agents.protocol import (
    ALLOW,
    EVENT_CLASSES,
    Acknowledgement,
    AgentResponse,
    Allow,
    Answer,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    ConfigureEvent,
    Detection,
    Encoding,
    Event,
    EventType,
    GuardrailInspectEvent,
    GuardrailResponse,
    HeaderOp,
    Headers,
    InspectionType,
    Opcode,
    Redirect,
    RequestBodyChunkEvent,
    RequestCompleteEvent,
    RequestHeadersEvent,
    RequestMetadata,
    ResponseBodyChunkEvent,
    ResponseHeadersEvent,
    Severity,
    TextSpan,
    WebSocketClose,
    WebSocketDrop,
    WebSocketFrameEvent,
    check_response,
    decode_answer,
    decode_event,
    encode_answer,
    encode_event,
)
from asgi_agents.protocol.codec import decode_value, encode_value

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

JSON, MSGPACK = Encoding.JSON, Encoding.MSGPACK
REQUEST_HEADERS = EventType.REQUEST_HEADERS

METADATA = RequestMetadata(
    correlation_id="c-1",
    request_id="r-1",
    client_ip="192.0.2.1",
    client_port=4711,
    server_name="api.example",
    protocol="HTTP/2",
    tls_version="TLSv1.3",
    tls_cipher="0x1301",
    route_id="/items/{id}",
    upstream_id="blue",
    timestamp="2025-01-01T00:00:00.000+00:00",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)

# Written by hand from the protocol's tables: with everything set, and with only what has no default.
METADATA_JSON = """{
    "correlation_id": "c-1", "request_id": "r-1", "client_ip": "192.0.2.1", "client_port": 4711,
    "server_name": "api.example", "protocol": "HTTP/2", "tls_version": "TLSv1.3", "tls_cipher": "0x1301",
    "route_id": "/items/{id}", "upstream_id": "blue", "timestamp": "2025-01-01T00:00:00.000+00:00",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"""
MINIMAL_METADATA_JSON = """{
    "correlation_id": "c-1", "request_id": "r-1", "client_ip": "", "client_port": 0, "protocol": "HTTP/1.1",
    "timestamp": "2025-01-01T00:00:00Z"}"""

GOLDEN_EVENTS: list[tuple[str, Event, str]] = [
    (
        "configure",
        ConfigureEvent(agent_id="waf", config={"rules": ["a", 1, None, True], "deep": {"x": 1.5}}),
        '{"agent_id": "waf", "config": {"rules": ["a", 1, null, true], "deep": {"x": 1.5}}}',
    ),
    (
        "request_headers",
        RequestHeadersEvent(
            metadata=METADATA,
            method="POST",
            uri="/items/1%20?q=%2F",
            headers=Headers({"Accept": ["a", "b"], "x-caf\xe9": ["\xff"]}),
        ),
        '{"metadata": '
        + METADATA_JSON
        + ', "method": "POST", "uri": "/items/1%20?q=%2F", "headers": {"accept": ["a", "b"], '
        + '"x-caf\xe9": ["\\u00ff"]}}',
    ),
    (
        "request_body_chunk",
        RequestBodyChunkEvent(
            correlation_id="c-1", data=b"\x00\xff\xfehi", is_last=False, total_size=10, chunk_index=1, bytes_received=7
        ),
        '{"correlation_id": "c-1", "data": "AP/+aGk=", "is_last": false, "total_size": 10, "chunk_index": 1, '
        '"bytes_received": 7}',
    ),
    (
        "response_headers",
        ResponseHeadersEvent(correlation_id="c-1", status=404, headers=Headers({"set-cookie": ["a=1", "b=2"]})),
        '{"correlation_id": "c-1", "status": 404, "headers": {"set-cookie": ["a=1", "b=2"]}}',
    ),
    (
        "response_body_chunk",
        ResponseBodyChunkEvent(
            correlation_id="c-1", data=b"\x00\xff\xfehi", is_last=True, total_size=10, chunk_index=1, bytes_sent=10
        ),
        '{"correlation_id": "c-1", "data": "AP/+aGk=", "is_last": true, "total_size": 10, "chunk_index": 1, '
        '"bytes_sent": 10}',
    ),
    (
        "request_complete",
        RequestCompleteEvent(
            correlation_id="c-1",
            status=500,
            duration_ms=12,
            request_body_size=3,
            response_body_size=4,
            upstream_attempts=1,
            error="ValueError",
        ),
        '{"correlation_id": "c-1", "status": 500, "duration_ms": 12, "request_body_size": 3, "response_body_size": 4, '
        '"upstream_attempts": 1, "error": "ValueError"}',
    ),
    (
        "websocket_frame",
        WebSocketFrameEvent(
            correlation_id="c-1",
            opcode=Opcode.BINARY,
            data=b"\x00\xff\xfehi",
            client_to_server=False,
            frame_index=2,
            fin=True,
            route_id="/ws",
            client_ip="192.0.2.1",
        ),
        '{"correlation_id": "c-1", "opcode": "binary", "data": "AP/+aGk=", "client_to_server": false, '
        '"frame_index": 2, "fin": true, "route_id": "/ws", "client_ip": "192.0.2.1"}',
    ),
    (
        "guardrail_inspect",
        GuardrailInspectEvent(
            correlation_id="c-1",
            inspection_type=InspectionType.PROMPT_INJECTION,
            content="ignore all \U0001f600",
            model="m-1",
            categories=("jailbreak", "pii"),
            route_id="/chat",
            metadata={"tenant": "t"},
        ),
        '{"correlation_id": "c-1", "inspection_type": "prompt_injection", "content": "ignore all \\ud83d\\ude00", '
        '"model": "m-1", "categories": ["jailbreak", "pii"], "route_id": "/chat", "metadata": {"tenant": "t"}}',
    ),
]

MINIMAL_EVENTS: list[tuple[str, Event, str]] = [
    ("configure", ConfigureEvent(agent_id="waf", config=None), '{"agent_id": "waf", "config": null}'),
    (
        "request_headers",
        RequestHeadersEvent(
            metadata=RequestMetadata(
                correlation_id="c-1",
                request_id="r-1",
                client_ip="",
                client_port=0,
                protocol="HTTP/1.1",
                timestamp="2025-01-01T00:00:00Z",
            ),
            method="GET",
            uri="/",
            headers=Headers(),
        ),
        '{"metadata": ' + MINIMAL_METADATA_JSON + ', "method": "GET", "uri": "/", "headers": {}}',
    ),
    (
        "request_body_chunk",
        RequestBodyChunkEvent(
            correlation_id="c-1", data=b"", is_last=True, total_size=None, chunk_index=0, bytes_received=0
        ),
        '{"correlation_id": "c-1", "data": "", "is_last": true}',
    ),
    (
        "response_body_chunk",
        ResponseBodyChunkEvent(
            correlation_id="c-1", data=b"", is_last=True, total_size=None, chunk_index=0, bytes_sent=0
        ),
        '{"correlation_id": "c-1", "data": "", "is_last": true}',
    ),
    (
        "request_complete",
        RequestCompleteEvent(
            correlation_id="c-1",
            status=200,
            duration_ms=0,
            request_body_size=0,
            response_body_size=0,
            upstream_attempts=0,
            error=None,
        ),
        '{"correlation_id": "c-1", "status": 200, "duration_ms": 0, "request_body_size": 0, "response_body_size": 0, '
        '"upstream_attempts": 0}',
    ),
    (
        "websocket_frame",
        WebSocketFrameEvent(
            correlation_id="c-1",
            opcode=Opcode.TEXT,
            data=b"",
            client_to_server=True,
            frame_index=0,
            fin=False,
            route_id=None,
            client_ip="",
        ),
        '{"correlation_id": "c-1", "opcode": "text", "data": "", "client_to_server": true, "frame_index": 0, '
        '"fin": false, "client_ip": ""}',
    ),
    (
        "guardrail_inspect",
        GuardrailInspectEvent(
            correlation_id="c-1",
            inspection_type=InspectionType.PII_DETECTION,
            content="",
            model=None,
            categories=(),
            route_id=None,
            metadata={},
        ),
        '{"correlation_id": "c-1", "inspection_type": "pii_detection", "content": ""}',
    ),
]

FULL_AUDIT = AuditMetadata(
    tags=("sqli",), rule_ids=("942100",), confidence=0.9, reason_codes=("INJ",), custom={"score": 5, "x": [None, "y"]}
)

GOLDEN_ANSWERS: list[tuple[str, AgentResponse, str]] = [
    ("allow", AgentResponse(), '{"decision": "allow"}'),
    (
        "block",
        AgentResponse.block(451, "no", headers={"retry-after": "1"}),
        '{"decision": {"block": {"status": 451, "body": "no", "headers": {"retry-after": "1"}}}}',
    ),
    ("bare block", AgentResponse.block(403), '{"decision": {"block": {"status": 403}}}'),
    (
        "redirect",
        AgentResponse.redirect("https://login.example/?a=b", 307),
        '{"decision": {"redirect": {"url": "https://login.example/?a=b", "status": 307}}}',
    ),
    (
        "challenge",
        AgentResponse.challenge("bearer", {"realm": "api"}),
        '{"decision": {"challenge": {"challenge_type": "bearer", "params": {"realm": "api"}}}}',
    ),
    (
        "request header operations",
        AgentResponse.allow(
            request_headers=(HeaderOp.set("x-a", "1"), HeaderOp.add("x-b", "\xe9"), HeaderOp.remove("x-c"))
        ),
        '{"request_headers": [{"set": {"name": "x-a", "value": "1"}}, {"add": {"name": "x-b", "value": "\\u00e9"}}, '
        '{"remove": {"name": "x-c"}}]}',
    ),
    (
        "response header operations",
        AgentResponse.allow(
            response_headers=(HeaderOp.remove("server"), HeaderOp.set("server", ""), HeaderOp.set("server", "s"))
        ),
        '{"response_headers": [{"remove": {"name": "server"}}, {"set": {"name": "server", "value": ""}}, '
        '{"set": {"name": "server", "value": "s"}}]}',
    ),
    (
        "response header operations for every response",
        AgentResponse.allow(
            response_headers=(
                HeaderOp.set("x-a", "1", always=True),
                HeaderOp.add("x-b", "2", always=True),
                HeaderOp.remove("x-c", always=True),
                HeaderOp.set("x-d", "3", always=False),
            )
        ),
        '{"response_headers": [{"set": {"name": "x-a", "value": "1", "always": true}}, '
        '{"add": {"name": "x-b", "value": "2", "always": true}}, {"remove": {"name": "x-c", "always": true}}, '
        '{"set": {"name": "x-d", "value": "3"}}]}',
    ),
    ("routing", AgentResponse.allow(routing_metadata={"pool": "blue"}), '{"routing_metadata": {"pool": "blue"}}'),
    (
        "audit",
        AgentResponse.allow(audit=FULL_AUDIT),
        '{"audit": {"tags": ["sqli"], "rule_ids": ["942100"], "confidence": 0.9, "reason_codes": ["INJ"], '
        '"custom": {"score": 5, "x": [null, "y"]}}}',
    ),
    ("needs more", AgentResponse.allow(needs_more=True), '{"needs_more": true}'),
    ("skip body", AgentResponse.allow(skip_body=True), '{"skip_body": true}'),
    (
        "request body replaced",
        AgentResponse.allow(request_body_mutation=BodyMutation(b"\x00\xff\xfehi", 3)),
        '{"request_body_mutation": {"data": "AP/+aGk=", "chunk_index": 3}}',
    ),
    (
        "request body chunk dropped",
        AgentResponse.allow(request_body_mutation=BodyMutation(b"", 3)),
        '{"request_body_mutation": {"data": "", "chunk_index": 3}}',
    ),
    (
        "response body passed",
        AgentResponse.allow(response_body_mutation=BodyMutation(None, 3)),
        '{"response_body_mutation": {"data": null, "chunk_index": 3}}',
    ),
    ("drop", AgentResponse.websocket_drop(), '{"websocket_decision": "drop"}'),
    (
        "close",
        AgentResponse.websocket_close(4001, "bye"),
        '{"websocket_decision": {"close": {"code": 4001, "reason": "bye"}}}',
    ),
]

# What agents that write every field send.
DEFAULTS_JSON = (
    '{"version": 2, "decision": "allow", "request_headers": [], "response_headers": [], "routing_metadata": {}, '
    '"audit": {"tags": [], "rule_ids": [], "confidence": null, "reason_codes": [], "custom": {}}, '
    '"needs_more": false, "request_body_mutation": null, "response_body_mutation": null, "websocket_decision": %s}'
)


def ids(rows: list[tuple[str, Any, str]]) -> list[str]:
    return [row[0] for row in rows]


def without_nulls(value: Any) -> Any:
    """A field that is null and one that is absent are the same."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def envelope(event_type: str, payload: str, version: str = "2") -> bytes:
    return f'{{"version": {version}, "event_type": "{event_type}", "payload": {payload}}}'.encode()


def respond(text: str | bytes, event_type: EventType = REQUEST_HEADERS) -> AgentResponse:
    """What the middleware makes of an answer in JSON."""
    data = text.encode() if isinstance(text, str) else text
    return check_response(decode_answer(data, JSON, event_type), may_mutate=True, may_set_host=False)


# Events


@pytest.mark.parametrize(("event_type", "event", "payload"), GOLDEN_EVENTS, ids=ids(GOLDEN_EVENTS))
def test_an_event_is_encoded_in_the_shape_of_the_protocol(event_type: str, event: Event, payload: str) -> None:
    encoded = json.loads(encode_event(event, JSON))

    assert encoded == {"version": 2, "event_type": event_type, "payload": json.loads(payload)}


@pytest.mark.parametrize(
    ("event_type", "event", "payload"), GOLDEN_EVENTS + MINIMAL_EVENTS, ids=ids(GOLDEN_EVENTS + MINIMAL_EVENTS)
)
def test_an_event_is_decoded_from_the_shape_of_the_protocol(event_type: str, event: Event, payload: str) -> None:
    decoded = decode_event(envelope(event_type, payload), JSON)

    assert type(decoded) is type(event)
    assert msgspec.json.encode(decoded, enc_hook=_headers) == msgspec.json.encode(event, enc_hook=_headers)


def _headers(value: Any) -> Any:
    return dict(value)


@pytest.mark.parametrize(("event_type", "event", "payload"), MINIMAL_EVENTS, ids=ids(MINIMAL_EVENTS))
def test_what_an_event_does_not_say_is_null_or_its_default(event_type: str, event: Event, payload: str) -> None:
    defaults: dict[str, Any] = {
        "total_size": None,
        "chunk_index": 0,
        "bytes_received": 0,
        "bytes_sent": 0,
        "categories": [],
        "metadata": {},
    }
    encoded = without_nulls(json.loads(encode_event(event, JSON))["payload"])

    golden = without_nulls(json.loads(payload))
    assert {name: value for name, value in encoded.items() if name not in golden} == {
        name: value for name, value in defaults.items() if name in encoded and name not in golden
    }
    assert {name: value for name, value in encoded.items() if name in golden} == golden


def test_there_is_a_golden_literal_for_every_event() -> None:
    assert {EventType(row[0]) for row in GOLDEN_EVENTS} == set(EventType)


@pytest.mark.parametrize("index", [2, 4, 6])
def test_bytes_are_raw_in_msgpack(index: int) -> None:
    event_type, event, payload = GOLDEN_EVENTS[index]

    encoded = msgspec.msgpack.decode(encode_event(event, MSGPACK))

    assert encoded == {
        "version": 2,
        "event_type": event_type,
        "payload": json.loads(payload) | {"data": b"\x00\xff\xfehi"},
    }


@pytest.mark.parametrize("index", [0, 1, 3, 5, 7])
def test_events_without_bytes_are_the_same_maps_in_msgpack(index: int) -> None:
    event_type, event, payload = GOLDEN_EVENTS[index]

    encoded = msgspec.msgpack.decode(encode_event(event, MSGPACK))

    assert encoded == {"version": 2, "event_type": event_type, "payload": json.loads(payload)}


@pytest.mark.parametrize("size", range(5))
def test_base64_is_the_standard_alphabet_with_padding(size: int) -> None:
    data = b"\xfb\xff\xbf\xfe\xff"[:size]

    encoded = json.loads(encode_event(RequestBodyChunkEvent(correlation_id="c", data=data, is_last=True), JSON))

    assert encoded["payload"]["data"] == base64.b64encode(data).decode()


def test_header_names_from_the_wire_are_lower_case_and_values_keep_their_order() -> None:
    payload = '{"correlation_id": "c", "status": 200, "headers": {"Set-Cookie": ["b", "a"], "set-cookie": ["c"]}}'

    event = decode_event(envelope("response_headers", payload), JSON)

    assert isinstance(event, ResponseHeadersEvent)
    assert event.headers == {"set-cookie": ["b", "a", "c"]}


@pytest.mark.parametrize("encoding", Encoding)
def test_a_header_value_that_is_no_text_survives(encoding: Encoding) -> None:
    every_byte = bytes(range(256))
    event = ResponseHeadersEvent(
        correlation_id="c", status=200, headers=Headers.from_raw([(b"X", every_byte), (b"x", b"\xff")])
    )

    decoded = decode_event(encode_event(event, encoding), encoding)

    assert isinstance(decoded, ResponseHeadersEvent)
    assert [value.encode("latin-1") for value in decoded.headers["x"]] == [every_byte, b"\xff"]


def test_unknown_fields_of_an_event_are_ignored() -> None:
    data = (
        b'{"version": 2, "new": [1], "event_type": "configure", "payload": {"agent_id": "a", "config": 1, "new": {}}}'
    )

    assert decode_event(data, JSON) == ConfigureEvent(agent_id="a", config=1)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (envelope("configure", '{"agent_id": 1, "config": 1}'), "payload.*agent_id"),
        (envelope("configure", "{}"), "payload.*agent_id"),
        (envelope("configure", "[]"), "payload"),
        (envelope("response_headers", '{"correlation_id": "c", "status": "200", "headers": {}}'), "payload.*status"),
        (envelope("response_headers", '{"correlation_id": "c", "status": 200, "headers": []}'), "payload.*headers"),
        (
            envelope("response_headers", '{"correlation_id": "c", "status": 200, "headers": {"a": "b"}}'),
            "payload.*headers",
        ),
        (envelope("request_body_chunk", '{"correlation_id": "c", "data": "?", "is_last": true}'), "payload.*data"),
        (envelope("request_body_chunk", '{"correlation_id": "c", "data": ""}'), "payload.*is_last"),
        (
            envelope("guardrail_inspect", '{"correlation_id": "c", "inspection_type": "a b", "content": ""}'),
            "payload.*inspection_type",
        ),
        (envelope("nothing", "{}"), "event_type"),
        (envelope("configure", "{}", version="1"), "version: expected 2, got 1"),
        (envelope("configure", "{}", version='"2"'), "version"),
        (b'{"event_type": "configure", "payload": {}}', "version"),
        (b'{"version": 2, "payload": {}}', "event_type"),
        (b'{"version": 2, "event_type": "configure"}', "payload"),
        (b"<html></html>", "not json"),
        (b"", "not json"),
        (b"{", "not json"),
        (b"[]", "object"),
    ],
)
def test_a_malformed_event_is_a_protocol_error_that_names_the_field(data: bytes, named: str) -> None:
    with pytest.raises(AgentProtocolError, match=f"(?s){named}"):
        decode_event(data, JSON)


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize(
    "config",
    [object(), {"text": "\ud800"}, {1j: 1}],
    ids=["object", "surrogate", "key"],
)
def test_an_event_that_can_not_be_encoded_is_a_protocol_error(config: Any, encoding: Encoding) -> None:
    with pytest.raises(AgentProtocolError, match=f"the event can't be encoded as {encoding}"):
        encode_event(ConfigureEvent(agent_id="a", config=config), encoding)


def test_an_integer_that_msgpack_can_not_carry_is_a_protocol_error() -> None:
    event = ConfigureEvent(agent_id="a", config=2**64)

    assert decode_event(encode_event(event, JSON), JSON) == event
    with pytest.raises(AgentProtocolError, match="can't be encoded as msgpack"):
        encode_event(event, MSGPACK)


@pytest.mark.parametrize("encoding", Encoding)
def test_a_configuration_that_is_nested_too_deeply_is_a_protocol_error(encoding: Encoding) -> None:
    config: Any = None
    for _ in range(100_000):
        config = [config]

    with pytest.raises(AgentProtocolError, match="can't be encoded"):
        encode_event(ConfigureEvent(agent_id="a", config=config), encoding)


# Answers


@pytest.mark.parametrize(("name", "response", "text"), GOLDEN_ANSWERS, ids=ids(GOLDEN_ANSWERS))
def test_an_answer_is_decoded_from_the_shape_of_the_protocol(name: str, response: AgentResponse, text: str) -> None:
    assert respond(text) == response


@pytest.mark.parametrize(("name", "response", "text"), GOLDEN_ANSWERS, ids=ids(GOLDEN_ANSWERS))
def test_an_answer_is_encoded_in_the_shape_of_the_protocol(name: str, response: AgentResponse, text: str) -> None:
    websocket_decision = json.dumps(json.loads(text).get("websocket_decision"))
    golden = json.loads(DEFAULTS_JSON % websocket_decision) | json.loads(text)

    assert without_nulls(json.loads(encode_answer(response, JSON))) == without_nulls(golden)


@pytest.mark.parametrize(("name", "response", "text"), GOLDEN_ANSWERS, ids=ids(GOLDEN_ANSWERS))
def test_an_answer_is_the_same_maps_with_raw_bytes_in_msgpack(name: str, response: AgentResponse, text: str) -> None:
    golden = json.loads(DEFAULTS_JSON % json.dumps(json.loads(text).get("websocket_decision"))) | json.loads(text)
    for field in ("request_body_mutation", "response_body_mutation"):
        mutation = golden[field]
        if mutation is not None and mutation["data"] is not None:
            mutation["data"] = base64.b64decode(mutation["data"])

    encoded = encode_answer(response, MSGPACK)

    assert without_nulls(msgspec.msgpack.decode(encoded)) == without_nulls(golden)
    assert decode_answer(msgspec.msgpack.encode(golden), MSGPACK, REQUEST_HEADERS) == response


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        DEFAULTS_JSON % "null",
        DEFAULTS_JSON % '"allow"',
        '{"audit": {}}',
        '{"audit": null}',
        '{"future": {"a": [1]}, "decision": "allow", "audit": {"future": 1}}',
    ],
)
def test_what_an_answer_does_not_say_takes_its_default_and_unknown_fields_are_ignored(text: str) -> None:
    assert respond(text) == ALLOW


def test_unknown_fields_inside_a_decision_are_ignored() -> None:
    assert respond('{"decision": {"block": {"status": 400, "why": "x"}, "why": "x"}}') == AgentResponse.block(400)


def test_a_mutation_without_data_passes_the_chunk() -> None:
    # `data: bytes?` is optional like every other field with a question mark; Rust agents leave out what is None.
    assert respond('{"request_body_mutation": {"chunk_index": 2}}').request_body_mutation == BodyMutation(None, 2)


@pytest.mark.parametrize("field", ["request_headers", "response_headers", "request_body_mutation", "decision"])
def test_an_answer_is_immutable_in_every_part(field: str) -> None:
    response = respond('{"request_headers": [{"remove": {"name": "a"}}], "response_headers": []}')

    value = getattr(response, field)

    assert not isinstance(value, list | dict)


MALFORMED = [
    # wrong types
    ('{"version": "2"}', "version"),
    ('{"version": true}', "version"),
    ('{"decision": 1}', "decision"),
    ('{"decision": null}', "decision"),
    ('{"decision": []}', "decision"),
    ('{"decision": {"block": []}}', "decision.block"),
    ('{"decision": {"block": null}}', "decision.block"),
    ('{"decision": {"block": {"status": "403"}}}', "decision.block.status"),
    ('{"decision": {"block": {"status": 403.5}}}', "decision.block.status"),
    ('{"decision": {"block": {"status": 403, "body": 1}}}', "decision.block.body"),
    ('{"decision": {"block": {"status": 403, "headers": []}}}', "decision.block.headers"),
    ('{"decision": {"block": {"status": 403, "headers": {"a": 1}}}}', "decision.block.headers"),
    ('{"decision": {"block": {"status": 403, "headers": {"a": ["1"]}}}}', "decision.block.headers"),
    ('{"decision": {"redirect": {"url": 1}}}', "decision.redirect.url"),
    ('{"decision": {"redirect": {}}}', "url"),
    ('{"decision": {"challenge": {"challenge_type": 1}}}', "decision.challenge.challenge_type"),
    ('{"decision": {"challenge": {}}}', "challenge_type"),
    ('{"decision": {"challenge": {"challenge_type": "basic", "params": {"a": 1}}}}', "decision.challenge.params"),
    ('{"request_headers": {}}', "request_headers"),
    ('{"request_headers": ["x"]}', "request_headers"),
    ('{"request_headers": [{}]}', r"request_headers\[0\]"),
    ('{"request_headers": [{"set": {"name": "a"}}]}', r"request_headers\[0\].set"),
    ('{"request_headers": [{"set": {"name": "a", "value": null}}]}', r"request_headers\[0\].set.value"),
    ('{"request_headers": [{"remove": {}}]}', r"request_headers\[0\].remove"),
    (
        '{"response_headers": [{"remove": {"name": "a"}}, {"remove": {"name": "a"}, "set": {"name": "a", "value": ""}}'
        "]}",
        r"response_headers\[1\]: expected exactly one",
    ),
    ('{"response_headers": [{"add": {"name": "a", "value": 1}}]}', r"response_headers\[0\].add.value"),
    ('{"response_headers": [{"set": {"name": "a", "value": "b", "always": 1}}]}', r"response_headers\[0\].set.always"),
    ('{"response_headers": [{"remove": {"name": "a", "always": "yes"}}]}', r"response_headers\[0\].remove.always"),
    ('{"routing_metadata": {"a": 1}}', "routing_metadata"),
    ('{"routing_metadata": null}', "routing_metadata"),
    ('{"audit": []}', "audit"),
    ('{"audit": {"tags": "a"}}', "audit.tags"),
    ('{"audit": {"tags": [1]}}', r"audit.tags\[0\]"),
    ('{"audit": {"rule_ids": [null]}}', r"audit.rule_ids\[0\]"),
    ('{"audit": {"reason_codes": {}}}', "audit.reason_codes"),
    ('{"audit": {"confidence": "0.9"}}', "audit.confidence"),
    ('{"audit": {"custom": []}}', "audit.custom"),
    ('{"needs_more": "false"}', "needs_more"),
    ('{"needs_more": 1}', "needs_more"),
    ('{"skip_body": 1}', "skip_body"),
    ('{"request_body_mutation": "x"}', "request_body_mutation"),
    ('{"request_body_mutation": {"data": 1}}', "request_body_mutation.data"),
    ('{"response_body_mutation": {"data": null, "chunk_index": "0"}}', "response_body_mutation.chunk_index"),
    ('{"websocket_decision": 1}', "websocket_decision"),
    ('{"websocket_decision": {"close": {"code": "1000"}}}', "websocket_decision.close.code"),
    ('{"websocket_decision": {"close": {"reason": ""}}}', "websocket_decision.close"),
    ('{"websocket_decision": {"close": {"code": 1000, "reason": 1}}}', "websocket_decision.close.reason"),
    # unknown or ambiguous decisions
    ('{"decision": "deny"}', "decision"),
    ('{"decision": "block"}', "decision"),
    ('{"decision": {}}', "decision: expected"),
    ('{"decision": {"allow": {}}}', "decision: expected"),
    ('{"decision": {"deny": {}}}', "decision: expected"),
    ('{"decision": {"block": {"status": 403}, "redirect": {"url": "/"}}}', "decision: expected"),
    ('{"websocket_decision": "close"}', "websocket_decision"),
    ('{"websocket_decision": {}}', "websocket_decision: expected"),
    ('{"websocket_decision": {"drop": {}}}', "websocket_decision: expected"),
    # bad base64
    ('{"request_body_mutation": {"data": "AA"}}', "request_body_mutation.data"),
    ('{"request_body_mutation": {"data": "A==="}}', "request_body_mutation.data"),
    ('{"request_body_mutation": {"data": "_-8="}}', "request_body_mutation.data"),
    ('{"request_body_mutation": {"data": "YQ==\\n"}}', "request_body_mutation.data"),
    ('{"response_body_mutation": {"data": "hello!"}}', "response_body_mutation.data"),
    # values that can't be applied
    ('{"decision": {"block": {"status": 99}}}', "decision.block.status: expected 200 to 599, got 99"),
    ('{"decision": {"block": {"status": 101}}}', "decision.block.status"),
    ('{"decision": {"block": {"status": 600}}}', "decision.block.status"),
    ('{"decision": {"block": {"status": 1' + "0" * 30 + "}}}", "decision.block.status"),
    ('{"decision": {"redirect": {"url": "/\\r\\nset-cookie: a=b"}}}', "decision.redirect.url"),
    ('{"decision": {"redirect": {"url": "/\\n"}}}', "decision.redirect.url"),
    ('{"decision": {"redirect": {"url": ""}}}', "decision.redirect.url"),
    ('{"decision": {"redirect": {"url": "/", "status": 200}}}', "decision.redirect.status"),
    ('{"decision": {"challenge": {"challenge_type": "a b"}}}', "decision.challenge.challenge_type"),
    ('{"websocket_decision": {"close": {"code": 1005, "reason": ""}}}', "websocket_decision.close.code"),
    # wrong versions
    ('{"version": 1}', "version: expected 2, got 1"),
    ('{"version": 3, "decision": "allow"}', "version: expected 2, got 3"),
    ('{"version": null}', "version"),
]


@pytest.mark.parametrize(("text", "named"), MALFORMED, ids=[text[:90] for text, _ in MALFORMED])
def test_a_malformed_answer_is_a_protocol_error_that_names_the_field(text: str, named: str) -> None:
    with pytest.raises(AgentProtocolError, match=f"(?s){named}"):
        respond(text)


@pytest.mark.parametrize(
    "name",
    [
        "content-length",
        "Content-Length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "upgrade",
        "te",
        "trailer",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "sec-websocket-key",
        "sec-websocket-accept",
        "Sec-WebSocket-Anything",
        ":path",
        ":status",
        "host",
    ],
)
@pytest.mark.parametrize("kind", ["set", "add", "remove"])
@pytest.mark.parametrize("field", ["request_headers", "response_headers"])
def test_an_operation_on_a_header_that_nobody_may_set_is_a_protocol_error(field: str, kind: str, name: str) -> None:
    operation = {"name": name} if kind == "remove" else {"name": name, "value": "x"}

    with pytest.raises(AgentProtocolError, match=rf"{field}\[1\]"):
        respond(json.dumps({field: [{"set": {"name": "x-ok", "value": "1"}}, {kind: operation}]}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"   ",
        b"{",
        b'{"decision": "allow"',
        b'{"decision": "allow"} {}',
        b"{'decision': 'allow'}",
        b"NaN",
        b"<!doctype html><html><body>502 Bad Gateway</body></html>",
        b"Internal Server Error",
        b'\xef\xbb\xbf{"decision": "allow"}',
        '{"decision": "allow"}'.encode("utf-16"),
        b'{"decision": {"block": {"status": 403, "body": "\xff"}}}',
        b'{"decision": {"block": {"status": 403, "body": "\\ud800"}}}',
        b'{"decision": {"block": {"status": 403, "body": "\xed\xa0\x80"}}}',
        b'{"audit": {"tags": ["\\udc00\\ud800"]}}',
        b'{"routing_metadata": {"\\udfff": ""}}',
        b'{"audit": {"custom": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}}",
        b'{"unknown": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
    ids=lambda data: repr(data[:50]),
)
@pytest.mark.parametrize("event_type", [REQUEST_HEADERS, EventType.GUARDRAIL_INSPECT, EventType.CONFIGURE])
def test_what_is_no_json_is_a_protocol_error(data: bytes, event_type: EventType) -> None:
    with pytest.raises(AgentProtocolError, match="not json"):
        decode_answer(data, JSON, event_type)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81",
        b'{"decision": "allow"}',
        b"\x80\x80",
        b"\x81\xa8decision\xa5\xff\xfe\xfd\xfc\xfb",
        b"\x81\xa8decision\xa5\xed\xa0\x80ab",
        b"\x81\xa1x" + b"\x91" * 100_000 + b"\x01",
        b"\x81\xa5audit\x81\xa6custom\x81\xa1x" + b"\x91" * 100_000 + b"\x01",
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_msgpack_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(AgentProtocolError):
        decode_answer(data, MSGPACK, REQUEST_HEADERS)


@pytest.mark.parametrize("data", [b"null", b"[]", b'"allow"', b"0", b"true"])
@pytest.mark.parametrize("event_type", EventType)
def test_what_is_no_object_is_a_protocol_error(data: bytes, event_type: EventType) -> None:
    with pytest.raises(AgentProtocolError, match="Expected `object`"):
        decode_answer(data, JSON, event_type)


@pytest.mark.parametrize("payload", [b"\x00\xffa", "AP9h"])
@pytest.mark.parametrize("event_type", EventType)
def test_payloads_in_msgpack_are_bytes_or_base64(payload: object, event_type: EventType) -> None:
    data = msgspec.msgpack.encode({"request_body_mutation": {"data": payload}})

    answer = decode_answer(data, MSGPACK, event_type)

    assert answer == AgentResponse.allow(request_body_mutation=BodyMutation(b"\x00\xffa"))


@pytest.mark.parametrize("payload", ["YQ=", "a", "\u00e9", 1, [97], None])
@pytest.mark.parametrize("index", [2, 4, 6])
def test_a_payload_in_msgpack_that_is_neither_is_a_protocol_error(payload: object, index: int) -> None:
    event_type, _, fields = GOLDEN_EVENTS[index]
    data = msgspec.msgpack.encode(json.loads(fields) | {"data": payload})

    with pytest.raises(AgentProtocolError, match="data"):
        decode_value(EVENT_CLASSES[EventType(event_type)], data, MSGPACK)


@pytest.mark.parametrize("index", [2, 4, 6])
def test_events_with_base64_in_msgpack_are_read(index: int) -> None:
    event_type, event, fields = GOLDEN_EVENTS[index]
    envelope = {"version": 2, "event_type": event_type, "payload": json.loads(fields)}

    assert decode_event(msgspec.msgpack.encode(envelope), MSGPACK) == event


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("event_type", EventType)
def test_an_answer_without_a_verdict_is_an_error_with_the_agents_reasons(
    event_type: EventType, encoding: Encoding
) -> None:
    for audit, message in (
        ({"reason_codes": ["it is", "broken"]}, "it is; broken"),
        ({}, "the agent failed"),
        (None, "the agent failed"),
    ):
        for version in (0, 2):
            data = encode_value({"version": version, "decision": "error", "audit": audit}, encoding, "answer")
            with pytest.raises(AgentProtocolError, match=f"^{message}$"):
                decode_answer(data, encoding, event_type)


@pytest.mark.parametrize("version", ["-1", "0", "1", "3", "20", "2" + "0" * 300, "2" + "0" * 5000])
def test_any_other_version_is_a_protocol_error(version: str) -> None:
    with pytest.raises(AgentProtocolError):
        respond(f'{{"version": {version}}}')


@steady
@given(st.binary(max_size=200), st.sampled_from(Encoding), st.sampled_from(EventType))
def test_no_bytes_make_anything_but_an_answer_or_a_protocol_error(
    data: bytes, encoding: Encoding, event_type: EventType
) -> None:
    try:
        answer = decode_answer(data, encoding, event_type)
    except AgentProtocolError:
        return
    assert isinstance(answer, AgentResponse | GuardrailResponse | Acknowledgement)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ANSWER_FIELDS = [
    *AgentResponse.__struct_fields__,
    *GuardrailResponse.__struct_fields__,
    *Acknowledgement.__struct_fields__,
]
almost_answers = st.dictionaries(
    st.sampled_from(ANSWER_FIELDS),
    json_values
    | st.fixed_dictionaries({}, optional={"block": json_values, "redirect": json_values, "challenge": json_values})
    | st.lists(st.fixed_dictionaries({}, optional={"set": json_values, "add": json_values, "remove": json_values})),
    max_size=4,
)


@steady
@given(almost_answers, st.sampled_from(EventType))
def test_no_json_makes_anything_but_an_allowed_answer_or_a_protocol_error(
    value: dict[str, Any], event_type: EventType
) -> None:
    with suppress(AgentProtocolError):
        answer = decode_answer(json.dumps(value).encode(), JSON, event_type)
        if isinstance(answer, AgentResponse):
            assert check_response(answer, may_mutate=True, may_set_host=True) is answer


# Guardrail answers and acknowledgements

GUARDRAIL_JSON = """{
    "detected": true, "confidence": 0.75, "redacted_content": "mail ***",
    "detections": [
        {"category": "pii.email", "description": "an address", "severity": "high", "confidence": 0.8,
         "span": {"start": 5, "end": 12}},
        {"category": "tone", "description": "rude", "severity": "low"}]}"""
GUARDRAIL = GuardrailResponse(
    detected=True,
    confidence=0.75,
    redacted_content="mail ***",
    detections=(
        Detection(
            category="pii.email",
            description="an address",
            severity=Severity.HIGH,
            confidence=0.8,
            span=TextSpan(5, 12),
        ),
        Detection(category="tone", description="rude", severity=Severity.LOW),
    ),
)


def test_the_guardrail_shape_is_that_of_the_protocol() -> None:
    encoded = without_nulls(json.loads(encode_answer(GUARDRAIL, JSON)))
    encoded["detections"] = [without_nulls(detection) for detection in encoded["detections"]]

    assert encoded == json.loads(GUARDRAIL_JSON)


def test_a_guardrail_agent_may_answer_in_the_guardrail_shape() -> None:
    answer = decode_answer(GUARDRAIL_JSON.encode(), JSON, EventType.GUARDRAIL_INSPECT)

    assert isinstance(answer, GuardrailResponse)
    assert msgspec.structs.replace(answer, detections=tuple(answer.detections)) == GUARDRAIL


def test_a_guardrail_answer_need_only_say_whether_something_was_found() -> None:
    answer = decode_answer(b'{"detected": false, "new": 1}', JSON, EventType.GUARDRAIL_INSPECT)

    assert answer == GuardrailResponse(detected=False, confidence=0.0, detections=(), redacted_content=None)


def test_a_guardrail_agent_may_answer_in_the_general_shape() -> None:
    answer = decode_answer(b'{"decision": {"block": {"status": 403}}}', JSON, EventType.GUARDRAIL_INSPECT)

    assert answer == AgentResponse.block(403)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"detected": null}', "detected"),
        ('{"detected": "no"}', "detected"),
        ('{"detected": true, "confidence": "high"}', "confidence"),
        ('{"detected": true, "detections": {}}', "detections"),
        ('{"detected": true, "detections": [{"category": "a"}]}', r"detections\[0\]"),
        (
            '{"detected": true, "detections": [{"category": "a", "description": "b", "severity": "huge"}]}',
            r"detections\[0\].severity",
        ),
        (
            '{"detected": true, "detections": [{"category": "a", "description": "b", "span": {"start": 1}}]}',
            r"detections\[0\].span",
        ),
        ('{"detected": true, "redacted_content": 1}', "redacted_content"),
    ],
)
def test_a_malformed_guardrail_answer_is_a_protocol_error_that_names_the_field(text: str, named: str) -> None:
    with pytest.raises(AgentProtocolError, match=f"(?s){named}"):
        decode_answer(text.encode(), JSON, EventType.GUARDRAIL_INSPECT)


@pytest.mark.parametrize("event_type", [EventType.CONFIGURE, EventType.REQUEST_COMPLETE])
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"success": true}', Acknowledgement(success=True)),
        ('{"success": true, "error": null, "new": 1}', Acknowledgement(success=True)),
        ('{"success": false, "error": "no such rule"}', Acknowledgement(success=False, error="no such rule")),
        ('{"decision": "allow"}', ALLOW),
    ],
)
def test_configure_and_request_complete_may_be_acknowledged(event_type: EventType, text: str, answer: Answer) -> None:
    assert decode_answer(text.encode(), JSON, event_type) == answer


@pytest.mark.parametrize("text", ['{"success": 1}', '{"success": null}', '{"success": true, "error": 1}'])
def test_a_malformed_acknowledgement_is_a_protocol_error(text: str) -> None:
    with pytest.raises(AgentProtocolError, match=r"success|error"):
        decode_answer(text.encode(), JSON, EventType.CONFIGURE)


def test_an_acknowledgement_has_the_shape_of_the_protocol() -> None:
    assert without_nulls(json.loads(encode_answer(Acknowledgement(success=True), JSON))) == {"success": True}
    assert json.loads(encode_answer(Acknowledgement(success=False, error="no"), JSON)) == {
        "success": False,
        "error": "no",
    }


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize(
    "answer",
    [
        AgentResponse.block(403, "\ud800"),
        AgentResponse.allow(audit=AuditMetadata(custom={"x": object()})),
        AgentResponse.allow(audit=AuditMetadata(tags=("\udfff",))),
    ],
    ids=["body", "object", "tag"],
)
def test_an_answer_that_can_not_be_encoded_is_a_protocol_error(answer: Answer, encoding: Encoding) -> None:
    with pytest.raises(AgentProtocolError):
        encode_answer(answer, encoding)


# Round trips

text = st.text(max_size=20)
size = st.integers(0, 2**53)
maybe_text = st.none() | text
payload_data = st.binary(max_size=40)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
texts = st.lists(text, max_size=3).map(tuple)
strings = st.dictionaries(text, text, max_size=3)
headers = st.builds(Headers, st.dictionaries(text, st.lists(text, max_size=3), max_size=3)) | st.builds(
    Headers.from_raw, st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=5)), max_size=4)
)
metadata = st.builds(
    RequestMetadata,
    correlation_id=text,
    request_id=text,
    client_ip=text,
    client_port=st.integers(0, 65535),
    server_name=maybe_text,
    protocol=st.sampled_from(["HTTP/1.1", "HTTP/2"]),
    tls_version=maybe_text,
    tls_cipher=maybe_text,
    route_id=maybe_text,
    upstream_id=maybe_text,
    timestamp=text,
    traceparent=maybe_text,
)
STRATEGIES: dict[type[Any], st.SearchStrategy[Event]] = {
    ConfigureEvent: st.builds(ConfigureEvent, agent_id=text, config=plain),
    RequestHeadersEvent: st.builds(RequestHeadersEvent, metadata=metadata, method=text, uri=text, headers=headers),
    RequestBodyChunkEvent: st.builds(
        RequestBodyChunkEvent,
        correlation_id=text,
        data=payload_data,
        is_last=st.booleans(),
        total_size=st.none() | size,
        chunk_index=size,
        bytes_received=size,
    ),
    ResponseHeadersEvent: st.builds(
        ResponseHeadersEvent, correlation_id=text, status=st.integers(100, 599), headers=headers
    ),
    ResponseBodyChunkEvent: st.builds(
        ResponseBodyChunkEvent,
        correlation_id=text,
        data=payload_data,
        is_last=st.booleans(),
        total_size=st.none() | size,
        chunk_index=size,
        bytes_sent=size,
    ),
    RequestCompleteEvent: st.builds(
        RequestCompleteEvent,
        correlation_id=text,
        status=st.integers(0, 599),
        duration_ms=size,
        request_body_size=size,
        response_body_size=size,
        upstream_attempts=size,
        error=maybe_text,
    ),
    WebSocketFrameEvent: st.builds(
        WebSocketFrameEvent,
        correlation_id=text,
        opcode=st.sampled_from(Opcode),
        data=payload_data,
        client_to_server=st.booleans(),
        frame_index=size,
        fin=st.booleans(),
        route_id=maybe_text,
        client_ip=text,
    ),
    GuardrailInspectEvent: st.builds(
        GuardrailInspectEvent,
        correlation_id=text,
        inspection_type=st.sampled_from(InspectionType),
        content=text,
        model=maybe_text,
        categories=texts,
        route_id=maybe_text,
        metadata=strings,
    ),
}
ops = st.lists(
    st.builds(HeaderOp.set, text, text, always=st.booleans())
    | st.builds(HeaderOp.add, text, text, always=st.booleans())
    | st.builds(HeaderOp.remove, text, always=st.booleans()),
    max_size=3,
).map(tuple)
mutation = st.none() | st.builds(BodyMutation, st.none() | payload_data, size)
responses = st.builds(
    AgentResponse,
    version=st.just(2),
    decision=st.builds(Allow)
    | st.builds(Block, st.integers(200, 599), maybe_text, st.none() | strings)
    | st.builds(Redirect, text, st.sampled_from([301, 302, 303, 307, 308]))
    | st.builds(Challenge, text, strings),
    request_headers=ops,
    response_headers=ops,
    routing_metadata=strings,
    audit=st.builds(
        AuditMetadata,
        tags=texts,
        rule_ids=texts,
        confidence=st.none() | st.floats(0, 1),
        reason_codes=texts,
        custom=st.dictionaries(text, plain, max_size=3),
    ),
    needs_more=st.booleans(),
    skip_body=st.booleans(),
    request_body_mutation=mutation,
    response_body_mutation=mutation,
    websocket_decision=st.none() | st.builds(WebSocketDrop) | st.builds(WebSocketClose, st.integers(1000, 4999), text),
)


def test_there_is_a_round_trip_for_every_event() -> None:
    assert set(STRATEGIES) == set(EVENT_CLASSES.values())


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
@steady
@given(data=st.data())
def test_every_event_survives_the_way_to_the_agent(data: st.DataObject, kind: type[Any], encoding: Encoding) -> None:
    event = data.draw(STRATEGIES[kind])

    assert decode_event(encode_event(event, encoding), encoding) == event


@pytest.mark.parametrize("encoding", Encoding)
@steady
@given(response=responses, event_type=st.sampled_from(EventType))
def test_every_answer_survives_the_way_back(response: AgentResponse, event_type: EventType, encoding: Encoding) -> None:
    assert decode_answer(encode_answer(response, encoding), encoding, event_type) == response


@pytest.mark.parametrize("encoding", Encoding)
@steady
@given(
    answer=st.builds(
        GuardrailResponse,
        detected=st.booleans(),
        confidence=st.floats(0, 1),
        redacted_content=maybe_text,
        detections=st.lists(
            st.builds(
                Detection,
                category=text,
                description=text,
                severity=st.sampled_from(Severity),
                confidence=st.none() | st.floats(0, 1),
                span=st.none() | st.builds(TextSpan, size, size),
            ),
            max_size=2,
        ).map(tuple),
    )
)
def test_every_guardrail_answer_survives_the_way_back(answer: GuardrailResponse, encoding: Encoding) -> None:
    assert decode_answer(encode_answer(answer, encoding), encoding, EventType.GUARDRAIL_INSPECT) == answer


@pytest.mark.parametrize("encoding", Encoding)
@steady
@given(
    answer=st.builds(Acknowledgement, success=st.booleans(), error=maybe_text),
    event_type=st.sampled_from([EventType.CONFIGURE, EventType.REQUEST_COMPLETE]),
)
def test_every_acknowledgement_survives_the_way_back(
    answer: Acknowledgement, event_type: EventType, encoding: Encoding
) -> None:
    assert decode_answer(encode_answer(answer, encoding), encoding, event_type) == answer


def test_an_encoding_knows_its_content_type() -> None:
    assert JSON.content_type == "application/json"
    assert MSGPACK.content_type == "application/msgpack"
