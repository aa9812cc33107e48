"""One address of an agent: how its connections and calls went lately, and when to connect again. No I/O."""

import random
import time
from collections.abc import Callable
from typing import Final

from ...protocol import EventType
from ...protocol.stream import HealthState
from ..wire import Address
from .connection import AgentConnection
from .flow_control import Capacity

# Seconds before the first attempt to connect again, and the most.
_FIRST_BACKOFF: Final = 0.1
_MAX_BACKOFF: Final = 5.0
# Seconds after which a connection counts as useful though it has answered nothing.
_SETTLED_AFTER: Final = 5.0
# Failures in a row that take an endpoint out of rotation, and for how many seconds: doubled each time, up to a minute.
_EJECT_AFTER: Final = 5
_FIRST_EJECTION: Final = 5.0
_MAX_EJECTION: Final = 60.0


class Endpoint:
    """The address of one instance of the agent, and the connections to it.

    :param clock: monotonic seconds.
    """

    def __init__(self, address: Address, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        self.connections: list[AgentConnection] = []
        #: How many calls its instance takes at a time, over all connections.
        self.capacity = Capacity()
        #: The events that its connections receive. Those of a lost connection count until another is made in its place.
        self.events: frozenset[EventType] = frozenset()
        #: Why it can't be reached; empty where it can, or nobody has tried yet.
        self.fault = ""
        self._clock = clock
        self._attempts = 0
        self._settled = False
        self._failed_early = False
        self._connected_at = 0.0
        self._failures = 0
        self._ejections = 0
        self._ejected_until = 0.0

    # Connecting

    @property
    def down(self) -> bool:
        """Whether the latest attempt to connect has come to nothing."""
        return bool(self.fault)

    @property
    def unhealthy(self) -> bool:
        """Whether there are connections to it, and its instance says on all of them that it is unhealthy."""
        return bool(self.connections) and all(c.health.state is HealthState.UNHEALTHY for c in self.connections)

    @property
    def flapping(self) -> bool:
        """Whether its latest connection was lost before it was of any use."""
        return self._failed_early

    def connected(self) -> None:
        """An attempt has succeeded. That the agent works is known once it has answered: see :meth:`confirmed`."""
        self.fault = ""
        self._connected_at = self._clock()

    def note_events(self) -> None:
        """A connection was added."""
        self.events = frozenset().union(*(connection.events for connection in self.connections))

    def confirmed(self) -> None:
        """It has answered a call."""
        self._settled = True
        self._failed_early = False
        self._attempts = 0

    def lost(self) -> bool:
        """A connection was lost; returns whether it was of no use. The next attempt has to wait then."""
        if self._clock() - self._connected_at >= _SETTLED_AFTER:
            self.confirmed()
        if self._settled:
            self._settled = bool(self.connections)
            return False
        self._failed_early = True
        return True

    def not_connected(self, fault: str) -> float:
        """An attempt has come to nothing; returns the seconds to wait before the next.

        Half of the wait is random, so that not all clients connect at once when an agent comes back.
        """
        self.fault = fault
        backoff: float = min(_MAX_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(self._attempts, 16))
        self._attempts += 1
        return backoff * (0.5 + random.random() / 2)  # noqa: S311 - no secret

    # Calls

    @property
    def ejected(self) -> bool:
        """Whether its calls have failed so often that others should have them for a while."""
        return self._clock() < self._ejected_until

    def rated(self, *, answered: bool) -> None:
        """Count a call that was answered, or failed by the agent's fault."""
        if answered:
            self._failures = self._ejections = 0
            self.confirmed()
            return
        if self.ejected:
            # Calls that were under way when it was ejected don't count.
            return
        self._failures += 1
        if self._failures >= _EJECT_AFTER:
            self._failures = 0
            self._ejected_until = self._clock() + min(_MAX_EJECTION, _FIRST_EJECTION * 2.0 ** min(self._ejections, 8))
            self._ejections += 1
