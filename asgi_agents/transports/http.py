"""Agents behind HTTP: one POST for each event. And what all transports over HTTP have in common."""

import re
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, cast

import anyio
import httpx
from anyio import CancelScope
from anyio.streams.tls import TLSStream

from .._version import __version__
from ..concurrency.background import on_trio
from ..concurrency.per_event_loop import PerEventLoop
from ..errors import (
    AgentConnectionError,
    AgentError,
    AgentProtocolError,
    ConfigurationError,
    EventTooLargeError,
    text_of,
)
from ..memory.pieces import Pieces
from ..observability.trace_context import inject_trace_context
from ..protocol import (
    TOKEN,
    Answer,
    Encoding,
    Event,
    EventType,
    SpanUnit,
    decode_answer,
    encode_event,
    in_code_points,
)
from .connections import Connections, ConnectionStack, SharedTransport
from .http1.request import RequestHead
from .http_answer import AnswerTooLongError, HttpAnswer
from .tls import ClientCertificate, client_context
from .wire import unusable_path

try:
    from .http1.connecting import Http1Connector
    from .http1.pool import Http1Pool
except ImportError:
    _HAS_HTTP1 = False
else:
    # asyncio's event loop on Windows reads ahead: what a connection holds before it is used again can't be seen there.
    _HAS_HTTP1 = sys.platform != "win32"

MAX_ANSWER_BYTES: Final = 10 * 1024 * 1024
# Of a content-length: int() refuses what is much longer.
_MAX_DIGITS: Final = 18

TransportFactory = Callable[[], httpx.AsyncBaseTransport]

# Set by this module for each message, or the connection's own (RFC 9110, section 7.6.1).
_OWNED_HEADERS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# RFC 9110, section 5.5, without the obsolete bytes beyond ASCII, which HTTP libraries disagree about.
_HEADER_VALUE: Final = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?\Z")

USER_AGENT: Final = f"asgi-agents/{__version__}"
# The guard's deadline ends a call.
_NO_TIMEOUTS: Final = {"timeout": {"connect": None, "read": None, "write": None, "pool": None}}

# h11 quotes what it could not parse; what an agent sent does not belong in logs.
_QUOTED_BYTES: Final = re.compile(r"(?:bytearray\()?b['\"].*", re.DOTALL)


class HttpOrigin:
    """What transports over HTTP have in common: requests to one origin, and connections that are kept alive.

    :param url: what comes after the host is for the subclass. The other parameters are those of
        :class:`HttpTransport`.
    """

    #: What messages about the arguments begin with.
    _where: str
    #: Whether answers come with their headers.
    _keeps_headers = False
    #: What the subclass calls its URL.
    _url_field = "url"

    def __init__(
        self,
        url: str,
        *,
        verify: ssl.SSLContext | bool | str,
        cert: ClientCertificate | None,
        uds: str | None,
        transport: httpx.AsyncBaseTransport | TransportFactory | None,
        max_answer_bytes: int,
    ) -> None:
        self._url = _parse_url(self._where, self._url_field, url)
        if type(max_answer_bytes) is not int or max_answer_bytes < 1:
            raise self._wrong("max_answer_bytes", max_answer_bytes, "a whole number of at least 1")
        self._max_answer_bytes = max_answer_bytes
        self._uds = uds
        #: Opens a connection, and closes it; None where connections are another transport's.
        self._connect: Callable[[], Awaitable[None]] | None = None
        self._connections: SharedTransport | PerEventLoop[SharedTransport] | PerEventLoop[ConnectionStack | Http1Pool]
        if transport is None:
            if uds is not None and (not isinstance(uds, str) or not uds):
                raise self._wrong("uds", uds, "the path of a Unix socket")
            unusable = None if uds is None else unusable_path(uds)
            if unusable is not None:
                raise self._wrong("uds", uds, unusable)
            tls: ssl.SSLContext | None = None
            if self._url.scheme == "https":
                tls = client_context(self._where, verify, cert)
            elif verify is not True or cert is not None:
                raise self._wrong(self._url_field, url, "https://, for that is what verify and cert are about")
            self._connections = PerEventLoop(lambda: self._open(tls))
            self._connect = partial(_connect, uds, self._url.host, self._port, tls)
            return
        for name, beside in (("verify", verify is not True), ("cert", cert is not None), ("uds", uds is not None)):
            if beside:
                raise ConfigurationError(f"{self._where}: {name} beside transport, expected it to be given to that")
        if isinstance(transport, httpx.AsyncBaseTransport):
            self._connections = SharedTransport(transport)
        elif callable(transport):
            factory = transport
            self._connections = PerEventLoop(lambda: SharedTransport(factory()))
        else:
            raise self._wrong("transport", transport, "an httpx.AsyncBaseTransport, or a function that returns one")

    @property
    def address(self) -> str:
        """Where the agent is, for messages: host and port, or the path of a Unix socket."""
        if self._uds is not None:
            return f"unix://{self._uds}"
        host = self._url.host
        return f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"

    @property
    def _port(self) -> int:
        return self._url.port or (443 if self._url.scheme == "https" else 80)

    def __repr__(self) -> str:
        return f"<{self._where} {str(self._url.copy_with(query=None))!r}>"

    async def connect(self) -> None:
        """See whether the agent can be connected to, which says nothing of what it answers. It is sent nothing.

        Does nothing where ``transport`` carries the requests.

        :raises AgentConnectionError: it can't.
        """
        if self._connect is None:
            return
        try:
            await self._connect()
        except Exception as exc:
            # anyio says no more than that all attempts have failed.
            fault = exc.__cause__ if isinstance(exc.__cause__, OSError) else exc
            raise AgentConnectionError(_describe(fault)) from exc

    async def aclose(self) -> None:
        await self._connections.aclose()

    async def retire(self) -> None:
        """Close the connections of every event loop. Waits for the running event loop's only."""
        if isinstance(self._connections, PerEventLoop):
            await self._connections.aclose_everywhere()
        else:
            await self._connections.aclose()

    async def _send(self, head: RequestHead, content: bytes | None) -> HttpAnswer:
        """Send a request and return its answer. The one place where other libraries' errors become ours.

        :param content: None: the request has none.
        :raises AgentConnectionError: the agent could not be reached, or the connection broke before it answered.
        :raises AnswerTooLongError: the answer has more content than ``max_answer_bytes``.
        :raises AgentError: what :meth:`_check_head` raises.
        """
        trace_context: dict[str, str] = {}
        inject_trace_context(trace_context)
        try:
            source = self._connections
            connections = source.peek() or await source.get() if isinstance(source, PerEventLoop) else source
            if not isinstance(connections, Connections):
                encoded = head.encode(None if content is None else len(content), trace_context)
                return await connections.send(encoded, content or b"", head_only=head.method == b"HEAD")
            async with connections.lease() as transport:
                response = await transport.handle_async_request(self._request(head, content, trace_context))
                return await self._read(response)
        except AgentError:
            raise
        except Exception as exc:
            raise AgentConnectionError(_describe(exc)) from exc

    def _open(self, tls: ssl.SSLContext | None) -> "ConnectionStack | Http1Pool":
        """What carries the requests of the running event loop."""
        if not _HAS_HTTP1 or on_trio():
            # httpx wants a context for http, too; one without authorities trusts nobody.
            return ConnectionStack(tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self._uds)
        connector = Http1Connector(self._url.raw_host.decode("ascii"), self._port, tls, self._uds)
        return Http1Pool(connector, self._check_head, self._max_answer_bytes, keep_headers=self._keeps_headers)

    def _request(self, head: RequestHead, content: bytes | None, trace_context: Mapping[str, str]) -> httpx.Request:
        headers = [*head.headers]
        if content is not None:
            headers.append((b"content-length", b"%d" % len(content)))
        headers += [(name.encode(), value.encode()) for name, value in trace_context.items()]
        url = self._url if head.target == self._url.raw_path else self._url.copy_with(raw_path=head.target)
        request = httpx.Request(
            head.method.decode(), url, headers=headers, stream=_Body(content or b""), extensions=_NO_TIMEOUTS
        )
        request.read()  # for transports that want request.content
        return request

    async def _read(self, response: httpx.Response) -> HttpAnswer:
        try:
            self._check_head(response.status_code, response.headers)
            content = await self._read_body(response)
        except BaseException:
            with CancelScope(shield=True):
                await response.aclose()
            raise
        await response.aclose()
        headers = [(name.lower(), value) for name, value in response.headers.raw] if self._keeps_headers else ()
        return HttpAnswer(response.status_code, headers, content)

    def _check_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Raise :class:`AgentError` for an answer of which the content is not to be read."""
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > _MAX_DIGITS or int(length) > self._max_answer_bytes):
            raise AnswerTooLongError(self._max_answer_bytes, status)

    async def _read_body(self, response: httpx.Response) -> bytes:
        answer = Pieces()
        stream = aiter(cast(httpx.AsyncByteStream, response.stream))
        async for chunk in stream:
            if answer.size + len(chunk) > self._max_answer_bytes:
                await abandon(stream)
                raise AnswerTooLongError(self._max_answer_bytes, response.status_code)
            answer.append(chunk)
        return answer.take()

    def _wrong(self, field: str, value: object, expected: str) -> ConfigurationError:
        return wrong(self._where, field, value, expected)


class HttpTransport(HttpOrigin):
    """Posts events to an agent's URL and reads its answers.

    Connections are kept alive on each event loop, and closed when it ends whether or not anything is shut down. A call
    is never repeated: when the agent closes an idle connection in the very moment that it is used again, the call fails
    as for any broken connection, because nobody can tell whether the agent has acted on the event already. A connection
    on which anything has come after an answer is not used again.

    On asyncio, where httptools is installed (the ``fast`` extra), the package's own HTTP/1.1 client carries the
    requests, in a fraction of the time that httpcore takes. Everywhere else, and on Windows, httpcore carries them.

    :param url: an ``http://`` or ``https://`` URL.
    :param headers: sent with each event, credentials for instance; ASCII.
    :param encoding: how events and answers are spelt.
    :param verify: whom to trust for ``https``. True: the authorities that httpx trusts; a path (a PEM file, or a
        directory of them): only those; an ``ssl.SSLContext`` is used as it is; False: anyone.
    :param cert: a client certificate for ``https``: the path of a PEM file, or a tuple of certificate, key and, where
        the key has one, its password.
    :param uds: the path of a Unix socket to connect to, whatever the URL's host; not on Windows.
    :param transport: what carries the requests instead of connections of our own, and keeps the rules above or not. An
        ``httpx.AsyncBaseTransport`` is used on every event loop, and closed by :meth:`aclose`. A function without
        arguments is called on each event loop for the transport to use there, which is closed with the loop.
    :param max_answer_bytes: a longer answer is an agent error.
    :param span_unit: what the agent counts in the spans of its detections: ``"codepoints"`` of the content, as the
        protocol has it, or ``"bytes"`` of its UTF-8, as agents written in Rust or Go may. Handlers get code points.
    :raises ConfigurationError: for arguments that can't work.
    """

    kind = "http"
    remote = True
    events: frozenset[EventType] | None = None
    carries = frozenset(EventType)
    _where = "HttpTransport"

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        encoding: Encoding | str = Encoding.JSON,
        verify: ssl.SSLContext | bool | str = True,
        cert: ClientCertificate | None = None,
        uds: str | None = None,
        transport: httpx.AsyncBaseTransport | TransportFactory | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        span_unit: SpanUnit = "codepoints",
    ) -> None:
        super().__init__(url, verify=verify, cert=cert, uds=uds, transport=transport, max_answer_bytes=max_answer_bytes)
        self._encoding = _parse_encoding(self._where, encoding)
        self._head = RequestHead(b"POST", self._url.raw_path, self._fixed_headers(headers or {}))
        if span_unit not in ("codepoints", "bytes"):
            raise self._wrong("span_unit", span_unit, "'codepoints' or 'bytes'")
        self._span_unit = span_unit

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event) -> Answer:
        """Post ``event`` and return the answer.

        :raises AgentConnectionError: the agent could not be reached, or the connection broke before it answered.
        :raises AgentProtocolError: it answered with something that the protocol does not allow.
        :raises EventTooLargeError: it answered 413.
        """
        message = await self.post(encode_event(event, self._encoding))
        return in_code_points(decode_answer(message, self._encoding, event.event_type), event, self._span_unit)

    async def post(self, message: bytes) -> bytes:
        """Post ``message`` and return the content of the answer, whatever it is. Raises as :meth:`call` does."""
        return (await self._send(self._head, message)).content

    def _fixed_headers(self, given: object) -> list[tuple[bytes, bytes]]:
        """What every request has in common."""
        fields = {
            "host": self._url.netloc.decode(),
            "user-agent": USER_AGENT,
            "accept": self._encoding.content_type,
            "accept-encoding": "identity",
            "content-type": self._encoding.content_type,
        }
        fields |= checked_headers(self._where, given)
        return [(name.encode(), value.encode()) for name, value in fields.items()]

    def _check_status(self, status: int) -> None:
        if status == 413:
            # The client decides how large its bodies and headers are: it says nothing of how the agent is.
            raise EventTooLargeError("it answered 413: it does not take an event of that length")
        if status != 200:
            raise AgentProtocolError(f"expected status 200, got {status}")

    def _check_head(self, status: int, headers: Mapping[str, str]) -> None:
        self._check_status(status)
        # To decompress would let a short answer become a very long one.
        content_encoding = headers.get("content-encoding", "identity")
        if content_encoding.strip().lower() != "identity":
            raise AgentProtocolError(f"content-encoding: expected none, got {content_encoding!r:.100}")
        content_type = headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != self._encoding.content_type:
            raise AgentProtocolError(f"content-type: expected {self._encoding.content_type}, got {content_type!r:.100}")
        super()._check_head(status, headers)


class _Body(httpx.ByteStream):
    """A request's body, as an iterator: its base is an async generator, and trio warns of those left unfinished."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._unsent = iter((data,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for data in self._unsent:
            return data
        raise StopAsyncIteration


async def abandon(stream: AsyncIterator[bytes]) -> None:
    """Read on in a cancelled scope.

    httpcore nests one async generator in the next. To leave the outer one ends only that; a cancelled read ends them
    all, in order.
    """
    with CancelScope() as scope, suppress(Exception):
        scope.cancel()
        async for _ in stream:
            pass


async def _connect(uds: str | None, host: str, port: int, tls: ssl.SSLContext | None) -> None:
    if uds is not None:
        stream: anyio.abc.ByteStream = await anyio.connect_unix(uds)
    else:
        stream = await anyio.connect_tcp(host, port)
    async with stream:
        if tls is not None:
            stream = await TLSStream.wrap(stream, hostname=host, ssl_context=tls, standard_compatible=False)
            await anyio.aclose_forcefully(stream)


def _describe(exc: BaseException) -> str:
    # trio's BrokenResourceError, for one, leaves it to its cause to say what was wrong.
    return f"{type(exc).__name__}: {_QUOTED_BYTES.sub('…', text_of(exc))}"


def _parse_url(where: str, field: str, given: object) -> httpx.URL:
    expected = "an http:// or https:// URL"
    if not isinstance(given, str):
        raise wrong(where, field, given, expected)
    try:
        url = httpx.URL(given)
    except httpx.InvalidURL as exc:
        # Not the whole URL: there may be credentials in it.
        raise ConfigurationError(f"{where}: {field}: {exc}, expected {expected}") from exc
    except UnicodeEncodeError:
        raise ConfigurationError(f"{where}: {field}: not UTF-8, expected {expected}") from None
    if url.userinfo:
        without = str(url.copy_with(userinfo=b""))
        raise ConfigurationError(
            f"{where}: {field} has credentials in it, expected {without!r} and headers={{'authorization': …}}"
        )
    if url.scheme not in ("http", "https"):
        raise wrong(where, field, given, expected)
    if not url.host:
        raise wrong(where, field, given, f"{expected} with a host")
    return url


def _parse_encoding(where: str, given: Encoding | str) -> Encoding:
    try:
        return Encoding(given)
    except ValueError:
        raise wrong(where, "encoding", given, "'json' or 'msgpack'") from None


def checked_headers(where: str, given: object) -> dict[str, str]:
    """Headers for each request, with names in lower case.

    :raises ConfigurationError: for what can't be sent, or is the transport's own to set. It has no values in it, which
        may be secrets.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{where}: headers is a {type(given).__name__}, expected names mapped to values")
    fields: dict[str, str] = {}
    for name, value in given.items():
        if not isinstance(name, str) or not TOKEN.match(name):
            raise wrong(where, "headers", name, "names of letters, digits and !#$%&'*+-.^_`|~ (RFC 9110, section 5.1)")
        if name.lower() in _OWNED_HEADERS:
            raise wrong(where, "headers", name, "none of those that the transport sets itself")
        if not isinstance(value, str) or not _HEADER_VALUE.match(value):
            raise ConfigurationError(
                f"{where}: headers[{name!r}], expected visible ASCII characters, with blanks only between them"
            )
        fields[name.lower()] = value
    return fields


def wrong(where: str, field: str, value: object, expected: str) -> ConfigurationError:
    """The error for an argument that can't work; ``where`` begins its message."""
    return ConfigurationError(f"{where}: {field}={value!r}, expected {expected}")
