"""Base64 in msgpack costs no more memory than the message, whatever else the message has in it."""

import base64
import tracemalloc
from typing import Any

import msgspec
import pytest

from asgi_agents import AgentResponse, BodyMutation, HeaderOp, WebSocketDrop
from asgi_agents.errors import AgentProtocolError
from asgi_agents.protocol import Encoding, EventType, decode_answer
from asgi_agents.protocol.codec import decode_value
from asgi_agents.protocol.events import EVENT_CLASSES
from asgi_agents.protocol.stream import decode_payload

MSGPACK = Encoding.MSGPACK
EVENTS: dict[EventType, dict[str, Any]] = {
    EventType.REQUEST_BODY_CHUNK: {"correlation_id": "c", "is_last": True},
    EventType.RESPONSE_BODY_CHUNK: {"correlation_id": "c", "is_last": True, "bytes_sent": 3},
    EventType.WEBSOCKET_FRAME: {
        "correlation_id": "c",
        "opcode": "text",
        "client_to_server": True,
        "frame_index": 0,
        "client_ip": "::1",
    },
}
# Nothing in msgpack is shorter than an empty map, nor takes more memory for its length.
MANY = b"\xdd" + (1_000_000).to_bytes(4, "big") + b"\x80" * 1_000_000


def with_many(name: str, **fields: Any) -> bytes:
    """A map that has a long field of that name beside the others."""
    plain = msgspec.msgpack.encode(fields)
    return bytes([plain[0] + 1]) + plain[1:] + msgspec.msgpack.encode(name) + MANY


def peak_of(decode: Any) -> int:
    tracemalloc.start()
    try:
        decode()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("event_type", EVENTS)
def test_fields_of_an_event_that_nobody_knows_are_not_built(event_type: EventType) -> None:
    message = with_many("unknown", data="AAAA", **EVENTS[event_type])

    assert peak_of(lambda: decode_payload(event_type, memoryview(message), MSGPACK)) < len(message)
    assert decode_payload(event_type, memoryview(message), MSGPACK).data == bytes(3)  # type: ignore[union-attr]


@pytest.mark.parametrize("field", ["request_body_mutation", "response_body_mutation"])
def test_fields_of_an_answer_that_nobody_knows_are_not_built(field: str) -> None:
    message = with_many("unknown", **{field: {"data": "AAAA", "chunk_index": 0}})

    assert peak_of(lambda: decode_answer(message, MSGPACK, EventType.REQUEST_BODY_CHUNK)) < len(message)


@pytest.mark.parametrize("event_type", EVENTS)
def test_data_that_is_neither_bytes_nor_text_is_not_built(event_type: EventType) -> None:
    message = with_many("data", **EVENTS[event_type])

    def decode() -> None:
        with pytest.raises(AgentProtocolError, match=r"^Expected `bytes`, got `array` - at `\$\.data`$"):
            decode_value(EVENT_CLASSES[event_type], message, MSGPACK)

    assert peak_of(decode) < len(message)


def test_the_field_at_fault_is_named() -> None:
    for fields, fault in (
        ({"data": "A!AA"}, r"Invalid base64 encoded string - at `\$\.data`"),
        ({"data": None}, r"Expected `bytes`, got `(None|null)` - at `\$\.data`"),
        ({"data": "AAAA", "chunk_index": "x"}, r"Expected `int`, got `str` - at `\$\.chunk_index`"),
        ({}, "Object missing required field `data`"),
    ):
        message = msgspec.msgpack.encode({"correlation_id": "c", "is_last": True} | fields)
        with pytest.raises(AgentProtocolError, match=f"^{fault}$"):
            decode_payload(EventType.REQUEST_BODY_CHUNK, message, MSGPACK)
    answer = msgspec.msgpack.encode({"response_body_mutation": {"data": "A!AA"}})
    with pytest.raises(AgentProtocolError, match=r"at `\$\.response_body_mutation\.data`$"):
        decode_answer(answer, MSGPACK, EventType.RESPONSE_BODY_CHUNK)


def test_an_answer_says_the_same_with_base64_as_with_bytes() -> None:
    payloads = [(None, None), (b"", "raw"), ("raw", b"\x00\xff"), (b"\x00\xff", b"a"), (b"\x00\xff", None)]

    def spelt(payload: object, *, as_text: bool) -> object:
        if not isinstance(payload, bytes):
            return None if payload is None else {"data": b"raw"}
        return {"data": base64.b64encode(payload).decode() if as_text else payload, "chunk_index": 2}

    for request, response in payloads:
        answers = [
            decode_answer(
                msgspec.msgpack.encode(
                    {
                        "version": 2,
                        "request_headers": [{"set": {"name": "a", "value": "b"}}],
                        "websocket_decision": "drop",
                        "audit": {"tags": ["t"], "custom": {"n": [1]}},
                        "request_body_mutation": spelt(request, as_text=as_text),
                        "response_body_mutation": spelt(response, as_text=as_text),
                    }
                ),
                MSGPACK,
                EventType.REQUEST_BODY_CHUNK,
            )
            for as_text in (False, True)
        ]
        assert answers[0] == answers[1]
        assert isinstance(answers[0], AgentResponse)
        assert answers[0].request_headers == (HeaderOp.set("a", "b"),)
        assert answers[0].websocket_decision == WebSocketDrop()
        if request == b"\x00\xff":
            assert answers[0].request_body_mutation == BodyMutation(b"\x00\xff", 2)
