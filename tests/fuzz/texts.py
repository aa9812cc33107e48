"""What comes as text, or ends up as such: redaction, audit, correlation ids, lengths, addresses, trace context."""

import json
import unicodedata
from contextlib import suppress
from typing import Any

from msgspec.structs import asdict
from starlette.types import Scope

from asgi_agents import ConfigurationError
from asgi_agents.audit import AuditAgent, AuditAnswer, Auditor, AuditRecord
from asgi_agents.errors import printable
from asgi_agents.exchange.scope import (
    declared_length,
    given_correlation_id,
    headers_of,
    may_have_body,
    new_id,
    request_headers_event,
)
from asgi_agents.observability.redaction import redact_secrets
from asgi_agents.observability.secret_names import is_secret_name
from asgi_agents.observability.trace_context import remote_context
from asgi_agents.protocol import TOKEN, Encoding, Headers, decode_event, encode_event
from asgi_agents.transports import HttpTransport, StreamTransport
from asgi_agents.transports.wire import parse_address

from .choices import Choices

PIECES = (
    *("password=", "Authorization: ", "bearer ", "Basic ", "digest ", "token", "api_key", '"', "'", "\\", ":", "="),
    *("://", "@", "eyJhbGciOi", ".", "sk-", "ghp_", "AKIA", "-----BEGIN PRIVATE KEY-----", "\n", " ", "%3d", "cookie"),
    *("x" * 20, "A" * 40, "secret", "-", "_", "]", "&", ";", ",", "0123456789abcdef"),
)
# Unicode Standard Annex #9, section 2: they make a terminal show a line in another order than it is.
BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _text(choices: Choices) -> str:
    parts = [choices.text() if choices.one_in(4) else choices.pick(PIECES) for _ in choices.times(12)]
    return "".join(parts) * choices.pick((1, 1, 1, 2, 50))


def redaction(data: bytes) -> None:
    """Nothing makes it raise, add lines, or find more when it looks again."""
    text = _text(Choices(data))
    once = redact_secrets(text)
    assert len(once.splitlines()) <= len(text.splitlines()), "it makes lines"
    # A scheme and what it had in place of its credentials are a blank apart, whatever was between them before.
    assert set(once) <= set(text) | set(" [redacted]"), "it makes something up"
    assert redact_secrets(once) == once, "it leaves something to be found"
    assert is_secret_name(text) in (True, False)


def audit(data: bytes) -> None:
    """A record is one printable line of JSON, whatever is in it."""
    choices = Choices(data)
    auditor = Auditor(hook=lambda record: None, headers=["x-a", "cookie"])
    limit = choices.pick((1, 8, 128))
    cleaned = auditor.clean(_text(choices), limit)
    assert len(cleaned) <= limit + 1
    cleaned.encode()
    scope: Scope = {"type": "http", "headers": [(choices.pick((b"x-a", b"X-A", b"cookie")), choices.take(40))] * 3}
    headers = auditor.chosen_headers(scope)
    assert all(len(value) <= 1026 for value in headers.values())

    def clean() -> str:
        return auditor.clean(choices.text())

    record = AuditRecord(
        time="2026-01-01T00:00:00Z", correlation_id=clean(), trace_id=None, type="http", method=clean(),
        path=clean(), route=clean(), client=clean(), status=200, close_code=None, complete=True, seconds=0.1,
        decision="allow", decided_by=None, would_stop=[], passed_open=[],
        agents=[AuditAgent(agent="a", calls=1, seconds=0.1)],
        answers=[
            AuditAnswer(
                agent="a", event="request_headers", decision="allow", failure=None, failure_mode="closed",
                enforced=True, seconds=0.1, tags=[clean()], confidence=choices.number(),
            )
        ],
        answers_left_out=0, headers=headers, error=None,
    )  # fmt: skip
    line = str(record)
    assert not [char for char in line if unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs")], line
    assert not BIDI_CONTROLS & set(line), line
    assert json.loads(line)["path"] == record.path
    assert set(json.loads(line)) == set(asdict(record))


def log_lines(data: bytes) -> None:
    """What goes into a log line is one line."""
    text = _text(Choices(data))
    line = printable(text)
    assert line.isprintable()
    assert len(line) <= 300 * 10


def heads(data: bytes) -> None:
    """Every head that a server can hand over becomes an event that can be sent, under an id that nobody else has."""
    choices = Choices(data)
    names = (b"x-request-id", b"X-Request-Id", b"content-length", b"Content-Length", b"host", b"traceparent", b"accept")
    values = (b"1", b"", b"0", b"00", b"+1", b"-1", b" 1", b"1 ", b"1_0", b"\xb2", b"9" * 19, b"1" * 5000, b"id-1")
    headers = [
        (
            choices.take(8) if choices.one_in(8) else choices.pick(names),
            choices.take(140) if choices.flag() else choices.pick(values),
        )
        for _ in choices.times(4)
    ]
    scope: dict[str, Any] = {
        "type": "http",
        "method": choices.pick(("GET", "POST", choices.take(8).decode("latin-1"))),
        "path": "/" + choices.text(),
        "headers": headers,
    }
    optional: dict[str, Any] = {
        "http_version": choices.pick(("1.1", "1.0", "2", "3", "")),
        "raw_path": choices.pick((None, choices.take(20))),
        "query_string": choices.take(20),
        "client": choices.pick((None, ("", 0), ("192.0.2.1", 1), ("/run/x", None), ["192.0.2.1", 1])),
        "server": choices.pick((None, ("app", 80), ("/run/x.sock", None))),
        "extensions": choices.pick(
            (None, {}, {"tls": None}, {"tls": {}}, {"tls": {"tls_version": 0x0304, "cipher_suite": 0x1301}})
        ),
    }
    scope |= {key: value for key, value in optional.items() if choices.flag()}
    length = declared_length(headers)
    assert length is None or 0 <= length < 10**18
    assert may_have_body(scope) in (True, False)
    taken = {"id-1"} if choices.flag() else set()
    name = choices.pick(("x-request-id", "", "x-other"))
    correlation = given_correlation_id(Headers.from_raw(headers_of(scope)), taken, name) or new_id()
    assert TOKEN.match(correlation)
    assert len(correlation) <= 128
    assert correlation not in taken
    event = request_headers_event(scope, correlation, None, name=name)
    for encoding in Encoding:
        assert decode_event(encode_event(event, encoding), encoding) == event
    remote_context({"traceparent": [choices.text(60)], "tracestate": [choices.text(60), choices.text()]})


def addresses(data: bytes) -> None:
    """Where an agent is said to be is understood, or a configuration error."""
    choices = Choices(data)
    scheme = choices.pick(("unix://", "tcp://", "http://", "https://", "", "UNIX://", "tcp:"))
    text = (
        scheme + choices.pick(("", "/run/a", "127.0.0.1:9000", "[::1]:1", "a:", ":1", "u:p@h:1", "/")) + choices.text()
    )
    with suppress(ConfigurationError):
        address = parse_address("here", text)
        assert (address.path is None) != (not address.host)
        assert 0 <= address.port <= 65535
    for transport in (HttpTransport, StreamTransport):
        with suppress(ConfigurationError):
            transport(text)
