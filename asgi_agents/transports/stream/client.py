"""What the guard of one agent needs of its connections, on whichever event loop it runs."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ...concurrency.per_event_loop import PerEventLoop
from ...errors import AgentUnavailableError
from ...observability.endpoints import EndpointStatistics
from ...protocol import Answer, Event, EventType
from ...protocol.stream import AgentCapabilities, ConfigUpdateRequest, MetricsReport, correlation_id_of
from .connection import AgentConnection
from .pool import StreamPool
from .settings import Settings

logger = logging.getLogger("asgi_agents")

# A guardrail question is about no other event, and a configuration about no request.
_ALONE = frozenset({EventType.GUARDRAIL_INSPECT, EventType.CONFIGURE})
# Of these a request has one.
_ONCE = (EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS, EventType.REQUEST_COMPLETE)

MetricsCallback = Callable[[str, MetricsReport], object]
ConfigUpdateCallback = Callable[[str, ConfigUpdateRequest], object]


class StreamClient:
    """One agent behind a :class:`~asgi_agents.StreamTransport`.

    :ivar on_change: called with whether the agent can be called again after it could not, whenever anything changes
        that the agent says of itself, or of whether it can be reached.
    """

    kind = "stream"
    remote = True

    def __init__(self, settings: Settings, agent_id: str, events: frozenset[EventType] | None, config: Any) -> None:
        self.agent_id = agent_id
        self.events = events
        self.config = config
        self.carries = frozenset(EventType)
        #: One for each endpoint that is up.
        self.capabilities: Sequence[AgentCapabilities] = ()
        self._said: frozenset[EventType] = frozenset()
        #: Events that the log has named as configured, though an instance says that it doesn't support them.
        self._overruled: frozenset[EventType] = frozenset()
        self._retired = False
        self.timeout_multiplier = 1.0
        self.keeps_to_one_connection = True
        self.on_change: Callable[[bool], object] = lambda came_up: None
        #: Called with the agent's id, the endpoint and the report.
        self.on_metrics_report: Callable[[str, str, MetricsReport], object] | None = None
        self.on_config_update: ConfigUpdateCallback | None = None
        self._pools = PerEventLoop(lambda: StreamPool(settings, self))

    # What is known of the agent

    @property
    def hears(self) -> frozenset[EventType]:
        """The events that the agent has to be asked about: until it has said what it hears, all."""
        if self.events is not None:
            return self.events
        return self._said or self.carries

    @property
    def max_concurrency(self) -> int | None:
        """How many calls at a time its instances take together; None where they haven't said."""
        limits = [capabilities.limits.max_concurrency for capabilities in self.capabilities]
        return sum(limits) if limits and all(limit > 0 for limit in limits) else None

    @property
    def max_body_size(self) -> int | None:
        """How many bytes of a body they take at a time; None where they haven't said."""
        sizes = [capabilities.limits.max_body_size for capabilities in self.capabilities]
        return min((size for size in sizes if size > 0), default=None)

    @property
    def connected(self) -> bool:
        """Whether there are connections that new requests can go to."""
        pool = self._pools.peek()
        return pool is not None and pool.connected

    def statistics(self) -> tuple[Sequence[EndpointStatistics], int]:
        """The endpoints, and how many calls wait for a place; of the running event loop."""
        pool = self._pools.peek()
        return ((), 0) if pool is None else (pool.statistics(), pool.waiting)

    # Calls

    def may_suspend(self, event_type: EventType) -> bool:
        return True

    def reserve_now(self, event: Event) -> AgentConnection | None:
        """A connection with a place for ``event``, or None where it has to wait for one."""
        pool = self._pools.peek()
        return None if pool is None else pool.reserve_now(event)

    def is_paused(self, event: Event) -> bool:
        """Whether the agent has asked that this has to wait."""
        pool = self._pools.peek()
        return pool is not None and pool.rotation.is_paused(correlation_id_of(event))

    async def reserve(self, event: Event, *, hold: bool) -> AgentConnection:
        """A connection with a place for ``event``. ``hold``: while the agent has paused, wait rather than fail.

        :raises AgentConnectionError: the agent can't be reached.
        :raises AgentUnavailableError: it has said that it takes no calls.
        """
        pool = await self._pool()
        if not hold and pool.rotation.is_paused(correlation_id_of(event)):
            raise AgentUnavailableError("it has asked for a pause")
        return await pool.reserve(event)

    def why_waiting(self, event: Event) -> str:
        """What a call that got no place has waited for; empty where the agent did nothing at all."""
        pool = self._pools.peek()
        if pool is None or not pool.connections or pool.rotation.stuck:
            return ""
        if pool.rotation.is_paused(correlation_id_of(event)):
            return "it has asked for a pause"
        return "its connections are busy"

    async def call(self, event: Event) -> Answer:
        """Reserve and call."""
        connection = self.reserve_now(event) or await self.reserve(event, hold=True)
        return await connection.call(event)

    def forget(self, correlation_id: str) -> None:
        """The request is over: its events need no certain connection any more."""
        pool = self._pools.peek()
        if pool is not None:
            pool.forget(correlation_id)

    # Life

    async def connect(self) -> None:
        """Wait for the first connection; raises :class:`AgentError` when the agent can't be reached now."""
        await (await self._pool()).wait_connected()

    async def push_config(self, config: Any) -> None:
        """Hand the agent another configuration, for connections to come as well; raises :class:`AgentError`."""
        before, self.config = self.config, config
        try:
            await (await self._pool()).push_config(config)
        except BaseException:
            self.config = before
            raise

    async def aclose(self) -> None:
        """Close the connections of the running event loop. A later call makes new ones."""
        await self._pools.aclose()

    async def retire(self) -> None:
        """Close those of every event loop, for good. Waits for the running event loop's only."""
        self._retired = True
        await self._pools.aclose_everywhere()

    async def _pool(self) -> StreamPool:
        if self._retired:
            raise AgentUnavailableError("it was removed")
        pool = await self._pools.get()
        if self._retired:
            # By another thread, which may not have seen these connections.
            await self._pools.aclose()
            raise AgentUnavailableError("it was removed")
        return pool

    # What the pool tells

    def overrule(self, supported: frozenset[EventType]) -> None:
        assert self.events is not None
        unsupported = self.events - supported
        if unsupported <= self._overruled:
            # Another connection, or another instance, says so as well.
            return
        self._overruled |= unsupported
        logger.warning(
            "agent %r says that it supports %s; its events= also name %s: it is asked about these too",
            self.agent_id,
            ", ".join(sorted(supported)) or "nothing",
            ", ".join(sorted(unsupported)),
        )

    def pool_changed(self, pool: StreamPool, *, came_up: bool) -> None:
        # What an agent that can't be reached has said holds until it says something else.
        self.capabilities = pool.rotation.capabilities or self.capabilities
        self._said = pool.rotation.events or self._said
        self.timeout_multiplier = max((c.health.timeout_multiplier for c in pool.connections), default=1.0)
        self.keeps_to_one_connection = not any(self.hears - _ALONE <= {event_type} for event_type in _ONCE)
        self.on_change(came_up)

    def metrics_reported(self, endpoint: str, report: MetricsReport) -> None:
        self._tell("metrics report", self.on_metrics_report, endpoint, report)

    def config_update_requested(self, request: ConfigUpdateRequest) -> None:
        self._tell("config update request", self.on_config_update, request)

    def _tell(self, what: str, callback: Callable[..., object] | None, *message: object) -> None:
        if callback is None:
            return
        try:
            callback(self.agent_id, *message)
        except Exception:
            # It must not end the connection that the message came on.
            logger.exception("agent %r: the callback for its %s failed", self.agent_id, what)
