"""One address of an agent: how its connections and calls went lately, and when to connect again. No I/O."""

import time
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from ...protocol import EventType
from ...protocol.stream import HealthState
from ..backoff import backoff
from ..discovery import Ejection
from ..wire import Address
from .connection import AgentConnection
from .flow_control import Capacity

# Seconds after which a connection counts as useful though it has answered nothing.
_SETTLED_AFTER: Final = 5.0


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
        self.ejection = Ejection()
        self._clock = clock
        self._attempts = 0
        self._settled = False
        self._failed_early = False
        self._connected_at = 0.0

    def rename(self, text: str) -> None:
        """It is where it was, and goes by another name."""
        if text != self.address.text:
            self.address = replace(self.address, text=text)
            for connection in self.connections:
                connection.address = text

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
        """An attempt has come to nothing; returns the seconds to wait before the next."""
        self.fault = fault
        self._attempts += 1
        return backoff(self._attempts - 1)

    # Calls

    @property
    def ejected(self) -> bool:
        """Whether its calls have failed so often that others should have them for a while."""
        return self._clock() < self.ejection.until

    @property
    def left_out(self) -> bool:
        """Whether others should get the next call, as far as there are any."""
        ejection = self.ejection
        # Most have never failed that often, and this is asked of all of them for each request.
        return (ejection.until > 0.0 or ejection.failures > 0) and ejection.left_out(self._clock())

    def rated(self, *, answered: bool, spared: bool = True) -> None:
        """Count a call that was answered, or failed by the agent's fault.

        :param spared: whether others can do without it.
        """
        if answered:
            self.ejection.answered()
            self.confirmed()
        else:
            self.ejection.failed(self._clock(), spared=spared)
