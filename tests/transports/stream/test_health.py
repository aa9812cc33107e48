"""What an agent says of its health, and what is made of it."""

import logging
from contextlib import suppress
from typing import Any

import anyio
import pytest

from asgi_agents import (
    AgentDecision,
    AgentError,
    AgentManager,
    AgentMiddleware,
    BreakerState,
    CircuitBreakerConfig,
    EventType,
    FailureKind,
    FailureMode,
)
from asgi_agents.protocol.stream import HealthState, HealthStatus, MessageType, encode_message

from .peer import Link, Peer, Received, handshake
from .pools import (
    allow,
    chunk,
    client_in,
    client_of,
    connected,
    get,
    head,
    is_idle,
    lines,
    managing,
    name_the_link,
    pool_of,
    recording,
    settle,
    states,
    until,
)
from .test_pool import impatient as impatient

HEALTHY, DEGRADED, DRAINING, UNHEALTHY = HealthState


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def failure_of(decision: AgentDecision) -> FailureKind | None:
    return None if decision.failure is None else decision.failure.kind


def saying(state: int, **fields: Any) -> bytes:
    """A greeting that the agent's health comes with."""
    return handshake() + encode_message(MessageType.HEALTH_STATUS, HealthStatus(state=state, **fields))


# Degraded


async def test_an_agent_that_is_degraded_gets_more_time() -> None:
    peer = Peer()
    async with managing(peer, timeout=0.02, connections=1) as manager, anyio.create_task_group() as tasks:
        await peer.links[0].say(DEGRADED, timeout_multiplier=3.0)
        await until(lambda: states(manager) == ["degraded"])
        assert client_in(manager).timeout_multiplier == 3.0
        began = anyio.current_time()
        decision = await manager.process_request_headers(head())
        assert failure_of(decision) is FailureKind.TIMEOUT
        assert anyio.current_time() - began >= 0.055
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(("asked", "given"), [(1e9, 10.0), (0.001, 1.0), (-5.0, 1.0), (2.5, 2.5)])
async def test_an_agent_gets_ten_times_its_time_at_most_and_never_less(asked: float, given: float) -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await peer.links[0].say(DEGRADED, timeout_multiplier=asked)
        await until(lambda: states(manager) == ["degraded"])

        assert client_in(manager).timeout_multiplier == given


async def test_a_multiplier_that_is_no_number_is_none() -> None:
    peer = Peer(behaviour=allow, encoding="msgpack")
    async with managing(peer, connections=1, stream={"connections": 1, "encoding": "msgpack"}) as manager:
        await peer.links[0].say(DEGRADED, timeout_multiplier=float("nan"))
        await until(lambda: states(manager) == ["degraded"])

        assert client_in(manager).timeout_multiplier == 1.0
        assert (await manager.process_request_headers(head())).is_allow


async def test_an_agent_that_is_healthy_again_has_its_usual_time() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        for _ in range(2):
            await peer.links[0].say(DEGRADED, timeout_multiplier=4.0)
            await until(lambda: client_in(manager).timeout_multiplier == 4.0)
            await peer.links[0].say(HEALTHY)
            await until(lambda: client_in(manager).timeout_multiplier == 1.0)

        assert states(manager) == ["up"]


async def test_an_agent_that_is_degraded_goes_on_serving() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await peer.links[0].say(DEGRADED, timeout_multiplier=4.0)
        await until(lambda: states(manager) == ["degraded"])

        assert (await manager.process_request_headers(head())).is_allow


# Draining


async def test_the_connections_of_an_agent_that_drains_are_replaced_and_closed() -> None:
    peer = Peer(behaviour=name_the_link)
    async with client_of(peer, connections=2) as client:
        pool = await connected(client, 2)
        old = list(peer.links)
        for link in old:
            await link.say(DRAINING)
        await until(lambda: old[0].closed.is_set() and old[1].closed.is_set())
        await until(lambda: len(pool.connections) == 2)

        answers = [await client.call(head(str(number))) for number in range(4)]
        assert {answer.decision.body for answer in answers} == {"2", "3"}  # type: ignore[union-attr]


async def test_requests_under_way_finish_on_the_connection_that_drains() -> None:
    peer = Peer()
    async with client_of(peer) as client, anyio.create_task_group() as tasks:
        pool = await connected(client)
        tasks.start_soon(client.call, head("a"))
        event = await peer.next()
        old = event.link
        await old.say(DRAINING)
        await until(lambda: len(pool.connections) == 2)
        await event.answer()

        # Later events of the same request, too, and new requests elsewhere.
        tasks.start_soon(client.call, chunk("a"))
        later = await peer.next()
        assert later.link is old
        tasks.start_soon(client.call, head("b"))
        other = await peer.next()
        assert other.link is not old
        await later.answer()
        await other.answer()
        await settle()
        assert not old.closed.is_set()

        client.forget("a")
        await until(old.closed.is_set)


async def test_a_connection_that_drains_is_closed_when_its_last_answer_comes_after_the_request() -> None:
    peer = Peer()
    async with client_of(peer) as client, anyio.create_task_group() as tasks:
        await connected(client)
        tasks.start_soon(client.call, head("a"))
        event = await peer.next()
        await event.link.say(DRAINING)
        await until(lambda: peer.accepted == 2)
        client.forget("a")
        await settle()
        assert not event.link.closed.is_set()
        await event.answer()

        await until(event.link.closed.is_set)


async def test_the_successor_of_an_agent_that_drains_says_nothing_of_the_old_one() -> None:
    """Two processes may share an address for a while: each speaks for its own connections."""
    heard: list[Received] = []
    peer = Peer(behaviour=recording(allow, heard))
    async with client_of(peer) as client:
        pool = await connected(client)
        await client.call(head("a"))
        old = peer.links[0]
        await old.say(DRAINING)
        await until(lambda: len(peer.links) == 2 and len(pool.connections) == 2)
        await peer.links[1].say(HEALTHY)
        await settle()
        heard.clear()
        for number in range(6):
            await client.call(head(str(number)))

        assert {event.link.number for event in heard} == {1}
        client.forget("a")
        await until(old.closed.is_set)


async def test_an_agent_that_drains_and_says_so_again_does_not_drain_its_successor() -> None:
    peer = Peer(behaviour=allow)
    async with client_of(peer) as client:
        pool = await connected(client)
        await client.call(head("a"))
        old = peer.links[0]
        await old.say(DRAINING)
        await until(lambda: len(peer.links) == 2 and len(pool.connections) == 2)
        for _ in range(3):
            await old.say(DRAINING)
            await settle()

        assert peer.accepted == 2
        assert [link.closed.is_set() for link in (old, peer.links[1])] == [False, False]


class DrainingPeer(Peer):
    """Says that it drains, in a message of its own after the handshake."""

    async def _frame(self, link: Link, frame: bytes) -> None:
        await super()._frame(link, frame)
        if frame[0] == MessageType.HANDSHAKE_REQUEST:
            await anyio.sleep(0.001)
            await link.say(DRAINING)


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_agent_that_drains_as_soon_as_it_is_connected_is_not_hammered(at_once: bool) -> None:
    peer = Peer(saying(DRAINING)) if at_once else DrainingPeer()
    async with client_of(peer) as client:
        with anyio.move_on_after(0.05):
            while True:
                with anyio.move_on_after(0.01), suppress(AgentError):
                    await client.call(head())
                await anyio.sleep(0.01)

        assert peer.accepted <= 3


async def test_connections_that_drain_from_the_start_dont_pile_up(impatient: None) -> None:
    peer = Peer(saying(DRAINING))
    async with client_of(peer) as client:
        with suppress(AgentError):
            await client.connect()
        await until(lambda: peer.accepted > 8)

        assert len(pool_of(client).connections) <= 2
        await until(lambda: len(peer.links) <= 2)


async def test_an_agent_that_only_drains_is_no_agent_to_start_with() -> None:
    async with client_of(Peer(saying(DRAINING))) as client:
        with anyio.fail_after(5), pytest.raises(AgentError, match="draining"):
            await client.connect()


async def test_an_endpoint_that_drains_leaves_its_requests_to_the_others() -> None:
    heard: list[Received] = []
    first, second = Peer(behaviour=allow), Peer(behaviour=recording(allow, heard))
    async with client_of(first, second) as client:
        await connected(client, 2)
        first.greeting = handshake(success=False, error="going")
        await first.links[0].say(DRAINING)
        await until(lambda: len(pool_of(client).connections) == 1)
        for number in range(5):
            await client.call(head(str(number)))

        assert len(heard) == 5


# Unhealthy


async def test_an_agent_that_is_unhealthy_is_not_asked() -> None:
    heard: list[Received] = []
    peer = Peer(behaviour=recording(allow, heard))
    breaker = CircuitBreakerConfig(failure_threshold=1)
    async with managing(peer, connections=1, circuit_breaker=breaker) as manager:
        await peer.links[0].say(UNHEALTHY)
        await until(lambda: states(manager) == ["unhealthy"])
        app = AgentMiddleware(hello, manager=manager)
        for _ in range(5):
            assert await get(app) == (503, b"Service unavailable")

        assert heard == []
        assert set(manager.metrics["waf"].outcomes) == {"unavailable"}
        assert manager.statistics()["waf"].breaker is BreakerState.CLOSED

        await peer.links[0].say(HEALTHY)
        await until(lambda: states(manager) == ["up"])
        assert (await get(app))[0] == 200
        assert heard


async def test_in_fail_open_mode_requests_go_on_without_an_unhealthy_agent() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1, failure_mode=FailureMode.OPEN) as manager:
        await peer.links[0].say(UNHEALTHY)
        await until(lambda: states(manager) == ["unhealthy"])

        assert await get(AgentMiddleware(hello, manager=manager)) == (200, b"hello")
        assert manager.metrics["waf"].passed_open > 0


async def test_calls_under_way_may_still_be_answered_by_an_agent_that_is_unhealthy() -> None:
    peer = Peer()
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        decisions = []

        async def call() -> None:
            decisions.append(await manager.process_request_headers(head()))

        tasks.start_soon(call)
        event = await peer.next()
        await event.link.say(UNHEALTHY)
        await until(lambda: states(manager) == ["unhealthy"])
        await event.answer()
        await until(lambda: decisions)

        assert decisions[0].is_allow


async def test_an_agent_is_out_when_it_has_said_so_on_all_its_connections() -> None:
    heard: list[Received] = []
    peer = Peer(behaviour=recording(allow, heard))
    async with managing(peer, connections=3, stream={"connections": 3}) as manager:
        first, *others = tuple(peer.links)
        await first.say(UNHEALTHY)
        await until(lambda: sum(c.in_rotation for c in pool_of(client_in(manager)).connections) == 2)
        for number in range(6):
            assert (await manager.process_request_headers(head(str(number)))).is_allow
        assert first not in {event.link for event in heard}

        for link in others:
            await link.say(UNHEALTHY)
        await until(lambda: states(manager) == ["unhealthy"])
        assert failure_of(await manager.process_request_headers(head())) is FailureKind.UNAVAILABLE
        await others[0].say(HEALTHY)
        await until(lambda: states(manager) == ["up"])
        assert (await manager.process_request_headers(head())).is_allow


async def test_those_who_wait_for_a_place_are_told_at_once_when_the_agent_becomes_unhealthy() -> None:
    peer = Peer()
    options = {"connections": 1, "max_calls_per_connection": 1}
    async with managing(peer, connections=1, stream=options) as manager, anyio.create_task_group() as tasks:
        kinds: list[FailureKind | None] = []

        async def call(event: Any) -> None:
            process = manager.process_request_body if event.event_type is EventType.REQUEST_BODY_CHUNK else None
            decision = await (process(event) if process else manager.process_request_headers(event))
            kinds.append(failure_of(decision))

        tasks.start_soon(call, head("a"))
        await peer.next()
        # One that any place will do for, and one that wants one on the connection of its request.
        tasks.start_soon(call, head("b"))
        tasks.start_soon(call, chunk("a"))
        await until(lambda: pool_of(client_in(manager)).waiting == 2)
        await peer.links[0].say(UNHEALTHY)
        with anyio.move_on_after(2):
            await until(lambda: len(kinds) == 2)

        assert kinds == [FailureKind.UNAVAILABLE] * 2
        tasks.cancel_scope.cancel()


async def test_a_request_of_an_endpoint_that_becomes_unhealthy_goes_on_at_another() -> None:
    heard: list[Received] = []
    first, second = Peer(behaviour=recording(allow, heard)), Peer(behaviour=recording(allow, heard))
    async with client_of(first, second) as client:
        await connected(client, 2)
        await client.call(head("a"))
        await heard[0].link.say(UNHEALTHY)
        await until(lambda: "unhealthy" in [each.state for each in pool_of(client).statistics()])
        await client.call(chunk("a"))

        assert [event.correlation_id for event in heard] == ["a", "a"]
        assert heard[0].link.peer is not heard[1].link.peer
        assert sum(len(connection.requests) for connection in pool_of(client).connections) == 1


async def test_one_that_waits_for_its_connection_goes_elsewhere_when_that_becomes_unhealthy() -> None:
    first, second = Peer(), Peer()
    async with client_of(first, second, max_calls_per_connection=1) as client, anyio.create_task_group() as tasks:
        pool = await connected(client, 2)
        tasks.start_soon(client.call, head("a"))
        await until(lambda: first.unread or second.unread)
        here, there = (first, second) if first.unread else (second, first)
        held = await here.next()
        tasks.start_soon(client.call, chunk("a"))
        await until(lambda: pool.waiting == 1)
        await held.link.say(UNHEALTHY)

        event = await there.next()
        assert event.event_type is EventType.REQUEST_BODY_CHUNK
        await event.answer()
        await held.answer()
        await until(lambda: is_idle(pool))


# In general


@pytest.mark.parametrize("state", [0, 5, 255, -1])
async def test_states_from_the_future_say_nothing(state: int) -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await peer.links[0].say(state, timeout_multiplier=7.0)
        await peer.links[0].say(DEGRADED, timeout_multiplier=2.0)
        await until(lambda: states(manager) == ["degraded"])
        await peer.links[0].say(state, timeout_multiplier=7.0)
        await settle()

        assert states(manager) == ["degraded"]
        assert client_in(manager).timeout_multiplier == 2.0
        assert (await manager.process_request_headers(head())).is_allow
        assert peer.accepted == 1


async def test_a_change_of_health_is_one_line_and_the_same_again_is_none(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=4, stream={"connections": 4}) as manager:
        with caplog.at_level(logging.INFO, logger="asgi_agents"):
            for link in tuple(peer.links):
                await link.say(UNHEALTHY, message="disk full")
            for _ in range(5):
                await peer.links[0].say(UNHEALTHY)
            await until(lambda: states(manager) == ["unhealthy"])
            await settle()
            assert len(lines(caplog)) == 1
            assert "unhealthy" in lines(caplog)[0]

            for link in tuple(peer.links):
                await link.say(HEALTHY)
            await until(lambda: states(manager) == ["up"])
            await settle()
            assert len(lines(caplog)) == 2
            assert "healthy" in lines(caplog)[1]


async def test_health_that_comes_with_the_handshake_holds() -> None:
    peer = Peer(saying(UNHEALTHY), behaviour=allow)
    async with managing(peer, connections=1) as manager:
        assert states(manager) == ["unhealthy"]
        assert failure_of(await manager.process_request_headers(head())) is FailureKind.UNAVAILABLE


async def test_the_health_of_one_endpoint_is_not_that_of_another() -> None:
    first, second = Peer(behaviour=allow), Peer(behaviour=allow)
    async with managing(first, second, connections=2) as manager:
        await first.links[0].say(UNHEALTHY)
        await until(lambda: states(manager) == ["unhealthy", "up"])

        for number in range(4):
            assert (await manager.process_request_headers(head(str(number)))).is_allow


async def test_a_new_connection_forgets_what_the_lost_ones_have_said(impatient: None) -> None:
    """An agent that was started again has nothing to do with what its predecessor said."""
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await peer.links[0].say(UNHEALTHY)
        await until(lambda: states(manager) == ["unhealthy"])
        await peer.links[0].aclose()
        await until(lambda: states(manager) == ["up"])

        assert (await manager.process_request_headers(head())).is_allow


async def test_a_manager_that_starts_while_the_agent_is_unhealthy_takes_it_in_later() -> None:
    peer = Peer(saying(UNHEALTHY), behaviour=allow)
    async with managing(peer) as manager:
        assert isinstance(manager, AgentManager)
        await until(lambda: states(manager) == ["unhealthy"])
        await peer.links[0].say(HEALTHY)
        await until(lambda: states(manager) == ["up"])

        assert (await manager.process_request_headers(head())).is_allow
