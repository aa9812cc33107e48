"""The calls that wait for a place on a connection. No I/O."""

from collections.abc import Callable

import anyio

from ...errors import AgentError
from ...protocol import EventType
from ...protocol.stream import HealthState
from .connection import AgentConnection
from .rotation import Rotation


class Waiter:
    """A call that waits for a place."""

    __slots__ = ("connection", "correlation_id", "event_type", "fault", "over")

    def __init__(self, event_type: EventType, correlation_id: str) -> None:
        self.event_type = event_type
        self.correlation_id = correlation_id
        self.over = anyio.Event()
        self.connection: AgentConnection | None = None
        self.fault: AgentError | None = None

    def serve(self, connection: AgentConnection) -> None:
        """Take a place on ``connection`` for it."""
        connection.flow.reserve()
        self.connection = connection
        self.over.set()

    def refuse(self, fault: AgentError) -> None:
        """End the wait with an error."""
        self.fault = fault
        self.over.set()


class WaitQueue:
    """Who waits for a place, and for which. The first to come is the first to be served.

    A call waits for one connection where that has the other events of its request, and else for any.

    :ivar for_any: the calls that any connection would do for.
    :ivar for_one: the calls that want a certain connection, by connection. No entry is empty.
    """

    __slots__ = ("_rotation", "for_any", "for_one")

    def __init__(self, rotation: Rotation) -> None:
        self.for_any: dict[Waiter, None] = {}
        self.for_one: dict[AgentConnection, dict[Waiter, None]] = {}
        self._rotation = rotation

    def __len__(self) -> int:
        return len(self.for_any) + sum(len(waiters) for waiters in self.for_one.values())

    def join(self, event_type: EventType, correlation_id: str) -> Waiter:
        """Begin to wait."""
        waiter = Waiter(event_type, correlation_id)
        connection = self._rotation.affinities.find(correlation_id)
        if connection is not None and self._rotation.hears(connection, event_type):
            self.for_one.setdefault(connection, {})[waiter] = None
        else:
            self.for_any[waiter] = None
        return waiter

    async def place(self, waiter: Waiter) -> AgentConnection:
        """Wait for the place; returns its connection, or raises why there is none."""
        try:
            await waiter.over.wait()
        except BaseException:
            self._withdraw(waiter)
            raise
        if waiter.fault is not None:
            raise waiter.fault
        assert waiter.connection is not None
        return waiter.connection

    def _withdraw(self, waiter: Waiter) -> None:
        if waiter.connection is not None:
            # The place came in the same moment as the cancellation: pass it on.
            waiter.connection.give_back()
            return
        self.for_any.pop(waiter, None)
        for connection, waiters in tuple(self.for_one.items()):
            waiters.pop(waiter, None)
            if not waiters:
                del self.for_one[connection]

    def serve(self) -> None:
        """There may be places on some connections."""
        for connection in tuple(self.for_one):
            self._serve_one(connection)
        if self.for_any:
            self.serve_any()

    def serve_any(self) -> None:
        """Give places to those that any connection would do for."""
        rotation = self._rotation
        # Events that only some connections receive, and that have to wait, don't hold up others.
        stuck: set[EventType] = set()
        for waiter in (
            tuple(self.for_any) if rotation.heterogeneous else iter(lambda: next(iter(self.for_any), None), None)
        ):
            if waiter.event_type in stuck:
                continue
            # Another event of its request may have been given a connection meanwhile.
            connection = rotation.affinities.find(waiter.correlation_id)
            if connection is not None and rotation.hears(connection, waiter.event_type):
                del self.for_any[waiter]
                if connection.has_room(waiter.correlation_id):
                    waiter.serve(connection)
                else:
                    self.for_one.setdefault(connection, {})[waiter] = None
                continue
            connection = rotation.pick(waiter.event_type, waiter.correlation_id)
            if connection is not None:
                del self.for_any[waiter]
                waiter.serve(connection)
            elif rotation.heterogeneous:
                stuck.add(waiter.event_type)
            else:
                return

    def _serve_one(self, connection: AgentConnection) -> None:
        """Give the places of ``connection`` to those that want no other."""
        waiters = self.for_one[connection]
        for waiter in tuple(waiters):
            if not connection.has_room(""):
                break
            if connection.has_room(waiter.correlation_id):
                del waiters[waiter]
                waiter.serve(connection)
        if not waiters:
            del self.for_one[connection]

    def settle(self, refusal: Callable[[EventType], AgentError | None]) -> None:
        """Connections have come or gone: serve whom that helps, and refuse those that wait for nothing.

        :param refusal: why it makes no sense to wait with such an event; None where it does.
        """
        for connection in tuple(self.for_one):
            if not connection.alive or connection.health.state is HealthState.UNHEALTHY:
                # Any other will do now.
                self.for_any.update(self.for_one.pop(connection))
        self.serve()
        for waiter in tuple(self.for_any):
            fault = refusal(waiter.event_type)
            if fault is not None:
                del self.for_any[waiter]
                waiter.refuse(fault)
