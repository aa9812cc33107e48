"""The statistics of an endpoint."""

from ...observability.endpoints import EndpointState, EndpointStatistics
from ...protocol.stream import HealthState
from .endpoint import Endpoint


def statistics_of(endpoint: Endpoint) -> EndpointStatistics:
    """Its present state and counts."""
    connections = endpoint.connections
    return EndpointStatistics(
        address=str(endpoint.address),
        state=_state(endpoint),
        connections=len(connections),
        in_flight=sum(connection.calls for connection in connections),
        late_answers=sum(connection.pending_calls.late_answers for connection in connections),
        unmatched_answers=sum(connection.pending_calls.unmatched_answers for connection in connections),
        fault=endpoint.fault,
    )


def _state(endpoint: Endpoint) -> EndpointState:
    connections = endpoint.connections
    if not connections:
        return "down" if endpoint.down else "connecting"
    if endpoint.unhealthy:
        return "unhealthy"
    if not any(connection.in_rotation for connection in connections):
        return "draining"
    if all(connection.flow.paused for connection in connections):
        return "paused"
    if endpoint.ejected:
        return "ejected"
    if any(connection.health.state is HealthState.DEGRADED for connection in connections):
        return "degraded"
    return "up"
