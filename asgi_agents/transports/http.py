"""Agents behind HTTP: one POST for each event."""

import math
import re
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

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
)
from ..memory.pieces import Pieces
from ..observability.endpoints import EndpointStatistics
from ..observability.trace_context import inject_trace_context
from ..policy import require_seconds
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
from .base import AgentClient
from .connections import ConnectionStack, LeasingPool, NotConnectedError, SharedTransport, describe
from .discovery import RESOLVE_INTERVAL, Member, has_to_be_looked_up
from .named_pool import NamedPool, Pool
from .plain import PlainClient
from .tls import ClientCertificate, client_context
from .wire import unusable_path

try:
    from .http1.connecting import Http1Connector
    from .http1.pool import Http1Pool
    from .http1.request import PostHead
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

# The guard's deadline ends a call.
_NO_TIMEOUTS: Final = {"timeout": {"connect": None, "read": None, "write": None, "pool": None}}


class HttpTransport:
    """Posts events to an agent's URL and reads its answers.

    Connections are kept alive on each event loop, and closed when it ends whether or not anything is shut down. A call
    that may have been sent is never repeated: when the agent closes an idle connection in the very moment that it is
    used again, the call fails as for any broken connection, because nobody can tell whether the agent has acted on the
    event already. A connection on which anything has come after an answer is not used again.

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
    :param resolve_interval: seconds between two lookups of the URL's host, at most. Where it leads to several
        addresses, each call goes to one of them; one that it leads to no more gets no new calls. None: the host is
        looked up for each connection.
    :param span_unit: what the agent counts in the spans of its detections: ``"codepoints"`` of the content, as the
        protocol has it, or ``"bytes"`` of its UTF-8, as agents written in Rust or Go may. Handlers get code points.
    :raises ConfigurationError: for arguments that can't work.
    """

    kind = "http"
    remote = True
    events: frozenset[EventType] | None = None
    carries = frozenset(EventType)

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
        resolve_interval: float | None = RESOLVE_INTERVAL,
        span_unit: SpanUnit = "codepoints",
    ) -> None:
        self._url = _parse_url(url)
        self._encoding = _parse_encoding(encoding)
        self._headers = _fixed_headers(self._url, self._encoding, headers or {})
        if type(max_answer_bytes) is not int or max_answer_bytes < 1:
            raise _wrong("max_answer_bytes", max_answer_bytes, "a whole number of at least 1")
        self._max_answer_bytes = max_answer_bytes
        if resolve_interval is not None:
            require_seconds("HttpTransport", "resolve_interval", resolve_interval)
        self._uds = uds
        #: Opens a connection, and closes it; None where connections are another transport's.
        self._connect: Callable[[], Awaitable[None]] | None = None
        if span_unit not in ("codepoints", "bytes"):
            raise _wrong("span_unit", span_unit, "'codepoints' or 'bytes'")
        self._span_unit = span_unit
        self._connections: LeasingPool | PerEventLoop[LeasingPool | NamedPool | Http1Pool]
        if transport is None:
            if uds is not None and (not isinstance(uds, str) or not uds):
                raise _wrong("uds", uds, "the path of a Unix socket")
            unusable = None if uds is None else unusable_path(uds)
            if unusable is not None:
                raise _wrong("uds", uds, unusable)
            tls: ssl.SSLContext | None = None
            if self._url.scheme == "https":
                tls = client_context("HttpTransport", verify, cert)
            elif verify is not True or cert is not None:
                raise _wrong("url", url, "https://, for that is what verify and cert are about")
            if uds is None and resolve_interval is not None and has_to_be_looked_up(self._host):
                interval = float(resolve_interval)
                self._connections = PerEventLoop(lambda: self._open_named(tls, interval))
                self._connect = partial(self._connect_to_any, tls)
                return
            self._connections = PerEventLoop(lambda: self._open(tls))
            self._connect = partial(_connect, uds, self._url.host, self._port, tls)
            return
        for name, beside in (("verify", verify is not True), ("cert", cert is not None), ("uds", uds is not None)):
            if beside:
                raise ConfigurationError(f"HttpTransport: {name} beside transport, expected it to be given to that")
        if isinstance(transport, httpx.AsyncBaseTransport):
            self._connections = LeasingPool(SharedTransport(transport), self._exchange)
        elif callable(transport):
            factory = transport
            self._connections = PerEventLoop(lambda: LeasingPool(SharedTransport(factory()), self._exchange))
        else:
            raise _wrong("transport", transport, "an httpx.AsyncBaseTransport, or a function that returns one")

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

    @property
    def _host(self) -> str:
        """As it is looked up."""
        return self._url.raw_host.decode("ascii")

    def __repr__(self) -> str:
        return f"<HttpTransport {str(self._url.copy_with(query=None))!r}>"

    def bind(
        self, agent_id: str, *, events: frozenset[EventType] | None, config: Any, max_concurrent_calls: int
    ) -> AgentClient:
        """A client that posts ``events`` here."""
        assert events is not None
        # A subclass may override `call`, without the deadline.
        return (HttpClient if type(self).call is HttpTransport.call else PlainClient)(self, events)

    def statistics(self) -> Sequence[EndpointStatistics]:
        """Of each address that the URL's host leads to, where these are several; of the running event loop."""
        pool = self._named_pool()
        return () if pool is None else pool.statistics()

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event, deadline: float = math.inf) -> Answer:
        """Post ``event`` and return the answer.

        :param deadline: when the guard cancels it, on :func:`time.monotonic`.
        :raises AgentConnectionError: the agent could not be reached, or the connection broke before it answered.
        :raises AgentProtocolError: it answered with something that the protocol does not allow.
        :raises EventTooLargeError: it answered 413.
        """
        message = await self._post(encode_event(event, self._encoding), deadline)
        try:
            return in_code_points(decode_answer(message, self._encoding, event.event_type), event, self._span_unit)
        except AgentError:
            pool = self._named_pool()
            if pool is not None:
                pool.unreadable()
            raise

    async def connect(self) -> None:
        """See whether the agent can be connected to, which says nothing of what it answers. It is sent nothing.

        Does nothing where ``transport`` carries the requests.

        :raises AgentConnectionError: it can't.
        """
        if self._connect is None:
            return
        try:
            await self._connect()
        except AgentError:
            raise
        except Exception as exc:
            # anyio says no more than that all attempts have failed.
            fault = exc.__cause__ if isinstance(exc.__cause__, OSError) else exc
            raise AgentConnectionError(describe(fault)) from exc

    async def aclose(self) -> None:
        await self._connections.aclose()

    async def retire(self) -> None:
        """Close the connections of every event loop. Waits for the running event loop's only."""
        if isinstance(self._connections, PerEventLoop):
            await self._connections.aclose_everywhere()
        else:
            await self._connections.aclose()

    async def _post(self, message: bytes, deadline: float) -> bytes:
        """The one place where other libraries' errors become ours."""
        try:
            source = self._connections
            pool = source.peek() or await source.get() if isinstance(source, PerEventLoop) else source
            return await pool.post(message, deadline)
        except AgentConnectionError:
            self._note_failure()
            raise
        except AgentError:
            raise
        except Exception as exc:
            self._note_failure()
            raise AgentConnectionError(describe(exc)) from exc

    def _note_failure(self) -> None:
        pool = self._named_pool()
        if pool is not None:
            pool.failed()

    def _named_pool(self) -> NamedPool | None:
        """That of the running event loop, where the host is a name."""
        source = self._connections
        pool = source.peek() if isinstance(source, PerEventLoop) else None
        return pool if isinstance(pool, NamedPool) else None

    def _open_named(self, tls: ssl.SSLContext | None, interval: float) -> NamedPool:
        def make(member: Member) -> Pool:
            return self._open(tls, member.host)

        return NamedPool(self._host, self._port, make, scheme=self._url.scheme, interval=interval)

    async def _connect_to_any(self, tls: ssl.SSLContext | None) -> None:
        """Open a connection to one of the members, and close it."""
        source = self._connections
        assert isinstance(source, PerEventLoop)
        pool = source.peek() or await source.get()
        assert isinstance(pool, NamedPool)
        faults: list[Exception] = []
        for member in await pool.members():
            try:
                await _connect(None, member.host, self._port, tls, self._url.host)
            except Exception as exc:
                faults.append(exc)
            else:
                return
        raise faults[0]

    def _open(self, tls: ssl.SSLContext | None, address: str = "") -> "LeasingPool | Http1Pool":
        """What carries the requests of the running event loop, to any address of the host or to a certain one."""
        if not _HAS_HTTP1 or on_trio():
            # httpx wants a context for http, too; one without authorities trusts nobody.
            context = tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            return LeasingPool(ConnectionStack(context, self._uds, address), self._exchange)
        connector = Http1Connector(self._host, self._port, tls, self._uds, address)
        head = PostHead(self._url.raw_path, self._headers)
        return Http1Pool(connector, head, self._check_head, self._max_answer_bytes)

    async def _exchange(self, transport: httpx.AsyncBaseTransport, message: bytes) -> bytes:
        try:
            response = await transport.handle_async_request(self._request(message))
        except httpx.ConnectError as exc:
            raise NotConnectedError(describe(exc)) from exc
        return await self._read(response)

    def _request(self, message: bytes) -> httpx.Request:
        headers = [*self._headers, (b"content-length", b"%d" % len(message))]
        trace_context: dict[str, str] = {}
        inject_trace_context(trace_context)
        headers += [(name.encode(), value.encode()) for name, value in trace_context.items()]
        request = httpx.Request("POST", self._url, headers=headers, stream=_Body(message), extensions=_NO_TIMEOUTS)
        request.read()  # for transports that want request.content
        return request

    async def _read(self, response: httpx.Response) -> bytes:
        try:
            self._check_head(response.status_code, response.headers)
            answer = await self._read_body(response)
        except BaseException:
            with CancelScope(shield=True):
                await response.aclose()
            raise
        await response.aclose()
        return answer

    def _check_head(self, status: int, headers: Mapping[str, str]) -> None:
        if status == 413:
            # The client decides how large its bodies and headers are: it says nothing of how the agent is.
            raise EventTooLargeError("it answered 413: it does not take an event of that length")
        if status != 200:
            raise AgentProtocolError(f"expected status 200, got {status}")
        # To decompress would let a short answer become a very long one.
        content_encoding = headers.get("content-encoding", "identity")
        if content_encoding.strip().lower() != "identity":
            raise AgentProtocolError(f"content-encoding: expected none, got {content_encoding!r:.100}")
        content_type = headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != self._encoding.content_type:
            raise AgentProtocolError(f"content-type: expected {self._encoding.content_type}, got {content_type!r:.100}")
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > _MAX_DIGITS or int(length) > self._max_answer_bytes):
            raise self._too_long()

    async def _read_body(self, response: httpx.Response) -> bytes:
        answer = Pieces()
        stream = aiter(cast(httpx.AsyncByteStream, response.stream))
        async for chunk in stream:
            if answer.size + len(chunk) > self._max_answer_bytes:
                await _abandon(stream)
                raise self._too_long()
            answer.append(chunk)
        return answer.take()

    def _too_long(self) -> AgentProtocolError:
        return AgentProtocolError(f"the answer is longer than {self._max_answer_bytes} bytes")


class HttpClient(PlainClient):
    """One agent behind an :class:`HttpTransport`."""

    _transport: HttpTransport

    def call(self, event: Event, deadline: float = math.inf) -> Coroutine[Any, Any, Answer]:
        return self._transport.call(event, deadline)

    def statistics(self) -> tuple[Sequence[EndpointStatistics], int]:
        return self._transport.statistics(), 0


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


async def _abandon(stream: AsyncIterator[bytes]) -> None:
    """Read on in a cancelled scope.

    httpcore nests one async generator in the next. To leave the outer one ends only that; a cancelled read ends them
    all, in order.
    """
    with CancelScope() as scope, suppress(Exception):
        scope.cancel()
        async for _ in stream:
            pass


async def _connect(
    uds: str | None, host: str, port: int, tls: ssl.SSLContext | None, server_name: str | None = None
) -> None:
    if uds is not None:
        stream: anyio.abc.ByteStream = await anyio.connect_unix(uds)
    else:
        stream = await anyio.connect_tcp(host, port)
    async with stream:
        if tls is not None:
            stream = await TLSStream.wrap(
                stream, hostname=server_name or host, ssl_context=tls, standard_compatible=False
            )
            await anyio.aclose_forcefully(stream)


def _parse_url(given: object) -> httpx.URL:
    expected = "an http:// or https:// URL"
    if not isinstance(given, str):
        raise _wrong("url", given, expected)
    try:
        url = httpx.URL(given)
    except httpx.InvalidURL as exc:
        # Not the whole URL: there may be credentials in it.
        raise ConfigurationError(f"HttpTransport: url: {exc}, expected {expected}") from exc
    except UnicodeEncodeError:
        raise ConfigurationError(f"HttpTransport: url: not UTF-8, expected {expected}") from None
    if url.userinfo:
        without = str(url.copy_with(userinfo=b""))
        raise ConfigurationError(
            f"HttpTransport: url has credentials in it, expected {without!r} and headers={{'authorization': …}}"
        )
    if url.scheme not in ("http", "https"):
        raise _wrong("url", given, expected)
    if not url.host:
        raise _wrong("url", given, f"{expected} with a host")
    return url


def _parse_encoding(given: Encoding | str) -> Encoding:
    try:
        return Encoding(given)
    except ValueError:
        raise _wrong("encoding", given, "'json' or 'msgpack'") from None


def _fixed_headers(url: httpx.URL, encoding: Encoding, given: object) -> list[tuple[bytes, bytes]]:
    """What every request has in common."""
    fields = {
        "host": url.netloc.decode(),
        "user-agent": f"asgi-agents/{__version__}",
        "accept": encoding.content_type,
        "accept-encoding": "identity",
        "content-type": encoding.content_type,
    }
    # No values in the messages: they may be secrets.
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"HttpTransport: headers is a {type(given).__name__}, expected names mapped to values")
    for name, value in given.items():
        if not isinstance(name, str) or not TOKEN.match(name):
            raise _wrong("headers", name, "names of letters, digits and !#$%&'*+-.^_`|~ (RFC 9110, section 5.1)")
        if name.lower() in _OWNED_HEADERS:
            raise _wrong("headers", name, "none of those that the transport sets itself")
        if not isinstance(value, str) or not _HEADER_VALUE.match(value):
            raise ConfigurationError(
                f"HttpTransport: headers[{name!r}], expected visible ASCII characters, with blanks only between them"
            )
        fields[name.lower()] = value
    return [(name.encode(), value.encode()) for name, value in fields.items()]


def _wrong(field: str, value: object, expected: str) -> ConfigurationError:
    return ConfigurationError(f"HttpTransport: {field}={value!r}, expected {expected}")
