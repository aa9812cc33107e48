"""An event whose data is taken out of its frame first is the same event."""

import base64
import random
from io import BytesIO
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from asgi_agents import AgentError, EventType
from asgi_agents.protocol import Encoding
from asgi_agents.protocol.extraction import extract_data
from asgi_agents.protocol.stream import FrameReader, Framing, MessageType, decode_payload, encode_frame

TYPE = bytes([MessageType.REQUEST_BODY_CHUNK])
STEP = 64 * 1024


def as_a_whole(payload: bytes) -> Any:
    try:
        return decode_payload(EventType.REQUEST_BODY_CHUNK, payload, Encoding.JSON)
    except AgentError as exc:
        return str(exc)


def taken_apart(payload: bytes) -> Any:
    """The same by way of :func:`extract_data`; None where that leaves it alone."""
    frame = BytesIO()
    frame.write(TYPE + payload)
    found = extract_data(frame)
    if found is None:
        assert frame.getvalue() == TYPE + payload
        return None
    rest, data = found
    assert rest[:1] == TYPE
    event = as_a_whole(rest[1:])
    return event if isinstance(event, str) else replace(event, data=data)


def spelt(said: str, **fields: Any) -> bytes:
    before = {"correlation_id": "c", **fields}
    return msgspec.json.encode(before)[:-1] + b',"data":"' + said.encode() + b'","is_last":true}'


@pytest.mark.parametrize("size", [0, 1, 2, 3, 48, 49151, 49152, 49153, 98304, 200_000])
def test_it_is_the_same_event(size: int) -> None:
    data = random.Random(size).randbytes(size)  # noqa: S311 - not a secret
    payload = spelt(base64.b64encode(data).decode())
    assert as_a_whole(payload).data == data
    assert taken_apart(payload) == as_a_whole(payload)


ODD = {
    "padding in the middle": spelt("AAA=" + "A" * 8),
    "padding before a cut": spelt("A" * (STEP - 4) + "AAA=" + "AAAA"),
    "no multiple of four": spelt("A" * (STEP + 3)),
    "no base64": spelt("*" * 400),
    "a blank": spelt("AAAA AAAA"),
    "another alphabet": spelt("_-8="),
    "an escaped slash": spelt("AA\\/A"),
    "within another": spelt("AAAA", metadata={"data": "BBBB"}),
    "within another, and nowhere else": b'{"correlation_id":"c","is_last":true,"metadata":{"data":"BBBB"}}',
    "twice": spelt("AAAA", data="BBBB"),
    "twice, the second empty": spelt("AAAA")[:-1] + b',"data":""}',
    "twice, the second escaped": spelt("AAAA")[:-1] + b',"d\\u0061ta":"BBBB"}',
    "twice, the first escaped": b'{"d\\u0061ta":"BBBB",' + spelt("AAAA")[1:],
    "blanks": b'{ "correlation_id" : "c" , "data" : "AAAA" , "is_last" : true }',
    "no end": spelt("AAAA")[:-20],
    "no such field": b'{"correlation_id":"c","is_last":true}',
    "null": b'{"correlation_id":"c","data":null,"is_last":true}',
    "in a text": b'{"correlation_id":"c,\\"data\\":\\"AAAA\\"","is_last":true,"data":"BBBB"}',
    "in an array": b'[{"correlation_id":"c","data":"AAAA","is_last":true}]',
    "other fields are missing": b'{"data":"AAAA"}',
    "other fields are wrong": spelt("AAAA", chunk_index="x"),
    "a long tail": spelt("AAAA")[:-1] + b',"more":"' + b"x" * 20_000 + b'"}',
    "a long head": spelt("AAAA", more="x" * 20_000),
    "nothing": b"",
    "nested beyond reason": b'{"a":' + b"[" * 10_000 + b',"data":"AAAA"',
}


@pytest.mark.parametrize("payload", ODD.values(), ids=ODD)
def test_what_is_odd_is_left_alone_or_comes_to_the_same(payload: bytes) -> None:
    found = taken_apart(payload)
    assert found is None or found == as_a_whole(payload)


def test_the_data_is_that_of_the_frame_that_was_given_last() -> None:
    reader = FrameReader(Framing.V2)
    reader.extracts = True
    data = bytes(2 * 1024 * 1024)
    long = encode_frame(TYPE[0], spelt(base64.b64encode(data).decode()))
    short = encode_frame(TYPE[0], spelt("AAAA"))
    other = encode_frame(MessageType.CONFIGURE, b" " * len(data))
    for frame, expected in ((long, data), (short, None), (long, data), (other, None)):
        found = []
        for start in range(0, len(frame), STEP):
            found += list(reader.feed(frame[start : start + STEP]))
        assert len(found) == 1
        assert reader.take_data() == expected
        assert reader.take_data() is None
