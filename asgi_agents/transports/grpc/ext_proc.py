"""Envoy's external processors as agents: ``envoy.service.ext_proc.v3.ExternalProcessor``."""

import time
from typing import Any, Final, cast

from ...concurrency.per_event_loop import PerEventLoop
from ...errors import AgentUnavailableError, ConfigurationError
from ...protocol import Answer, Event, EventType
from ...protocol.stream import correlation_id_of
from ..base import AgentClient
from .channel import Channels
from .ext_proc_answers import CARRIES, ShownEvent
from .ext_proc_exchange import ProcessedExchange
from .ext_proc_messages import Side
from .ext_proc_sides import Held
from .settings import GrpcSettings

#: Bytes of answers that wait to be taken, over all streams of an event loop. Beyond it streams wait for one another.
MAX_HELD_BYTES: Final = 32 * 1024 * 1024

_HEADS: Final = {
    EventType.REQUEST_BODY_CHUNK: EventType.REQUEST_HEADERS,
    EventType.RESPONSE_BODY_CHUNK: EventType.RESPONSE_HEADERS,
}


class _Exchanges:
    """The exchanges of one event loop that have a stream, by correlation id."""

    def __init__(self) -> None:
        self.open: dict[str, ProcessedExchange] = {}
        self.held = Held(MAX_HELD_BYTES)

    async def aclose(self) -> None:
        for exchange in self.open.values():
            exchange.abort()
        self.open.clear()


class ExtProcClient(AgentClient):
    """An external processor, with a stream for each exchange."""

    kind = "grpc"
    remote = True
    keeps_requests = True

    def __init__(self, settings: GrpcSettings, events: frozenset[EventType]) -> None:
        self.address = settings.where
        self.hears = events
        self._settings = settings
        self._channels = Channels(settings)
        self._exchanges = PerEventLoop(_Exchanges)
        self._retired = False

    async def call(self, event: Event, deadline: float = 0.0) -> Answer | None:
        if self._retired:
            raise AgentUnavailableError("it was removed")
        exchanges = self._exchanges.peek() or await self._exchanges.get()
        name = correlation_id_of(event)
        exchange = exchanges.open.get(name)
        if exchange is None:
            channel = await self._channels.get()
            exchange = exchanges.open[name] = ProcessedExchange(channel, self._settings, self.hears, exchanges.held)
        try:
            # The guard has it in its `carries` that it asks about nothing else.
            return await exchange.call(cast(ShownEvent, event))
        except BaseException:
            exchange.abort()
            raise

    def holds(self, event_type: EventType, correlation_id: str) -> bool:
        exchanges = self._exchanges.peek()
        exchange = None if exchanges is None else exchanges.open.get(correlation_id)
        side = Side.REQUEST if event_type is EventType.REQUEST_BODY_CHUNK else Side.RESPONSE
        return exchange is not None and exchange.holds(side)

    def awaits_end(self, event_type: EventType, correlation_id: str) -> bool:
        exchanges = self._exchanges.peek()
        exchange = None if exchanges is None else exchanges.open.get(correlation_id)
        side = Side.REQUEST if event_type is EventType.REQUEST_BODY_CHUNK else Side.RESPONSE
        return exchange is not None and exchange.head_due(side)

    def forget(self, correlation_id: str) -> None:
        exchanges = self._exchanges.peek()
        exchange = None if exchanges is None else exchanges.open.pop(correlation_id, None)
        if exchange is not None:
            exchange.close()

    async def connect(self) -> None:
        channel = await self._channels.get()
        await channel.ready(time.monotonic() + self._settings.connect_timeout)

    async def aclose(self) -> None:
        await self._exchanges.aclose()
        await self._channels.aclose()

    async def retire(self) -> None:
        self._retired = True
        await self._exchanges.aclose_everywhere()
        await self._channels.aclose_everywhere()


class _ExtProc:
    carries = CARRIES
    learns_events = False
    events: frozenset[EventType] | None = None
    several = False

    def bind(
        self,
        settings: GrpcSettings,
        agent_id: str,
        *,
        events: frozenset[EventType] | None,
        config: Any,
        max_concurrent_calls: int,
    ) -> ExtProcClient:
        if config is not None:
            raise ConfigurationError(
                f"AgentConfig({agent_id!r}): config, expected None: an external processor takes no configuration"
            )
        assert events is not None
        for body, head in _HEADS.items():
            # As Envoy does it, a processor is shown the head before the body: few expect anything else.
            events |= {head} if body in events else set()
        if settings.body_mode == "full_duplex_streamed":
            # The request says whether its response may have a body.
            events |= {EventType.REQUEST_HEADERS}
        return ExtProcClient(settings, events)


PROTOCOL: Final = _ExtProc()
