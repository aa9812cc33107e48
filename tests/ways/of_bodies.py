"""Cases of agents that receive the bodies of requests."""

from collections.abc import Sequence
from typing import Any, Final

from asgi_agents import AgentResponse, BodyMutation, EventType, HeaderOp, RequestBodyChunkEvent

from .case import AS_WITHOUT, FAILED, Case, Expected, Kind, Said

_HEAD: Final = EventType.REQUEST_HEADERS
_BODY: Final = EventType.REQUEST_BODY_CHUNK
_STOPPED: Final = Expected(status=422, body=b"evil", called=False)
_FAILED: Final = Expected(status=503, body=FAILED, called=False)
_LONG: Final = b"0123456789" * 30_000


def _case(name: str, said: Said, expected: Expected = AS_WITHOUT, *, head: Said = None, **more: Any) -> Case:
    answers = {_HEAD: head, _BODY: said}
    settings = {"method": "POST", "body": b"harmless", **more}
    return Case(name=name, kind=Kind.BODIES, answers=answers, expected=expected, **settings)


def _stops_evil(event: RequestBodyChunkEvent) -> AgentResponse | None:
    return AgentResponse.block(422, "evil") if b"!" in event.data else None


def _fails_on_evil(event: RequestBodyChunkEvent) -> AgentResponse | None:
    if b"!" in event.data:
        raise ValueError("it is broken")
    return None


def _replaces(event: RequestBodyChunkEvent) -> AgentResponse | None:
    if b"#" not in event.data:
        return None
    return AgentResponse.allow(request_body_mutation=BodyMutation(event.data.replace(b"#", b"[number]")))


def _drops(event: RequestBodyChunkEvent) -> AgentResponse:
    return AgentResponse.allow(request_body_mutation=BodyMutation(b""))


def _measures(event: RequestBodyChunkEvent) -> AgentResponse:
    return AgentResponse.allow(request_headers=[HeaderOp.set("x-size", str(event.bytes_received))])


CASES: Final[Sequence[Case]] = (
    _case("allow a body", _stops_evil),
    _case("allow a large body", _stops_evil, body=_LONG),
    _case("allow any bytes", _stops_evil, body=bytes(byte for byte in range(256) if byte != ord("!"))),
    _case("allow a streamed body", _stops_evil, mode="stream", body=(b"one ", b"two ", b"three")),
    _case("see no body where there is none", AgentResponse.block(422, "evil"), method="GET", body=None),
    _case("block a body", _stops_evil, _STOPPED, body=b"evil!", never=b"!"),
    _case("block the end of a large body", _stops_evil, _STOPPED, body=_LONG + b"evil!", never=b"!"),
    _case("block a body in pieces", _stops_evil, _STOPPED, body=(b"good ", b"evil!", b" good"), never=b"!"),
    _case(
        "block in the middle of a stream",
        _stops_evil,
        _STOPPED,
        mode="stream",
        body=(b"good ", b"evil!", b" good"),
        never=b"!",
    ),
    _case("set a request header when it has seen the body", _measures, Expected(request={"x-size": "8"})),
    _case(
        "replace a body",
        _replaces,
        Expected(app_body=b"my [number], your [number]"),
        body=b"my #, your #",
        never=b"#",
    ),
    _case("empty a body", _drops, Expected(app_body=b""), body=b"secret", never=b"secret"),
    _case(
        "replace parts of a stream",
        _replaces,
        Expected(app_body=b"my [number], your [number]"),
        mode="stream",
        body=(b"my #", b", your ", b"#"),
        never=b"#",
    ),
    _case(
        "deny a head until it has seen the body",
        None,
        head=AgentResponse.block(needs_more=True),
    ),
    _case(
        "let a body pass unseen",
        _stops_evil,
        head=AgentResponse.allow(skip_body=True),
        body=b"not even evil!",
    ),
    _case("fail on a body and be closed", ValueError("it is broken"), _FAILED),
    _case("fail on a body and be open", ValueError("it is broken"), opens=True),
    _case(
        "fail in the middle of a stream and be closed",
        _fails_on_evil,
        _FAILED,
        mode="stream",
        body=(b"good ", b"evil!", b" good"),
        never=b"!",
    ),
)
