"""The connections to one agent on one event loop: a place for each call, and what connections and connectors report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope

from ...errors import AgentConnectionError, AgentError, AgentUnavailableError, reworded
from ...observability.endpoints import EndpointStatistics
from ...protocol import Event, EventType
from ...protocol.responses import NOT_CONFIGURABLE
from ...protocol.stream import CancelReason, ConfigUpdateRequest, HealthState, MetricsReport, correlation_id_of
from ..wire import Wire
from .connection import AgentConnection
from .connector import hand_over
from .endpoint import Endpoint
from .endpoints import Endpoints
from .health import HealthLog
from .rotation import Rotation
from .settings import PoolSettings
from .statistics import statistics_of
from .wait_queue import WaitQueue

if TYPE_CHECKING:
    from .client import StreamClient


class AgentPool:
    """Gives each call a place on a connection. Subclasses say what these speak.

    All events of one request go to one connection while that lives. The first to come is the first to get a place.

    It is the :class:`~asgi_agents.transports.stream.connection.Owner` of its connections.

    :ivar endpoints: where the connections lead.
    :ivar rotation: the connections, and which of them takes a call.
    :ivar queue: the calls that wait for a place.
    :ivar closing: whether it makes no more connections, because it is closed or about to be.
    """

    def __init__(self, settings: PoolSettings, client: "StreamClient") -> None:
        self._settings = settings
        self._client = client
        # Closed, but perhaps not read to the end by the peer.
        self._ending: list[AgentConnection] = []
        self.closing = False
        self._was_up = False
        self._health_log = HealthLog(client.agent_id)
        self._changed = anyio.Event()
        self.endpoints = Endpoints(settings, client, self)
        self.rotation = Rotation(settings, client, self.endpoints.current)
        self.queue = WaitQueue(self.rotation)

    # What its connections speak

    @property
    def handshake_hint(self) -> str:
        """What is said of a connection that was not made in time, after the time."""
        return ""

    def new_connection(self, endpoint: Endpoint) -> AgentConnection:
        """A connection to ``endpoint`` that was not opened yet."""
        raise NotImplementedError

    async def open_wire(self, endpoint: Endpoint, connection: AgentConnection) -> Wire:
        """Open a connection, which is the receiver; raises :class:`AgentConnectionError`."""
        raise NotImplementedError

    def dropped(self, endpoint: Endpoint) -> None:
        """Nothing is left of an endpoint whose address has left its name."""

    # What there is

    @property
    def connections(self) -> Sequence[AgentConnection]:
        """Those that are alive."""
        return list(self.rotation.where)

    @property
    def connected(self) -> bool:
        """Whether any takes new requests."""
        return bool(self.rotation.connections)

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return len(self.queue)

    @property
    def short_of_connections(self) -> bool:
        """Whether there are requests that have no connection to themselves."""
        rotation = self.rotation
        return bool(self.queue.for_any) or len(rotation.affinities.connections) > len(rotation.connections)

    def statistics(self) -> Sequence[EndpointStatistics]:
        """The state and the counts of each endpoint."""
        return [statistics_of(endpoint) for endpoint in (*self.endpoints.current, *self.endpoints.leaving)]

    # A place for a call

    def reserve_now(self, event: Event) -> AgentConnection | None:
        """A connection with a place taken on it, or None where a call would have to wait."""
        if self.closing:
            return None
        rotation, waiting = self.rotation, self.queue.for_any
        connection = None if waiting else rotation.any_one()
        if connection is None:
            correlation_id = correlation_id_of(event)
            connection = rotation.affinities.find(correlation_id)
            if connection is not None and rotation.hears(connection, event.event_type):
                # Those that already wait for this connection would have had the room, but for a pause of their own.
                if not connection.has_room(correlation_id):
                    return None
            elif waiting and not rotation.heterogeneous:
                return None
            else:
                connection = rotation.pick(event.event_type, correlation_id)
                if connection is None:
                    return None
                if self._settings.on_demand:
                    self._grow()
        connection.flow.reserve()
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
        refusal = self._refusal(event.event_type, correlation_id)
        if refusal is not None:
            raise refusal
        waiter = self.queue.join(event.event_type, correlation_id)
        self._grow()
        return await self.queue.place(waiter)

    def forget(self, correlation_id: str) -> None:
        """The request is over."""
        connection = self.rotation.affinities.forget(correlation_id)
        if connection is not None and not connection.in_rotation:
            self.close_if_done(connection)

    def _grow(self) -> None:
        """Have connections made where they are made on demand, and there are too few."""
        if self._settings.on_demand and self.short_of_connections:
            self.endpoints.wanted()

    def _refusal(self, event_type: EventType | None = None, correlation_id: str = "") -> AgentError | None:
        """Why it makes no sense to wait for a place; None where it does."""
        if self.closing:
            return AgentUnavailableError("its connections are being closed")
        return self.rotation.refusal(correlation_id, event_type)

    def settle(self) -> None:
        """Connections have come or gone: there may be places, or no hope of any."""
        waiting = len(self.queue) > 0
        self.queue.settle(self._refusal)
        if waiting:
            self._grow()
        self._changed.set()
        self._changed = anyio.Event()

    def note(self, *, flapping: bool = False) -> None:
        """The rotation is not what it was.

        :param flapping: it is no news that there is a connection.
        """
        self.rotation.update()
        is_up = self.connected
        came_up, self._was_up = is_up and not self._was_up and not flapping, is_up
        self._client.pool_changed(self, came_up=came_up)

    # What connections report

    def capacity_freed(self, connection: AgentConnection) -> None:
        queue = self.queue
        if queue.for_one or queue.for_any:
            # Not only for this connection: all connections to one endpoint share what its instance takes.
            queue.serve()
            self._grow()
        if not connection.in_rotation:
            self.close_if_done(connection)

    def health_changed(self, connection: AgentConnection, before: HealthState) -> None:
        health = connection.health
        endpoint = self.rotation.where.get(connection)
        if health.state is not before and endpoint is not None:
            self._health_log.note(endpoint, connection.address, health.state)
            if health.leaving and not health.retired:
                self.endpoints.connector(endpoint).lost(connection)
                self.close_if_done(connection)
        self.note()
        self.settle()

    def rated(self, connection: AgentConnection, *, answered: bool) -> None:
        endpoint = self.rotation.where.get(connection)
        if endpoint is None:
            return
        if answered:
            endpoint.rated(answered=True)
            self.endpoints.connector(endpoint).confirmed()
        else:
            endpoint.rated(answered=False, spared=self.rotation.can_be_spared(endpoint))
        # An answer is news after a failure only.
        for each in endpoint.connections:
            each.health.watched = not answered

    def hears(self, event_type: EventType) -> bool:
        configured = self._client.events
        return event_type in (self.rotation.events if configured is None else configured)

    def lost(self, connection: AgentConnection, failed: int) -> None:
        endpoint = self.rotation.where.pop(connection, None)
        if endpoint is None:
            return
        endpoint.connections.remove(connection)
        for _ in range(min(failed, 10)):
            endpoint.rated(answered=False, spared=self.rotation.can_be_spared(endpoint))
        if not self.closing and not connection.health.leaving:
            self.endpoints.connector(endpoint).lost(connection)
            self.endpoints.failed(endpoint, reached=True)
        self.endpoints.drop_if_done(endpoint)
        self.note()
        self.settle()

    def message_received(self, connection: AgentConnection, message: MetricsReport | ConfigUpdateRequest) -> None:
        if isinstance(message, MetricsReport):
            self._client.metrics_reported(connection.address, message)
        else:
            self._client.config_update_requested(message)

    # What connectors report

    def made(self, endpoint: Endpoint, connection: AgentConnection) -> None:
        """There is another connection to ``endpoint``."""
        self.rotation.where[connection] = endpoint
        self.endpoints.reached(endpoint)
        endpoint.note_events()
        self.note(flapping=endpoint.flapping)
        self.settle()

    def checked(self) -> None:
        """Some time has passed: a connection may be retired, and the ejection of an endpoint may be over."""
        if not all(connection.in_rotation for connection in self.rotation.connections):
            self.note()
        if self.queue.for_any:
            self.queue.serve_any()

    def close_if_done(self, connection: AgentConnection) -> None:
        """Close a connection that takes no new requests once those it has are over."""
        health = connection.health
        if health.leaving and connection.alive and not connection.waited_for and not connection.requests:
            self._ending = [each for each in self._ending if not each.closed]
            self._ending.append(connection)
            connection.close(health.why_leaving)

    # For the whole agent

    async def wait_connected(self) -> None:
        """Wait until there is a connection; raises :class:`AgentError` when none can be made for now."""
        while not self.rotation.connections:
            refusal = self._refusal()
            if refusal is not None:
                raise refusal
            await self._changed.wait()

    async def push_config(self, config: Any, *, again: bool = False) -> None:
        """Hand ``config`` to each instance of the agent; raises :class:`AgentError` when one doesn't take it.

        ``again``: they were given it before, and may have lost it. One that takes no configure event is connected anew
        then: the configuration is in the handshake.
        """
        reached = False
        count = self._client.overwritten
        for endpoint in tuple(self.rotation.endpoints):
            in_handshake: list[AgentConnection] = []
            try:
                # Each connection may lead to a process of its own.
                for connection in tuple(endpoint.connections):
                    if not connection.alive:
                        continue
                    reached = True
                    by_event = EventType.CONFIGURE in connection.events
                    # A connection that was made since has given it. That there is none is not said by then.
                    if again and connection.overwritten == count and not (by_event and config is None):
                        continue
                    if by_event:
                        try:
                            await hand_over(connection, self._client.agent_id, config)
                        except AgentError as exc:
                            # Who can't be configured has lost nothing.
                            if not again or config is not None or NOT_CONFIGURABLE not in str(exc):
                                raise
                        connection.overwritten = count
                    elif not again:
                        raise AgentError("it takes no configuration")
                    elif not connection.health.leaving:
                        in_handshake.append(connection)
                if in_handshake:
                    await self.replace(endpoint, in_handshake)
            except AgentError as exc:
                raise reworded(exc, f"{endpoint.address}: {exc}") from exc
        if not reached:
            raise AgentConnectionError(self.rotation.fault or "there is no connection to it")

    async def replace(self, endpoint: Endpoint, old: Sequence[AgentConnection]) -> None:
        """Make a connection to ``endpoint``, and have the ``old`` ones take no new requests.

        :raises AgentError: none can be made; the old ones stay as they are.
        """
        connector = self.endpoints.connector(endpoint)
        await connector.make_another()
        for connection in old:
            connection.health.retire("another has taken its place")
        connector.wanted()
        self.note()
        self.settle()
        for connection in old:
            self.close_if_done(connection)

    async def aclose(self) -> None:
        """Make no more connections, wait for the calls under way as long as the settings say, and close."""
        self.closing = True
        self.endpoints.cancel()
        self.settle()
        try:
            with CancelScope(deadline=anyio.current_time() + self._settings.drain_timeout):
                while any(each.waited_for for each in self.rotation.where):  # noqa: ASYNC110 - only while closing
                    await anyio.sleep(0.01)
        finally:
            connections = (*self.rotation.where, *self._ending)
            for connection in connections:
                connection.cancel_all(CancelReason.SHUTDOWN)
                connection.close("it was closed")
            with anyio.move_on_after(1.0, shield=True):
                await self.endpoints.wait()
                for connection in connections:
                    await connection.wait_closed()
            for connection in connections:
                connection.fail("it was closed")
            with CancelScope(shield=True):
                for connection in connections:
                    await connection.wait_closed()
