"""Events and answers, and what becomes of an answer that is allowed."""

import msgspec
from starlette.types import Scope

from asgi_agents import AgentResponse, HeaderOp
from asgi_agents.decision import AgentDecision
from asgi_agents.errors import AgentProtocolError
from asgi_agents.exchange.headers import apply_header_ops
from asgi_agents.exchange.reply import close_message, describe, render_reply
from asgi_agents.exchange.units import error_object
from asgi_agents.protocol import (
    Answer,
    Challenge,
    Encoding,
    EventType,
    RequestHeadersEvent,
    ResponseHeadersEvent,
    check_response,
    decode_answer,
    decode_event,
    encode_answer,
    encode_event,
)
from asgi_agents.protocol.validation import TOKEN

from . import wire
from .choices import Choices

# RFC 9110, section 7.6.1, RFC 9112, section 6, RFC 6455, section 11.3, and the ASGI spec: written down again, so that
# the package's own list is tested.
FORBIDDEN = frozenset(
    {
        *("connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"),
        *("proxy-connection", "proxy-authenticate", "proxy-authorization", "http2-settings"),
    }
)


def answers(data: bytes) -> None:
    """Whatever an agent answers is an answer or a protocol error, and does nothing that no agent may do."""
    choices = Choices(data)
    encoding, event_type = choices.pick(tuple(Encoding)), choices.pick(tuple(EventType))
    may_mutate, may_set_host = choices.flag(), choices.flag()
    accept = choices.pick((b"", b"application/json", b"text/html;q=0.1,*/*+json;q=x", choices.take(20)))
    if choices.one_in(4):
        given = wire.answer(choices, event_type, encoding)
        answer = decode_answer(encode_answer(given, encoding), encoding, event_type)
        assert answer == given, "not what was sent"
    else:
        try:
            answer = decode_answer(wire.message(choices, encoding), encoding, event_type)
        except AgentProtocolError as exc:
            wire.explained(exc)
            return
    survives(answer, encoding, event_type)
    if isinstance(answer, AgentResponse):
        try:
            checked = check_response(answer, may_mutate=may_mutate, may_set_host=may_set_host)
        except AgentProtocolError:
            return
        apply(checked, may_mutate=may_mutate, may_set_host=may_set_host, accept=accept)


def survives(answer: Answer, encoding: Encoding, event_type: EventType) -> None:
    """What was understood can be said, and is understood as the same."""
    said = encode_answer(answer, encoding)
    again = decode_answer(said, encoding, event_type)
    # Not the answers themselves: NaN is not equal to itself.
    assert encode_answer(again, encoding) == said, "an answer that changes on its way"
    assert type(again) is type(answer)


def apply(response: AgentResponse, *, may_mutate: bool, may_set_host: bool, accept: bytes = b"") -> None:
    """Do with a checked answer what the middleware does; nothing of it may raise, or be illegal HTTP."""
    for ops, host in ((response.request_headers, may_set_host), (response.response_headers, False)):
        harmless(ops, host=host)
        for pair in apply_header_ops([(b"X-A", b"1"), (b"host", b"app.example")], ops):
            sendable(*pair)
    if not may_mutate:
        for mutation in (response.request_body_mutation, response.response_body_mutation):
            assert mutation is None or mutation.data is None, "a reader that writes"
    decision = AgentDecision(
        decision=response.decision,
        websocket_decision=response.websocket_decision,
        decided_by="a",
        response_headers=response.response_headers,
    )
    if not decision.is_allow:
        close = close_message(decision.close)
        assert len(close["reason"].encode()) <= 123
        assert 1000 <= close["code"] <= 4999
        assert b"\n" not in error_object(decision), "an event that ends before its end"
        assert "\n" not in describe(decision)
        scope: Scope = {"type": "http", "headers": [(b"accept", accept)]}
        reply = render_reply(decision, scope)
        assert 200 <= reply.status <= 599
        names = [name.lower() for name, _ in reply.headers]
        lengths = [value for name, value in reply.headers if name.lower() == b"content-length"]
        assert lengths == [] if reply.status in (204, 304) else lengths == [b"%d" % len(reply.body)]
        assert not {name.decode() for name in names} & FORBIDDEN - {"content-length"}
        for name, value in reply.headers:
            sendable(name, value)


def harmless(ops: object, *, host: bool) -> None:
    """No operation on what frames a message."""
    assert isinstance(ops, tuple)
    for op in ops:
        assert isinstance(op, HeaderOp)
        name = op.name.lower()
        assert name not in FORBIDDEN, name
        assert not name.startswith(("sec-websocket-", ":")), name
        assert host or name != "host"


def sendable(name: bytes, value: bytes) -> None:
    """A field that no server would have to refuse."""
    assert TOKEN.match(name.decode("latin-1")), name
    assert not {0, 10, 13} & set(value), value


def events(data: bytes) -> None:
    """Whatever comes to a serving end is an event or a protocol error."""
    choices = Choices(data)
    encoding = choices.pick(tuple(Encoding))
    if choices.one_in(4):
        given = wire.event(choices, encoding)
        event = decode_event(encode_event(given, encoding), encoding)
        assert event == given, "not what was sent"
    elif choices.flag():
        envelope = {
            "version": choices.pick((2, 1, "2", None)) if choices.one_in(8) else 2,
            "event_type": choices.pick(tuple(EventType)),
            "payload": {choices.name(wire.NAMES): choices.value(wire.NAMES, 3) for _ in choices.times(12)},
        }
        event = None
        try:
            event = decode_event(wire.spelt(envelope, encoding), encoding)
        except AgentProtocolError as exc:
            wire.explained(exc)
    else:
        event = None
        try:
            event = decode_event(wire.message(choices, encoding), encoding)
        except AgentProtocolError as exc:
            wire.explained(exc)
    if event is None:
        return
    said = encode_event(event, encoding)
    assert encode_event(decode_event(said, encoding), encoding) == said, "an event that changes on its way"
    if isinstance(event, RequestHeadersEvent | ResponseHeadersEvent):
        for name, values in event.headers.items():
            assert all(isinstance(value, str) for value in values)
            assert event.header(name) == (values[0] if values else None)
        assert len(event.headers) == len(list(event.headers))


def challenges(data: bytes) -> None:
    """Parameters of a challenge stay within their quotes."""
    choices = Choices(data)
    params = {wire.sendable(choices.text()): wire.sendable(choices.text()) for _ in choices.times(3)}
    response = AgentResponse(decision=Challenge(choices.pick(("bearer", "Basic", "DIGEST", "captcha", "\n")), params))
    try:
        check_response(response, may_mutate=False, may_set_host=False)
    except AgentProtocolError:
        return
    reply = render_reply(AgentDecision(decision=response.decision, decided_by="a"), {"type": "http", "headers": []})
    values = [value.decode("latin-1") for name, value in reply.headers if name == b"www-authenticate"]
    if reply.status == 403:
        assert msgspec.json.decode(reply.body)["params"] == params
        return
    (value,) = values
    sendable(b"www-authenticate", value.encode("latin-1"))
    assert _unquoted(value.partition(" ")[2]) == params


def _unquoted(text: str) -> dict[str, str]:
    """``name="value", …`` as RFC 9110, section 11.4, has it read."""
    found: dict[str, str] = {}
    while text:
        name, _, text = text.partition('="')
        value = ""
        while text[0] != '"':
            if text[0] == "\\":
                text = text[1:]
            value, text = value + text[0], text[1:]
        found[name] = value
        assert text[1:3] in ("", ", "), text
        text = text[3:]
    return found
