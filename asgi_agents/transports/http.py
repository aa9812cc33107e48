"""Agents behind HTTP: one POST for each event."""

import math
import ssl
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

import httpx

from ..errors import AgentError, AgentProtocolError, EventTooLargeError
from ..observability.endpoints import EndpointStatistics
from ..policy import as_member
from ..protocol import (
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
from .discovery import RESOLVE_INTERVAL
from .http1.request import RequestHead
from .http_origin import USER_AGENT, HttpOrigin, TransportFactory, checked_headers
from .plain import PlainClient
from .tls import ClientCertificate

MAX_ANSWER_BYTES: Final = 10 * 1024 * 1024


class HttpTransport(HttpOrigin):
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
        resolve_interval: float | None = RESOLVE_INTERVAL,
        span_unit: SpanUnit = "codepoints",
    ) -> None:
        super().__init__(
            url,
            verify=verify,
            cert=cert,
            uds=uds,
            transport=transport,
            max_answer_bytes=max_answer_bytes,
            resolve_interval=resolve_interval,
        )
        self._encoding = as_member(self._where, "encoding", encoding, Encoding)
        self._head = RequestHead(b"POST", self._url.raw_path, self._fixed_headers(headers or {}))
        if span_unit not in ("codepoints", "bytes"):
            raise self._wrong("span_unit", span_unit, "'codepoints' or 'bytes'")
        self._span_unit = span_unit

    def bind(
        self, agent_id: str, *, events: frozenset[EventType] | None, config: Any, max_concurrent_calls: int
    ) -> AgentClient:
        """A client that posts ``events`` here."""
        assert events is not None
        # A subclass may override `call`, without the deadline.
        return (HttpClient if type(self).call is HttpTransport.call else PlainClient)(self, events)

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    async def call(self, event: Event, deadline: float = math.inf) -> Answer:
        """Post ``event`` and return the answer.

        :param deadline: when the guard cancels it, on :func:`time.monotonic`.
        :raises AgentConnectionError: the agent could not be reached, or the connection broke before it answered.
        :raises AgentProtocolError: it answered with something that the protocol does not allow.
        :raises EventTooLargeError: it answered 413.
        """
        message = await self.post(encode_event(event, self._encoding), deadline)
        try:
            return in_code_points(decode_answer(message, self._encoding, event.event_type), event, self._span_unit)
        except AgentError:
            self._note_unreadable()
            raise

    async def post(self, message: bytes, deadline: float = math.inf) -> bytes:
        """Post ``message`` and return the content of the answer, whatever it is. Raises as :meth:`call` does."""
        return (await self._send(self._head, message, deadline)).content

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


class HttpClient(PlainClient):
    """One agent behind an :class:`HttpTransport`."""

    _transport: HttpTransport

    def call(self, event: Event, deadline: float = math.inf) -> Coroutine[Any, Any, Answer]:
        return self._transport.call(event, deadline)

    def statistics(self) -> tuple[Sequence[EndpointStatistics], int]:
        return self._transport.statistics(), 0
