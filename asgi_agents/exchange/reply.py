"""A decision as ASGI messages that answer in the app's place."""

import http
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct
from starlette.responses import Response
from starlette.types import Message, Scope

from ..decision import AgentDecision
from ..protocol import Block, Challenge, Redirect, WebSocketClose
from .headers import apply_header_ops, field_value
from .scope import RawHeaders, header, headers_of

ChallengeRenderer = Callable[[Challenge, Scope], Response]

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


def render_reply(decision: AgentDecision, scope: Scope, render_challenge: ChallengeRenderer | None = None) -> Reply:
    """The response for a decision that isn't allow."""
    typed = any(op.name.lower() == "content-type" and op.kind != "remove" for op in decision.response_headers)
    reply = _render(decision, scope, render_challenge, as_json=not typed and _prefers_json(scope))
    if decision.response_headers:
        reply = Reply(reply.status, apply_header_ops(reply.headers, decision.response_headers), reply.body)
    return reply


def close_message(close: WebSocketClose) -> Message:
    """A websocket close, its reason cut to what fits into a control frame (RFC 6455, section 5.5)."""
    reason = close.reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
    return {"type": "websocket.close", "code": close.code, "reason": reason}


def describe(decision: AgentDecision) -> str:
    """One line for logs and errors: who, and what; no agent-given text."""
    if decision.failure is not None:
        return decision.failure.message
    if decision.websocket_decision is not None:
        return f"agent {decision.decided_by!r}: {type(decision.websocket_decision).__name__}"
    return f"agent {decision.decided_by!r}: {type(decision.decision).__name__.lower()}"


def _render(
    decision: AgentDecision, scope: Scope, render_challenge: ChallengeRenderer | None, *, as_json: bool
) -> Reply:
    match decision.decision:
        case Redirect(url, status):
            return _reply(status, "", {"location": _ascii(url)}, as_json=as_json)
        case Challenge() as challenge:
            if render_challenge is not None:
                response = render_challenge(challenge, scope)
                return Reply(response.status_code, list(response.raw_headers), bytes(response.body))
            return _challenge_reply(challenge, as_json=as_json)
        case Block(status, body, headers):
            return _reply(status, _phrase(status) if body is None else body, headers or {}, as_json=as_json)
        case _:
            status, detail = status_and_detail(decision)
            return _reply(status, detail, {}, as_json=as_json)


def _reply(status: int, text: str, headers: Mapping[str, str], *, as_json: bool) -> Reply:
    given: RawHeaders = [(name.lower().encode("latin-1"), field_value(value)) for name, value in headers.items()]
    body = text.encode()
    # RFC 9110, section 6.4.1: these never have content.
    if status in (204, 205, 304):
        body = b""
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
    scheme = _AUTH_SCHEMES.get(challenge.challenge_type.lower())
    if scheme is None:
        body = msgspec.json.encode({"challenge_type": challenge.challenge_type, "params": challenge.params})
        return Reply(
            403,
            [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
            body,
        )
    # RFC 9110, section 11.6.1: auth-param values as quoted strings.
    params = ", ".join(
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"'))
        for name, value in challenge.params.items()
    )
    return _reply(
        401, "Unauthorized", {"www-authenticate": f"{scheme} {params}" if params else scheme}, as_json=as_json
    )


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
