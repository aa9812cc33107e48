"""What clients of authorization services have in common: when they are asked, and how a denial becomes an answer."""

import math
import re
from collections.abc import Iterable
from typing import Final, Protocol

from msgspec.structs import replace

from ..errors import AgentError, ConfigurationError
from ..protocol import AgentResponse, AuditMetadata, Block, Event, EventType, HeaderOp, Redirect, RequestHeadersEvent
from ..protocol.events import RequestBodyChunkEvent
from ..protocol.validation import REDIRECT_STATUSES, is_redirect_url, is_sendable, is_untouchable
from .base import AgentClient

#: The events that an authorization service can be asked about.
AUTHORIZED_EVENTS: Final = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})
#: Those that it is asked about unless it is configured.
HEADS: Final = frozenset({EventType.REQUEST_HEADERS})

#: The names of what a proxy tells a service, in one spelling: from a client it would be a lie about the request.
WORD_OF_A_PROXY: Final = re.compile(
    r"(?:x-forwarded-|x-original-|x-auth-request-|x-envoy-)|(?:forwarded|x-authelia-url|x-real-ip|x-rewrite-url)\Z"
)

_BAD_INPUT: Final = AuditMetadata(reason_codes=("bad_input",))
#: They describe a body, and are left out with it.
OF_THE_BODY: Final = frozenset({"content-encoding", "content-language", "content-range", "content-type"})

# Of a content-length: int() refuses what is much longer.
_MAX_DIGITS: Final = 18
# RFC 9110, section 9.3: a request of another method is expected to have a body.
_WITHOUT_BODY: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "TRACE"})


class Authorizer(Protocol):
    """An authorization service, as its client asks it."""

    kind: str
    remote: bool

    @property
    def address(self) -> str:
        """Where it is, for the log."""
        ...

    async def check(
        self, head: RequestHeadersEvent, body: bytes | None, deadline: float, *, more: bool = False
    ) -> AgentResponse:
        """Whether the request may pass.

        :param body: all of it; None: it is not shown, or there is none yet.
        :param more: there is a body, about which the service is asked later.
        :raises AgentError: the service has failed.
        """
        ...

    async def connect(self) -> None:
        """See whether it can be connected to."""
        ...

    async def aclose(self) -> None:
        """Close what belongs to the running event loop."""
        ...

    async def retire(self) -> None:
        """Close what belongs to any event loop, for good."""
        ...


class AuthorizationClient(AgentClient):
    """Asks an authorization service about the heads of requests and handshakes; with ``events`` also about bodies.

    One that is asked about bodies is asked twice: about the head, and about the head with the whole body. What it
    denies to the head alone is denied unless it allows the two together, so that a request whose body is missing, or
    empty, never passes unasked.

    :param events: those to ask about.
    :raises ConfigurationError: for bodies without their heads.
    """

    def __init__(self, where: str, authorizer: Authorizer, events: frozenset[EventType]) -> None:
        if EventType.REQUEST_HEADERS not in events:
            raise ConfigurationError(f"{where}: events lack request_headers, which an authorization service needs")
        self.kind = authorizer.kind
        self.remote = authorizer.remote
        self.address = authorizer.address
        self.hears = events
        self.keeps_requests = EventType.REQUEST_BODY_CHUNK in events
        self._authorizer = authorizer
        # By correlation id: those of requests whose connections are open.
        self._heads: dict[str, RequestHeadersEvent] = {}

    def function(self, event_type: EventType) -> object:
        return self._authorizer.check

    async def call(self, event: Event, deadline: float = math.inf) -> AgentResponse:
        if isinstance(event, RequestHeadersEvent):
            return await self._judge_head(event, deadline)
        assert isinstance(event, RequestBodyChunkEvent)
        head = self._heads.get(event.correlation_id)
        if head is None:
            raise AgentError("there is a body to judge, and the head before it was not shown")
        if event.chunk_index or not event.is_last:
            raise AgentError("an authorization service takes whole bodies, expected request_body_mode='buffer'")
        return await self._authorizer.check(head, event.data, deadline)

    async def _judge_head(self, head: RequestHeadersEvent, deadline: float) -> AgentResponse:
        if not self.keeps_requests:
            return await self._authorizer.check(head, None, deadline)
        self._heads[head.correlation_id] = head
        answer = await self._authorizer.check(head, None, deadline, more=declares_body(head))
        return answer if answer.is_allow else replace(answer, needs_more=True)

    def forget(self, correlation_id: str) -> None:
        self._heads.pop(correlation_id, None)

    async def connect(self) -> None:
        await self._authorizer.connect()

    async def aclose(self) -> None:
        await self._authorizer.aclose()

    async def retire(self) -> None:
        await self._authorizer.retire()


def declares_body(head: RequestHeadersEvent) -> bool:
    """Whether a body may follow the head, as far as a proxy lets that be seen.

    HTTP/2 need not declare any, and Envoy takes the ``transfer-encoding`` of HTTP/1.1 out. So a request of a method
    that has a body needs a ``content-length`` of 0 to have none (RFC 9110, section 8.6, wants one).
    """
    if "transfer-encoding" in head.headers:
        return True
    declared = head.header("content-length")
    if declared is not None:
        return not declared.isdecimal() or len(declared) > _MAX_DIGITS or int(declared) > 0
    return head.method not in _WITHOUT_BODY


def denial(status: int, body: str | None, fields: Iterable[tuple[str, str]]) -> AgentResponse:
    """A service's denial as a block or a redirect, whatever of it can't be sent: that is left out.

    A denial is never turned into a failure, which a fail-open agent would let pass.

    :param status: what the client is to get; 403 where it can't be the status of a denial.
    :param body: None: the standard phrase of the status.
    :param fields: names and values of headers, several of one name in order.
    """
    location = None
    others: list[tuple[str, str]] = []
    for name, value in fields:
        name = name.lower()
        if name == "location" and status in REDIRECT_STATUSES:
            location = location or text_of_bytes(value)
        elif body is not None or name not in OF_THE_BODY:
            others.append((name, value))
    if location is not None and is_redirect_url(location):
        kept = [(name, value) for name, value in others if name not in OF_THE_BODY]
        return AgentResponse(decision=Redirect(location, status), response_headers=replacing(kept))
    if not 200 <= status <= 599 or 300 <= status <= 399:
        status, body = 403, None
        others = [(name, value) for name, value in others if name not in OF_THE_BODY]
    return AgentResponse(decision=Block(status, body), response_headers=replacing(others))


def is_asked_about(uri: str) -> bool:
    """Whether a target is one that services can judge: a path, or the ``*`` of OPTIONS.

    Some servers take others (``GET %2fadmin``), and frameworks find the path in them. To a service that puts the target
    behind a host, or compares how it begins, they are something else.
    """
    return uri.startswith("/") or uri == "*"


def refusal_of_input(what: str) -> AgentResponse:
    """The answer to a request that can't be asked about, because of ``what`` the client has sent."""
    return AgentResponse.block(400, f"Bad request: {what}", audit=_BAD_INPUT)


def replacing(fields: Iterable[tuple[str, str]]) -> tuple[HeaderOp, ...]:
    """Operations that replace what is there by ``fields``, as far as these can be sent."""
    seen: set[str] = set()
    ops: list[HeaderOp] = []
    for name, value in fields:
        if not is_sendable(name, value) or is_untouchable(name) or name == "host":
            continue
        ops.append(HeaderOp.add(name, value) if name in seen else HeaderOp.set(name, value))
        seen.add(name)
    return tuple(ops)


def text_of_bytes(value: str) -> str:
    """A value whose bytes were decoded as latin-1, as text: UTF-8 if it is that."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def is_text(value: str) -> bool:
    """Whether a value is the same bytes again once :func:`text_of_bytes` has made a text of it."""
    return bytes_of_text(text_of_bytes(value)) == value


def bytes_of_text(text: str) -> str:
    """A text in a header as agents see headers: the bytes of its UTF-8, decoded as latin-1."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")
