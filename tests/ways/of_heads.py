"""Cases of agents that receive the heads of requests."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from asgi_agents import AgentResponse, EventType, HeaderOp, RequestHeadersEvent

from .case import AS_WITHOUT, FAILED, LATE, NEVER, Case, Expected, Kind, Reply, Said, joined

_ROUTED: Final = {"tier": "gold"}
_ODD: Final = "caf\xe9"


def _case(name: str, said: Said = None, expected: Expected = AS_WITHOUT, **more: Any) -> Case:
    answers: Mapping[EventType, Said] = {EventType.REQUEST_HEADERS: said}
    return Case(name=name, kind=Kind.HEADS, answers=answers, expected=expected, **more)


def _stopped(status: int, body: bytes, **headers: str | None) -> Expected:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Expected(status=status, body=body, called=False, headers=named)


def _changed(*ops: HeaderOp) -> AgentResponse:
    return AgentResponse.allow(request_headers=ops)


def _answered(*ops: HeaderOp) -> AgentResponse:
    return AgentResponse.allow(response_headers=ops)


def _sees_what_was_sent(event: RequestHeadersEvent) -> AgentResponse:
    target = event.uri.endswith("/a%2Fb/%C3%A9?q=%20x&q=+")
    many = joined([("x-many", value) for value in event.headers.get("x-many", ())])
    return _changed(HeaderOp.set("x-seen", f"{target} {many.get('x-many')}"))


def _sees_beyond_ascii(event: RequestHeadersEvent) -> AgentResponse:
    return _changed(HeaderOp.set("x-seen", str(event.header("x-odd") == _ODD)))


CASES: Final[Sequence[Case]] = (
    _case("allow a request"),
    _case("allow a request with a body", method="POST", body=b"harmless"),
    _case("allow a request with a streamed body", method="POST", body=(b"one ", b"two ", b"three")),
    _case("allow a request with an empty body", method="POST", body=b""),
    _case("allow a request for the head alone", method="HEAD", expected=Expected(body=b"")),
    _case("allow a large body that it is not shown", method="POST", body=b"0123456789" * 30_000),
    _case(
        "see target and header fields as they were sent",
        _sees_what_was_sent,
        Expected(request={"x-seen": "True 1, 2"}),
        path="/a%2Fb/%C3%A9?q=%20x&q=+",
        headers=(("x-many", "1"), ("x-many", "2")),
    ),
    _case(
        "see a header that is no UTF-8",
        _sees_beyond_ascii,
        Expected(request={"x-seen": "True"}),
        headers=(("x-odd", _ODD),),
    ),
    _case("block", AgentResponse.block(), _stopped(403, b"Forbidden")),
    _case(
        "block with a body and headers",
        AgentResponse.block(401, "who are you?", headers={"www-authenticate": "ApiKey", "x-why": "no key"}),
        _stopped(401, b"who are you?", www_authenticate="ApiKey", x_why="no key"),
    ),
    _case(
        "block with a type of content",
        AgentResponse.block(422, '{"error": 1}', headers={"content-type": "application/json"}),
        _stopped(422, b'{"error": 1}', content_type="application/json"),
    ),
    _case("block with an empty body", AgentResponse.block(418, ""), _stopped(418, b"", content_type=None)),
    _case(
        "block with 503",
        AgentResponse.block(503, "closed", headers={"retry-after": "60"}),
        _stopped(503, b"closed", retry_after="60"),
    ),
    _case(
        "block and set two cookies",
        AgentResponse.block(
            403, "no", response_headers=[HeaderOp.add("set-cookie", "a=1"), HeaderOp.add("set-cookie", "b=2")]
        ),
        _stopped(403, b"no", set_cookie="a=1, b=2"),
    ),
    _case(
        "block before any of a streamed body is passed on",
        AgentResponse.block(),
        _stopped(403, b"Forbidden"),
        method="POST",
        body=(b"one ", b"two ", b"three"),
    ),
    _case(
        "redirect",
        AgentResponse.redirect("https://login.example/?rd=%2Fa&x=1"),
        _stopped(302, b"", location="https://login.example/?rd=%2Fa&x=1", content_type=None),
    ),
    _case(
        "redirect a request with a body",
        AgentResponse.redirect("/elsewhere", 308),
        _stopped(308, b"", location="/elsewhere", content_type=None),
        method="POST",
        body=b"moved",
    ),
    _case(
        "challenge",
        AgentResponse.challenge("bearer", {"realm": "api"}),
        _stopped(401, b"Unauthorized", www_authenticate='Bearer realm="api"'),
    ),
    _case(
        "set a request header that the client has sent",
        _changed(HeaderOp.set("x-user", "alice")),
        Expected(request={"x-user": "alice"}),
        headers=(("x-user", "root"), ("X-User", "admin")),
    ),
    _case(
        "set a request header to nothing",
        _changed(HeaderOp.set("x-empty", "")),
        Expected(request={"x-empty": ""}),
    ),
    _case(
        "set a request header that is no UTF-8",
        _changed(HeaderOp.set("x-odd-set", _ODD)),
        Expected(request={"x-odd-set": _ODD}),
    ),
    _case(
        "add request headers to those of the client",
        _changed(HeaderOp.add("x-there", "b"), HeaderOp.add("x-there", "c"), HeaderOp.add("x-new", "1")),
        Expected(request={"x-there": "a, b, c", "x-new": "1"}),
        headers=(("x-there", "a"),),
    ),
    _case(
        "remove request headers",
        _changed(HeaderOp.remove("authorization"), HeaderOp.remove("x-not-there")),
        Expected(request={"authorization": None}),
        headers=(("authorization", "Bearer outer"), ("x-kept", "1")),
    ),
    _case(
        "remove and add a request header",
        _changed(HeaderOp.remove("x-there"), HeaderOp.add("x-there", "mine")),
        Expected(request={"x-there": "mine"}),
        headers=(("x-there", "a"), ("x-there", "b")),
    ),
    _case(
        "set a response header",
        _answered(HeaderOp.set("x-app", "agent"), HeaderOp.set("x-more", "1")),
        Expected(headers={"x-app": "agent", "x-more": "1"}),
    ),
    _case(
        "add cookies to a response",
        _answered(HeaderOp.add("set-cookie", "a=1"), HeaderOp.add("set-cookie", "b=2")),
        Expected(headers={"set-cookie": "app=1, a=1, b=2"}),
        reply=Reply(headers=(("content-type", "text/plain"), ("set-cookie", "app=1"))),
    ),
    _case(
        "remove a response header",
        _answered(HeaderOp.remove("x-app")),
        Expected(headers={"x-app": None}),
    ),
    _case(
        "say something for routing",
        AgentResponse.allow(routing_metadata=_ROUTED),
        Expected(routing=_ROUTED),
    ),
    _case("fail closed", LookupError("it is broken"), _stopped(503, FAILED)),
    _case("fail open", LookupError("it is broken"), opens=True),
    _case("be late and fail closed", NEVER, _stopped(504, LATE), hurried=True),
    _case("be late and fail open", NEVER, opens=True, hurried=True),
    _case(
        "say what can't be a header",
        _changed(HeaderOp.set("x-user", "a\r\nx-admin: 1")),
        _stopped(503, FAILED),
    ),
    _case(
        "allow a websocket",
        messages=("hello", b"\x00\xff", "bye"),
    ),
    _case(
        "set a header of a websocket's handshake",
        _changed(HeaderOp.set("x-user", "alice")),
        Expected(request={"x-user": "alice"}),
        headers=(("x-user", "root"),),
        messages=("bye",),
    ),
    _case(
        "deny a websocket",
        AgentResponse.block(401, "who?", headers={"www-authenticate": "ApiKey"}),
        _stopped(401, b"who?", www_authenticate="ApiKey"),
        messages=("hello", "bye"),
    ),
)
