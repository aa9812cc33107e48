"""Cases of agents that receive responses."""

from collections.abc import Sequence
from typing import Any, Final

from asgi_agents import AgentResponse, BodyMutation, EventType, HeaderOp, ResponseBodyChunkEvent, ResponseHeadersEvent

from .case import AS_WITHOUT, FAILED, PLAIN, Case, Expected, Kind, Reply, Said

_HEAD: Final = EventType.RESPONSE_HEADERS
_BODY: Final = EventType.RESPONSE_BODY_CHUNK
_HEADERS: Final = (("content-type", PLAIN), ("x-app", "1"))
_EVENTS: Final = (("content-type", "text/event-stream"),)
#: How a stream of events ends that was stopped.
_ENDING: Final = b'event: error\ndata: {"type":"error","error":{"message":"evil","type":"blocked","code":"502"}}\n\n'
_LONG: Final = b"0123456789" * 30_000


def _case(name: str, expected: Expected = AS_WITHOUT, *, head: Said = None, body: Said = None, **more: Any) -> Case:
    answers = {_HEAD: head, _BODY: body}
    return Case(name=name, kind=Kind.RESPONSES, answers=answers, expected=expected, **more)


def _says_what_it_was(event: ResponseHeadersEvent) -> AgentResponse:
    seen = HeaderOp.set("x-status", str(event.status))
    return AgentResponse.allow(response_headers=[seen, HeaderOp.remove("x-app")])


def _replaces(event: ResponseBodyChunkEvent) -> AgentResponse | None:
    if b"#" not in event.data:
        return None
    return AgentResponse.allow(response_body_mutation=BodyMutation(event.data.replace(b"#", b"[number]")))


def _stops_evil(event: ResponseBodyChunkEvent) -> AgentResponse | None:
    return AgentResponse.block(502, "evil") if b"!" in event.data else None


def _fails_on_evil(event: ResponseBodyChunkEvent) -> AgentResponse | None:
    if b"!" in event.data:
        raise LookupError("it is broken")
    return None


CASES: Final[Sequence[Case]] = (
    _case("allow a response"),
    _case("allow a large response", body=_stops_evil, reply=Reply((_LONG,), 200, _HEADERS)),
    _case("allow a response without a body", reply=Reply((), 204, (("x-app", "1"),))),
    _case("allow a response to HEAD", Expected(body=b""), method="HEAD"),
    _case(
        "change the headers of a response by its status",
        Expected(headers={"x-status": "404", "x-app": None}),
        head=_says_what_it_was,
        reply=Reply((b"nothing",), 404, _HEADERS),
    ),
    _case(
        "block a response by its head",
        Expected(status=502, body=b"hidden", headers={"content-type": PLAIN, "x-app": None}),
        head=AgentResponse.block(502, "hidden"),
        reply=Reply((b"a secret",), 500, _HEADERS),
        never=b"secret",
    ),
    _case(
        "block a response by its body",
        Expected(status=502, body=b"evil", headers={"content-type": PLAIN, "x-app": None}),
        body=_stops_evil,
        reply=Reply((b"good ", b"evil!"), 200, _HEADERS),
        never=b"!",
    ),
    _case(
        "replace the body of a response",
        Expected(body=b"my [number], your [number]"),
        body=_replaces,
        reply=Reply((b"my #, your #",), 200, _HEADERS),
        never=b"#",
    ),
    _case(
        "replace parts of a streamed response",
        Expected(body=b"data: my [number]\n\ndata: your [number]\n\n"),
        body=_replaces,
        mode="stream",
        reply=Reply((b"data: my #\n\n", b"data: your ", b"#\n\n"), 200, _EVENTS),
        never=b"#",
    ),
    _case(
        "stop a stream of events",
        Expected(body=b"data: good\n\n" + _ENDING),
        body=_stops_evil,
        mode="stream",
        reply=Reply((b"data: good\n\n", b"data: evil!\n\n", b"data: good\n\n"), 200, _EVENTS, waits=True),
        never=b"!",
    ),
    _case(
        "break a streamed response off",
        Expected(cut=True),
        body=_stops_evil,
        mode="stream",
        reply=Reply((b"good ", b"evil!", b" good"), 200, _HEADERS, waits=True),
        never=b"!",
    ),
    _case(
        "fail on a response and be closed",
        Expected(status=503, body=FAILED, headers={"content-type": PLAIN, "x-app": None}),
        head=LookupError("it is broken"),
    ),
    _case("fail on a response and be open", head=LookupError("it is broken"), opens=True),
    _case(
        "fail on the body of a response and be closed",
        Expected(status=503, body=FAILED, headers={"content-type": PLAIN, "x-app": None}),
        body=LookupError("it is broken"),
        reply=Reply((b"good ", b"evil!"), 200, _HEADERS),
        never=b"!",
    ),
    _case(
        "fail in the middle of a response and be closed",
        Expected(cut=True),
        body=_fails_on_evil,
        mode="stream",
        reply=Reply((b"good ", b"evil!", b" good"), 200, _HEADERS, waits=True),
        never=b"!",
    ),
)
