"""Corrupted messages must not be answers by any reading, or a check would take what they say for the agent's word."""

import random

import pytest

from asgi_agents.errors import AgentError
from asgi_agents.protocol import AgentResponse, Encoding, EventType, decode_answer, encode_answer
from asgi_agents.protocol.stream import (
    CallIds,
    FrameReader,
    Framing,
    MessageType,
    decode_answer_ids,
    encode_answer_frame,
    encode_envelope_frame,
)
from tests.chaos.corruption import CHANCES, POSSIBLE, Fate, Speech, Wire, fate, messages

ANSWER = AgentResponse.block(403, "poison")
BROKEN = pytest.mark.parametrize("wire", [Wire.CUT, Wire.FLIP, Wire.TRUNCATE, Wire.GARBAGE])
IDS = CallIds("c-1", 7)
FRAME = encode_answer_frame(ANSWER, Encoding.JSON, IDS)
ENVELOPE = encode_envelope_frame(encode_answer(ANSWER, Encoding.JSON))
BODY = encode_answer(ANSWER, Encoding.JSON)
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
# So many of each, for they are random.
TIMES = range(300)


def met(message: bytes, wire: Wire, speech: Speech, seed: int) -> Fate:
    decided = fate(message, wire, speech, random.Random(seed))  # noqa: S311 - no secret
    assert decided is not None
    return decided


def answers(data: bytes, framing: Framing) -> list[bytes]:
    """What is read as an answer, by whoever reads up to the first fault."""
    found = []
    try:
        for frame in FrameReader(framing).feed(data):
            payload = frame
            if framing is Framing.V2:
                payload = frame[1:]
                if frame[0] != MessageType.AGENT_RESPONSE:
                    continue
                decode_answer_ids(payload, Encoding.JSON)
            decode_answer(payload, Encoding.JSON, EventType.REQUEST_HEADERS)
            found.append(payload)
    except AgentError:
        pass
    return found


@BROKEN
@pytest.mark.parametrize(
    ("frame", "speech", "framing"),
    [(FRAME, Speech.V2, Framing.V2), (ENVELOPE, Speech.ENVELOPE, Framing.ENVELOPE)],
    ids=["v2", "envelope"],
)
def test_a_broken_frame_is_no_answer_and_neither_is_what_follows_it(
    wire: Wire, frame: bytes, speech: Speech, framing: Framing
) -> None:
    for seed in TIMES:
        decided = met(frame, wire, speech, seed)
        assert answers(decided.data, framing) == []
        if not decided.end and wire is Wire.FLIP:
            # What was whole may be read only where the fault is not in the length.
            assert len(answers(decided.data + frame, framing)) <= 1


@BROKEN
def test_a_broken_response_is_no_answer(wire: Wire) -> None:
    for seed in TIMES:
        data = met(RESPONSE, wire, Speech.HTTP, seed).data
        head, _, body = data.partition(b"\r\n\r\n")
        sound = (
            data.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\ncontent-length: %d" % len(BODY) in head and body == BODY
        )
        assert not sound


def test_an_answer_that_is_misaddressed_is_for_nobody_there_is() -> None:
    for seed in TIMES:
        [frame] = FrameReader(Framing.V2).feed(met(FRAME, Wire.MISADDRESS, Speech.V2, seed).data)
        found = decode_answer_ids(frame[1:], Encoding.JSON)
        assert found != IDS
        assert found.correlation_id != "c-1" or found.call_id != 7
    other = b"\x00\x00\x00\x03" + bytes([MessageType.PONG]) + b"{}"
    assert fate(other, Wire.MISADDRESS, Speech.V2, random.Random(1)) is None  # noqa: S311


def test_what_is_delayed_or_duplicated_is_unchanged() -> None:
    assert met(FRAME, Wire.DUPLICATE, Speech.V2, 1).data == 2 * FRAME
    delayed = met(FRAME, Wire.DELAY, Speech.V2, 1)
    assert (delayed.data, delayed.end) == (FRAME, False)
    assert 0 < delayed.delay < 1


def test_where_there_are_no_ids_nothing_is_duplicated_or_misaddressed() -> None:
    assert not {Wire.DUPLICATE, Wire.MISADDRESS} & set(POSSIBLE[Speech.ENVELOPE])


def test_each_kind_has_a_chance_unless_it_meets_everything() -> None:
    assert set(CHANCES) == set(Wire) - {Wire.TRICKLE}


@pytest.mark.parametrize(
    ("message", "speech"), [(FRAME, Speech.V2), (ENVELOPE, Speech.ENVELOPE), (RESPONSE, Speech.HTTP)]
)
def test_messages_are_found_however_they_come(message: bytes, speech: Speech) -> None:
    buffer = bytearray()
    found: list[bytes] = []
    for byte in 2 * message:
        buffer.append(byte)
        found += messages(buffer, speech)
    assert found == [message, message]
    assert messages(bytearray(2 * message + message[:-1]), speech) == [message, message]
