"""Which connection takes a call."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ...errors import AgentConnectionError, AgentError, AgentUnavailableError
from ...protocol import EventType
from ...protocol.stream import AgentCapabilities, HealthState
from .affinities import Affinities
from .balancing import chooser
from .connection import AgentConnection
from .endpoint import Endpoint
from .settings import PoolSettings

if TYPE_CHECKING:
    from .client import StreamClient

_UNHEALTHY_FAULT: Final = "it says that it is unhealthy"
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_REQUEST_COMPLETE: Final = EventType.REQUEST_COMPLETE


class Rotation:
    """The connections of a pool.

    Where a connection carries one call at a time, as in the older framing, requests are kept apart as far as there are
    connections: the agents of the older kits remember a request on its connection, so that it can't change to another
    one because a call of another request takes long.

    :ivar endpoints: all addresses of the agent.
    :ivar where: the connections that are alive, also those that take no new requests, and where they lead.
    :ivar connections: those that take new requests.
    :ivar heterogeneous: whether one of those that are alive doesn't receive all that any instance receives.
    """

    def __init__(self, settings: PoolSettings, client: "StreamClient") -> None:
        self.endpoints = [Endpoint(address) for address in settings.addresses]
        self.where: dict[AgentConnection, Endpoint] = {}
        self.connections: list[AgentConnection] = []
        self.heterogeneous = False
        self.affinities = Affinities()
        self._client = client
        self._on_demand = settings.on_demand
        self._choose = chooser(settings.load_balancing)
        # What any instance receives.
        self._events: frozenset[EventType] = frozenset()

    def update(self) -> None:
        """Connections have come or gone, or an agent has said something new of itself."""
        self.connections = [connection for connection in self.where if connection.in_rotation]
        self._events = self.events
        # A connection that takes no new requests still has its old ones.
        self.heterogeneous = any(not self._events <= connection.events for connection in self.where)

    # What is known of the agent

    @property
    def events(self) -> frozenset[EventType]:
        """What any instance receives, also those that are away: none of these events may pass without its verdict."""
        return frozenset().union(*(endpoint.events for endpoint in self.endpoints))

    @property
    def capabilities(self) -> Sequence[AgentCapabilities]:
        """The latest capabilities of each instance that is up."""
        found = (
            next(
                (c.wire_format.capabilities for c in reversed(endpoint.connections) if c.wire_format.capabilities), None
            )
            for endpoint in self.endpoints
        )
        return [capabilities for capabilities in found if capabilities is not None]

    @property
    def fault(self) -> str:
        """Why there are no connections; empty where there are, or may yet be."""
        if self.connections or not all(endpoint.down for endpoint in self.endpoints):
            return ""
        return "; ".join(endpoint.fault for endpoint in self.endpoints)

    @property
    def stuck(self) -> bool:
        """Whether nobody waits for any of the calls that are under way any more, and the agent has answered none."""
        return any(c.calls for c in self.where) and not any(c.waited_for for c in self.where)

    # A connection for a call

    def any_one(self) -> AgentConnection | None:
        """A connection with room where any will do, because a request has one event; else None."""
        if (
            not self.connections
            or self.heterogeneous
            or len(self.endpoints) > 1
            or self.affinities.connections
            or self._client.keeps_to_one_connection
        ):
            return None
        connection = self._choose(self.connections)
        return connection if not connection.flow.limited and connection.has_room("") else None

    def hears(self, connection: AgentConnection, event_type: EventType) -> bool:
        """Whether it is for this connection to judge such an event, rather than for another."""
        return not self.heterogeneous or event_type in connection.events or event_type not in self._events

    def pick(self, event_type: EventType, correlation_id: str) -> AgentConnection | None:
        """A connection with room for an event of a request that has none yet. Its other events will go there too."""
        candidates = self.connections
        if self.heterogeneous:
            candidates = [connection for connection in candidates if self.hears(connection, event_type)]
        if len(self.endpoints) > 1:
            # Better one that fails often than none.
            candidates = [c for c in candidates if not self.where[c].ejected] or candidates
        if not candidates:
            return None
        if self._on_demand:
            candidates = _with_fewest_requests([c for c in candidates if c.has_room(correlation_id)])
            if not candidates:
                return None
        connection = self._choose(candidates)
        if not connection.has_room(correlation_id):
            candidates = [other for other in candidates if other.has_room(correlation_id)]
            if not candidates:
                return None
            connection = self._choose(candidates)
        if correlation_id and self._client.keeps_to_one_connection and event_type is not _REQUEST_COMPLETE:
            self.affinities.bind(correlation_id, connection)
        return connection

    def is_paused(self, correlation_id: str) -> bool:
        """Whether a call about ``correlation_id`` would have to wait because the agent has asked for it."""
        connection = self.affinities.find(correlation_id)
        candidates = self.connections if connection is None else [connection]
        return bool(candidates) and all(candidate.flow.is_paused(correlation_id) for candidate in candidates)

    def refusal(self, correlation_id: str = "", event_type: EventType | None = None) -> AgentError | None:
        """Why it makes no sense to wait for a place; None where it does."""
        affinity = self.affinities.find(correlation_id)
        usable = self.connections if affinity is None else [*self.connections, affinity]
        if usable and event_type is not None and not any(self.hears(each, event_type) for each in usable):
            # Others are up, but not those whose judgement it needs.
            needed = [endpoint for endpoint in self.endpoints if event_type in endpoint.events]
            if all(endpoint.fault or endpoint.unhealthy for endpoint in needed):
                if any(endpoint.unhealthy for endpoint in needed):
                    return AgentUnavailableError(_UNHEALTHY_FAULT)
                return AgentConnectionError("; ".join(endpoint.fault for endpoint in needed))
            return None
        if usable:
            return None
        if any(connection.health.state is HealthState.UNHEALTHY for connection in self.where):
            return AgentUnavailableError(_UNHEALTHY_FAULT)
        fault = self.fault
        return AgentConnectionError(fault) if fault else None


def _with_fewest_requests(connections: Sequence[AgentConnection]) -> list[AgentConnection]:
    fewest = min((len(connection.requests) for connection in connections), default=0)
    return [connection for connection in connections if len(connection.requests) == fewest]
