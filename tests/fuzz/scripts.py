"""What apps do: in orders that ASGI allows, and in others."""

from collections.abc import Iterator
from itertools import count
from typing import Any, Final

from starlette.types import Message

from .apps import Script, Step
from .choices import Choices
from .reactions import APP_HEADER

#: The statuses of apps; no agent uses them.
STATUSES: Final = (200, 201, 404, 500, 204, 304)
_SSE: Final = (b"content-type", b"text/event-stream; charset=utf-8")


def http_script(choices: Choices) -> Script:
    """Two of three are legal."""
    counter = count(1)
    if not choices.one_in(3):
        return Script(list(_legal(choices, counter)), True, choices.flag())
    steps = [_any_step(choices, counter) for _ in choices.times(10)]
    return Script(steps, False, choices.flag())


def _legal(choices: Choices, counter: "count[int]") -> Iterator[Step]:
    yield from _between(choices)
    pieces = [_data(choices, counter) for _ in range(choices.below(5))]
    status = choices.pick(STATUSES)
    if status in (204, 304):
        pieces = []
    headers = [APP_HEADER]
    if choices.flag():
        headers.append((b"Content-Length", b"%d" % sum(map(len, pieces))))
    if choices.one_in(4):
        headers.append(_SSE)
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    trailers = choices.one_in(8)
    if trailers:
        start["trailers"] = True
    yield Step("send", start)
    for piece in pieces:
        yield from _between(choices)
        yield Step("send", {"type": "http.response.body", "body": piece, "more_body": True})
    yield from _between(choices)
    last: dict[str, Any] = {"type": "http.response.body"}
    if choices.flag():
        last |= {"body": b"", "more_body": False}
    elif pieces and choices.flag() and not trailers:
        # The last piece says that it is.
        last |= {"body": _data(choices, counter)}
        if status in (204, 304) or (b"Content-Length" in dict(headers)):
            last["body"] = b""
    yield Step("send", last)
    if trailers:
        yield Step("send", {"type": "http.response.trailers", "headers": [(b"x-trailer", b"1")]})
    yield from _between(choices)


def _between(choices: Choices) -> Iterator[Step]:
    kind = choices.pick(("", "", "read", "read all", "pause", "pause", "raise", "read beside", "give up reading"))
    match kind:
        case "read beside":
            yield Step("read", how="beside")
        case "give up reading":
            yield Step("read", how="give up")
        case "raise" if not choices.one_in(3):
            pass
        case "pause":
            yield Step("pause", seconds=choices.pick((0.0, 0.0, 1.0, 50.0)))
        case "":
            pass
        case _:
            yield Step(kind)


def _data(choices: Choices, counter: "count[int]") -> bytes:
    """So that no piece can be taken for another."""
    size = choices.pick((4, 1, 0, 9, 30))
    return b"".join(b"%c" % (65 + next(counter) % 58) for _ in range(size))


def _any_step(choices: Choices, counter: "count[int]") -> Step:
    how = choices.pick(("await", "await", "await", "give up", "beside"))
    data: Any = _data(choices, counter)
    data = choices.pick((bytes, bytearray, memoryview))(data)
    headers = [APP_HEADER, *choices.pick(([], [_SSE], [(b"content-length", b"4")]))]
    match choices.below(9):
        case 0 | 1:
            start: Message = {"type": "http.response.start", "status": choices.pick(STATUSES)}
            return Step("send", start if choices.one_in(4) else {**start, "headers": headers}, how)
        case 2 | 3 | 4:
            body: Message = {"type": "http.response.body"}
            if not choices.one_in(4):
                body["body"] = data
            if not choices.one_in(3):
                body["more_body"] = choices.flag()
            return Step("send", body, how)
        case 5:
            kind = choices.pick(("trailers", "early_hint", "debug", "push", "pathsend", "of_tomorrow"))
            fields: dict[str, dict[str, Any]] = {"pathsend": {"path": "/x"}, "trailers": {"headers": []}}
            return Step("send", {"type": f"http.response.{kind}", **fields.get(kind, {})}, how)
        case 6:
            return Step(choices.pick(("read", "read all")), how=how)
        case 7:
            return Step("pause", seconds=choices.pick((0.0, 1.0)))
        case _:
            return Step("raise" if choices.one_in(3) else "read", how="await")


def websocket_script(choices: Choices, *, denials: bool) -> Script:
    """Two of three are legal; ``denials``: the server takes a response in place of a handshake."""
    counter = count(1)
    if not choices.one_in(3):
        return Script(list(_legal_session(choices, counter, denials=denials)), True, choices.flag())
    steps = [_any_session_step(choices, counter) for _ in choices.times(10)]
    return Script(steps, False, choices.flag())


def _legal_session(choices: Choices, counter: "count[int]", *, denials: bool) -> Iterator[Step]:
    if not choices.one_in(4):
        yield Step("read")
    if choices.one_in(5):
        if not denials:
            yield Step("send", {"type": "websocket.close"})
            return
        headers = [APP_HEADER]
        yield Step("send", {"type": "websocket.http.response.start", "status": 404, "headers": headers})
        for _ in choices.times(2):
            body = _data(choices, counter)
            yield Step("send", {"type": "websocket.http.response.body", "body": body, "more_body": True})
        yield Step("send", {"type": "websocket.http.response.body"})
        return
    accept: Message = {"type": "websocket.accept"}
    yield Step("send", {**accept, "headers": [APP_HEADER]} if choices.flag() else accept)
    for _ in choices.times(5):
        match choices.pick(("send", "read", "read all", "pause", "read beside", "give up", "send beside", "raise")):
            case "send":
                yield Step("send", _frame(choices, counter))
            case "send beside":
                yield Step("send", _frame(choices, counter), "beside")
            case "read beside":
                yield Step("read", how="beside")
            case "give up":
                yield Step("read", how="give up")
            case "raise" if not choices.one_in(4):
                pass
            case "pause":
                yield Step("pause", seconds=choices.pick((0.0, 1.0, 50.0)))
            case kind:
                yield Step(kind)
    if choices.flag():
        # What was begun beside it may not come after the close.
        yield Step("pause", seconds=10_000.0)
        yield Step("send", {"type": "websocket.close", "code": 1000})


def _frame(choices: Choices, counter: "count[int]") -> Message:
    name = f"s{next(counter)}"
    frame: Message = {"type": "websocket.send"}
    match choices.below(4):
        case 0:
            return {**frame, "text": name}
        case 1:
            return {**frame, "bytes": name.encode()}
        case 2:
            return {**frame, "text": name, "bytes": None}
        case _:
            return {**frame, "bytes": bytearray(name.encode()), "text": None}


def _any_session_step(choices: Choices, counter: "count[int]") -> Step:
    how = choices.pick(("await", "await", "await", "give up", "beside"))
    match choices.below(8):
        case 0:
            return Step("send", {"type": "websocket.accept"}, how)
        case 1 | 2:
            return Step("send", _frame(choices, counter), how)
        case 3:
            return Step("send", {"type": "websocket.close"}, how)
        case 4:
            kind = choices.pick(
                ("websocket.http.response.start", "websocket.http.response.body", "websocket.of_tomorrow")
            )
            message: Message = {"type": kind, "status": 404} if kind.endswith("start") else {"type": kind}
            return Step("send", {**message, "more_body": True} if choices.one_in(3) else message, how)
        case 5:
            return Step("send", {"type": "websocket.send", "text": "both", "bytes": b"both"}, how)
        case 6:
            return Step(choices.pick(("read", "read all")), how=how)
        case _:
            return Step(choices.pick(("pause", "read", "raise")))
