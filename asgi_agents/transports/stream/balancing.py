"""Which of several connections takes the next request. No I/O."""

import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from itertools import count

from ..discovery import less_loaded
from .connection import AgentConnection


class LoadBalancing(StrEnum):
    """How requests are spread over connections that have room.

    ``ROUND_ROBIN``: one after the other. ``LEAST_CONNECTIONS``: the one with the fewest calls under way.
    ``HEALTH_BASED``: by chance, those that answer more of their calls more often. ``RANDOM``: by chance.
    ``POWER_OF_TWO``: of two that are drawn by chance, the one whose instance has fewer calls under way.
    """

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    HEALTH_BASED = "health_based"
    RANDOM = "random"
    POWER_OF_TWO = "power_of_two"


Chooser = Callable[[Sequence[AgentConnection]], AgentConnection]


def chooser(strategy: LoadBalancing) -> Chooser:
    """A function that picks one of the connections it is given, of which there is at least one."""
    match strategy:
        case LoadBalancing.ROUND_ROBIN:
            turns = count()
            return lambda connections: connections[next(turns) % len(connections)]
        case LoadBalancing.LEAST_CONNECTIONS:
            return lambda connections: min(connections, key=lambda connection: connection.calls)
        case LoadBalancing.HEALTH_BASED:
            return _by_health
        case LoadBalancing.RANDOM:
            return random.choice
        case LoadBalancing.POWER_OF_TWO:
            return partial(less_loaded, load=_load)


def _by_health(connections: Sequence[AgentConnection]) -> AgentConnection:
    # The worst keep a chance to do better.
    weights = [max(connection.health.score, 0.05) / connection.health.timeout_multiplier for connection in connections]
    return random.choices(connections, weights)[0]  # noqa: S311 - no secret


def _load(connection: AgentConnection) -> tuple[int, int]:
    return connection.flow.capacity.taken, connection.calls
