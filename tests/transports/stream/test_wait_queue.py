"""Who waits for a place, and who is served first, with connections that are made up."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from asgi_agents.errors import AgentUnavailableError
from asgi_agents.protocol import EventType
from asgi_agents.protocol.stream import HealthState
from asgi_agents.transports.stream import affinities
from asgi_agents.transports.stream.affinities import Affinities
from asgi_agents.transports.stream.flow_control import Capacity, Flow
from asgi_agents.transports.stream.health import Health
from asgi_agents.transports.stream.wait_queue import Waiter, WaitQueue

HEAD, BODY = EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK


class FakeConnection:
    """Has so many places, and none for requests that are paused."""

    def __init__(self, room: int, events: Sequence[EventType] = tuple(EventType)) -> None:
        self.room = room
        self.events = frozenset(events)
        self.paused: set[str] = set()
        self.alive = True
        self.health = Health(0.0)
        self.flow = Flow(Capacity(), 10)
        self.requests: set[str] = set()
        self.given_back = 0

    def has_room(self, correlation_id: str) -> bool:
        return self.alive and self.flow.reserved < self.room and correlation_id not in self.paused

    def give_back(self) -> None:
        self.flow.give_back()
        self.given_back += 1


class FakeRotation:
    """All connections that have room and hear the event will do; each request keeps to the first it gets."""

    def __init__(self, *connections: FakeConnection, heterogeneous: bool = False) -> None:
        self.connections: Any = connections
        self.heterogeneous = heterogeneous
        self.affinities: Any = Affinities()

    def hears(self, connection: Any, event_type: EventType) -> bool:
        return event_type in connection.events

    def pick(self, event_type: EventType, correlation_id: str) -> Any:
        for connection in self.connections:
            if connection.has_room(correlation_id) and self.hears(connection, event_type):
                self.affinities.bind(correlation_id, connection)
                return connection
        return None


def queue_of(*connections: FakeConnection, heterogeneous: bool = False) -> tuple[Any, FakeRotation]:
    rotation: Any = FakeRotation(*connections, heterogeneous=heterogeneous)
    return WaitQueue(rotation), rotation


def served(*waiters: Waiter) -> list[bool]:
    return [waiter.connection is not None for waiter in waiters]


async def test_the_first_to_come_is_the_first_to_be_served() -> None:
    connection = FakeConnection(0)
    queue, _ = queue_of(connection)
    waiters = [queue.join(HEAD, name) for name in "abc"]
    assert len(queue) == 3

    connection.room = 2
    queue.serve()

    assert served(*waiters) == [True, True, False]
    assert len(queue) == 1
    assert connection.flow.reserved == 2


async def test_a_request_that_has_a_connection_waits_for_that_one() -> None:
    own, other = FakeConnection(0), FakeConnection(5)
    queue, rotation = queue_of(own, other)
    rotation.affinities.connections["a"] = own
    waiter = queue.join(BODY, "a")

    queue.serve()
    assert served(waiter) == [False]

    own.room = 1
    queue.serve()
    assert waiter.connection is own
    assert queue.for_one == {}


async def test_one_that_is_paused_holds_up_nobody_who_wants_the_same_connection() -> None:
    own = FakeConnection(1)
    own.paused.add("a")
    queue, rotation = queue_of(own)
    rotation.affinities.connections.update(a=own, b=own)
    waiters = [queue.join(BODY, name) for name in "ab"]

    queue.serve()

    assert served(*waiters) == [False, True]


async def test_one_whose_request_was_given_a_connection_meanwhile_waits_for_that_one() -> None:
    connection = FakeConnection(0)
    queue, _ = queue_of(connection)
    first, second = queue.join(HEAD, "a"), queue.join(BODY, "a")

    connection.room = 1
    queue.serve()

    assert served(first, second) == [True, False]
    assert list(queue.for_one) == [connection]
    assert queue.for_any == {}


@pytest.mark.parametrize("heterogeneous", [False, True])
async def test_events_that_no_free_connection_hears_hold_up_others_only_where_all_hear_the_same(
    heterogeneous: bool,
) -> None:
    queue, _ = queue_of(FakeConnection(5, [HEAD]), FakeConnection(0, [BODY]), heterogeneous=heterogeneous)
    waiters = [queue.join(BODY, "a"), queue.join(HEAD, "b"), queue.join(BODY, "c")]

    queue.serve()

    assert served(*waiters) == [False, heterogeneous, False]


@pytest.mark.parametrize("gone", ["lost", "unhealthy"])
async def test_one_whose_connection_is_of_no_use_any_more_gets_another(gone: str) -> None:
    own, other = FakeConnection(0), FakeConnection(1)
    queue, rotation = queue_of(own, other)
    rotation.affinities.connections["a"] = own
    own.requests.add("a")
    waiter = queue.join(BODY, "a")

    if gone == "lost":
        own.alive = False
    else:
        own.health.state = HealthState.UNHEALTHY
    queue.settle(lambda event_type: None)

    assert waiter.connection is other
    assert own.requests == set()
    assert other.requests == {"a"}


async def test_those_that_wait_for_nothing_are_refused() -> None:
    queue, _ = queue_of(FakeConnection(0))
    hopeless, hopeful = queue.join(BODY, "a"), queue.join(HEAD, "b")

    queue.settle(lambda event_type: AgentUnavailableError("nobody hears it") if event_type is BODY else None)

    with pytest.raises(AgentUnavailableError, match="nobody hears it"):
        await queue.place(hopeless)
    assert list(queue.for_any) == [hopeful]


async def test_one_that_is_cancelled_leaves_the_queue() -> None:
    own = FakeConnection(0)
    queue, rotation = queue_of(own)
    rotation.affinities.connections["a"] = own
    waiters = [queue.join(BODY, "a"), queue.join(HEAD, "b")]

    for waiter in waiters:
        with anyio.move_on_after(0):
            await queue.place(waiter)

    assert len(queue) == 0
    assert queue.for_one == {}


async def test_a_place_that_comes_with_the_cancellation_is_given_back() -> None:
    connection = FakeConnection(0)
    queue, _ = queue_of(connection)
    waiter = queue.join(HEAD, "a")

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.place, waiter)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            connection.room = 1
            queue.serve()

    assert connection.given_back == 1
    assert connection.flow.reserved == 0


# Affinities


def test_a_request_keeps_its_connection_until_it_is_forgotten() -> None:
    known: Any = Affinities()
    connection = FakeConnection(1)
    known.bind("a", connection)
    assert known.find("a") is connection
    assert connection.requests == {"a"}

    assert known.forget("a") is connection
    assert (known.find("a"), known.forget("a")) == (None, None)
    assert connection.requests == set()


def test_a_request_that_changes_its_connection_is_forgotten_by_the_first() -> None:
    known: Any = Affinities()
    first, second = FakeConnection(1), FakeConnection(1)
    for connection in (first, second):
        known.bind("a", connection)
    assert (first.requests, second.requests) == (set(), {"a"})


def test_only_so_many_requests_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinities, "_MAX_AFFINITIES", 2)
    known: Any = Affinities()
    connection = FakeConnection(1)
    for name in "abac":
        known.bind(name, connection)
    assert list(known.connections) == ["a", "c"]
    assert connection.requests == {"a", "c"}
