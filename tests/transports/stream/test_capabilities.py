"""What an agent says that it can do, and that it is held to it, and spared the rest."""

from collections import Counter
from typing import Any

import anyio
import pytest

from asgi_agents import (
    AgentConnectionError,
    AgentError,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BodyMode,
    EventType,
    FailureKind,
    FailureMode,
)
from asgi_agents.manager import registry_of
from asgi_agents.protocol.stream import EVENT_NUMBERS

from .peer import Peer, Received, handshake
from .pools import (
    agent,
    allow,
    chunk,
    client_in,
    client_of,
    connected,
    frame,
    get,
    head,
    is_idle,
    managing,
    nowhere,
    pool_of,
    recording,
    response_head,
    settle,
    until,
    warnings,
)
from .test_pool import impatient as impatient

HEADS = frozenset({EventType.REQUEST_HEADERS})
BODIES = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d bytes" % len(body)})


def heard_by(manager: AgentManager) -> set[EventType]:
    return {event_type for event_type in EventType if manager.get_agents_for_event(event_type)}


def peer_of(events: frozenset[EventType]) -> Peer:
    return Peer(handshake(events=events), behaviour=blocking)


def blocking(event: Received) -> Any:
    return event.answer(AgentResponse.block(403))


# Events


async def test_until_an_agent_has_said_what_it_hears_it_hears_everything() -> None:
    manager = AgentManager([agent(nowhere())])
    assert heard_by(manager) == set(EventType)
    async with manager:
        assert heard_by(manager) == set(EventType)
        assert manager.agent_capabilities("waf") is None


async def test_an_agent_hears_what_it_says_that_it_hears() -> None:
    peer = Peer(handshake(events=BODIES), behaviour=allow)
    async with managing(peer, connections=1) as manager:
        assert heard_by(manager) == BODIES
        assert not manager.any_agent_handles_event(["waf"], EventType.WEBSOCKET_FRAME)


async def test_what_an_agent_hears_may_change_when_it_comes_back(impatient: None) -> None:
    peer = Peer(handshake(events=HEADS), behaviour=allow)
    async with managing(peer, connections=1) as manager:
        assert heard_by(manager) == HEADS
        peer.greeting = handshake(events=BODIES)
        await peer.links[0].aclose()

        await until(lambda: heard_by(manager) == BODIES)


async def test_an_agent_that_is_away_hears_what_it_said_last() -> None:
    peer = Peer(handshake(events=HEADS), behaviour=allow)
    async with managing(peer, connections=1) as manager:
        peer.greeting = handshake(success=False, error="away")
        await peer.links[0].aclose()
        await until(lambda: manager.statistics()["waf"].connections == 0)

        assert heard_by(manager) == HEADS
        assert (await manager.process_request_headers(head())).failure is not None
        assert (await manager.process_response_headers(response_head())).is_allow


async def test_events_that_an_agent_does_not_hear_are_not_sent() -> None:
    heard: list[Received] = []
    peer = Peer(handshake(events=HEADS), behaviour=recording(allow, heard))
    async with managing(peer, connections=1) as manager:
        assert await get(AgentMiddleware(echo, manager=manager), body=b"12345") == (200, b"5 bytes")

        assert [event.event_type for event in heard] == [EventType.REQUEST_HEADERS]


async def test_a_request_that_has_begun_before_the_handshake_is_judged_all_the_same() -> None:
    heard: list[Received] = []
    peer = Peer(handshake(events=BODIES), behaviour=recording(blocking, heard))
    manager = AgentManager([agent(peer)])
    early = registry_of(manager).resolved_route(None)
    async with peer.listening(), manager:
        await until(lambda: heard_by(manager) == BODIES)
        assert registry_of(manager).resolved_route(None) is not early
        (route_agent,) = early.agents_for(EventType.REQUEST_HEADERS)
        assert (await route_agent.evaluate(head())).denies
        (route_agent,) = early.agents_for(EventType.WEBSOCKET_FRAME)
        assert not (await route_agent.evaluate(frame())).denies

        assert [event.event_type for event in heard] == [EventType.REQUEST_HEADERS]
        assert is_idle(pool_of(client_in(manager)))


async def test_the_very_first_request_is_judged_without_a_lifespan() -> None:
    peer = Peer(handshake(events=HEADS), behaviour=blocking)
    async with peer.listening():
        manager = AgentManager([agent(peer)])
        try:
            assert (await get(AgentMiddleware(echo, manager=manager), body=b"12345"))[0] == 403
        finally:
            await manager.shutdown()


async def test_configured_events_are_all_that_an_agent_is_sent() -> None:
    heard: list[Received] = []
    peer = Peer(behaviour=recording(allow, heard))
    async with managing(peer, connections=1, events=HEADS) as manager:
        assert heard_by(manager) == HEADS
        await get(AgentMiddleware(echo, manager=manager), body=b"12345")

        assert [event.event_type for event in heard] == [EventType.REQUEST_HEADERS]


async def test_an_agent_is_asked_about_what_is_configured_whatever_it_says(caplog: pytest.LogCaptureFixture) -> None:
    """The published Rust kit says that it hears request heads, whatever its agent implements."""
    heard: list[Received] = []
    peer = Peer(handshake(events=HEADS), behaviour=recording(blocking, heard))
    stream = {"connections": 3}
    async with managing(peer, peer_of(HEADS), connections=6, stream=stream, events=BODIES) as manager:
        assert heard_by(manager) == BODIES
        assert not (await manager.process_request_body(chunk())).is_allow

    assert EventType.CONFIGURE not in {event.event_type for event in heard}
    # One line, not one for each connection.
    assert warnings(caplog) == [
        "agent 'waf' says that it supports request_headers; its events= also name request_body_chunk: "
        "it is asked about these too"
    ]


async def test_what_an_instance_supports_even_less_of_is_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    first, second = peer_of(BODIES), peer_of(HEADS)
    events = BODIES | {EventType.WEBSOCKET_FRAME}
    async with managing(first, events=events, connections=1) as manager:
        client_in(manager).overrule(HEADS)
        client_in(manager).overrule(BODIES)
        assert await manager.process_websocket_frame(frame())

    assert len(warnings(caplog)) == 2
    assert second.accepted == 0


@pytest.mark.parametrize(
    ("said", "configured", "sent"),
    [
        (HEADS, HEADS, False),
        (HEADS | {EventType.CONFIGURE}, HEADS, True),
        (HEADS, HEADS | {EventType.CONFIGURE}, True),
    ],
)
async def test_a_configuration_is_sent_where_either_side_names_it(
    said: frozenset[EventType], configured: frozenset[EventType], sent: bool
) -> None:
    heard: list[Received] = []
    peer = Peer(handshake(events=said), behaviour=recording(allow, heard))
    async with managing(peer, connections=1, events=configured, config={"a": 1}):
        assert [event.event_type for event in heard] == [EventType.CONFIGURE] * sent


async def test_event_numbers_from_the_future_are_left_out() -> None:
    capabilities = {"supported_events": [1, 2, 99, -4], "features": {}, "limits": {}}
    async with managing(Peer(handshake(capabilities=capabilities)), connections=1) as manager:
        assert heard_by(manager) == BODIES


async def test_an_agent_that_hears_nothing_is_a_mistake() -> None:
    peer = Peer(handshake(events=frozenset()))
    manager = AgentManager([agent(peer, require_at_startup=True)])
    async with peer.listening():
        with anyio.fail_after(5), pytest.raises(AgentError, match="supports no events"):
            async with manager:
                pass


async def test_several_instances_hear_what_any_of_them_hears() -> None:
    heard: list[Received] = []
    one = Peer(handshake(events=HEADS), behaviour=allow)
    both = Peer(handshake(events=BODIES), behaviour=recording(allow, heard))
    async with managing(one, both, connections=2) as manager:
        assert heard_by(manager) == BODIES


async def test_an_event_goes_to_an_instance_that_hears_it() -> None:
    """While an agent is being upgraded its instances differ. What one can't judge another can."""
    old, new = Peer(handshake(events=HEADS), behaviour=allow), Peer(handshake(events=BODIES), behaviour=blocking)
    async with managing(old, new, connections=2) as manager:
        decisions = [await manager.process_request_body(chunk(str(number))) for number in range(6)]

        assert not any(decision.is_allow for decision in decisions)


async def test_an_event_waits_for_an_instance_that_hears_it() -> None:
    """Also where its request has a connection to one that does not."""
    heard: list[Received] = []
    old, new = Peer(handshake(events=HEADS), behaviour=recording(allow, heard)), Peer(handshake(events=BODIES))
    async with client_of(old, new, max_calls_per_connection=1) as client, anyio.create_task_group() as tasks:
        pool = await connected(client, 2)
        on_old = next(c for c in pool.connections if c.events == HEADS)
        answers: list[Any] = []

        # A request on the old one, while the new one has all that it can take.
        tasks.start_soon(client.call, head("x"))
        tasks.start_soon(client.call, head("a"))
        held = await new.next()
        request = "a" if held.correlation_id == "x" else "x"
        await until(lambda: heard and on_old.calls == 0)
        assert heard[0].correlation_id == request

        async def judge_it() -> None:
            answers.append(await client.call(chunk(request)))

        tasks.start_soon(judge_it)
        await until(lambda: pool.waiting == 1)
        # The old one makes room all the time.
        await client.call(frame(request))
        await settle()
        assert answers == []
        await held.answer()
        event = await new.next()
        await event.answer(AgentResponse.block(403))
        await until(lambda: answers)

        assert not answers[0].is_allow


async def test_an_event_that_only_an_instance_hears_that_is_away_is_not_let_through(impatient: None) -> None:
    old, new = Peer(handshake(events=HEADS), behaviour=allow), Peer(handshake(events=BODIES), behaviour=allow)
    async with client_of(old, new) as client:
        pool = await connected(client, 2)
        assert (await client.call(chunk("a"))).is_allow  # type: ignore[union-attr]

        new.greeting = handshake(success=False, error="going")
        await new.links[0].aclose()
        await until(lambda: len(pool.connections) == 1 and pool.statistics()[1].state == "down")
        for name in "ab":
            with anyio.fail_after(2), pytest.raises(AgentConnectionError, match="going"):
                await client.call(chunk(name))
        assert (await client.call(head("c"))).is_allow  # type: ignore[union-attr]

        new.greeting = handshake(events=BODIES)
        await until(lambda: len(pool.connections) == 2)
        assert (await client.call(chunk("a"))).is_allow  # type: ignore[union-attr]


async def test_one_that_only_a_busy_instance_can_judge_holds_up_nobody_else() -> None:
    old, new = Peer(handshake(events=HEADS), behaviour=allow), Peer(handshake(events=BODIES))
    async with client_of(old, new, max_calls_per_connection=1) as client, anyio.create_task_group() as tasks:
        pool = await connected(client, 2)
        tasks.start_soon(client.call, chunk("a"))
        held = await new.next()
        tasks.start_soon(client.call, chunk("b"))
        await until(lambda: pool.waiting == 1)
        with anyio.move_on_after(1) as scope:
            await client.call(head("c"))
        blocked = scope.cancelled_caught
        await held.answer()
        await (await new.next()).answer()

        assert not blocked


# What is known of it


async def test_the_manager_tells_what_an_agent_has_said_of_itself() -> None:
    peer = Peer(handshake(events=BODIES, features={"cancellation": True, "concurrent_requests": 7, "new": 1}))
    async with managing(peer, connections=1) as manager:
        capabilities = manager.agent_capabilities("waf")

        assert capabilities is not None
        assert (capabilities.agent_id, capabilities.name, capabilities.version) == ("peer", "peer", "1.0")
        assert set(capabilities.supported_events) == {EVENT_NUMBERS[event] for event in BODIES}
        assert capabilities.features.cancellation
        assert capabilities.features.concurrent_requests == 7
        assert capabilities.events == BODIES


async def test_an_agent_of_the_older_kits_has_said_nothing() -> None:
    peer = Peer(framing="envelope", behaviour=allow)
    stream = {"connections": 1, "framing": "envelope"}
    async with managing(peer, connections=1, stream=stream, events=HEADS) as manager:
        assert manager.agent_capabilities("waf") is None
        assert (await manager.process_request_headers(head())).is_allow


async def test_statistics_tell_what_is_under_way() -> None:
    peer = Peer()
    options = {"connections": 2, "max_calls_per_connection": 2}
    async with managing(peer, connections=2, stream=options) as manager, anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(manager.process_request_headers, head(str(number)))
        await until(lambda: peer.unread == 4)
        statistics = manager.statistics()["waf"]

        assert statistics.transport == "stream"
        assert (statistics.in_flight, statistics.max_in_flight, statistics.waiting) == (6, 100, 2)
        assert statistics.connections == 2
        (endpoint,) = statistics.endpoints
        assert (endpoint.address, endpoint.state, endpoint.in_flight, endpoint.fault) == (peer.url, "up", 4, "")
        for _ in range(6):
            await (await peer.next()).answer()

    assert manager.statistics()["waf"].endpoints == ()


async def test_statistics_of_an_agent_that_is_away_tell_why() -> None:
    url = nowhere()
    async with AgentManager([agent(url)]) as manager:
        (endpoint,) = manager.statistics()["waf"].endpoints

        assert (endpoint.address, endpoint.state, endpoint.connections) == (url, "down", 0)
        assert "FileNotFoundError" in endpoint.fault


# Limits


@pytest.mark.parametrize(("size", "status"), [(10, 200), (11, 413), (100_000, 413)])
@pytest.mark.parametrize("mode", [BodyMode.BUFFER, BodyMode.STREAM, BodyMode.hybrid(4), BodyMode.hybrid(64)])
async def test_a_body_that_is_more_than_an_agent_takes_is_a_413(size: int, status: int, mode: BodyMode) -> None:
    heard: list[Received] = []
    peer = Peer(handshake(limits={"max_body_size": 10}), behaviour=recording(allow, heard))
    async with managing(peer, connections=1, request_body_mode=mode) as manager:
        answer = await get(AgentMiddleware(echo, manager=manager), body=b"x" * size)

        assert answer[0] == status
        if status == 413:
            assert answer[1] == b"Payload too large for security inspection"
            assert EventType.REQUEST_BODY_CHUNK not in {event.event_type for event in heard}
            assert manager.metrics["waf"].outcomes["request_too_large"] == 1
        assert peer.accepted == 1


async def test_in_fail_open_mode_a_body_that_is_too_large_for_an_agent_passes_it_by() -> None:
    peer = Peer(handshake(limits={"max_body_size": 10}), behaviour=allow)
    async with managing(peer, connections=1, failure_mode=FailureMode.OPEN) as manager:
        assert await get(AgentMiddleware(echo, manager=manager), body=b"x" * 11) == (200, b"11 bytes")


async def test_a_body_that_is_too_large_is_a_413_before_the_handshake_too() -> None:
    peer = Peer(handshake(limits={"max_body_size": 10}), behaviour=allow)
    async with peer.listening():
        manager = AgentManager([agent(peer)])
        try:
            assert (await get(AgentMiddleware(echo, manager=manager), body=b"x" * 11))[0] == 413
        finally:
            await manager.shutdown()


async def test_of_several_instances_the_one_that_takes_least_says_how_much() -> None:
    first = Peer(handshake(limits={"max_body_size": 100}), behaviour=allow)
    second = Peer(handshake(limits={"max_body_size": 10}), behaviour=allow)
    async with managing(first, second, connections=2) as manager:
        assert registry_of(manager).guard("waf").max_body_size == 10


async def test_an_agent_has_no_more_calls_under_way_than_it_says() -> None:
    peer = Peer(handshake(limits={"max_concurrency": 3}))
    async with managing(peer, connections=4, stream={"connections": 4}) as manager:
        assert manager.statistics()["waf"].max_in_flight == 3
        async with anyio.create_task_group() as tasks:
            for number in range(9):
                tasks.start_soon(manager.process_request_headers, head(str(number)))
            for _ in range(9):
                await until(lambda: peer.unread)
                assert peer.unread <= 3
                await (await peer.next()).answer()


async def test_calls_that_have_begun_before_the_handshake_are_no_more_than_the_agent_takes_either() -> None:
    peer = Peer(handshake(limits={"max_concurrency": 2}))
    async with client_of(peer, connections=4) as client, anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(client.call, head(str(number)))
        await until(lambda: len(peer.links) == 4 and peer.unread)
        await settle()
        most = peer.unread
        for _ in range(12):
            await (await peer.next()).answer()

        assert most <= 2


async def test_no_instance_has_more_calls_under_way_than_it_says() -> None:
    """A slow one must not gather what the other is quick to answer."""
    slow = Peer(handshake(limits={"max_concurrency": 2}))
    quick = Peer(handshake(limits={"max_concurrency": 2}), behaviour=allow)
    stream = {"connections": 2}
    async with managing(slow, quick, connections=4, stream=stream) as manager, anyio.create_task_group() as tasks:
        assert manager.statistics()["waf"].max_in_flight == 4
        for number in range(16):
            tasks.start_soon(manager.process_request_headers, head(str(number)))
            await settle()
        most = slow.unread
        for _ in range(most):
            await (await slow.next()).answer()
        slow.behaviour = allow

        assert most <= 2


async def test_those_who_wait_for_a_connection_get_what_the_loss_of_another_sets_free(impatient: None) -> None:
    """The connections share what the agent takes."""
    peer = Peer(handshake(limits={"max_concurrency": 1}))
    async with client_of(peer, connections=2) as client, anyio.create_task_group() as tasks:
        pool = await connected(client, 2)
        for name in "ab":
            tasks.start_soon(client.call, head(name))
            await (await peer.next()).answer()
        await until(lambda: is_idle(pool))
        assert pool.rotation.affinities.connections["a"] is not pool.rotation.affinities.connections["b"]

        async def lose() -> None:
            with pytest.raises(AgentError):
                await client.call(chunk("a"))

        tasks.start_soon(lose)
        lost = await peer.next()
        tasks.start_soon(client.call, chunk("b"))
        await until(lambda: pool.waiting == 1)
        await lost.link.aclose()

        event = await peer.next()
        assert event.correlation_id == "b"
        await event.answer()


async def test_no_connection_has_more_calls_under_way_than_the_agent_says() -> None:
    peer = Peer(handshake(features={"concurrent_requests": 2}))
    async with client_of(peer, connections=2) as client, anyio.create_task_group() as tasks:
        await connected(client, 2)
        for number in range(9):
            tasks.start_soon(client.call, head(str(number)))
        await until(lambda: peer.unread == 4)
        await settle()
        assert peer.unread == 4
        events = [await peer.next() for _ in range(4)]
        assert Counter(event.link.number for event in events) == {0: 2, 1: 2}
        for event in events:
            await event.answer()
        for _ in range(5):
            await (await peer.next()).answer()


@pytest.mark.parametrize("limits", [{"max_concurrency": 0, "max_body_size": 0}, {"max_concurrency": -1}])
async def test_limits_that_mean_nothing_limit_nothing(limits: dict[str, int]) -> None:
    peer = Peer(handshake(limits=limits, features={"concurrent_requests": 0}), behaviour=allow)
    async with managing(peer, connections=1) as manager:
        assert manager.statistics()["waf"].max_in_flight == 100
        assert (await get(AgentMiddleware(echo, manager=manager), body=b"x" * 5000))[0] == 200


async def test_what_an_agent_takes_never_widens_what_is_configured() -> None:
    peer = Peer(handshake(limits={"max_concurrency": 5000, "max_body_size": 10**9}), behaviour=allow)
    async with managing(peer, connections=1, max_concurrent_calls=7, max_request_body_bytes=20) as manager:
        assert manager.statistics()["waf"].max_in_flight == 7
        assert (await get(AgentMiddleware(echo, manager=manager), body=b"x" * 21))[0] == 413


async def test_a_limit_that_grows_lets_those_in_who_wait(impatient: None) -> None:
    peer = Peer(handshake(limits={"max_concurrency": 1}))
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        kinds: list[FailureKind | None] = []

        async def call(name: str) -> None:
            decision = await manager.process_request_headers(head(name))
            kinds.append(None if decision.failure is None else decision.failure.kind)

        tasks.start_soon(call, "first")
        await (await peer.next()).answer()
        await until(lambda: kinds.pop() is None if kinds else False)
        for name in "abc":
            tasks.start_soon(call, name)
        await until(lambda: manager.metrics["waf"].waiting == 2)
        peer.greeting = handshake(limits={"max_concurrency": 10})
        await (await peer.next()).link.aclose()
        for _ in range(2):
            await (await peer.next()).answer()
        await until(lambda: len(kinds) == 3)

        assert sorted(map(str, kinds)) == ["None", "None", "error"]
        assert manager.metrics["waf"].in_flight == 0
