"""Which connection has the events of which request. No I/O."""

from typing import Final

from ...protocol.stream import HealthState
from .connection import AgentConnection

# Requests whose connection is remembered. The oldest are forgotten beyond it: the end of some is never reported.
_MAX_AFFINITIES: Final = 100_000
# To look a member of an enumeration up by its name takes long (CPython 3.11).
_UNHEALTHY: Final = HealthState.UNHEALTHY


class Affinities:
    """Keeps the events of each request together on one connection, while that can take them.

    :ivar connections: by correlation id, the oldest first.
    """

    __slots__ = ("connections",)

    def __init__(self) -> None:
        self.connections: dict[str, AgentConnection] = {}

    def find(self, correlation_id: str) -> AgentConnection | None:
        """The connection of a request, if it is still of use; one that is not is forgotten."""
        connection = self.connections.get(correlation_id)
        if connection is None or (connection.alive and connection.health.state is not _UNHEALTHY):
            return connection
        self.forget(correlation_id)
        return None

    def bind(self, correlation_id: str, connection: AgentConnection) -> None:
        """Send the events of a request to ``connection`` from now on."""
        if correlation_id in self.connections:
            self.forget(correlation_id)
        if len(self.connections) >= _MAX_AFFINITIES:
            self.forget(next(iter(self.connections)))
        self.connections[correlation_id] = connection
        connection.requests.add(correlation_id)

    def forget(self, correlation_id: str) -> AgentConnection | None:
        """The request is over; returns the connection that it had."""
        connection = self.connections.pop(correlation_id, None)
        if connection is not None:
            connection.requests.discard(correlation_id)
            connection.flow.forget(correlation_id)
        return connection
