"""What proxies make of the frames, or HTTP messages, between the middleware and an agent. No I/O.

Whatever comes out is either what went in, once or twice or later, or something that is no answer by any reading of the
protocol: no corruption rewrites a value within a message, for that gives a message that is valid and says another thing
(see :mod:`tests.chaos.checks`). Events are never made into other events, either: the types they get are nobody's.
"""

import json
import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from asgi_agents.protocol.stream import MessageType

_LENGTH = 4
_HTTP2_HEAD = 9
# A message type of nobody, and a byte that begins no JSON.
_NO_TYPE, _NO_JSON = 0x6F, b"\xc1"


class Speech(StrEnum):
    """What is spoken on a connection."""

    V2 = "v2"
    ENVELOPE = "envelope"
    HTTP = "http"
    #: gRPC's frames, as the agent sends them.
    HTTP2 = "http2"


class Wire(StrEnum):
    """What can happen to a message on its way."""

    CUT = "cut"
    FLIP = "flip"
    TRUNCATE = "truncate"
    GARBAGE = "garbage"
    DUPLICATE = "duplicate"
    DELAY = "delay"
    MISADDRESS = "misaddress"
    TRICKLE = "trickle"


#: Each message's chance of being met while it happens; all the bytes of a connection trickle.
CHANCES: Final = {
    Wire.CUT: 0.08,
    Wire.FLIP: 0.08,
    Wire.TRUNCATE: 0.08,
    Wire.GARBAGE: 0.08,
    Wire.DUPLICATE: 0.5,
    Wire.DELAY: 0.3,
    Wire.MISADDRESS: 0.2,
}
#: What makes sense where. The older framing has no ids: an answer that is said twice, or comes before its turn, would
#: be an answer to the next question, and nobody could tell.
POSSIBLE: Final = {
    Speech.V2: tuple(Wire),
    Speech.ENVELOPE: (Wire.CUT, Wire.FLIP, Wire.TRUNCATE, Wire.GARBAGE, Wire.DELAY, Wire.TRICKLE),
    # Frames are lost or broken, and never what is in one: there may be a part of an answer in it.
    Speech.HTTP2: (Wire.CUT, Wire.FLIP, Wire.GARBAGE, Wire.DELAY, Wire.TRICKLE),
    Speech.HTTP: (Wire.CUT, Wire.FLIP, Wire.TRUNCATE, Wire.GARBAGE, Wire.DUPLICATE, Wire.DELAY, Wire.TRICKLE),
}


class Fate(NamedTuple):
    """What becomes of a message: these bytes go on, after ``delay`` seconds, and the connection may end with them."""

    data: bytes
    delay: float = 0.0
    end: bool = False


def messages(buffer: bytearray, speech: Speech) -> Sequence[bytes]:
    """Take all whole messages out of ``buffer``."""
    found = []
    while (size := _size(buffer, speech)) is not None and size <= len(buffer):
        found.append(bytes(buffer[:size]))
        del buffer[:size]
    return found


def _size(buffer: bytearray, speech: Speech) -> int | None:
    if speech is Speech.HTTP2:
        # RFC 9113, section 4.1: a length of 24 bits, a type, flags, and a stream.
        return _HTTP2_HEAD + int.from_bytes(buffer[:3], "big") if len(buffer) >= _HTTP2_HEAD else None
    if speech is not Speech.HTTP:
        return _LENGTH + int.from_bytes(buffer[:_LENGTH], "big") if len(buffer) >= _LENGTH else None
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    for line in bytes(buffer[:end]).lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return end + 4 + int(line.partition(b":")[2])
    return end + 4


def fate(message: bytes, wire: Wire, speech: Speech, chance: random.Random) -> Fate | None:
    """What happens to ``message``; None where nothing does, because it can't."""
    match wire:
        case Wire.CUT:
            return Fate(message[: chance.randrange(len(message))], end=True)
        case Wire.DELAY:
            return Fate(message, delay=chance.uniform(0.02, 0.8))
        case Wire.DUPLICATE:
            return Fate(message * 2)
        case Wire.MISADDRESS:
            return _misaddressed(message, chance)
        case Wire.FLIP | Wire.TRUNCATE | Wire.GARBAGE:
            broken = _BROKEN.get(speech, _broken_frame)
            return Fate(broken(message, wire, speech, chance))
        case Wire.TRICKLE:
            return None


def _broken_frame(frame: bytes, wire: Wire, speech: Speech, chance: random.Random) -> bytes:
    length, typed = frame[:_LENGTH], speech is Speech.V2
    head = frame[_LENGTH : _LENGTH + typed]
    payload = frame[_LENGTH + typed :]
    if wire is Wire.TRUNCATE:
        return _framed(head + payload[: chance.randrange(len(payload))] if payload else head)
    if wire is Wire.GARBAGE:
        noise = _NO_JSON + chance.randbytes(chance.randrange(1, 200))
        return noise if chance.random() < 0.5 else _framed(head + noise)
    flips = [
        # Nothing, more than may be, and a little more or less than there is.
        bytes(_LENGTH) + frame[_LENGTH:],
        b"\xff" + frame[1:],
        max(0, len(frame) - _LENGTH + chance.choice((-2, -1, 1, 2))).to_bytes(_LENGTH, "big") + frame[_LENGTH:],
        length + head + _NO_JSON + payload[1:],
        frame[:-1] + _NO_JSON,
    ]
    if typed:
        flips.append(length + bytes([_NO_TYPE]) + payload)
    return chance.choice(flips)


def _framed(content: bytes) -> bytes:
    return len(content).to_bytes(_LENGTH, "big") + content


def _broken_http(message: bytes, wire: Wire, speech: Speech, chance: random.Random) -> bytes:
    head, _, body = message.partition(b"\r\n\r\n")
    if wire is Wire.TRUNCATE:
        return _answered(b"200 OK", body[: chance.randrange(len(body))] if body else body)
    if wire is Wire.GARBAGE:
        noise = _NO_JSON + chance.randbytes(chance.randrange(1, 200))
        return chance.choice([noise, _answered(b"200 OK", noise), _answered(b"500 Internal Server Error", body)])
    return chance.choice(
        [
            b"\xff" + message[1:],
            _answered(b"200 OK", _NO_JSON + body[1:]),
            head.replace(b"content-length", b"content-l\x00ngth") + b"\r\n\r\n" + body,
        ]
    )


def _broken_http2(frame: bytes, wire: Wire, speech: Speech, chance: random.Random) -> bytes:
    if wire is Wire.GARBAGE:
        return _NO_JSON + chance.randbytes(chance.randrange(8, 200))
    # Of a type that is nobody's, which is to be ignored; or longer than any may be.
    return chance.choice([frame[:3] + bytes([_NO_TYPE]) + frame[4:], b"\xff" + frame[1:]])


_BROKEN: Final = {Speech.HTTP: _broken_http, Speech.HTTP2: _broken_http2}


def _answered(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def _misaddressed(frame: bytes, chance: random.Random) -> Fate | None:
    """An answer to somebody that there isn't."""
    if frame[_LENGTH] != MessageType.AGENT_RESPONSE:
        return None
    answer = json.loads(frame[_LENGTH + 1 :])
    custom = answer["audit"]["custom"]
    if chance.random() < 0.5:
        custom["correlation_id"] = f"nobody-{chance.random()}"
    else:
        custom["call_id"] = 2**40 + chance.randrange(2**20)
    return Fate(_framed(bytes([MessageType.AGENT_RESPONSE]) + json.dumps(answer).encode()))
