"""Checks the content of answers. The rules are the same for every transport, in-process agents included."""

import math
import re
from collections.abc import Mapping

from ..errors import AgentProtocolError
from .responses import (
    ALLOW,
    PROTOCOL_VERSION,
    AgentResponse,
    Allow,
    AuditMetadata,
    Block,
    BodyMutation,
    Challenge,
    HeaderOp,
    Redirect,
    WebSocketClose,
    WebSocketDrop,
)

# RFC 9110, section 5.6.2.
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
# RFC 9110, section 5.5: CR, LF and NUL are dangerous; at any other control character but a tab servers break the
# response off, after the app has run; anything beyond latin-1 can't be sent at all.
_UNSENDABLE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")
_UNSENDABLE_URL = re.compile(r"[\x00-\x20\x7f]")

# Framing and hop-by-hop fields (RFC 9110, section 7.6.1, and RFC 9112, section 6) belong to the server and the app. An
# agent that could set them could smuggle requests or desynchronise the connection.
_UNTOUCHABLE = frozenset(
    {
        "connection",
        "content-length",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_UNTOUCHABLE_PREFIX = "sec-websocket-"
_NO_AUDIT = ALLOW.audit
_DECISIONS = frozenset({Allow, Block, Redirect, Challenge})
_MAX_PRINTED_INT = 10**9

#: Those of a redirect (RFC 9110, section 15.4) that an answer may have.
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
# RFC 6455, section 7.4, and the IANA registry: what an endpoint may put into a close frame.
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})


def is_untouchable(name: str) -> bool:
    """Whether a header is about framing or hop-by-hop. ``name`` is in lower case."""
    return name in _UNTOUCHABLE or name.startswith(_UNTOUCHABLE_PREFIX)


def is_sendable(name: str, value: str) -> bool:
    """Whether a header of that name and value can be put on the wire (RFC 9110, sections 5.1 and 5.5)."""
    return TOKEN.match(name) is not None and not _UNSENDABLE_VALUE.search(value)


def is_redirect_url(url: str) -> bool:
    """Whether a client can be redirected to it, as far as its characters are concerned."""
    return bool(url) and not _UNSENDABLE_URL.search(url)


def check_response(response: object, *, may_mutate: bool, may_set_host: bool) -> AgentResponse:
    """Return ``response`` if everything in it can be applied, else raise :class:`AgentProtocolError` naming the field.

    ``may_mutate`` and ``may_set_host`` say what the agent's configuration lets it change.
    """
    if response is ALLOW or response is None:
        return ALLOW
    if not isinstance(response, AgentResponse):
        raise AgentProtocolError(f"expected an AgentResponse or None, got {type(response).__name__}")
    if type(response.version) is not int or response.version != PROTOCOL_VERSION:
        raise AgentProtocolError(f"version: expected {PROTOCOL_VERSION}, got {number_or_type(response.version)}")
    _check_decision(response.decision)
    _check_header_ops("request_headers", response.request_headers, may_set_host=may_set_host)
    _check_header_ops("response_headers", response.response_headers, may_set_host=False)
    _check_mutation("request_body_mutation", response.request_body_mutation, may_mutate=may_mutate)
    _check_mutation("response_body_mutation", response.response_body_mutation, may_mutate=may_mutate)
    _check_websocket_decision(response.websocket_decision)
    _check_audit(response.audit)
    check_bool("needs_more", response.needs_more)
    check_bool("skip_body", response.skip_body)
    if response.skip_body and response.needs_more:
        raise AgentProtocolError("skip_body: beside needs_more, which asks for the body")
    _check_strings("routing_metadata", response.routing_metadata)
    # A plain allow is recognised by identity, however it was spelt.
    return ALLOW if response == ALLOW else response


def _check_decision(decision: object) -> None:
    if type(decision) not in _DECISIONS:
        # No subclasses of the decisions: the name of the class goes into metrics and records.
        raise AgentProtocolError(
            f"decision: expected Allow, Block, Redirect or Challenge, got {type(decision).__name__}"
        )
    match decision:
        case Block(status, body, headers):
            if type(status) is not int or not 200 <= status <= 599:
                raise AgentProtocolError(f"decision.block.status: expected 200 to 599, got {number_or_type(status)}")
            if body is not None:
                check_text("decision.block.body", body)
            if headers is not None:
                _check_strings("decision.block.headers", headers)
                for name, value in headers.items():
                    _check_header("decision.block.headers", name, value, may_set_host=False)
        case Redirect(url, status):
            if type(status) is not int or status not in REDIRECT_STATUSES:
                raise AgentProtocolError(
                    f"decision.redirect.status: expected one of {sorted(REDIRECT_STATUSES)}, "
                    f"got {number_or_type(status)}"
                )
            check_text("decision.redirect.url", url)
            if not is_redirect_url(url):
                raise AgentProtocolError("decision.redirect.url: empty, or contains white space or control characters")
        case Challenge(challenge_type, params):
            check_text("decision.challenge.challenge_type", challenge_type)
            if not TOKEN.match(challenge_type):
                raise AgentProtocolError("decision.challenge.challenge_type: not a token (RFC 9110, section 5.6.2)")
            _check_strings("decision.challenge.params", params)
            for name, value in params.items():
                if not TOKEN.match(name) or _UNSENDABLE_VALUE.search(value):
                    raise AgentProtocolError("decision.challenge.params: a name or value can't be sent in a header")


def _check_header_ops(field: str, ops: object, *, may_set_host: bool) -> None:
    if not isinstance(ops, tuple):
        raise AgentProtocolError(f"{field}: expected a sequence of HeaderOp, got {type(ops).__name__}")
    for index, op in enumerate(ops):
        if not isinstance(op, HeaderOp):
            raise AgentProtocolError(f"{field}[{index}]: expected a HeaderOp, got {type(op).__name__}")
        if not isinstance(op.kind, str) or op.kind not in ("set", "add", "remove"):
            got = f"{op.kind!r:.40}" if isinstance(op.kind, str) else type(op.kind).__name__
            raise AgentProtocolError(f"{field}[{index}].kind: expected 'set', 'add' or 'remove', got {got}")
        _check_header(f"{field}[{index}]", op.name, op.value, may_set_host=may_set_host)
        check_bool(f"{field}[{index}].always", op.always)


def _check_header(field: str, name: object, value: object, *, may_set_host: bool) -> None:
    # No message has the values: they may be secrets, and messages end up in logs.
    if not isinstance(name, str):
        raise AgentProtocolError(f"{field}: expected a str for the name, got {type(name).__name__}")
    if not TOKEN.match(name):
        raise AgentProtocolError(f"{field}: the header name is not a token (RFC 9110, section 5.1)")
    lower = name.lower()
    if is_untouchable(lower):
        raise AgentProtocolError(f"{field}: {lower!r} belongs to the server, no agent may change it")
    if lower == "host" and not may_set_host:
        raise AgentProtocolError(f"{field}: 'host' may only be changed with may_set_host=True, and only on requests")
    if not isinstance(value, str):
        raise AgentProtocolError(f"{field}: the value of {lower!r} is of type {type(value).__name__}, expected str")
    if _UNSENDABLE_VALUE.search(value):
        raise AgentProtocolError(f"{field}: the value of {lower!r} contains control or non-latin-1 characters")


def _check_mutation(field: str, mutation: object, *, may_mutate: bool) -> None:
    if mutation is None:
        return
    if not isinstance(mutation, BodyMutation):
        raise AgentProtocolError(f"{field}: expected a BodyMutation or None, got {type(mutation).__name__}")
    if not isinstance(mutation.data, bytes | None):
        raise AgentProtocolError(f"{field}.data: expected bytes or None, got {type(mutation.data).__name__}")
    if type(mutation.chunk_index) is not int:
        raise AgentProtocolError(f"{field}.chunk_index: expected an int, got {type(mutation.chunk_index).__name__}")
    if mutation.data is not None and not may_mutate:
        # Ignoring it would pass on what the agent meant to remove.
        raise AgentProtocolError(f'{field}: the agent may only read bodies; body_access="write" lets it change them')


def _check_websocket_decision(decision: object) -> None:
    match decision:
        case None | WebSocketDrop():
            pass
        case WebSocketClose(code, reason):
            if type(code) is not int or code not in _CLOSE_CODES:
                raise AgentProtocolError(
                    "websocket_decision.close.code: expected 1000 to 1003, 1007 to 1014 or 3000 to 4999, "
                    f"got {number_or_type(code)}"
                )
            check_text("websocket_decision.close.reason", reason)
        case _:
            raise AgentProtocolError(
                f"websocket_decision: expected WebSocketDrop, WebSocketClose or None, got {type(decision).__name__}"
            )


def _check_audit(audit: object) -> None:
    if not isinstance(audit, AuditMetadata):
        raise AgentProtocolError(f"audit: expected AuditMetadata, got {type(audit).__name__}")
    if audit is _NO_AUDIT:
        return
    for field, values in (
        ("tags", audit.tags),
        ("rule_ids", audit.rule_ids),
        ("reason_codes", audit.reason_codes),
    ):
        if not isinstance(values, tuple):
            raise AgentProtocolError(f"audit.{field}: expected a sequence of strings, got {type(values).__name__}")
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise AgentProtocolError(f"audit.{field}[{index}]: expected a str, got {type(value).__name__}")
    if audit.confidence is not None:
        # A number that is not finite would be null in the audit record.
        check_number("audit.confidence", audit.confidence, finite=False)
    if not isinstance(audit.custom, Mapping):
        raise AgentProtocolError(f"audit.custom: expected a mapping, got {type(audit.custom).__name__}")
    for key in audit.custom:
        if not isinstance(key, str):
            raise AgentProtocolError(f"audit.custom: expected strings for keys, got {type(key).__name__}")


def number_or_type(value: object) -> str:
    """How a message names a wrong value: an int by its value, anything else by its type."""
    return str(value) if type(value) is int and abs(value) < _MAX_PRINTED_INT else type(value).__name__


def check_bool(field: str, value: object) -> None:
    """Raise :class:`AgentProtocolError` unless the value is True or False."""
    if type(value) is not bool:
        raise AgentProtocolError(f"{field}: expected a bool, got {type(value).__name__}")


def check_number(field: str, value: object, *, finite: bool = True) -> None:
    """Raise :class:`AgentProtocolError` unless the value is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AgentProtocolError(f"{field}: expected a number, got {type(value).__name__}")
    try:
        fits = math.isfinite(value) or not finite
    except OverflowError:
        fits = False
    if not fits:
        raise AgentProtocolError(f"{field}: expected a finite number that fits a float, got {type(value).__name__}")


def check_text(field: str, value: object) -> None:
    """Raise :class:`AgentProtocolError` unless the value is a str that UTF-8 can encode."""
    if not isinstance(value, str):
        raise AgentProtocolError(f"{field}: expected str, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise AgentProtocolError(f"{field}: contains lone surrogates, which UTF-8 can't carry") from None


def _check_strings(field: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise AgentProtocolError(f"{field}: expected a mapping of strings to strings, got {type(value).__name__}")
    for key, item in value.items():
        if not isinstance(key, str):
            raise AgentProtocolError(f"{field}: a key is of type {type(key).__name__}, expected str")
        if not isinstance(item, str):
            raise AgentProtocolError(
                f"{field}: the value of {key!r:.100} is of type {type(item).__name__}, expected str"
            )
