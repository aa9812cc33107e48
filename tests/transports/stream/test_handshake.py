"""What is offered to an agent, and what is made of its answer, without a connection."""

from typing import Any

import msgspec
import pytest

from asgi_agents.errors import AgentProtocolError, EventTooLargeError
from asgi_agents.protocol import Encoding
from asgi_agents.protocol.stream import (
    MAX_HANDSHAKE_REQUEST_BYTES,
    CallIds,
    CancelReason,
    FrameReader,
    Framing,
    MessageType,
    decode_payload_ids,
)
from asgi_agents.transports.stream.handshake import ENVELOPE_HINT, Handshake

from .peer import ALL_EVENTS, handshake
from .pools import chunk, head, question

BOTH = (Encoding.MSGPACK, Encoding.JSON)


def begun(framing: Framing = Framing.V2, encodings: tuple[Encoding, ...] = BOTH) -> Handshake:
    return Handshake(framing, encodings, "codepoints")


def greeting(**fields: Any) -> tuple[int, bytes]:
    """Type and payload of an agent's answer."""
    (frame,) = FrameReader(Framing.V2).feed(handshake(**fields))
    return frame[0], frame[1:]


def ids_of(frame: bytes, encoding: Encoding) -> CallIds:
    """The ids in the frame of an event."""
    return decode_payload_ids(frame[5:], encoding)


def test_the_request_offers_the_encodings_and_hands_the_configuration_over() -> None:
    frame = begun().request("waf", {"rules": 1})

    assert frame[4] == MessageType.HANDSHAKE_REQUEST
    request = msgspec.json.decode(frame[5:])
    assert request["proxy_id"] == "waf"
    assert request["config"] == {"rules": 1}
    assert request["supported_versions"] == [2]
    assert request["supported_encodings"] == ["msgpack", "json"]


@pytest.mark.parametrize(("size", "left_out"), [(10, False), (MAX_HANDSHAKE_REQUEST_BYTES, True)])
def test_a_configuration_that_is_too_long_is_left_to_the_configure_event(size: int, left_out: bool) -> None:
    shake = begun()
    config = "x" * size

    request = msgspec.json.decode(shake.request("waf", config)[5:])

    assert shake.needs_configure is left_out
    assert request["config"] == (None if left_out else config)


def test_it_is_done_once_the_agent_has_answered() -> None:
    shake = begun()
    assert not shake.done
    assert shake.provisional.capabilities is None

    wire_format = shake.receive(*greeting(encoding="msgpack", features={"call_ids": True, "cancellation": True}))

    assert shake.done
    assert (wire_format.encoding, wire_format.call_ids, wire_format.cancellation) == (Encoding.MSGPACK, True, True)
    assert wire_format.capabilities is not None
    assert wire_format.capabilities.events == ALL_EVENTS


def test_in_the_older_framing_there_is_none() -> None:
    shake = begun(Framing.ENVELOPE)
    wire_format = shake.provisional

    assert shake.done
    assert (wire_format.enveloped, wire_format.encoding, wire_format.call_ids) == (True, Encoding.MSGPACK, False)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (greeting(success=False, error="busy"), "refused the handshake: busy"),
        (greeting(success=False), "refused the handshake: no reason given"),
        (greeting(protocol_version=3), "speaks version 3 of the protocol, expected 2"),
        (greeting(encoding="cbor"), "chose the encoding 'cbor', expected msgpack or json"),
        (greeting(capabilities=None), "says nothing of its capabilities in the handshake"),
        ((MessageType.PONG, b""), "answered the handshake with a message of type 0x42"),
        ((ord("{"), b""), f"answered the handshake with a message of type 0x7b; {ENVELOPE_HINT}"),
    ],
)
def test_an_answer_that_is_not_acceptable_is_an_error(answer: tuple[int, bytes], fault: str) -> None:
    shake = begun()

    with pytest.raises(AgentProtocolError) as caught:
        shake.receive(*answer)

    assert str(caught.value) == fault
    assert not shake.done


def test_the_encoding_must_be_one_that_was_offered() -> None:
    with pytest.raises(AgentProtocolError, match="chose the encoding 'msgpack', expected json"):
        begun(encodings=(Encoding.JSON,)).receive(*greeting(encoding="msgpack"))


# The dialect


@pytest.mark.parametrize("encoding", Encoding)
def test_events_carry_call_ids_where_the_agent_knows_them(encoding: Encoding) -> None:
    wire_format = begun().receive(*greeting(encoding=str(encoding), features={"call_ids": True}))

    call, frame = wire_format.prepare(chunk("a"), 5.0, None)

    ids = ids_of(frame, encoding)
    assert (ids.correlation_id, ids.call_id) == ("a", call.number)
    assert (call.correlation_id, call.deadline, call.size) == ("a", 5.0, len(frame))
    assert (call.plain is not None) is (encoding is Encoding.JSON)


def test_a_guardrail_event_has_a_correlation_id_of_its_own_where_answers_name_no_call() -> None:
    wire_format = begun().receive(*greeting())

    call, frame = wire_format.prepare(question("a"), 5.0, None)

    assert call.correlation_id == ids_of(frame, Encoding.JSON).correlation_id == f"a/inspect-{call.number}"
    assert call.plain is None


def test_an_event_that_is_larger_than_what_the_agent_takes_is_not_encoded() -> None:
    wire_format = begun().receive(*greeting(limits={"max_body_size": 3}))

    wire_format.prepare(chunk(data=b"123"), 5.0, None)
    with pytest.raises(EventTooLargeError, match="4 bytes at a time, the agent takes 3"):
        wire_format.prepare(chunk(data=b"1234"), 5.0, None)


def test_the_call_id_in_an_answer_counts_only_where_it_was_agreed() -> None:
    payload = b'{"audit": {"custom": {"correlation_id": "a", "call_id": 7}}}'

    named = begun().receive(*greeting(features={"call_ids": True}))
    assert named.answer_ids(payload) == CallIds("a", 7)
    assert begun().receive(*greeting()).answer_ids(payload) == CallIds("a")


def test_a_cancellation_is_in_json_whatever_the_encoding() -> None:
    wire_format = begun().receive(*greeting(encoding="msgpack", features={"call_ids": True}))
    call, _ = wire_format.prepare(head("a"), 5.0, None)

    frame = wire_format.cancel(call, CancelReason.TIMEOUT)

    assert frame[4] == MessageType.CANCEL
    cancel = msgspec.json.decode(frame[5:])
    assert (cancel["correlation_id"], cancel["call_id"], cancel["reason"]) == ("a", call.number, 2)
