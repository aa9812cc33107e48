"""What can be told of an agent's endpoints at one moment."""

from typing import Literal, Self

from msgspec import Struct

from ...protocol.stream import HealthState
from .endpoint import Endpoint


class EndpointStatistics(Struct, frozen=True, kw_only=True):
    """One endpoint.

    ``state``: ``connecting`` before the first connection, ``down`` when it can't be reached (``fault`` says why),
    ``ejected`` when its calls fail and others have them meanwhile, ``paused`` when the agent has asked for a pause,
    ``draining``, ``unhealthy`` and ``degraded`` when it says so, else ``up``. ``in_flight`` counts calls under way, of
    which the agent still owes the answer; ``late_answers`` those that came when nobody waited any more,
    ``unmatched_answers`` those that were to no call.
    """

    address: str
    state: Literal["connecting", "up", "down", "ejected", "paused", "degraded", "draining", "unhealthy"]
    connections: int
    in_flight: int
    late_answers: int
    unmatched_answers: int
    fault: str

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """As it is now."""
        connections = endpoint.connections
        return cls(
            address=str(endpoint.address),
            state=_state(endpoint),
            connections=len(connections),
            in_flight=sum(connection.calls for connection in connections),
            late_answers=sum(connection.late_answers for connection in connections),
            unmatched_answers=sum(connection.unmatched_answers for connection in connections),
            fault=endpoint.fault,
        )


def _state(
    endpoint: Endpoint,
) -> Literal["connecting", "up", "down", "ejected", "paused", "degraded", "draining", "unhealthy"]:
    connections = endpoint.connections
    if not connections:
        return "down" if endpoint.down else "connecting"
    if endpoint.unhealthy:
        return "unhealthy"
    if not any(connection.in_rotation for connection in connections):
        return "draining"
    if all(connection.paused for connection in connections):
        return "paused"
    if endpoint.ejected:
        return "ejected"
    if any(connection.health is HealthState.DEGRADED for connection in connections):
        return "degraded"
    return "up"
