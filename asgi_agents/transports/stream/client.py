"""What the guard of one agent needs of its connections, on whichever event loop it runs."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from threading import Lock
from typing import Any, Final

import anyio

from ...concurrency.per_event_loop import PerEventLoop
from ...errors import AgentUnavailableError
from ...observability.endpoints import EndpointStatistics
from ...protocol import Event, EventType
from ...protocol.stream import ConfigUpdateRequest, MetricsReport, correlation_id_of
from ..base import AgentClient
from .connection import AgentConnection
from .pool import AgentPool

logger = logging.getLogger("asgi_agents")

# Seconds between two looks whether an agent may be configured.
_INTERVAL: Final = 0.005
# A guardrail question is about no other event, and a configuration about no request.
_ALONE = frozenset({EventType.GUARDRAIL_INSPECT, EventType.CONFIGURE})
# Of these a request has one.
_ONCE = (EventType.REQUEST_HEADERS, EventType.RESPONSE_HEADERS, EventType.REQUEST_COMPLETE)


class StreamClient(AgentClient):
    """One agent behind lasting connections, as those of a :class:`~asgi_agents.StreamTransport` are.

    :param make_pool: makes the connections of an event loop.
    """

    kind = "stream"
    remote = True
    reserves = True
    configures_itself = True
    keeps_requests = True

    def __init__(
        self,
        make_pool: Callable[["StreamClient"], AgentPool],
        address: str,
        agent_id: str,
        events: frozenset[EventType] | None,
        config: Any,
    ) -> None:
        self.agent_id = agent_id
        self.address = address
        self.events = events
        self.config = config
        #: Until the agent has named its events, it has to be asked about everything.
        self.hears = frozenset(EventType) if events is None else events
        #: Events that the log has named as configured, though an instance says that it doesn't support them.
        self._overruled: frozenset[EventType] = frozenset()
        self._retired = False
        # Connections that are being made, and those who have them wait. Event loops have threads of their own.
        self._lock = Lock()
        self._handovers = 0
        self._holds = 0
        self.may_have_configured = False
        self.keeps_to_one_connection = True
        self._pools = PerEventLoop(lambda: make_pool(self))

    @property
    def connected(self) -> bool:
        pool = self._pools.peek()
        return pool is not None and pool.connected

    def statistics(self) -> tuple[Sequence[EndpointStatistics], int]:
        pool = self._pools.peek()
        return ((), 0) if pool is None else (pool.statistics(), pool.waiting)

    # Calls

    def reserve_now(self, event: Event) -> AgentConnection | None:
        pool = self._pools.peek()
        return None if pool is None else pool.reserve_now(event)

    async def reserve(self, event: Event, *, hold: bool) -> AgentConnection:
        pool = await self._pool()
        if not hold and pool.rotation.is_paused(correlation_id_of(event)):
            raise AgentUnavailableError("it has asked for a pause")
        return await pool.reserve(event)

    def is_paused(self, event: Event) -> bool:
        pool = self._pools.peek()
        return pool is not None and pool.rotation.is_paused(correlation_id_of(event))

    def why_waiting(self, event: Event) -> str:
        pool = self._pools.peek()
        if pool is None or not pool.connections or pool.rotation.stuck:
            return ""
        if pool.rotation.is_paused(correlation_id_of(event)):
            return "it has asked for a pause"
        return "its connections are busy"

    def forget(self, correlation_id: str) -> None:
        if not self.keeps_to_one_connection:
            return
        pool = self._pools.peek()
        if pool is not None:
            pool.forget(correlation_id)

    # Life

    async def connect(self) -> None:
        await (await self._pool()).wait_connected()

    async def push_config(self, config: Any) -> None:
        try:
            # A connection that is being made would hand over the one of before, and after this one.
            await self.hold_config()
            before, self.config = self.config, config
        finally:
            self.release_config()
        try:
            await (await self._pool()).push_config(config)
        except BaseException:
            self.config = before
            raise

    async def give_again(self, config: Any) -> None:
        await (await self._pool()).push_config(config, again=True)

    def adopt_config(self, config: Any) -> None:
        self.config = config

    @asynccontextmanager
    async def handing_over(self) -> AsyncIterator[Any]:
        """While a connection is made that gives the agent the configuration, which is yielded, once it may."""
        while not self._begin():  # noqa: ASYNC110 - connections of several event loops wait for this, and seldom
            await anyio.sleep(_INTERVAL)
        try:
            yield self.config
        finally:
            with self._lock:
                self._handovers -= 1

    def _begin(self) -> bool:
        with self._lock:
            if not self._holds:
                self._handovers += 1
                self.may_have_configured = True
            return not self._holds

    async def hold_config(self) -> None:
        with self._lock:
            self._holds += 1
        await self.config_handed_over()

    async def config_handed_over(self) -> None:
        while self._handovers:  # noqa: ASYNC110 - likewise
            await anyio.sleep(_INTERVAL)

    def release_config(self) -> None:
        with self._lock:
            self._holds -= 1

    async def aclose(self) -> None:
        await self._pools.aclose()

    async def retire(self) -> None:
        """Waits for the connections of the running event loop only."""
        self._retired = True
        await self._pools.aclose_everywhere()

    async def _pool(self) -> AgentPool:
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

    def pool_changed(self, pool: AgentPool, *, came_up: bool) -> None:
        # What an agent that can't be reached has said holds until it says something else.
        self.capabilities = pool.rotation.capabilities or self.capabilities
        if self.events is None:
            self.hears = pool.rotation.events or self.hears
        limits = [capabilities.limits for capabilities in self.capabilities]
        calls = [limit.max_concurrency for limit in limits]
        self.max_concurrency = sum(calls) if calls and all(most > 0 for most in calls) else None
        self.max_body_size = min((limit.max_body_size for limit in limits if limit.max_body_size > 0), default=None)
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
