"""A decision as ASGI messages that answer in the app's place."""

import http
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct
from starlette.types import Message, Scope

from ..decision import AgentDecision
from ..protocol import Block, Challenge, HeaderOp, Headers, Redirect, WebSocketClose
from .headers import apply_header_ops, field_value, without_headers
from .rendering import ErrorInfo, Renderers
from .scope import RawHeaders, header, headers_of

# The IANA HTTP Authentication Scheme Registry.
_AUTH_SCHEMES = {
    scheme.lower(): scheme
    for scheme in (
        "Basic",
        "Bearer",
        "Concealed",
        "Digest",
        "DPoP",
        "GNAP",
        "HOBA",
        "Mutual",
        "Negotiate",
        "OAuth",
        "PrivateToken",
        "SCRAM-SHA-1",
        "SCRAM-SHA-256",
        "vapid",
    )
}
_MAX_REASON_BYTES = 123
# RFC 9110, section 6.4.1: these never have content.
_WITHOUT_CONTENT = frozenset({204, 205, 304})
# These describe the body: only who makes the body may set them.
_OF_THE_BODY = frozenset({"content-encoding", "content-type"})

_BUILT_IN: Final = Renderers()


class Reply(Struct, frozen=True):
    """A whole response."""

    status: int
    headers: RawHeaders
    body: bytes

    def messages(self, prefix: str = "") -> tuple[Message, Message]:
        """As ASGI messages; ``prefix`` is ``websocket.`` for a denial response."""
        return (
            {"type": f"{prefix}http.response.start", "status": self.status, "headers": self.headers},
            {"type": f"{prefix}http.response.body", "body": self.body},
        )


class _Problem(Struct):
    """What of a problem document is for people (RFC 9457, section 3.1)."""

    detail: str = ""
    title: str = ""


def render_reply(
    decision: AgentDecision, scope: Scope, renderers: Renderers = _BUILT_IN, *, earlier: Sequence[HeaderOp] = ()
) -> Reply:
    """The response for a decision that isn't allow.

    :param earlier: the header operations with ``always`` from the answers to earlier events of the connection.
    """
    own = decision.response_headers
    others = _by_others(decision, earlier)
    match decision.decision:
        case Challenge() | Redirect():
            pass
        case _:
            reply = _rendered(decision, scope, renderers, others)
            if reply is not None:
                return reply
    typed = any(op.name.lower() == "content-type" and op.kind != "remove" for op in own)
    reply = _render(decision, scope, renderers, as_json=not typed and _prefers_json(scope))
    if not others and not own:
        return reply
    return Reply(reply.status, apply_header_ops(reply.headers, (*others, *own)), reply.body)


def _by_others(decision: AgentDecision, earlier: Sequence[HeaderOp]) -> Sequence[HeaderOp]:
    """The operations of other answers than the one that decided, each once.

    They neither replace nor remove what that answer says itself, nor do they say what its body is.
    """
    if not earlier and not decision.always_headers:
        return ()
    said = {name.lower() for name in _headers_of_answer(decision)}
    # A provisional answer, and its operations, can be part of two decisions.
    known = {id(op) for op in decision.response_headers}
    others: list[HeaderOp] = []
    for op in (*earlier, *decision.always_headers):
        name = op.name.lower()
        if id(op) not in known and name not in _OF_THE_BODY and (op.kind == "add" or name not in said):
            known.add(id(op))
            others.append(op)
    return others


def _headers_of_answer(decision: AgentDecision) -> Mapping[str, str]:
    """What the deciding answer says in headers, other than by header operations."""
    match decision.decision:
        case Redirect(url, _):
            return {"location": _ascii(url)}
        case Challenge() as challenge:
            return _challenge_headers(challenge)
        case Block(_, _, headers):
            return headers or {}
        case _:
            return {}


def _rendered(decision: AgentDecision, scope: Scope, renderers: Renderers, others: Sequence[HeaderOp]) -> Reply | None:
    """The reply as ``render_error`` makes it; None where it makes none."""
    status, detail = status_and_detail(decision)
    if not renderers.renders_errors or status in _WITHOUT_CONTENT:
        return None
    given = _raw(_headers_of_answer(decision))
    headers_of_reply = Headers.from_raw(apply_header_ops(given, (*others, *decision.response_headers)))
    body = decision.decision.body if isinstance(decision.decision, Block) else None
    info = ErrorInfo(
        status=status,
        detail=detail if body is None else _detail_in(body, headers_of_reply),
        kind="block" if decision.failure is None else decision.failure.kind,
        agent_id=decision.decided_by,
        headers=headers_of_reply,
        body=body,
    )
    rendered = renderers.error(info, scope)
    if rendered is None:
        return None
    status, headers, content = rendered
    said = [pair for pair in given if pair[0].decode("latin-1") not in _OF_THE_BODY]
    headers = [*without_headers(headers, {name for name, _ in said}), *said]
    own = [op for op in decision.response_headers if op.name.lower() not in _OF_THE_BODY]
    return Reply(status, apply_header_ops(headers, (*others, *own)), content)


def _detail_in(body: str, headers: Headers) -> str:
    """What a body says: all of it, or the detail of a problem document, or else its title."""
    if (headers.first("content-type") or "").partition(";")[0].strip().lower() != "application/problem+json":
        return body
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return body
    return problem.detail or problem.title or body


def close_message(close: WebSocketClose) -> Message:
    """A websocket close, its reason cut to what fits into a control frame (RFC 6455, section 5.5)."""
    return {"type": "websocket.close", "code": close.code, "reason": close_reason(close.reason)}


def close_reason(text: str) -> str:
    """What of ``text`` fits into a control frame."""
    return text.encode("utf-8", "replace")[:_MAX_REASON_BYTES].decode(errors="ignore")


def describe(decision: AgentDecision) -> str:
    """One line for logs and errors: who, and what; no agent-given text."""
    if decision.failure is not None:
        return decision.failure.message
    if decision.websocket_decision is not None:
        return f"agent {decision.decided_by!r}: {type(decision.websocket_decision).__name__}"
    return f"agent {decision.decided_by!r}: {type(decision.decision).__name__.lower()}"


def _render(decision: AgentDecision, scope: Scope, renderers: Renderers, *, as_json: bool) -> Reply:
    match decision.decision:
        case Redirect(_, status):
            return _reply(status, "", _headers_of_answer(decision), as_json=as_json)
        case Challenge() as challenge:
            if renderers.challenge is not None:
                response = renderers.challenge(challenge, scope)
                return Reply(response.status_code, list(response.raw_headers), bytes(response.body))
            return _challenge_reply(challenge, as_json=as_json)
        case _:
            status, detail = status_and_detail(decision)
            return _reply(status, detail, _headers_of_answer(decision), as_json=as_json)


def _raw(headers: Mapping[str, str]) -> RawHeaders:
    return [(name.lower().encode("latin-1"), field_value(value)) for name, value in headers.items()]


def _reply(status: int, text: str, headers: Mapping[str, str], *, as_json: bool) -> Reply:
    given = _raw(headers)
    body = b"" if status in _WITHOUT_CONTENT else text.encode()
    raw: RawHeaders = []
    if body and header(given, b"content-type") is None:
        if as_json:
            body = msgspec.json.encode(
                {"type": "about:blank", "title": _phrase(status), "status": status, "detail": text}
            )
            raw.append((b"content-type", b"application/problem+json"))
        else:
            raw.append((b"content-type", b"text/plain; charset=utf-8"))
    if status not in (204, 304):
        raw.append((b"content-length", b"%d" % len(body)))
    return Reply(status, raw + given, body)


def _challenge_reply(challenge: Challenge, *, as_json: bool) -> Reply:
    headers = _challenge_headers(challenge)
    if not headers:
        body = msgspec.json.encode({"challenge_type": challenge.challenge_type, "params": challenge.params})
        return Reply(
            403,
            [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
            body,
        )
    return _reply(401, "Unauthorized", headers, as_json=as_json)


def _challenge_headers(challenge: Challenge) -> Mapping[str, str]:
    """``www-authenticate`` for an HTTP auth scheme, nothing for any other challenge."""
    scheme = _AUTH_SCHEMES.get(challenge.challenge_type.lower())
    if scheme is None:
        return {}
    # RFC 9110, section 11.6.1: auth-param values as quoted strings.
    params = ", ".join(
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"'))
        for name, value in challenge.params.items()
    )
    return {"www-authenticate": f"{scheme} {params}" if params else scheme}


def status_and_detail(decision: AgentDecision) -> tuple[int, str]:
    """The status that a reply has, and a text for it."""
    match decision.decision:
        case Block(status, body, _):
            return status, _phrase(status) if body is None else body
        case Redirect(_, status):
            return status, _phrase(status)
        case Challenge():
            return 403, "Challenge required"
        case _:
            return 403, _phrase(403)


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Blocked"


def _ascii(url: str) -> str:
    """Non-ASCII characters of a URL percent-encoded as UTF-8 (RFC 3987, section 3.1); nothing else is touched."""
    return "".join(char if char.isascii() else "".join(f"%{byte:02X}" for byte in char.encode()) for char in url)


def _prefers_json(scope: Scope) -> bool:
    """Whether the client would rather have JSON than text (RFC 9110, section 12.5.1). Text where it doesn't say."""
    # Several fields are one list (RFC 9110, section 5.3).
    accept = ",".join(value.decode("latin-1") for name, value in headers_of(scope) if name.lower() == b"accept")
    best = {"json": 0.0, "text": 0.0}
    for item in accept.lower().split(","):
        media_range, *params = (part.strip() for part in item.split(";"))
        quality = _quality(params)
        if media_range in ("application/json", "application/problem+json", "application/*") or (
            media_range.endswith("+json")
        ):
            best["json"] = max(best["json"], quality)
        elif media_range.startswith("text/"):
            best["text"] = max(best["text"], quality)
    return best["json"] > best["text"]


def _quality(params: list[str]) -> float:
    for param in params:
        if param.startswith("q="):
            try:
                return float(param[2:])
            except ValueError:
                return 0.0
    return 1.0
