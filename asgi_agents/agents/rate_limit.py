"""An agent that limits how often a client may ask."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Literal

from ..agent import Agent
from ..errors import ConfigurationError
from ..imports.extras import from_extra
from ..messages.naming import named
from ..policy import require_int
from ..protocol import (
    AgentResponse,
    AuditMetadata,
    ConfigureEvent,
    EventType,
    HeaderOp,
    RequestCompleteEvent,
    RequestHeadersEvent,
    WebSocketFrameEvent,
)
from .addresses import FORWARDED_FOR, ClientAddress
from .rate_keys import RateKeys

if TYPE_CHECKING:
    from .counters import Taken

#: How many clients memory has counters for, unless it is given.
MAX_KEYS: Final = 65_536
_MOST_OF_AN_ID: Final = 16  # connections that are told apart
_EXCEEDED: Final = AuditMetadata(reason_codes=("rate_limited",))
_MESSAGES: Final = AgentResponse.websocket_close(1008, "Too many messages", audit=_EXCEEDED)


class RateLimit(Agent):
    """Answers 429 to requests and websocket handshakes of a client that has sent too many.

    Each response says what is left (``ratelimit-limit``, ``ratelimit-remaining``, ``ratelimit-reset`` in seconds,
    ``ratelimit-policy``), also where another agent denies; a 429 has ``retry-after`` besides::

        AgentConfig("rate", RateLimit("100/minute", by="user", storage="redis://127.0.0.1"), after=["api-key"])

    Where Redis does not answer, the agent has failed: its failure mode says whether requests pass, and its breaker
    keeps them from waiting. Needs the ``ratelimit`` extra.

    :param limits: as the package `limits` writes them: ``"100/minute"``, or several: ``"10/second; 1000/hour"``.
    :param by: what is counted together: ``"ip"`` (of an IPv6 address its /64), ``"user"`` (by ``user_header``),
        ``"path"``, ``"route"`` (the pattern of the matched route), ``"header:NAME"``, or a list of them. A request
        without the user or the header is counted by its address, and all without a known address together.
    :param storage: ``"memory"`` of each process by itself, or the URL of a Redis for all of them together: ``redis://``,
        ``rediss://`` or ``unix://``. Redis needs asyncio; memory runs on trio as well.
    :param strategy: ``"sliding-window-counter"`` also limits what comes around the change of two windows.
    :param messages: limits for the messages that a client sends over websockets, in all sessions of its together. One
        too many closes its session with 1008.
    :param user_header: what ``"user"`` reads. Have the agent that sets it named in ``after``; the log warns of a route
        where that is missing.
    :param trusted_proxies: as for :class:`IpFilter`, and ``forwarded_header``.
    :param max_keys: how many clients memory has counters for. Beyond it, those whose windows end first share a fixed
        number of counters: no client gets its count forgotten by sending many others, and some may reach their limit
        too early.
    :param namespace: whoever has the same in one Redis counts together. None: the agent's id, if it is told that, as a
        served one is not.
    :raises ConfigurationError: for what can't work, and without the extra.
    """

    def __init__(
        self,
        limits: str,
        *,
        by: str | Sequence[str] = "ip",
        storage: str = "memory",
        strategy: Literal["fixed-window", "sliding-window-counter"] = "fixed-window",
        messages: str | None = None,
        user_header: str = "x-user",
        trusted_proxies: Iterable[str] = (),
        forwarded_header: str = FORWARDED_FOR,
        max_keys: int = MAX_KEYS,
        namespace: str | None = None,
    ) -> None:
        with from_extra("RateLimit", "ratelimit", ConfigurationError):
            from .counters import counters_in, parse
        require_int("RateLimit", "max_keys", max_keys, at_least=1)
        self._limits = parse("limits", limits)
        self._message_limits = [] if messages is None else parse("messages", messages)
        self._keys = RateKeys(by, user_header, ClientAddress("RateLimit", trusted_proxies, forwarded_header))
        self.read_headers, self.trusted_headers = tuple(self._keys.headers), self._keys.trusted
        self._counters = counters_in(storage, strategy, max_keys)
        self._policy = HeaderOp.set(
            "ratelimit-policy",
            ", ".join(f"{limit.amount};w={limit.get_expiry()}" for limit in self._limits),
            always=True,
        )
        if not isinstance(namespace, str | None):
            raise ConfigurationError(f"RateLimit: namespace={named(namespace)}, expected text or None")
        self._given_namespace = namespace
        self._namespace = namespace or ""
        # The keys of the connections that are open, where their messages are counted. Clients may choose ids: several
        # processes may ask about one. An agent that is down is not told of an end: so that the oldest are forgotten.
        self._open: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._max_open = max_keys

    @property
    def events(self) -> frozenset[EventType]:
        events = {EventType.CONFIGURE, EventType.REQUEST_HEADERS}
        if self._message_limits:
            events |= {EventType.WEBSOCKET_FRAME, EventType.REQUEST_COMPLETE}
        return frozenset(events)

    async def on_configure(self, event: ConfigureEvent) -> None:
        """Redis answers before the first request, or the agent counts as down."""
        if self._given_namespace is None:
            self._namespace = event.agent_id
        await self._counters.ping()

    async def on_request_headers(self, event: RequestHeadersEvent) -> AgentResponse:
        key = self._keys.key(event)
        taken = await self._counters.take(self._limits, self._namespace, key)
        headers = self._headers(taken)
        if not taken.allowed:
            retry_after = {"retry-after": str(max(1, math.ceil(taken.reset)))}
            return AgentResponse.block(429, headers=retry_after, response_headers=headers, audit=_EXCEEDED)
        if self._message_limits:
            self._open[event.correlation_id] = (*self._open.get(event.correlation_id, ()), key)[-_MOST_OF_AN_ID:]
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
        return AgentResponse.allow(response_headers=headers)

    async def on_websocket_frame(self, event: WebSocketFrameEvent) -> AgentResponse | None:
        if not event.client_to_server:
            return None
        # Where it failed open in the handshake, the session is counted with the others of its peer's.
        keys = self._open.get(event.correlation_id) or (self._keys.of_peer(event.client_ip),)
        for key in dict.fromkeys(keys):
            taken = await self._counters.take(self._message_limits, self._namespace, "messages", key)
            if not taken.allowed:
                return _MESSAGES
        return None

    async def on_request_complete(self, event: RequestCompleteEvent) -> None:
        if len(keys := self._open.pop(event.correlation_id, ())) > 1:
            self._open[event.correlation_id] = keys[:-1]

    def _headers(self, taken: "Taken") -> Sequence[HeaderOp]:
        values = (taken.limit.amount, taken.remaining, max(0, math.ceil(taken.reset)))
        names = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
        return [
            *(HeaderOp.set(name, str(value), always=True) for name, value in zip(names, values, strict=True)),
            self._policy,
        ]
