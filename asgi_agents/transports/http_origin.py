"""What all transports over HTTP have in common: requests to one origin, and the connections that carry them."""

import math
import re
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
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
from ..errors import AgentConnectionError, AgentError, ConfigurationError
from ..memory.pieces import Pieces
from ..observability.endpoints import EndpointStatistics
from ..observability.redaction import redact_secrets
from ..observability.trace_context import inject_trace_context
from ..policy import require_seconds, wrong
from ..protocol import TOKEN
from .base import NotConnectedError
from .connections import ConnectionStack, LeasingPool, SharedTransport, describe
from .discovery import Member, has_to_be_looked_up
from .http1.request import HttpRequest, RequestHead
from .http_answer import AnswerTooLongError, HttpAnswer
from .named_pool import NamedPool, Pool
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
        resolve_interval: float | None,
    ) -> None:
        self._url = _parse_url(self._where, self._url_field, url)
        if type(max_answer_bytes) is not int or max_answer_bytes < 1:
            raise self._wrong("max_answer_bytes", max_answer_bytes, "a whole number of at least 1")
        self._max_answer_bytes = max_answer_bytes
        if resolve_interval is not None:
            require_seconds(self._where, "resolve_interval", resolve_interval)
        self._uds = uds
        #: Opens a connection, and closes it; None where connections are another transport's.
        self._connect: Callable[[], Awaitable[None]] | None = None
        self._connections: LeasingPool | PerEventLoop[LeasingPool | NamedPool[HttpRequest, HttpAnswer] | Http1Pool]
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
                raise self._wrong(
                    self._url_field, without_query(url), "https://, for that is what verify and cert are about"
                )
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
                raise ConfigurationError(f"{self._where}: {name} beside transport, expected it to be given to that")
        if isinstance(transport, httpx.AsyncBaseTransport):
            self._connections = LeasingPool(SharedTransport(transport), self._exchange)
        elif callable(transport):
            factory = transport
            self._connections = PerEventLoop(lambda: LeasingPool(SharedTransport(factory()), self._exchange))
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

    @property
    def _host(self) -> str:
        """As it is looked up."""
        return self._url.raw_host.decode("ascii")

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

    def statistics(self) -> Sequence[EndpointStatistics]:
        """Of each address that the URL's host leads to, where these are several; of the running event loop."""
        pool = self._named_pool()
        return () if pool is None else pool.statistics()

    async def _send(self, head: RequestHead, content: bytes | None, deadline: float = math.inf) -> HttpAnswer:
        """Send a request and return its answer. The one place where other libraries' errors become ours.

        :param content: None: the request has none.
        :param deadline: when whoever calls this cancels it, on :func:`time.monotonic`.
        :raises AgentConnectionError: the agent could not be reached, or the connection broke before it answered.
        :raises AnswerTooLongError: the answer has more content than ``max_answer_bytes``.
        :raises AgentError: what :meth:`_check_head` raises.
        """
        trace_context: dict[str, str] = {}
        inject_trace_context(trace_context)
        request = HttpRequest(head, content, trace_context)
        try:
            source = self._connections
            pool = source.peek() or await source.get() if isinstance(source, PerEventLoop) else source
            return await pool.send(request, deadline)
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

    def _note_unreadable(self) -> None:
        """The answer that the running task has just got was none."""
        pool = self._named_pool()
        if pool is not None:
            pool.unreadable()

    def _named_pool(self) -> NamedPool[HttpRequest, HttpAnswer] | None:
        """That of the running event loop, where the host is a name."""
        source = self._connections
        pool = source.peek() if isinstance(source, PerEventLoop) else None
        return pool if isinstance(pool, NamedPool) else None

    def _open_named(self, tls: ssl.SSLContext | None, interval: float) -> NamedPool[HttpRequest, HttpAnswer]:
        def make(member: Member) -> Pool[HttpRequest, HttpAnswer]:
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
        return Http1Pool(connector, self._check_head, self._max_answer_bytes, keep_headers=self._keeps_headers)

    async def _exchange(self, transport: httpx.AsyncBaseTransport, request: HttpRequest) -> HttpAnswer:
        try:
            response = await transport.handle_async_request(self._request(request))
        except httpx.ConnectError as exc:
            raise NotConnectedError(describe(exc)) from exc
        return await self._read(response)

    def _request(self, request: HttpRequest) -> httpx.Request:
        head, content = request.head, request.content
        headers = [*head.headers]
        if content is not None:
            headers.append((b"content-length", b"%d" % len(content)))
        headers += [(name.encode(), value.encode()) for name, value in request.trace_context.items()]
        url = self._url if head.target == self._url.raw_path else self._url.copy_with(raw_path=head.target)
        message = httpx.Request(
            head.method.decode(), url, headers=headers, stream=_Body(content or b""), extensions=_NO_TIMEOUTS
        )
        message.read()  # for transports that want request.content
        return message

    async def _read(self, response: httpx.Response) -> HttpAnswer:
        try:
            self._check_head(response.status_code, response.headers)
            content = await read_at_most(response, self._max_answer_bytes)
            if content is None:
                raise AnswerTooLongError(self._max_answer_bytes, response.status_code)
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

    def _wrong(self, field: str, value: object, expected: str) -> ConfigurationError:
        return wrong(self._where, field, value, expected)


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


async def read_at_most(response: httpx.Response, limit: int) -> bytes | None:
    """The content as it comes, or None where it has more than ``limit`` bytes: the rest is not read."""
    content = Pieces()
    stream = aiter(cast(httpx.AsyncByteStream, response.stream))
    async for piece in stream:
        if content.size + len(piece) > limit:
            await abandon(stream)
            return None
        content.append(piece)
    return content.take()


async def abandon(stream: AsyncIterator[bytes]) -> None:
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
        without = redact_secrets(str(url.copy_with(userinfo=b"")))
        raise ConfigurationError(
            f"{where}: {field} has credentials in it, expected {without!r} and headers={{'authorization': …}}"
        )
    if url.scheme not in ("http", "https"):
        raise wrong(where, field, without_query(given), expected)
    if not url.host:
        raise wrong(where, field, without_query(given), f"{expected} with a host")
    return url


def without_query(url: str) -> str:
    """For messages: without the query, in which there may be credentials."""
    base, mark, _ = url.partition("?")
    return f"{base}{mark and '?…'}"


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
