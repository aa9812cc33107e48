"""Which connection takes a call."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ...errors import AgentConnectionError, AgentError, AgentUnavailableError
from ...protocol import EventType
from ...protocol.stream import AgentCapabilities, HealthState
from ..discovery import can_be_spared
from .affinities import Affinities
from .balancing import LoadBalancing, chooser
from .connection import AgentConnection
from .endpoint import Endpoint
from .settings import PoolSettings

if TYPE_CHECKING:
    from .client import StreamClient

# Faults of endpoints in one message.
_MAX_FAULTS: Final = 5
_UNHEALTHY_FAULT: Final = "it says that it is unhealthy"
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_REQUEST_COMPLETE: Final = EventType.REQUEST_COMPLETE


class Rotation:
    """The connections of a pool.

    Where a connection carries one call at a time, as in the older framing, requests are kept apart as far as there are
    connections: the agents of the older kits remember a request on its connection, so that it can't change to another
    one because a call of another request takes long.

    :param endpoints: all addresses of the agent; whoever changes the list calls :meth:`update`.

    :ivar where: the connections that are alive, also those that take no new requests, and where they lead.
    :ivar connections: those that take new requests.
    :ivar heterogeneous: whether one of those that are alive doesn't receive all that any instance receives.
    """

    def __init__(self, settings: PoolSettings, client: "StreamClient", endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = endpoints
        self.where: dict[AgentConnection, Endpoint] = {}
        self.connections: list[AgentConnection] = []
        self.heterogeneous = False
        self.affinities = Affinities()
        self._client = client
        self._on_demand = settings.on_demand
        self._choose = chooser(settings.load_balancing or LoadBalancing.ROUND_ROBIN)
        # What any instance receives.
        self._events: frozenset[EventType] = frozenset()
        # What those have received whose place others have taken that nobody has heard of yet.
        self._inherited: frozenset[EventType] = frozenset()

    def update(self) -> None:
        """Connections or endpoints have come or gone, or an agent has said something new of itself."""
        if self._inherited and all(endpoint.events for endpoint in self.endpoints):
            self._inherited = frozenset()
        self.connections = [connection for connection in self.where if connection.in_rotation]
        self._events = self.events
        # A connection that takes no new requests still has its old ones.
        self.heterogeneous = any(not self._events <= connection.events for connection in self.where)

    def balance(self, strategy: LoadBalancing) -> None:
        """Spread requests like that from now on."""
        self._choose = chooser(strategy)

    def inherit(self, endpoint: Endpoint) -> None:
        """It has gone: until those that are left have all said what they receive, its events need a verdict as well."""
        self._inherited |= endpoint.events

    # What is known of the agent

    @property
    def events(self) -> frozenset[EventType]:
        """What any instance receives, also those that are away: none of these events may pass without its verdict."""
        return self._inherited.union(*(endpoint.events for endpoint in self.endpoints))

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
        return _faults(self.endpoints)

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
            candidates = [c for c in candidates if not self.where[c].left_out] or candidates
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

    def can_be_spared(self, endpoint: Endpoint) -> bool:
        """Whether enough others can be called, should ``endpoint`` be ejected."""
        others = {other for connection, other in self.where.items() if connection.in_rotation} - {endpoint}
        return can_be_spared(sum(not other.ejected for other in others), len(others) + 1)

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
            needed = needed or [endpoint for endpoint in self.endpoints if not endpoint.events]
            if all(endpoint.fault or endpoint.unhealthy for endpoint in needed):
                if any(endpoint.unhealthy for endpoint in needed):
                    return AgentUnavailableError(_UNHEALTHY_FAULT)
                return AgentConnectionError(_faults(needed))
            return None
        if usable:
            return None
        if any(c.health.state is HealthState.UNHEALTHY and not c.health.retired for c in self.where):
            return AgentUnavailableError(_UNHEALTHY_FAULT)
        fault = self.fault
        return AgentConnectionError(fault) if fault else None


def _faults(endpoints: Sequence[Endpoint]) -> str:
    """Why they can't be reached; of many, why the first few can't."""
    faults = [endpoint.fault for endpoint in endpoints]
    left_out = len(faults) - _MAX_FAULTS
    return "; ".join(faults if left_out <= 0 else [*faults[:_MAX_FAULTS], f"and {left_out} more"])


def _with_fewest_requests(connections: Sequence[AgentConnection]) -> list[AgentConnection]:
    fewest = min((len(connection.requests) for connection in connections), default=0)
    return [connection for connection in connections if len(connection.requests) == fewest]
