"""The targets find what they are for: with something wrong in the package, none of them holds."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any

import pytest

from asgi_agents.concurrency import limiter
from asgi_agents.decision import ALLOWED, Verdict
from asgi_agents.exchange import base, head, inbound, response, stage, websocket
from asgi_agents.protocol import AgentResponse, codec, validation
from asgi_agents.protocol.stream import FrameReader
from asgi_agents.recording import reading

from .loops import Stuck
from .targets import TARGETS

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def _replacing(place: Any, name: str, by: Any) -> Break:
    return lambda patch: patch.setattr(place, name, by)


async def _nothing(*args: object, **kwargs: object) -> None: ...


def _settle_nothing(stage: Any, verdicts: object) -> Any:
    return stage._release(stage._asked[0])


async def _allow_head(*args: object, **kwargs: object) -> Any:
    return ALLOWED, {}


def _judging_only(judged: bool) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """Messages of one direction, those of the client or of the app, are judged; others are passed on."""
    judge = websocket.WebSocketExchange._judge

    async def judge_some(session: Any, direction: Any, message: Any) -> None:
        if direction.client_to_server is judged:
            await judge(session, direction, message)
        elif direction.client_to_server:
            session._inbound.deliver(message)
        else:
            await session._raw_send(message)

    return judge_some


async def _close_twice(session: Any, message: Any) -> None:
    await session._raw_send(message)
    await session._raw_send(message)


def _overtake(reader: Any, message: Any) -> None:
    reader._ready.insert(0, {**message, "body": message.get("body", b"")[::-1]})


def _forget_the_rest(reader: FrameReader, data: bytes) -> Iterator[bytes]:
    if len(data) >= 4 and 0 < int.from_bytes(data[:4], "big") <= len(data) - 4:
        yield data[4 : 4 + int.from_bytes(data[:4], "big")]


def _release(stage: Any, data: bytes) -> bytes:
    """Without what was kept back."""
    stage._withheld.clear()
    stage._buffer.clear()
    return data


def _in_the_order_of_the_file(traffic: reading.Traffic) -> Iterator[reading.RecordedExchange]:
    return (exchange for _, exchange in traffic._in_file_order())


BREAKS = {
    "http: permits are never given back": ("http", _replacing(limiter.Limiter, "release", lambda limiter: None)),
    "http: bodies are not judged": ("http", _replacing(stage.BodyStage, "resume", _settle_nothing)),
    "http: bytes that were kept back are lost": ("http", _replacing(stage.BodyStage, "_release", _release)),
    "http: heads of responses are not judged": ("http", _replacing(response, "judge_head", _allow_head)),
    "http: heads of requests are not judged": ("http", _replacing(base, "judge_head", _allow_head)),
    "http: nothing fails open": (
        "http",
        _replacing(Verdict, "fails_closed", property(lambda v: v.enforced and v.failure is not None)),
    ),
    "http: nothing fails closed": ("http", _replacing(Verdict, "fails_closed", property(lambda verdict: False))),
    "http: shadow agents decide": (
        "http",
        _replacing(Verdict, "denies", property(lambda v: v.response is not None and not v.response.is_allow)),
    ),
    "http: any header may be set": ("http", _replacing(validation, "_check_header", lambda *args, **kwargs: None)),
    "http: content-length is left as it was": (
        "http",
        _replacing(response, "without_body_claims", lambda headers, length: headers),
    ),
    "http: provisional denials are forgotten": ("http", _replacing(head, "merge", lambda verdicts, **options: ALLOWED)),
    "http: chunks overtake each other": ("http", _replacing(inbound.Inbound, "deliver", _overtake)),
    "http: a response that is broken off ends well": (
        "http",
        _replacing(response.ResponseInspection, "stop", _nothing),
    ),
    "websocket: messages are not judged": (
        "websocket",
        _replacing(websocket.WebSocketExchange, "_judge", _judging_only(False)),
    ),
    "websocket: it is closed twice": (
        "websocket",
        _replacing(websocket.WebSocketExchange, "_send_close", _close_twice),
    ),
    "websocket: it is not closed": ("websocket", _replacing(websocket.WebSocketExchange, "_send_close", _nothing)),
    "websocket: nothing is dropped": (
        "websocket",
        _replacing(websocket.WebSocketExchange, "_judge", _judging_only(True)),
    ),
    "frames: what is incomplete is forgotten": ("frames", _replacing(FrameReader, "feed", _forget_the_rest)),
    "answers: any header may be set": ("answers", _replacing(validation, "is_untouchable", lambda name: False)),
    "answers: an answer loses its operations": ("answers", _replacing(codec, "_ops_from_wire", lambda field, wire: ())),
    "recordings: answers are not looked at": (
        "recordings",
        _replacing(reading, "decode_answer", lambda data, encoding, event_type: AgentResponse()),
    ),
    "recordings: calls are in the order in which they ended": (
        "recordings",
        _replacing(reading.Traffic, "exchanges", _in_the_order_of_the_file),
    ),
}


@pytest.mark.parametrize(("target", "breaks"), BREAKS.values(), ids=BREAKS)
def test_what_is_wrong_is_found(target: str, breaks: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch)
    with pytest.raises((AssertionError, Stuck)):
        _search(target)


def _search(target: str) -> None:
    chance = Random(1)  # noqa: S311
    for _ in range(1500):
        TARGETS[target].run(chance.randbytes(400))
