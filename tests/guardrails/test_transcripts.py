"""What is said on a websocket, frame by frame, is the same with guardrails that change nothing.

The cases are those of the Autobahn test suite: framing, pings, reserved bits and opcodes, fragments, UTF-8, closes, and
sizes. What a server makes of each is its own affair; here it is compared with what it makes of it without guardrails.
"""

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_agents import AgentConfig, AgentMiddleware, AgentResponse, FailureMode, WebSocketFrameEvent
from asgi_agents.guardrails import Decision, Guardrail, TextGuardrail, Window
from tests.support.examples import the_first_is_short
from tests.support.servers import serve, websocket_implementations

# One of the implementations is deprecated by uvicorn as well as by websockets.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# Seconds after which what has not come never will.
_PATIENCE: Final = 30.0
_MASK: Final = b"\x37\xfa\x21\x3d"
CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Finds(TextGuardrail):
    """Looks for what nobody says, and writes messages as well."""

    hold = 12

    async def check(self, window: Window) -> Sequence[Decision]:
        return []

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        return None


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        given = {key: message[key] for key in ("text", "bytes") if message.get(key) is not None}
        await send({"type": "websocket.send", **given})


def guarded(app: ASGIApp) -> ASGIApp:
    return AgentMiddleware(
        app,
        # Binary messages that are no text can't be judged, and pass a guardrail that fails open.
        agents=[AgentConfig("finds", Finds(), body_access="write", failure_mode=FailureMode.OPEN)],
        guardrails=[Guardrail("finds", on={"input", "output"}, max_hold=0.01)],
    )


# Frames


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """A frame of a client."""
    first = fin << 7 | rsv << 4 | opcode
    if len(data) < 126:
        head = struct.pack("!BB", first, 0x80 | len(data))
    elif len(data) < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, len(data))
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, len(data))
    mask = int.from_bytes((_MASK * (len(data) // 4 + 1))[: len(data)], "big")
    return head + _MASK + (int.from_bytes(data, "big") ^ mask).to_bytes(len(data), "big")


def fragments(opcode: int, data: bytes, size: int) -> list[bytes]:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return [
        frame(opcode if at == 0 else CONTINUED, piece, fin=at == len(pieces) - 1) for at, piece in enumerate(pieces)
    ]


def closing(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


#: What a client does: bytes that it sends, or how many messages it waits for, all in all.
Step = bytes | int


def steps(*given: Step | list[bytes]) -> list[Step]:
    """What the server has to close behind."""
    return [step for item in given for step in (item if isinstance(item, list) else [item])]


def fine(*given: Step | list[bytes]) -> list[Step]:
    """What the client closes behind."""
    return [*steps(*given), closing()]


def chopped(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


_SIZES: Final = (0, 125, 126, 127, 128, 65535, 65536)
_UTF8: Final = "Hello-\u00b5@\u00df\u00f6\u00e4\u00fc\u00e0\u00e1-UTF-8!! \U0001f600".encode()
_NOT_UTF8: Final = {
    "surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
    "beyond": b"\xf4\x90\x80\x80",
    "lone continuation": b"\x80",
    "cut": b"\xe2\x82",
    "never": b"\xfe\xff",
    "in the middle": _UTF8 + b"\xed\xa0\x80" + _UTF8,
}
_CODES: Final = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
_NO_CODES: Final = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535)


def _cases() -> Iterator[tuple[str, list[Step]]]:
    # 1: framing
    for size in _SIZES:
        yield f"text of {size}", fine(frame(TEXT, b"*" * size), 1)
        yield f"binary of {size}", fine(frame(BINARY, b"\xfe" * size), 1)
    yield "text in pieces", fine(chopped(frame(TEXT, b"*" * 65536), 997), 1)
    yield "binary in pieces", fine(chopped(frame(BINARY, b"\xfe" * 65536), 997), 1)
    # 2: pings and pongs
    for data in (b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125):
        yield f"ping of {len(data)}", fine(frame(PING, data))
    yield "ping of 126", steps(frame(PING, b"\xfe" * 126))
    yield "ping, byte by byte", fine(chopped(frame(PING, b"\xfe" * 125), 1))
    yield "pong that nobody wants", fine(frame(PONG, b"unsolicited"), frame(PING, b"ping"))
    yield "ten pings", fine([frame(PING, b"payload-%d" % number) for number in range(10)])
    # 3 and 4: reserved bits and opcodes
    for rsv in range(1, 8):
        yield f"rsv {rsv}", steps(frame(TEXT, b"fine"), 1, frame(TEXT, b"Hello", rsv=rsv) + frame(PING))
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield f"opcode {opcode}", steps(frame(TEXT, b"fine"), 1, frame(opcode, b"Hello") + frame(PING))
    # 5: fragments
    for control in (PING, PONG):
        yield f"{control} in fragments", steps(b"".join(fragments(control, b"fragment", 4)))
        between = [frame(TEXT, b"one ", fin=False), frame(control, b"between"), frame(CONTINUED, b"two")]
        yield f"{control} between fragments", fine(between, 1)
    for size in (1, 3, 100):
        yield f"text in fragments of {size}", fine(fragments(TEXT, b"fragment1fragment2", size), 1)
        yield f"binary in fragments of {size}", fine(fragments(BINARY, b"fragment1fragment2", size), 1)
    for fin in (True, False):
        yield f"nothing to go on with, fin {fin}", steps(frame(CONTINUED, b"no start", fin=fin) + frame(TEXT, b"x"))
    yield "a message within a message", steps(frame(TEXT, b"one", fin=False) + frame(TEXT, b"two"))
    empty = [frame(TEXT, b"", fin=False), frame(CONTINUED, b"", fin=False), frame(CONTINUED, b"")]
    yield "three empty fragments", fine(empty, 1)
    # 6: UTF-8
    yield "UTF-8", fine(frame(TEXT, _UTF8), 1)
    for size in (1, 2, 5):
        yield f"UTF-8 in fragments of {size}", fine(fragments(TEXT, _UTF8, size), 1)
    for name, data in _NOT_UTF8.items():
        yield f"no UTF-8, {name}", steps(frame(TEXT, b"fine"), 1, frame(TEXT, data))
        yield f"no UTF-8, {name}, in fragments", steps(b"".join(fragments(TEXT, b"x" + data, 1)))
    for character in ("\x00", "\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\ufffd", "\uffff", "\U0010ffff"):
        yield f"U+{ord(character):04X}", fine(frame(TEXT, character.encode()), 1)
    # 7: closes
    yield "echo and close", steps(frame(TEXT, b"Hello World!"), 1, closing())
    yield "two closes", steps(closing() + closing())
    yield "ping behind a close", steps(closing() + frame(PING))
    yield "text behind a close", steps(closing() + frame(TEXT, b"late"))
    yield "close within a message", steps(frame(TEXT, b"one", fin=False) + closing() + frame(CONTINUED, b"two"))
    yield "close without a code", steps(closing(None))
    yield "close with half a code", steps(frame(CLOSE, b"\x03"))
    yield "close with a reason", steps(closing(1000, b"Hello World!"))
    yield "close with a long reason", steps(closing(1000, b"*" * 123))
    yield "close with a reason that is too long", steps(closing(1000, b"*" * 124))
    yield "close with a reason that is no UTF-8", steps(closing(1000, b"\xce\xba\xed\xa0\x80"))
    for code in (*_CODES, *_NO_CODES):
        yield f"close {code}", steps(closing(code))


_CASES: Final = dict(_cases())
#: 9 and 10: sizes. They take long.
_LARGE: Final[Mapping[str, list[Step]]] = {
    "text of 1 MiB": fine(frame(TEXT, b"*" * 2**20), 1),
    "binary of 4 MiB": fine(frame(BINARY, b"\xfe" * 2**22), 1),
    "1 MiB of text in fragments of 1 KiB": fine(fragments(TEXT, b"*" * 2**20, 1024), 1),
    "1 MiB of text in pieces of 1 KiB": fine(chopped(frame(TEXT, b"*" * 2**20), 1024), 1),
    "1,000 texts": fine([frame(TEXT, b"%d" % number) for number in range(1000)], 1000),
    "1,000 texts of 4 KiB": fine([frame(TEXT, b"*" * 4096) for _ in range(1000)], 1000),
}


# What comes back


class Transcript(NamedTuple):
    """What a server has sent: messages as (opcode, data), pongs, the close, and what it is that can't be read."""

    messages: list[tuple[int, bytes]]
    pongs: list[bytes]
    closes: list[bytes]
    rest: bytes


def _frames(data: bytes) -> Iterator[tuple[int, bool, bytes, int]]:
    """The whole frames of a server, and where each ends."""
    at = 0
    while len(data) >= at + 2:
        first, size = data[at], data[at + 1]
        begin = at + 2
        if size in (126, 127):
            width = 2 if size == 126 else 8
            if len(data) < begin + width:
                return
            size = int.from_bytes(data[begin : begin + width], "big")
            begin += width
        if len(data) < begin + size:
            return
        at = begin + size
        yield first & 0x0F, bool(first & 0x80), data[begin:at], at


def read(data: bytes) -> Transcript:
    transcript, end = Transcript([], [], [], b""), 0
    begun: list[Any] = []
    for opcode, fin, payload, end in _frames(data):  # noqa: B007 - the last is used
        if opcode == PONG:
            transcript.pongs.append(payload)
        elif opcode == CLOSE:
            transcript.closes.append(payload)
        else:
            begun = [begun[0], begun[1] + payload] if opcode == CONTINUED else [opcode, payload]
            if fin:
                transcript.messages.append((begun[0], begun[1]))
    return transcript._replace(rest=data[end:])


def said(port: int, given: Sequence[Step]) -> Transcript:
    """All that a server says to one who does ``given``."""
    received = b""

    def more() -> bool:
        nonlocal received
        data = connection.recv(1 << 16)
        received += data
        return bool(data)

    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as connection:
        connection.sendall(
            b"GET /chat HTTP/1.1\r\nhost: test\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        while b"\r\n\r\n" not in received:
            assert more(), received
        head, _, received = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        try:
            for step in given:
                if isinstance(step, int):
                    while len(read(received).messages) < step and not read(received).closes and more():
                        pass
                else:
                    connection.sendall(step)
            while more():
                pass
        except ConnectionError:
            # It has closed, and not read all of what it was sent.
            pass
    return read(received)


@pytest.fixture(scope="module", params=the_first_is_short(websocket_implementations()))
def ports(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Of the app as it is, and of the guarded one."""
    options: dict[str, Any] = {"ws": request.param, "lifespan": "off", "ws_per_message_deflate": False}
    with ExitStack() as stack:
        bare, behind = (stack.enter_context(serve(app, **options)) for app in (echo, guarded(echo)))
        yield int(bare.rsplit(":", 1)[1].strip("/")), int(behind.rsplit(":", 1)[1].strip("/"))


@pytest.mark.parametrize("case", _CASES)
def test_it_is_as_without_guardrails(ports: tuple[int, int], case: str) -> None:
    expected = said(ports[0], _CASES[case])
    # Some servers say nothing to who is at fault.
    assert expected.closes or _CASES[case][-1] != closing()
    assert said(ports[1], _CASES[case]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("case", _LARGE)
def test_large_messages_are_as_without_guardrails(ports: tuple[int, int], case: str) -> None:
    expected = said(ports[0], _LARGE[case])
    assert expected.messages
    assert said(ports[1], _LARGE[case]) == expected
