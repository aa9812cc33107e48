"""The connections to one agent on one event loop: which call goes where, and who waits for what."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

import anyio
from anyio import CancelScope

from ...errors import AgentConnectionError, AgentError, AgentUnavailableError
from ...observability.endpoints import EndpointStatistics
from ...protocol import Encoding, Event, EventType
from ...protocol.stream import (
    AgentCapabilities,
    CancelReason,
    ConfigUpdateRequest,
    HealthState,
    HealthStatus,
    MessageType,
    MetricsReport,
    correlation_id_of,
    decode_message,
)
from ..partial import PartialFrames
from .balancing import chooser
from .connection import MAX_PARTIAL_BYTES, AgentConnection
from .connector import Connector, Served, Settings, hand_over, leaving, why_leaving
from .endpoint import Endpoint
from .statistics import statistics_of

logger = logging.getLogger("asgi_agents")

# Requests whose connection is remembered. Those whose end nobody tells of are forgotten, oldest first, beyond it.
_MAX_AFFINITIES: Final = 100_000
# How many lines there may be, in so many seconds, about what an agent says of its health.
_LOG_LINES: Final = 6
_LOG_INTERVAL: Final = 60.0
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_UNHEALTHY: Final = HealthState.UNHEALTHY
_UNHEALTHY_FAULT: Final = "it says that it is unhealthy"
_REQUEST_COMPLETE: Final = EventType.REQUEST_COMPLETE


class Peer(Served, Protocol):
    """Whose connections these are."""

    @property
    def keeps_to_one_connection(self) -> bool:
        """Whether a request can have more than one event, which then go to one connection."""
        ...

    def pool_changed(self, pool: "StreamPool", *, came_up: bool) -> None:
        """Connections have come or gone, or the agent has said something new of itself.

        ``came_up``: it can be called again after it could not.
        """
        ...

    def metrics_reported(self, endpoint: str, report: MetricsReport) -> None:
        """The agent behind ``endpoint`` has sent figures."""
        ...

    def config_update_requested(self, request: ConfigUpdateRequest) -> None:
        """The agent asks for another configuration."""
        ...


class _Waiter:
    """A call that waits for a place on a connection."""

    __slots__ = ("connection", "correlation_id", "event_type", "fault", "served")

    def __init__(self, event_type: EventType, correlation_id: str) -> None:
        self.event_type = event_type
        self.correlation_id = correlation_id
        self.served = anyio.Event()
        self.connection: AgentConnection | None = None
        self.fault: AgentError | None = None

    def serve(self, connection: AgentConnection) -> None:
        connection.reserve()
        self.connection = connection
        self.served.set()

    def refuse(self, fault: AgentError) -> None:
        self.fault = fault
        self.served.set()


class StreamPool:
    """Gives each call a place on a connection.

    All events of one request go to one connection while that lives. The first to come is the first to get a place.

    Where a connection carries one call at a time, as in the older framing, requests are kept apart as far as there are
    connections: the agents of the older kits remember a request on its connection, so that it can't change to another
    one because a call of another request takes long.
    """

    def __init__(self, settings: Settings, peer: Peer) -> None:
        self._settings = settings
        self._peer = peer
        self._choose = chooser(settings.load_balancing)
        self._where: dict[AgentConnection, Endpoint] = {}
        self._rotation: list[AgentConnection] = []
        # What any instance hears, and whether there are connections, of those out of rotation too, that don't hear all
        # of it.
        self._events: frozenset[EventType] = frozenset()
        self._heterogeneous = False
        self._affinities: dict[str, AgentConnection] = {}
        # Those that any connection would do for, and those that want a certain one.
        self._waiting: dict[_Waiter, None] = {}
        self._waiting_for: dict[AgentConnection, dict[_Waiter, None]] = {}
        # Closed, but perhaps not read to the end by the peer.
        self._ending: list[AgentConnection] = []
        self._closing = False
        self._was_up = False
        self._logged_health: dict[Endpoint, HealthState] = {}
        self._log_times: deque[float] = deque()
        self._changed = anyio.Event()
        self.partial_frames = PartialFrames(MAX_PARTIAL_BYTES)
        self._endpoints = [Endpoint(address) for address in settings.addresses]
        self._connectors = {endpoint: Connector(endpoint, settings, peer, self) for endpoint in self._endpoints}

    # What there is

    @property
    def connections(self) -> Sequence[AgentConnection]:
        """Those that are alive."""
        return list(self._where)

    @property
    def connected(self) -> bool:
        """Whether any takes new requests."""
        return bool(self._rotation)

    @property
    def events(self) -> frozenset[EventType]:
        """What any instance hears, also those that are away: what only these hear must not pass without them."""
        return frozenset().union(*(endpoint.events for endpoint in self._endpoints))

    @property
    def capabilities(self) -> Sequence[AgentCapabilities]:
        """What the instances of the agent have said of themselves, one for each endpoint that is up: the latest."""
        found = (
            next((c.capabilities for c in reversed(endpoint.connections) if c.capabilities is not None), None)
            for endpoint in self._endpoints
        )
        return [capabilities for capabilities in found if capabilities is not None]

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return len(self._waiting) + sum(len(waiting) for waiting in self._waiting_for.values())

    @property
    def fault(self) -> str:
        """Why there are no connections; empty where there are, or may yet be."""
        if self._rotation or not all(endpoint.down for endpoint in self._endpoints):
            return ""
        return "; ".join(endpoint.fault for endpoint in self._endpoints)

    @property
    def short_of_connections(self) -> bool:
        """Whether there are requests that have no connection to themselves."""
        return bool(self._waiting) or len(self._affinities) > len(self._rotation)

    @property
    def stuck(self) -> bool:
        """Whether all that the agent has to do was given up, and it has not answered it."""
        return any(c.calls for c in self._where) and not any(c.waited_for for c in self._where)

    def statistics(self) -> Sequence[EndpointStatistics]:
        """How the endpoints are."""
        return [statistics_of(endpoint) for endpoint in self._endpoints]

    def is_paused(self, correlation_id: str) -> bool:
        """Whether a call about ``correlation_id`` would have to wait because the agent wants it to."""
        connection = self._affinity(correlation_id)
        candidates = self._rotation if connection is None else [connection]
        return bool(candidates) and all(candidate.is_paused(correlation_id) for candidate in candidates)

    # A place for a call

    def reserve_now(self, event: Event) -> AgentConnection | None:
        """A connection with a place taken on it, or None where a call would have to wait."""
        if self._closing:
            return None
        if self._all_alike and self._rotation and not self._waiting and not self._peer.keeps_to_one_connection:
            # One event for each request, which any connection will do for.
            any_one = self._choose(self._rotation)
            if not any_one.flow_limited and any_one.has_room(""):
                any_one.reserve()
                return any_one
        correlation_id = correlation_id_of(event)
        connection = self._affinity(correlation_id)
        if connection is not None and self._hears(connection, event.event_type):
            # Those that already wait for this connection would have had the room, but for a pause of their own.
            if not connection.has_room(correlation_id):
                return None
        elif self._waiting and not self._heterogeneous:
            return None
        else:
            connection = self._pick(event.event_type, correlation_id)
            if connection is None:
                return None
        connection.reserve()
        return connection

    async def reserve(self, event: Event) -> AgentConnection:
        """A connection with a place taken on it, as soon as there is one.

        :raises AgentConnectionError: the agent can't be reached.
        :raises AgentUnavailableError: it has said that it takes no calls, or its connections are being closed.
        """
        connection = self.reserve_now(event)
        if connection is not None:
            return connection
        correlation_id = correlation_id_of(event)
        refusal = self._refusal(correlation_id, event.event_type)
        if refusal is not None:
            raise refusal
        waiter = _Waiter(event.event_type, correlation_id)
        connection = self._affinity(correlation_id)
        if connection is not None and self._hears(connection, event.event_type):
            queue = self._waiting_for.setdefault(connection, {})
        else:
            queue = self._waiting
        queue[waiter] = None
        self._grow()
        try:
            await waiter.served.wait()
        except BaseException:
            self._leave(waiter)
            raise
        if waiter.fault is not None:
            raise waiter.fault
        assert waiter.connection is not None
        return waiter.connection

    def forget(self, correlation_id: str) -> None:
        """The request is over."""
        connection = self._part(correlation_id)
        if connection is not None and not connection.in_rotation:
            self.close_if_done(connection)

    def keeps(self, connection: AgentConnection, correlation_id: str) -> bool:
        return self._affinities.get(correlation_id) is connection

    def hears(self, event_type: EventType) -> bool:
        configured = self._peer.events
        return event_type in (self.events if configured is None else configured)

    def _part(self, correlation_id: str) -> AgentConnection | None:
        connection = self._affinities.pop(correlation_id, None)
        if connection is not None:
            connection.forget(correlation_id)
        return connection

    def _affinity(self, correlation_id: str) -> AgentConnection | None:
        connection = self._affinities.get(correlation_id)
        if connection is None or (connection.alive and connection.health is not _UNHEALTHY):
            return connection
        self._part(correlation_id)
        return None

    def _hears(self, connection: AgentConnection, event_type: EventType) -> bool:
        """Whether it is for this connection to judge such an event, rather than for another."""
        return not self._heterogeneous or event_type in connection.events or event_type not in self._events

    @property
    def _all_alike(self) -> bool:
        """Whether it makes no difference which connection a new request goes to."""
        return not self._heterogeneous and len(self._endpoints) == 1 and not self._affinities

    def _pick(self, event_type: EventType, correlation_id: str) -> AgentConnection | None:
        candidates = self._rotation
        if self._heterogeneous:
            candidates = [connection for connection in candidates if self._hears(connection, event_type)]
        if len(self._endpoints) > 1:
            # Better one that fails often than none.
            candidates = [c for c in candidates if not self._where[c].ejected] or candidates
        if not candidates:
            return None
        if self._settings.on_demand:
            candidates = _with_fewest_requests([c for c in candidates if c.has_room(correlation_id)])
            if not candidates:
                return None
        connection = self._choose(candidates)
        if not connection.has_room(correlation_id):
            candidates = [other for other in candidates if other.has_room(correlation_id)]
            if not candidates:
                return None
            connection = self._choose(candidates)
        if correlation_id and self._peer.keeps_to_one_connection and event_type is not _REQUEST_COMPLETE:
            self._part(correlation_id)
            if len(self._affinities) >= _MAX_AFFINITIES:
                self._part(next(iter(self._affinities)))
            self._affinities[correlation_id] = connection
            connection.requests += 1
            self._grow()
        return connection

    def _grow(self) -> None:
        """Have connections made where they are made on demand, and there are too few."""
        if self._settings.on_demand and self.short_of_connections:
            for connector in self._connectors.values():
                connector.wanted()

    def _refusal(self, correlation_id: str = "", event_type: EventType | None = None) -> AgentError | None:
        """Why it makes no sense to wait for a place; None where it does."""
        if self._closing:
            return AgentUnavailableError("its connections are being closed")
        affinity = self._affinity(correlation_id)
        usable = self._rotation if affinity is None else [*self._rotation, affinity]
        if usable and event_type is not None and not any(self._hears(each, event_type) for each in usable):
            # Others are up, but not those whose judgement it needs.
            needed = [endpoint for endpoint in self._endpoints if event_type in endpoint.events]
            if all(endpoint.fault or endpoint.unhealthy for endpoint in needed):
                if any(endpoint.unhealthy for endpoint in needed):
                    return AgentUnavailableError(_UNHEALTHY_FAULT)
                return AgentConnectionError("; ".join(endpoint.fault for endpoint in needed))
            return None
        if usable:
            return None
        if any(connection.health is HealthState.UNHEALTHY for connection in self._where):
            return AgentUnavailableError(_UNHEALTHY_FAULT)
        fault = self.fault
        return AgentConnectionError(fault) if fault else None

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.connection is not None:
            # The place came in the same moment as the cancellation: pass it on.
            waiter.connection.give_back()
            return
        self._waiting.pop(waiter, None)
        for connection, queue in tuple(self._waiting_for.items()):
            queue.pop(waiter, None)
            if not queue:
                del self._waiting_for[connection]

    def _serve_waiting(self) -> None:
        """Give places to those that any connection would do for."""
        # Of events that only some connections hear, and that have to wait, others need not wait as well.
        stuck: set[EventType] = set()
        for waiter in (
            tuple(self._waiting) if self._heterogeneous else iter(lambda: next(iter(self._waiting), None), None)
        ):
            if waiter.event_type in stuck:
                continue
            # Another event of its request may have been given a connection meanwhile.
            connection = self._affinity(waiter.correlation_id)
            if connection is not None and self._hears(connection, waiter.event_type):
                del self._waiting[waiter]
                if connection.has_room(waiter.correlation_id):
                    waiter.serve(connection)
                else:
                    self._waiting_for.setdefault(connection, {})[waiter] = None
                continue
            connection = self._pick(waiter.event_type, waiter.correlation_id)
            if connection is not None:
                del self._waiting[waiter]
                waiter.serve(connection)
            elif self._heterogeneous:
                stuck.add(waiter.event_type)
            else:
                return

    def _serve_waiting_for(self, connection: AgentConnection) -> None:
        """Give the places of ``connection`` to those that want no other."""
        queue = self._waiting_for[connection]
        for waiter in tuple(queue):
            if not connection.has_room(""):
                break
            if connection.has_room(waiter.correlation_id):
                del queue[waiter]
                waiter.serve(connection)
        if not queue:
            del self._waiting_for[connection]

    def _settle(self) -> None:
        """Connections have come or gone: places may have been made, or the last hope of any be gone."""
        for connection in tuple(self._waiting_for):
            if not connection.alive or connection.health is HealthState.UNHEALTHY:
                # Any other will do now.
                self._waiting.update(self._waiting_for.pop(connection))
            else:
                # What a lost one has had under way its instance has room for again.
                self._serve_waiting_for(connection)
        self._serve_waiting()
        for waiter in tuple(self._waiting):
            refusal = self._refusal(event_type=waiter.event_type)
            if refusal is not None:
                del self._waiting[waiter]
                waiter.refuse(refusal)
        self._changed.set()
        self._changed = anyio.Event()

    # What connections tell

    def capacity_freed(self, connection: AgentConnection) -> None:
        if self._waiting_for:
            # Not only for this one: connections to one endpoint share what its instance takes.
            for wanted in tuple(self._waiting_for):
                self._serve_waiting_for(wanted)
        if self._waiting:
            self._serve_waiting()
        if not connection.in_rotation:
            self.close_if_done(connection)

    def health_changed(self, connection: AgentConnection, status: HealthStatus) -> None:
        before = connection.health
        connection.apply(status)
        endpoint = self._where.get(connection)
        if connection.health is not before and endpoint is not None:
            self._log_health(endpoint, connection.health)
            if leaving(connection):
                self._connectors[endpoint].lost(connection)
                self.close_if_done(connection)
        self._note()
        self._settle()

    def _log_health(self, endpoint: Endpoint, health: HealthState) -> None:
        # It says so on each of its connections, and may change its mind at any time.
        if self._logged_health.get(endpoint, HealthState.HEALTHY) is health:
            return
        now = time.monotonic()
        while self._log_times and self._log_times[0] < now - _LOG_INTERVAL:
            self._log_times.popleft()
        if len(self._log_times) < _LOG_LINES:
            self._log_times.append(now)
            self._logged_health[endpoint] = health
            logger.log(
                logging.INFO if health is HealthState.HEALTHY else logging.WARNING,
                "agent %r at %s says that it is %s",
                self._peer.agent_id,
                endpoint.address,
                health.name.lower(),
            )

    def rated(self, connection: AgentConnection, *, answered: bool) -> None:
        endpoint = self._where.get(connection)
        if endpoint is None:
            return
        endpoint.rated(answered=answered)
        if answered:
            self._connectors[endpoint].confirmed()
        # Most answers are no news.
        for each in endpoint.connections:
            each.watched = not answered

    def lost(self, connection: AgentConnection, failed: int) -> None:
        endpoint = self._where.pop(connection, None)
        if endpoint is None:
            return
        endpoint.connections.remove(connection)
        for _ in range(min(failed, 10)):
            endpoint.rated(answered=False)
        if not self._closing and not leaving(connection):
            self._connectors[endpoint].lost(connection)
        self._note()
        self._settle()

    def message_received(
        self, connection: AgentConnection, message_type: MessageType, payload: bytes, encoding: Encoding
    ) -> None:
        if message_type is MessageType.METRICS_REPORT:
            report = decode_message(MetricsReport, payload, encoding, at="metrics_report")
            self._peer.metrics_reported(connection.address, report)
        else:
            self._peer.config_update_requested(
                decode_message(ConfigUpdateRequest, payload, encoding, at="config_update_request")
            )

    # What connectors tell

    def made(self, endpoint: Endpoint, connection: AgentConnection) -> None:
        self._where[connection] = endpoint
        endpoint.note_events()
        self._note(flapping=endpoint.flapping)
        self._settle()

    def not_connected(self, endpoint: Endpoint) -> None:
        self._settle()

    def checked(self) -> None:
        # A connection may have been retired, and an endpoint that was ejected may have served its time.
        if not all(connection.in_rotation for connection in self._rotation):
            self._note()
        if self._waiting:
            self._serve_waiting()

    def close_if_done(self, connection: AgentConnection) -> None:
        """Close a connection that takes no new requests once those it has are over."""
        if leaving(connection) and connection.alive and not connection.waited_for and not connection.requests:
            self._ending = [each for each in self._ending if not each.closed]
            self._ending.append(connection)
            connection.close(why_leaving(connection))

    def _note(self, *, flapping: bool = False) -> None:
        self._rotation = [connection for connection in self._where if connection.in_rotation]
        self._events = self.events
        # One that is out of rotation still has its requests.
        self._heterogeneous = any(not self._events <= connection.events for connection in self._where)
        is_up = bool(self._rotation)
        came_up, self._was_up = is_up and not self._was_up and not flapping, is_up
        self._peer.pool_changed(self, came_up=came_up)

    # For the whole agent

    async def wait_connected(self) -> None:
        """Wait until there is a connection; raises :class:`AgentError` when none can be made for now."""
        while not self._rotation:
            refusal = self._refusal()
            if refusal is not None:
                raise refusal
            await self._changed.wait()

    async def push_config(self, config: Any) -> None:
        """Hand ``config`` to each instance of the agent; raises :class:`AgentError` when one doesn't take it."""
        told = False
        for endpoint in self._endpoints:
            # Each connection may lead to a process of its own.
            for connection in tuple(endpoint.connections):
                if not connection.alive:
                    continue
                if EventType.CONFIGURE not in connection.events:
                    raise AgentError(f"{endpoint.address}: it takes no configuration")
                try:
                    await hand_over(connection, self._peer.agent_id, config)
                except AgentError as exc:
                    raise type(exc)(f"{endpoint.address}: {exc}") from exc
                told = True
        if not told:
            raise AgentConnectionError(self.fault or "there is no connection to it")

    async def aclose(self) -> None:
        """Make no more connections, wait for the calls under way as long as the settings say, and close."""
        self._closing = True
        for connector in self._connectors.values():
            connector.cancel()
        self._settle()
        try:
            with CancelScope(deadline=anyio.current_time() + self._settings.drain_timeout):
                while any(connection.waited_for for connection in self._where):  # noqa: ASYNC110 - only while closing
                    await anyio.sleep(0.01)
        finally:
            connections = (*self._where, *self._ending)
            for connection in connections:
                connection.cancel_all(CancelReason.SHUTDOWN)
                connection.close("it was closed")
            with anyio.move_on_after(1.0, shield=True):
                for connector in self._connectors.values():
                    await connector.wait()
                for connection in connections:
                    await connection.wait_closed()
            for connection in connections:
                connection.fail("it was closed")
            with CancelScope(shield=True):
                for connection in connections:
                    await connection.wait_closed()


def _with_fewest_requests(connections: Sequence[AgentConnection]) -> list[AgentConnection]:
    fewest = min((connection.requests for connection in connections), default=0)
    return [connection for connection in connections if connection.requests == fewest]
