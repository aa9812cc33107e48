"""The agent that ``call`` and ``bench`` ask, and the request that they ask it about."""

import argparse
import json
import os
import stat
import sys
import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote, urlsplit

from ..config import AgentConfig
from ..exchange.scope import timestamp
from ..files.source import at_once
from ..guard import Guard
from ..policy import MAX_SECONDS
from ..protocol import TOKEN, EventType, Headers, RequestBodyChunkEvent, RequestHeadersEvent, RequestMetadata
from ..terminal.arguments import seconds
from ..terminal.loading import MistakeError, load_agent
from ..transports import Transport
from ..transports.resolve import transport_of_url

# Of an agent that does not say itself what it receives. Not the end of a request: those that don't know it may fail.
_USUAL: Final = frozenset(EventType) - {EventType.CONFIGURE, EventType.REQUEST_COMPLETE}
_ID: Final = "agent"
# Printable, and no blank.
_IN_A_TARGET: Final = "".join(map(chr, range(0x21, 0x7F)))


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which agent, and about which request."""
    parser.add_argument("agent", help="an http, unix, tcp or grpc URL, or module:name of an Agent")
    parser.add_argument("method", nargs="?", default="GET", help="of the request (GET)")
    parser.add_argument("uri", nargs="?", default="/", help="path and query of the request (/)")
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="of the request; may be repeated"
    )
    body = parser.add_mutually_exclusive_group()
    body.add_argument("--body", metavar="TEXT", help="of the request")
    body.add_argument("--body-file", metavar="FILE", help="the same from a file; - is standard input")
    parser.add_argument("--client-ip", default="127.0.0.1", metavar="IP", help="of the client (127.0.0.1)")
    parser.add_argument("--config", metavar="JSON", help="hand the agent this configuration first")
    parser.add_argument("--timeout", type=seconds, default=5.0, metavar="S", help="seconds for each call (5)")
    parser.add_argument("--framing", choices=["v2", "envelope"], default="v2", help="of unix:// and tcp:// (v2)")
    parser.add_argument("--encoding", choices=["json", "msgpack"], default="json", help="of events (json)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def guard_of(options: argparse.Namespace, *, concurrency: int = 1) -> Guard:
    """What calls the agent that the options name.

    :raises MistakeError: it can't be loaded, or an option can't be what it is.
    :raises ConfigurationError: its address, or the agent, can't be used.
    """
    if not 0 < options.timeout <= MAX_SECONDS:
        raise MistakeError(f"--timeout {options.timeout:g}, expected seconds above 0")
    transport: Any = _transport(options, 1 if concurrency == 1 else None)
    streams = getattr(transport, "learns_events", False)
    events = None if streams and options.framing == "v2" else _USUAL
    if not isinstance(transport, Transport):
        events = None  # an Agent, whose hooks say it
    config = AgentConfig(
        _ID,
        transport,
        events=events,
        timeout=options.timeout,
        chunk_timeout=options.timeout,
        max_concurrent_calls=concurrency,
        circuit_breaker=None,
        body_access="write",
        may_set_host=True,
        config=json_of("--config", options.config),
    )
    return Guard(config)


def _transport(options: argparse.Namespace, connections: int | None) -> Any:
    given: str = options.agent
    if "://" not in given:
        return load_agent(given)
    return transport_of_url(
        "agent",
        given,
        framing=options.framing,
        encoding=options.encoding,
        connect_timeout=options.timeout,
        connections=connections,
    )


def json_of(option: str, text: str | None) -> Any:
    """The value of an option in JSON; None where it is not given.

    :raises MistakeError: it is no JSON.
    """
    if text is None:
        return None
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        fault = "nested too deeply"
    except ValueError as exc:
        fault = str(exc)
    raise MistakeError(f"{option}: {fault}, expected JSON such as '{{\"level\": 2}}'")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# The request


def headers_of(given: Sequence[str], option: str = "--header") -> Headers:
    """Header fields from the command line. Values are sent as they are, without the spaces around them.

    :raises MistakeError: one is not of the form ``name: value``.
    """
    fields: dict[str, list[str]] = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not TOKEN.match(name):
            # Not the value, which may be a credential.
            raise MistakeError(f"{option} {name!r}, expected 'name: value'")
        fields.setdefault(name, []).append(value.strip())
    return Headers(fields)


def body_of(text: str | None, file: str | None) -> bytes | None:
    """A body from the command line; None for none.

    :raises OSError: the file can't be read.
    :raises MistakeError: it is none.
    """
    if text is not None:
        return text.encode(errors="surrogateescape")
    if file is None:
        return None
    if file == "-":
        return sys.stdin.buffer.read()
    with open(file, "rb", opener=at_once) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise MistakeError(f"{file}: no regular file, expected a file, or - for standard input")
        return opened.read()


def as_sent(uri: str) -> str:
    """A request target as clients send it: what none can stand in one, blanks and what is no ASCII, is percent-encoded.

    All else stays as it is given: what is encoded already, and characters that clients should encode, and may not.
    """
    return quote(uri.encode(errors="surrogateescape"), safe=_IN_A_TARGET)


class Question:
    """The request that an agent is asked about. One object makes the events of many, each with an id of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        method: str = options.method.upper()
        if not TOKEN.match(method):
            raise MistakeError(f"{options.method!r} is no method, expected GET, POST or the like")
        uri: str = options.uri
        if not uri.startswith("/") and uri != "*":
            hint = ""
            if "://" in uri:
                parts = urlsplit(uri)
                hint = f": {(parts.path or '/') + ('?' + parts.query if parts.query else '')!r}"
            raise MistakeError(f"{uri!r} is no path, expected one that begins with '/'{hint}")
        self.method, self.uri = method, as_sent(uri)
        self._headers = headers_of(options.header)
        self.body = body_of(options.body, options.body_file)
        self.client_ip: str = options.client_ip
        if self.body is not None and "content-length" not in self._headers:
            self._headers = Headers({**self._headers, "content-length": [str(len(self.body))]})
        if "host" not in self._headers:
            self._headers = Headers({"host": ["localhost"], **self._headers})

    def head(self, correlation_id: str) -> RequestHeadersEvent:
        """The head of the request."""
        metadata = RequestMetadata(
            correlation_id=correlation_id,
            request_id=correlation_id,
            client_ip=self.client_ip,
            client_port=50000,
            protocol="HTTP/1.1",
            timestamp=timestamp(time.time_ns()),
        )
        return RequestHeadersEvent(metadata=metadata, method=self.method, uri=self.uri, headers=self._headers)

    def chunk(self, correlation_id: str) -> RequestBodyChunkEvent:
        """The whole body."""
        data = self.body or b""
        return RequestBodyChunkEvent(
            correlation_id=correlation_id,
            data=data,
            is_last=True,
            total_size=len(data),
            bytes_received=len(data),
        )
