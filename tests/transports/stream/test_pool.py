"""The connections to one agent: how many, who gets a place on which, and what becomes of them."""

import gc
import logging
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from fastapi import FastAPI, Request
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route as Path
from starlette.testclient import TestClient

from asgi_agents import (
    AgentConnectionError,
    AgentError,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    AgentUnavailableError,
    BreakerState,
    CircuitBreakerConfig,
    EventType,
    FailureKind,
    LoadBalancing,
    StreamTransport,
)
from asgi_agents.manager import registry_of
from asgi_agents.protocol.stream import CancelReason
from asgi_agents.transports import backoff
from asgi_agents.transports.stream import StreamClient
from asgi_agents.transports.stream.connection import AgentConnection
from asgi_agents.transports.stream.pool import AgentPool
from tests.support.examples import examples

from .peer import Peer, Received, handshake
from .pools import (
    PATIENCE,
    Clock,
    agent,
    allow,
    chunk,
    client_in,
    client_of,
    complete,
    connected,
    failing,
    frame,
    get,
    hang_up,
    head,
    is_idle,
    lines,
    managing,
    nowhere,
    open_files,
    pool_of,
    question,
    recording,
    response_head,
    settle,
    states,
    until,
    warnings,
)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are tried again after a few milliseconds."""
    monkeypatch.setattr(backoff, "_FIRST_BACKOFF", 0.005)
    monkeypatch.setattr(backoff, "_MAX_BACKOFF", 0.02)


@asynccontextmanager
async def waiting_tasks() -> AsyncIterator[TaskGroup]:
    """A task group for those who may wait for ever: what still does at its end is cancelled."""
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


class Queue:
    """Tasks that want a place, and keep it."""

    def __init__(self, pool: AgentPool, tasks: TaskGroup) -> None:
        self.pool = pool
        self.tasks = tasks
        self.served: list[str] = []
        self.failed: dict[str, AgentError] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def join(self, *names: str, correlation_id: str | None = None) -> None:
        for name in names:
            before = self._state()
            self.tasks.start_soon(self._wait, name, name if correlation_id is None else correlation_id)
            # One after the other, so that their order is known.
            await self._moves_on(before)

    def _state(self) -> tuple[int, int, int]:
        return self.pool.waiting, len(self.served), len(self.failed)

    async def _moves_on(self, before: tuple[int, int, int]) -> None:
        await until(lambda: self._state() != before)

    async def _wait(self, name: str, correlation_id: str) -> None:
        with anyio.CancelScope() as self.scopes[name]:
            try:
                await self.pool.reserve(head(correlation_id))
            except AgentError as exc:
                self.failed[name] = exc
            else:
                self.served.append(name)


# How many


@pytest.mark.parametrize("count", [1, 4])
async def test_as_many_connections_are_made_as_it_says(count: int) -> None:
    peer = Peer()
    async with client_of(peer, connections=count) as client:
        await connected(client, count)
        await settle()

        assert len(peer.links) == peer.accepted == count


async def test_each_endpoint_has_its_own_connections() -> None:
    first, second = Peer(), Peer()
    async with client_of(first, second, connections=3) as client:
        await connected(client, 6)

        assert (first.accepted, second.accepted) == (3, 3)
        assert [each.connections for each in pool_of(client).statistics()] == [3, 3]


async def test_nothing_is_connected_before_somebody_needs_it() -> None:
    peer = Peer()
    async with client_of(peer) as client:
        await settle()

        assert peer.accepted == 0
        assert client.statistics() == ((), 0)


async def test_a_connection_that_is_lost_is_replaced(impatient: None) -> None:
    peer = Peer(behaviour=allow)
    async with client_of(peer, connections=3) as client:
        pool = await connected(client, 3)
        await peer.links[0].aclose()
        await until(lambda: peer.accepted == 4 and len(pool.connections) == 3)

        assert (await client.call(head())).is_allow  # type: ignore[union-attr]


async def test_all_connections_are_closed_with_the_pool() -> None:
    peer = Peer()
    async with peer.listening(), client_of(peer.url, connections=4) as client:
        await connected(client, 4)
        await client.aclose()
        await until(lambda: not peer.links)

        assert client.statistics() == ((), 0)


async def test_a_pool_that_was_closed_can_be_opened_again() -> None:
    peer = Peer(behaviour=allow)
    async with client_of(peer) as client:
        for _ in range(3):
            await connected(client)
            await client.call(head())
            await client.aclose()

        assert peer.accepted == 3


# Which


async def links_of(client: StreamClient, peer: Peer, correlation_ids: list[str]) -> list[int]:
    """On which connections the requests with these ids arrive, one after the other."""
    seen = []
    for correlation_id in correlation_ids:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call, head(correlation_id))
            event = await peer.next()
            seen.append(event.link.number)
            await event.answer()
    return seen


async def test_round_robin_spreads_requests_evenly() -> None:
    peer = Peer()
    async with client_of(peer, connections=4, load_balancing="round_robin") as client:
        await connected(client, 4)

        seen = await links_of(client, peer, [str(number) for number in range(12)])

        assert Counter(seen) == {0: 3, 1: 3, 2: 3, 3: 3}


async def test_least_connections_prefers_those_with_nothing_to_do() -> None:
    peer = Peer()
    async with client_of(peer, connections=3, load_balancing="least_connections") as client:
        await connected(client, 3)
        async with anyio.create_task_group() as tasks:
            held = []
            for number in range(6):
                tasks.start_soon(client.call, head(str(number)))
                held.append(await peer.next())
            assert Counter(event.link.number for event in held) == {0: 2, 1: 2, 2: 2}

            # The one that is done first has the next.
            await held[4].answer()
            await until(lambda: sum(connection.calls for connection in pool_of(client).connections) == 5)
            tasks.start_soon(client.call, head("next"))
            held.append(await peer.next())
            assert held[-1].link is held[4].link
            for event in held[:4] + held[5:]:
                await event.answer()


async def test_random_uses_all_connections() -> None:
    random.seed(3)
    peer = Peer()
    async with client_of(peer, connections=3, load_balancing="random") as client:
        await connected(client, 3)

        assert set(await links_of(client, peer, [str(number) for number in range(40)])) == {0, 1, 2}


async def test_health_based_avoids_a_connection_whose_calls_fail() -> None:
    random.seed(5)
    peer = Peer()
    async with client_of(peer, connections=2, load_balancing="health_based") as client:
        pool = await connected(client, 2)
        counts: Counter[int] = Counter()
        for number in range(60):
            pool.connections[0].health.score = 0.0
            counts.update(await links_of(client, peer, [str(number)]))

        assert counts[1] > 40


# Several endpoints


async def test_the_endpoints_that_are_there_take_the_calls_of_those_that_are_not() -> None:
    peer = Peer(behaviour=allow)
    dead = nowhere()
    async with client_of(dead, peer) as client:
        pool = await connected(client)
        await until(lambda: [each.state for each in pool.statistics()] == ["down", "up"])
        for number in range(20):
            await client.call(head(str(number)))

        assert "FileNotFoundError" in pool.statistics()[0].fault
        assert pool.rotation.fault == ""


async def test_a_dead_endpoint_doesnt_delay_the_others() -> None:
    silent, peer = Peer(silent=True), Peer(behaviour=allow)
    async with client_of(silent, peer, connect_timeout=60.0) as client:
        with anyio.fail_after(PATIENCE):
            await client.connect()
            await client.call(head())

        assert [each.state for each in pool_of(client).statistics()] == ["connecting", "up"]


async def test_when_one_endpoint_dies_the_others_have_its_requests(impatient: None) -> None:
    dying, living = Peer(behaviour=allow), Peer(behaviour=allow)
    async with living.listening(), dying.listening():
        client = StreamTransport([dying.url, living.url], connections=2, drain_timeout=0.01).bind("waf")
        pool = await connected(client, 4)
        for number in range(8):
            await client.call(head(str(number)))
        for link in tuple(dying.links):
            await link.aclose()
        dying.greeting = handshake(success=False, error="going down")
        await until(lambda: len(pool.connections) == 2)

        for number in range(8):
            await client.call(head(str(number)))

        # And when it is back, it has its share again.
        dying.greeting = handshake()
        await until(lambda: len(pool.connections) == 4)
        heard: list[Received] = []
        dying.behaviour = recording(allow, heard)
        for number in range(8, 16):
            await client.call(head(str(number)))
        assert heard
        await client.aclose()


async def call_many(client: StreamClient, first: int, count: int) -> Counter[str]:
    """So many requests, one after the other; how they ended."""
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        try:
            await client.call(head(str(number)))
            outcomes["answered"] += 1
        except AgentError as exc:
            outcomes[type(exc).__name__] += 1
    return outcomes


async def test_an_endpoint_whose_calls_time_out_is_ejected_and_comes_back() -> None:
    heard: list[Received] = []
    clock = Clock()

    async def nothing(event: Received) -> None:
        pass

    bad, good = Peer(behaviour=recording(nothing, heard)), Peer(behaviour=allow)
    breaker = None
    async with managing(bad, good, connections=2, timeout=0.02, circuit_breaker=breaker) as manager:
        pool = pool_of(client_in(manager))
        pool.rotation.endpoints[0]._clock = clock
        number = 0
        with anyio.fail_after(PATIENCE):
            while states(manager) != ["ejected", "up"]:
                await manager.process_request_headers(head(str(number)))
                number += 1
        assert 5 <= len(heard) <= 6

        heard.clear()
        for number in range(1000, 1020):
            await manager.process_request_headers(head(str(number)))
        assert heard == []

        clock.now += 5.1
        bad.behaviour = recording(allow, heard)
        assert states(manager) == ["up", "up"]
        for number in range(2000, 2010):
            await manager.process_request_headers(head(str(number)))
        assert len(heard) == 5


@pytest.mark.parametrize("kind", ["no verdict", "nonsense"])
async def test_an_endpoint_that_answers_with_failures_is_ejected(kind: str) -> None:
    async def nonsense(event: Received) -> None:
        frame = event.frame()
        await event.link.send(frame.replace(b'"allow"', b'"alloy"'))

    bad, good = Peer(behaviour=failing if kind == "no verdict" else nonsense), Peer(behaviour=allow)
    async with client_of(bad, good) as client:
        pool = await connected(client, 2)

        await call_many(client, 0, 20)

        assert [each.state for each in pool.statistics()] == ["ejected", "up"]
        assert await call_many(client, 100, 20) == {"answered": 20}


async def test_an_endpoint_that_hangs_up_on_every_call_is_ejected(impatient: None) -> None:
    bad, good = Peer(behaviour=hang_up), Peer(behaviour=allow)
    async with client_of(bad, good) as client:
        await connected(client, 2)
        failed = 0
        for number in range(40):
            failed += (await call_many(client, number, 1))["AgentConnectionError"]
            await until(lambda: len(pool_of(client).connections) == 2)

        assert failed <= 10


async def test_an_endpoint_that_crashes_under_load_is_back_soon_after(impatient: None) -> None:
    crashing, other = Peer(), Peer(behaviour=allow)
    async with client_of(crashing, other, connections=4) as client, anyio.create_task_group() as tasks:
        pool = await connected(client, 8)
        clock = Clock()
        pool.rotation.endpoints[0]._clock = clock

        async def call(number: int) -> None:
            with suppress(AgentError):
                await client.call(head(str(number)))

        number = 0
        while crashing.unread < 40:
            tasks.start_soon(call, number)
            number += 1
            await checkpoint()
        await settle()
        for link in tuple(crashing.links):
            await link.aclose()
        crashing.behaviour = allow
        await until(lambda: len(pool.connections) == 8 and is_idle(pool))
        clock.now += 5.1

        assert [each.state for each in pool.statistics()] == ["up", "up"]


@pytest.mark.parametrize("endpoints", [1, 2, 3])
async def test_where_all_are_ejected_any_will_do(endpoints: int) -> None:
    async with client_of(*(Peer(behaviour=allow) for _ in range(endpoints))) as client:
        pool = await connected(client, endpoints)
        for endpoint in pool.rotation.endpoints:
            for _ in range(5):
                endpoint.rated(answered=False)
        assert [each.state for each in pool.statistics()] == ["ejected"] * endpoints

        assert await call_many(client, 0, 3) == {"answered": 3}
        # The calls have not waited until that was over.
        assert [each.state for each in pool.statistics()] == ["ejected"] * endpoints


async def test_calls_that_wait_are_served_when_an_ejection_is_over() -> None:
    first, second = Peer(), Peer()
    async with (
        client_of(first, second, max_calls_per_connection=1, ping_interval=0.02) as client,
        waiting_tasks() as tasks,
    ):
        pool = await connected(client, 2)
        clock = Clock()
        for each in pool.rotation.endpoints:
            each._clock = clock
        for _ in range(5):
            pool.rotation.endpoints[0].rated(answered=False)
        queue = Queue(pool, tasks)
        await queue.join("a", "b")
        assert queue.served == ["a"]
        assert pool.waiting == 1

        clock.now += 6
        await until(lambda: queue.served == ["a", "b"])


# Affinity


async def test_all_events_of_a_request_go_to_one_connection() -> None:
    heard: list[Received] = []
    peer = Peer(behaviour=recording(allow, heard))
    async with managing(peer, connections=4, stream={"connections": 4}) as manager:
        for number in range(8):
            name = str(number)
            await manager.process_request_headers(head(name))
            await manager.process_request_body(chunk(name))
            await manager.process_request_body_streaming(chunk(name, index=1))
            await manager.process_websocket_frame(frame(name))
            await manager.call_guardrail_agent("waf", question(name))
            await manager.process_response_headers(response_head(name))
            await manager.process_request_complete(complete(name))

        links: dict[str, set[int]] = {}
        for event in heard:
            links.setdefault(event.correlation_id, set()).add(event.link.number)
        assert len(heard) == 8 * 7
        assert all(len(seen) == 1 for seen in links.values())
        assert len(set.union(*links.values())) == 4


async def test_events_of_many_requests_at_once_keep_to_their_connections() -> None:
    heard: list[Received] = []
    peer = Peer(behaviour=recording(allow, heard))
    async with managing(peer, connections=4, stream={"connections": 4, "max_calls_per_connection": 2}) as manager:

        async def request(name: str) -> None:
            await manager.process_request_headers(head(name))
            for index in range(4):
                await manager.process_request_body_streaming(chunk(name, index=index))
            await manager.process_response_headers(response_head(name))

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(request, str(number))

        links: dict[str, set[int]] = {}
        for event in heard:
            links.setdefault(event.correlation_id, set()).add(event.link.number)
        assert len(heard) == 40 * 6
        assert all(len(seen) == 1 for seen in links.values())


async def test_when_its_connection_is_lost_a_request_goes_on_on_another() -> None:
    peer = Peer()
    async with client_of(peer, connections=2) as client, anyio.create_task_group() as tasks:
        pool = await connected(client, 2)
        tasks.start_soon(client.call, head("a"))
        event = await peer.next()
        await event.answer()
        lost = pool.rotation.affinities.connections["a"]
        await event.link.aclose()
        await until(lambda: not lost.alive)
        tasks.start_soon(client.call, chunk("a"))
        other = await peer.next()
        await other.answer()
        assert other.link is not event.link
        # And stays there.
        for index in range(1, 4):
            tasks.start_soon(client.call, chunk("a", index=index))
            again = await peer.next()
            await again.answer()
            assert again.link is other.link


async def test_a_request_that_is_over_is_forgotten() -> None:
    peer = Peer(behaviour=allow)
    async with client_of(peer, connections=2) as client:
        pool = await connected(client, 2)
        for _ in range(3):
            await client.call(head("a"))
        assert sorted(len(connection.requests) for connection in pool.connections) == [0, 1]

        client.forget("a")
        client.forget("a")
        client.forget("never there")

        assert [len(connection.requests) for connection in pool.connections] == [0, 0]
        assert not pool.rotation.affinities.connections


async def test_the_requests_of_a_lost_connection_are_forgotten_all_the_same() -> None:
    peer = Peer(behaviour=allow)
    async with client_of(peer) as client:
        pool = await connected(client)
        await client.call(head("a"))
        await peer.links[0].aclose()
        await until(lambda: peer.accepted == 2 and len(pool.connections) == 1)

        client.forget("a")

        assert pool.connections[0].requests == set()
        assert not pool.rotation.affinities.connections


async def test_the_oldest_requests_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_agents.transports.stream.affinities._MAX_AFFINITIES", 5)
    peer = Peer(behaviour=allow)
    async with client_of(peer, connections=2) as client:
        pool = await connected(client, 2)
        for number in range(20):
            await client.call(head(str(number)))

        assert list(pool.rotation.affinities.connections) == ["15", "16", "17", "18", "19"]
        assert sum(len(connection.requests) for connection in pool.connections) == 5


@pytest.mark.parametrize("ending", ["answered", "app failed", "agent blocked", "agent lost"])
async def test_the_middleware_forgets_a_request_when_its_connection_is_over(ending: str) -> None:
    async def behave(event: Received) -> None:
        if ending == "agent lost" and event.event_type is EventType.RESPONSE_HEADERS:
            await event.link.aclose()
        elif ending == "agent blocked" and event.event_type is EventType.RESPONSE_HEADERS:
            await event.answer(AgentResponse.block(403))
        else:
            await event.answer()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if ending == "app failed":
            raise RuntimeError("the app has failed")
        await PlainTextResponse("hello")(scope, receive, send)

    peer = Peer(behaviour=behave)
    async with managing(peer, connections=2, stream={"connections": 2}) as manager:
        pool = pool_of(client_in(manager))
        await get(AgentMiddleware(app, manager=manager), failing=ending == "app failed")

        assert not pool.rotation.affinities.connections
        await until(lambda: is_idle(pool))


# Places


async def test_no_connection_has_more_calls_than_it_may() -> None:
    peer = Peer()
    async with client_of(peer, connections=2, max_calls_per_connection=3) as client:
        pool = await connected(client, 2)
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(client.call, head(str(number)))
            await until(lambda: peer.unread == 6)
            await settle()
            assert peer.unread == 6
            assert [connection.calls for connection in pool.connections] == [3, 3]
            assert pool.waiting == 14
            for _ in range(20):
                event = await peer.next()
                assert all(connection.calls <= 3 for connection in pool.connections)
                await event.answer()

        assert is_idle(pool)


async def test_the_first_to_come_is_the_first_to_get_a_place() -> None:
    peer = Peer()
    async with client_of(peer, max_calls_per_connection=1) as client, waiting_tasks() as tasks:
        pool = await connected(client)
        queue = Queue(pool, tasks)
        await queue.join("a", "b", "c", "d")
        for _ in range(3):
            pool.connections[0].give_back()
            await settle()

        assert queue.served == ["a", "b", "c", "d"]


async def test_nobody_jumps_the_queue() -> None:
    peer = Peer()
    async with client_of(peer, max_calls_per_connection=1) as client, waiting_tasks() as tasks:
        pool = await connected(client)
        queue = Queue(pool, tasks)
        await queue.join("a", "b")
        pool.connections[0].give_back()
        # b has been given the place, if it doesn't know it yet.
        assert pool.reserve_now(head("c")) is None
        await queue.join("c")
        assert queue.served == ["a", "b"]


async def test_one_who_waits_and_gives_up_leaves_the_queue() -> None:
    peer = Peer()
    async with client_of(peer, max_calls_per_connection=1) as client, waiting_tasks() as tasks:
        pool = await connected(client)
        queue = Queue(pool, tasks)
        await queue.join("a", "b", "c")
        queue.scopes["b"].cancel()
        await until(lambda: pool.waiting == 1)
        pool.connections[0].give_back()
        await until(lambda: queue.served == ["a", "c"])

        assert pool.waiting == 0


async def test_a_place_that_comes_with_the_cancellation_is_passed_on() -> None:
    peer = Peer()
    async with client_of(peer, max_calls_per_connection=1) as client, waiting_tasks() as tasks:
        pool = await connected(client)
        queue = Queue(pool, tasks)
        await queue.join("a", "b", "c")
        pool.connections[0].give_back()
        queue.scopes["b"].cancel()
        await until(lambda: len(queue.served) == 2)

        assert queue.served in (["a", "b"], ["a", "c"])
        assert pool.waiting == (1 if "b" in queue.served else 0)
        assert pool.connections[0].calls == 1


async def test_one_that_waits_for_its_own_connection_holds_up_nobody_who_wants_another() -> None:
    peer = Peer()
    async with (
        client_of(peer, connections=2, max_calls_per_connection=1) as client,
        waiting_tasks() as tasks,
    ):
        pool = await connected(client, 2)
        queue = Queue(pool, tasks)
        await queue.join("a")
        await queue.join("a, again", correlation_id="a")
        await queue.join("b")

        assert queue.served == ["a", "b"]
        assert pool.waiting == 1
        pool.rotation.affinities.connections["a"].give_back()
        await until(lambda: queue.served == ["a", "b", "a, again"])


async def test_one_that_waits_for_a_connection_that_is_lost_gets_another(impatient: None) -> None:
    peer = Peer()
    async with (
        client_of(peer, connections=2, max_calls_per_connection=1) as client,
        waiting_tasks() as tasks,
    ):
        pool = await connected(client, 2)
        queue = Queue(pool, tasks)
        await queue.join("a")
        await queue.join("a, again", correlation_id="a")
        pool.rotation.affinities.connections["a"].fail("gone")

        await until(lambda: queue.served == ["a", "a, again"])
        assert pool.waiting == 0


async def test_those_who_wait_fail_at_once_when_the_last_hope_is_gone() -> None:
    peer = Peer()
    async with client_of(peer, max_calls_per_connection=1) as client, waiting_tasks() as tasks:
        pool = await connected(client)
        queue = Queue(pool, tasks)
        await queue.join("a", "b", "c")
        peer.greeting = handshake(success=False, error="no more")
        await peer.links[0].aclose()
        await until(lambda: len(queue.failed) == 2)

        assert isinstance(queue.failed["b"], AgentConnectionError)
        assert peer.path in str(queue.failed["b"])
        assert pool.waiting == 0


async def test_calls_that_were_given_up_keep_their_place_until_the_agent_has_answered() -> None:
    peer = Peer()
    async with client_of(peer, max_calls_per_connection=1) as client:
        pool = await connected(client)
        with anyio.move_on_after(0.02):
            await client.call(head("a"))
        assert pool.connections[0].calls == 1
        assert pool.reserve_now(head("b")) is None

        late = await peer.next()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call, head("b"))
            await until(lambda: pool.waiting == 1)
            await late.answer()
            await (await peer.next()).answer()

        assert is_idle(pool)


Step = tuple[str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "start", "again", "cancel", "finish", "finish", "lose", "forget"]),
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(plan=steps, limit=st.integers(1, 3), connections=st.integers(1, 3))
@settings(max_examples=examples(40), deadline=None)
def test_places_never_leak_and_no_wake_up_is_lost(plan: list[Step], limit: int, connections: int) -> None:
    for backend in ("asyncio", "trio"):
        anyio.run(_stress, plan, limit, connections, backend=backend)


async def _stress(plan: list[Step], limit: int, connections: int) -> None:
    peer = Peer()
    options = {"connections": connections, "max_calls_per_connection": limit}
    async with client_of(peer, **options) as client, anyio.create_task_group() as tasks:
        pool = await connected(client, connections)
        begun = count_of_done = 0
        scopes: list[anyio.CancelScope] = []

        async def call(correlation_id: str) -> None:
            nonlocal count_of_done
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                with suppress(AgentError):
                    await client.call(head(correlation_id))
            count_of_done += 1

        for action, number in plan:
            match action:
                case "start":
                    tasks.start_soon(call, f"new-{begun}")
                    begun += 1
                case "again":
                    tasks.start_soon(call, f"new-{number}")
                    begun += 1
                case "cancel" if scopes:
                    scopes[number % len(scopes)].cancel()
                case "finish" if peer.unread:
                    await answer_next(peer)
                case "lose" if pool.connections:
                    pool.connections[number % len(pool.connections)].fail("lost")
                case "forget":
                    client.forget(f"new-{number}")
            if number % 2:
                await checkpoint()
            assert all(connection.calls <= limit for connection in pool.connections)

        # Whoever is not served from here on never would have been.
        with anyio.fail_after(PATIENCE):
            while count_of_done < begun:
                if peer.unread:
                    await answer_next(peer)
                else:
                    await anyio.sleep(0.001)
            while not is_idle(pool):
                if peer.unread:
                    await answer_next(peer)
                await anyio.sleep(0.001)
        assert not pool.queue.for_any
        assert not pool.queue.for_one
        for number in range(max(begun, 10)):
            client.forget(f"new-{number}")
        assert all(not connection.requests for connection in pool.connections)


async def answer_next(peer: Peer) -> None:
    event = await peer.next()
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await event.answer()


# Connecting, and again


async def test_the_connect_timeout_covers_the_handshake() -> None:
    peer = Peer(silent=True)
    async with client_of(peer, connect_timeout=0.02) as client:
        with anyio.fail_after(PATIENCE), pytest.raises(AgentConnectionError, match=r"not connected within 0\.02 s"):
            await client.connect()


async def test_a_peer_that_says_half_of_its_handshake_is_not_waited_for() -> None:
    peer = Peer(greeting=handshake()[:-5])
    async with client_of(peer, connect_timeout=0.02) as client:
        with anyio.fail_after(PATIENCE), pytest.raises(AgentConnectionError, match="handshake included"):
            await client.connect()
        await until(lambda: not pool_of(client).connections)


async def test_it_connects_again_for_as_long_as_the_pool_lives(impatient: None) -> None:
    peer = Peer(greeting=handshake(success=False, error="not yet"))
    async with client_of(peer) as client:
        with pytest.raises(AgentConnectionError, match="not yet"):
            await client.connect()
        await until(lambda: peer.accepted > 8)
        peer.greeting = handshake()

        await until(lambda: pool_of(client).connections)


async def test_attempts_that_fail_are_spaced() -> None:
    peer = Peer(greeting=handshake(success=False, error="no"))
    async with client_of(peer) as client:
        with pytest.raises(AgentConnectionError):
            await client.connect()
        await anyio.sleep(0.04)

        assert peer.accepted == 1


async def test_a_peer_that_greets_and_hangs_up_is_not_hammered(caplog: pytest.LogCaptureFixture) -> None:
    """Else it is a busy loop, and two lines to the log each time round."""

    class Fickle(Peer):
        async def _frame(self, link: Any, frame: bytes) -> None:
            await super()._frame(link, frame)
            await link.aclose()

    peer = Fickle()
    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        async with client_of(peer) as client:
            with anyio.move_on_after(0.05):
                await client.connect()
                await anyio.sleep(0.05)

    assert peer.accepted <= 3
    assert len(lines(caplog)) <= 6


async def test_an_agent_that_crashes_on_every_request_is_not_a_line_for_each(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(behaviour=hang_up)
    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        async with client_of(peer) as client:
            pool = await connected(client)
            for number in range(30):
                await call_many(client, number, 1)
                await until(lambda: pool.connections)

    assert len(lines(caplog)) < 10


async def test_a_call_during_the_backoff_fails_at_once() -> None:
    async with client_of(nowhere()) as client:
        with pytest.raises(AgentConnectionError):
            await client.connect()
        for _ in range(5):
            with anyio.fail_after(0.04), pytest.raises(AgentConnectionError, match="FileNotFoundError"):
                await client.call(head())


async def test_a_call_before_anybody_has_tried_waits_for_the_connection() -> None:
    peer = Peer(behaviour=allow)
    async with client_of(peer) as client:
        assert (await client.call(head())).is_allow  # type: ignore[union-attr]


async def test_connections_are_pinged_while_others_can_not_be_made() -> None:
    """An agent that takes fewer connections than it is offered: those it has taken are looked after all the same."""
    peer = Peer()
    async with client_of(peer, connections=2, connect_timeout=0.01, ping_interval=0.02) as client:
        peer.greeting = handshake()
        await client.connect()
        peer.greeting = None
        # If both were quicker.
        if len(pool_of(client).connections) == 2:
            await peer.links[1].aclose()
        await until(lambda: peer.accepted >= 3)

        await until(lambda: peer.pings >= 2)


async def test_an_agent_that_takes_fewer_connections_than_offered_serves_on_those() -> None:
    class Small(Peer):
        async def _frame(self, link: Any, frame: bytes) -> None:
            self.greeting = handshake() if self.accepted == 1 else handshake(success=False, error="one is enough")
            await super()._frame(link, frame)

    peer = Small(behaviour=allow)
    async with client_of(peer, connections=4) as client:
        pool = await connected(client)
        await until(lambda: peer.accepted > 1)

        assert await call_many(client, 0, 10) == {"answered": 10}
        assert pool.rotation.fault == ""
        assert pool.statistics()[0].state == "up"


# Without a lifespan


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_without_anybody_to_close_it_nothing_is_left_when_the_event_loop_ends(backend: str) -> None:
    path = f"{tempfile.mkdtemp()}/peer.sock"

    async def main(connections: int, wait: bool) -> None:
        peer = Peer(behaviour=allow, path=path)
        manager = AgentManager([agent(peer, stream={"connections": connections})])
        async with peer.listening():
            decision = await manager.process_request_headers(head())
            assert decision.is_allow
            if wait:
                await until(lambda: manager.statistics()["waf"].connections == connections)
            # The others may be in any state of being made, and nothing is closed.

    anyio.run(main, 4, True, backend=backend)
    gc.collect()
    before = open_files()
    for connections in (1, 4):
        for wait in (True, False):
            anyio.run(main, connections, wait, backend=backend)
    gc.collect()

    assert open_files() == before


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_end_of_the_event_loop_is_not_logged_as_a_loss(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """The agent lives on in another thread's event loop."""
    with listening_elsewhere(allow) as peer, caplog.at_level(logging.INFO, logger="asgi_agents"):
        manager = AgentManager([agent(peer.url)])
        anyio.run(manager.process_request_headers, head(), backend=backend)

    assert warnings(caplog) == []


class Elsewhere:
    """A peer in a thread with an event loop of its own."""

    def __init__(self, behaviour: Any) -> None:
        self._behaviour = behaviour
        self.peer: Peer

    def __enter__(self) -> Peer:
        self._portal = anyio.from_thread.start_blocking_portal()
        portal = self._portal.__enter__()

        async def make() -> Peer:
            return Peer(behaviour=self._behaviour)

        self.peer = portal.call(make)
        self._listening = portal.wrap_async_context_manager(self.peer.listening())
        self._listening.__enter__()
        return self.peer

    def __exit__(self, *exc: Any) -> None:
        self._listening.__exit__(*exc)
        self._portal.__exit__(*exc)


def listening_elsewhere(behaviour: Any) -> Elsewhere:
    return Elsewhere(behaviour)


async def block_the_bad(event: Received) -> None:
    blocked = event.event_type is EventType.REQUEST_HEADERS and event.payload["uri"] == "/bad"
    await event.answer(AgentResponse.block(403, "no") if blocked else AgentResponse())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_a_test_client_outside_with_works_and_leaves_nothing(
    backend: Any, framework: str, caplog: pytest.LogCaptureFixture
) -> None:
    with listening_elsewhere(block_the_bad) as peer:
        app: Starlette
        if framework == "fastapi":
            app = FastAPI()

            @app.get("/{path:path}")
            async def handle(request: Request) -> str:
                return "hello"
        else:

            async def endpoint(request: Request) -> PlainTextResponse:
                return PlainTextResponse("hello")

            app = Starlette(routes=[Path("/{path:path}", endpoint)])
        app.add_middleware(AgentMiddleware, agents=[agent(peer.url, stream={"connections": 4})])
        client = TestClient(app, backend=backend)

        def settled_files() -> int:
            gc.collect()
            with anyio.from_thread.start_blocking_portal() as portal:
                portal.call(until, lambda: not peer.links)
            return open_files()

        client.get("/good")
        before = settled_files()

        with caplog.at_level(logging.INFO, logger="asgi_agents"):
            for _ in range(4):
                assert client.get("/good").status_code == 200
                assert client.get("/bad").status_code == 403

        assert settled_files() <= before
        assert warnings(caplog) == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_test_client_inside_with_keeps_its_connections(backend: Any) -> None:
    with listening_elsewhere(block_the_bad) as peer:
        app = FastAPI()

        @app.get("/{path:path}")
        async def handle(path: str) -> str:
            return "hello"

        app.add_middleware(AgentMiddleware, agents=[agent(peer.url)])
        with TestClient(app, backend=backend) as client:
            for _ in range(5):
                assert client.get("/good").status_code == 200
                assert client.get("/bad").status_code == 403

        assert peer.accepted == 1


# End


async def test_calls_under_way_are_waited_for_when_the_pool_is_closed() -> None:
    peer = Peer(greeting=handshake(features={"cancellation": True}))
    async with client_of(peer, drain_timeout=PATIENCE) as client:
        await connected(client)
        async with anyio.create_task_group() as tasks:
            answers: list[Any] = []

            async def call() -> None:
                answers.append(await client.call(head()))

            tasks.start_soon(call)
            event = await peer.next()
            closed = anyio.Event()

            async def close() -> None:
                await client.aclose()
                closed.set()

            tasks.start_soon(close)
            await settle()
            assert not closed.is_set()
            await event.answer(AgentResponse.block(418))
            with anyio.fail_after(PATIENCE):
                await closed.wait()

        assert [type(answer.decision).__name__ for answer in answers] == ["Block"]
        assert peer.cancels == []
        await until(lambda: not peer.links)


async def test_calls_that_take_too_long_are_cancelled_when_the_pool_is_closed() -> None:
    peer = Peer(greeting=handshake(features={"cancellation": True}))
    async with client_of(peer, drain_timeout=0.02) as client:
        await connected(client)
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                with pytest.raises(AgentUnavailableError, match="being closed"):
                    await client.call(head("a"))

            tasks.start_soon(call)
            await peer.next()
            with anyio.fail_after(PATIENCE):
                await client.aclose()

        await until(lambda: not peer.links)
        assert [(cancel.correlation_id, cancel.reason) for cancel in peer.cancels] == [("a", CancelReason.SHUTDOWN)]


async def test_those_who_wait_for_a_place_fail_when_the_pool_is_closed() -> None:
    peer = Peer()
    async with client_of(peer, max_calls_per_connection=1, drain_timeout=0.02) as client:
        pool = await connected(client)
        async with waiting_tasks() as tasks:
            queue = Queue(pool, tasks)
            await queue.join("a")
            await queue.join("a, again", correlation_id="a")
            await queue.join("b")
            with anyio.fail_after(PATIENCE):
                await client.aclose()
            await until(lambda: len(queue.failed) == 2)

        assert all("closed" in str(exc) for exc in queue.failed.values())
        assert pool.waiting == 0


async def test_what_the_shutdown_cancels_is_not_the_agents_fault() -> None:
    peer = Peer()
    breaker = CircuitBreakerConfig(failure_threshold=1)
    async with managing(peer, circuit_breaker=breaker, connections=1) as manager, anyio.create_task_group() as tasks:
        decisions = []

        async def call() -> None:
            decisions.append(await manager.process_request_headers(head()))

        tasks.start_soon(call)
        await peer.next()
        await manager.shutdown()
        await until(lambda: decisions)

        assert decisions[0].failure is not None
        assert manager.statistics()["waf"].breaker is BreakerState.CLOSED


async def test_while_the_pool_drains_nothing_new_begins() -> None:
    """On new connections it would be strange to the agent, and nobody would ever close those."""
    peer = Peer()
    async with client_of(peer, drain_timeout=PATIENCE) as client, anyio.create_task_group() as tasks:
        await connected(client)
        tasks.start_soon(client.call, head("a"))
        tasks.start_soon(client.call, head("b"))
        a, b = await peer.next(), await peer.next()
        tasks.start_soon(client.aclose)
        await settle()
        await a.answer()
        for event in (chunk("a"), head("c")):
            with pytest.raises(AgentUnavailableError, match="being closed"):
                await client.call(event)
        await b.answer()

    assert peer.accepted == 1


@pytest.mark.parametrize("number", [1, 2])
async def test_a_connection_that_is_made_while_the_pool_is_closed_is_closed_as_well(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that makes it is to go on already when it is cancelled, and would find out when it waits again."""
    made: list[AgentConnection] = []
    held, go_on = anyio.Event(), anyio.Event()
    shake_hands = AgentConnection.shake_hands

    async def shake_hands_slowly(self: AgentConnection, *args: Any, **options: Any) -> None:
        await shake_hands(self, *args, **options)
        made.append(self)
        if len(made) == number:
            held.set()
            await go_on.wait()

    async def connect() -> None:
        with suppress(AgentError):
            await client.connect()

    monkeypatch.setattr(AgentConnection, "shake_hands", shake_hands_slowly)
    peer = Peer()
    async with client_of(peer, connections=3) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(connect)
        with anyio.fail_after(PATIENCE):
            await held.wait()
        go_on.set()
        await pool_of(client).aclose()
        assert [connection.closed for connection in made] == [True] * number
        await until(lambda: not peer.links)
        assert peer.accepted == number


async def test_a_removed_agent_that_is_called_once_more_does_not_come_back_for_good() -> None:
    """A request that outlives the drain timeout still has the agent in its lineup."""
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        resolved_route = registry_of(manager).resolved_route(None)
        resolved_route.held += 1
        await manager.remove_agent("waf", drain_timeout=0.01)
        await until(lambda: not peer.links)
        assert (await resolved_route.agents[0].evaluate(head())).failure is not None
        await settle()

        assert not peer.links
        assert peer.accepted == 1


async def test_a_removed_agent_is_not_connected_any_more() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await manager.remove_agent("waf")
        await until(lambda: not peer.links)
        await settle()

        assert peer.accepted == 1


async def test_a_replaced_agent_answers_those_requests_that_know_it() -> None:
    old, new = Peer(), Peer(behaviour=allow)
    async with new.listening(), managing(old, connections=1) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(manager.process_request_headers, head("a"))
        event = await old.next()
        before = registry_of(manager).guard("waf")
        tasks.start_soon(manager.replace_agent, agent(new))
        await until(lambda: registry_of(manager).guard("waf") is not before)
        assert (await manager.process_request_headers(head("b"))).is_allow
        assert old.links
        await event.answer()
        await until(lambda: not old.links)


# The breaker


async def test_the_breaker_lets_trials_in_as_soon_as_the_agent_is_back(impatient: None) -> None:
    peer = Peer(behaviour=allow)
    breaker = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, reset_timeout=3600)
    manager = AgentManager([agent(peer, circuit_breaker=breaker)])
    async with manager:
        for _ in range(2):
            failure = (await manager.process_request_headers(head())).failure
            assert failure is not None
            assert failure.kind is FailureKind.ERROR
        failure = (await manager.process_request_headers(head())).failure
        assert failure is not None
        assert failure.kind is FailureKind.BREAKER_OPEN
        assert manager.statistics()["waf"].breaker is BreakerState.OPEN

        async with peer.listening():
            await until(lambda: manager.statistics()["waf"].breaker is BreakerState.HALF_OPEN)
            assert (await manager.process_request_headers(head())).is_allow

            assert manager.statistics()["waf"].breaker is BreakerState.CLOSED


async def test_the_breaker_lets_trials_in_when_an_agent_that_has_served_is_started_again(impatient: None) -> None:
    peer = Peer(behaviour=allow)
    breaker = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, reset_timeout=3600)
    manager = AgentManager([agent(peer, circuit_breaker=breaker)])
    async with manager:
        async with peer.listening():
            await until(lambda: manager.statistics()["waf"].connections)
            assert (await manager.process_request_headers(head())).is_allow
        for _ in range(3):
            await until(lambda: manager.statistics()["waf"].endpoints[0].state == "down")
            while manager.statistics()["waf"].breaker is not BreakerState.OPEN:
                assert (await manager.process_request_headers(head())).failure is not None
            async with peer.listening():
                await until(lambda: manager.statistics()["waf"].breaker is not BreakerState.OPEN)
                assert (await manager.process_request_headers(head())).is_allow


async def test_a_second_endpoint_that_comes_back_doesnt_close_a_breaker_that_the_first_has_opened(
    impatient: None,
) -> None:
    """Nothing new is known of the one that fails."""
    bad, other = Peer(behaviour=failing), Peer(greeting=handshake(success=False, error="no"))
    breaker = CircuitBreakerConfig(failure_threshold=1, reset_timeout=3600)
    async with managing(bad, other, connections=1, circuit_breaker=breaker) as manager:
        await manager.process_request_headers(head())
        assert manager.statistics()["waf"].breaker is BreakerState.OPEN
        other.greeting = handshake()
        await until(lambda: manager.statistics()["waf"].connections == 2)

        assert manager.statistics()["waf"].breaker is BreakerState.OPEN


async def test_requests_while_the_agent_is_away_are_failed_and_the_log_has_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = AgentManager([agent(nowhere(), circuit_breaker=None)])
    with caplog.at_level(logging.INFO, logger="asgi_agents"):
        async with manager:
            app = AgentMiddleware(PlainTextResponse("hello"), manager=manager)
            for _ in range(30):
                assert await get(app) == (503, b"Agent unavailable")

    assert len([line for line in lines(caplog) if line.endswith("; connecting again")]) == 1
    assert len(lines(caplog)) == 2


@pytest.mark.parametrize("kind", LoadBalancing)
async def test_under_every_kind_of_balancing_all_calls_are_answered(kind: LoadBalancing) -> None:
    first, second = Peer(behaviour=allow), Peer(behaviour=allow)
    options: dict[str, Any] = {"connections": 2, "max_calls_per_connection": 2, "load_balancing": kind}
    async with client_of(first, second, **options) as client:
        pool = await connected(client, 4)
        answered = 0

        async def call(number: int) -> None:
            nonlocal answered
            await client.call(head(str(number)))
            answered += 1

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for number in range(60):
                    tasks.start_soon(call, number)

        assert answered == 60
        assert is_idle(pool)
