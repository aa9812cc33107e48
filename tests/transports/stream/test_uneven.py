"""Instances of one agent that hear different events: what any of them hears is judged by one that does, or it fails."""

import random
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_agents import AgentError, AgentManager, AgentMiddleware, AgentResponse, EventType
from asgi_agents.manager import registry_of
from asgi_agents.protocol import Block, Event
from asgi_agents.protocol.stream import HealthState
from tests.support.examples import examples

from .peer import Peer, Received, handshake
from .pools import (
    agent,
    allow,
    chunk,
    client_in,
    client_of,
    connected,
    get,
    head,
    managing,
    pool_of,
    response_head,
    until,
)
from .test_pool import impatient as impatient

HEAD, BODY, RESPONSE = EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_HEADERS
KINDS = (HEAD, BODY, RESPONSE)


async def answer_ok(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answer"})


def blocks_responses(event: Received) -> Any:
    blocked = event.event_type is RESPONSE
    return event.answer(AgentResponse.block(451) if blocked else AgentResponse.allow())


@pytest.mark.parametrize("away", [False, True])
async def test_an_instance_that_begins_to_drain_gives_no_consent_to_what_only_another_hears(
    away: bool, impatient: None
) -> None:
    """Its request has seen it already, and goes on with it for what it hears."""
    first = Peer(handshake(events=frozenset({HEAD})), behaviour=allow)
    second = Peer(handshake(events=frozenset({RESPONSE})), behaviour=blocks_responses)
    async with managing(first, second, connections=2) as manager:
        drained: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            drained.append(1)
            first.greeting = handshake(success=False, error="it is ending")
            (draining,) = (c for c in pool_of(client_in(manager)).connections if c.address == first.url)
            await first.links[0].say(HealthState.DRAINING)
            await until(lambda: draining.health.state is HealthState.DRAINING)
            if away:
                second.greeting = handshake(success=False, error="away")
                await second.links[0].aclose()
                await until(lambda: manager.statistics()["waf"].endpoints[1].state == "down")
            await answer_ok(scope, receive, send)

        status, _ = await get(AgentMiddleware(app, manager=manager))

        assert drained
        assert status == (503 if away else 451)


async def test_an_event_that_only_an_unhealthy_instance_hears_fails_at_once() -> None:
    first = Peer(handshake(events=frozenset({HEAD})), behaviour=allow)
    second = Peer(handshake(events=frozenset({HEAD, BODY})), behaviour=allow)
    async with client_of(first, second) as client:
        pool = await connected(client, 2)
        await second.links[0].say(HealthState.UNHEALTHY)
        await until(lambda: pool.statistics()[1].state == "unhealthy")
        for _ in range(3):
            with anyio.fail_after(2), pytest.raises(AgentError, match="unhealthy"):
                await client.call(chunk("a"))


async def test_what_a_lost_connection_heard_is_not_let_through_before_another_is_made_in_its_place(
    impatient: None,
) -> None:
    """Two processes behind one address, of which one is newer."""
    peer = Peer(handshake(events=frozenset({HEAD, BODY})), behaviour=allow)
    async with client_of(peer, connections=2) as client:
        pool = await connected(client, 1 + 1)
        peer.greeting = handshake(events=frozenset({HEAD}))
        await peer.links[0].aclose()
        await until(lambda: any(connection.events == {HEAD} for connection in pool.connections))
        assert BODY in client.hears
        newer = next(connection for connection in pool.connections if connection.events == {HEAD})
        peer.greeting = handshake(success=False, error="away")
        await peer.links[0].aclose()
        await until(lambda: pool.connections == [newer])

        assert BODY in client.hears
        with anyio.fail_after(2), pytest.raises(AgentError):
            await client.call(chunk("a"))
        peer.greeting = handshake(events=frozenset({HEAD}))
        await until(lambda: len(pool.connections) == 2)
        assert client.hears == {HEAD}


# Hypothesis drives

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "call", "call", "drain", "unhealthy", "healthy", "lose", "away", "return"]),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=20,
)
HEARD = st.lists(st.sets(st.sampled_from(KINDS), min_size=1), min_size=2, max_size=3)


def event_of(kind: EventType, request: str) -> Event:
    match kind:
        case EventType.REQUEST_HEADERS:
            return head(request)
        case EventType.REQUEST_BODY_CHUNK:
            return chunk(request)
        case _:
            return response_head(request)


def judging(number: int) -> Any:
    return lambda event: event.answer(AgentResponse.block(403, f"{number}"))


async def change(peer: Peer, what: str, events: frozenset[EventType]) -> None:
    states = {"drain": HealthState.DRAINING, "unhealthy": HealthState.UNHEALTHY, "healthy": HealthState.HEALTHY}
    match what:
        case "away" | "lose":
            if what == "away":
                peer.greeting = handshake(success=False, error="away")
            for link in tuple(peer.links):
                await link.aclose()
        case "return":
            peer.greeting = handshake(events=events)
        case _:
            for link in tuple(peer.links):
                # The client may have closed it meanwhile.
                with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                    await link.say(states[what])


async def play(heard: Sequence[set[EventType]], configured: bool, steps: Sequence[Step]) -> None:
    all_heard = frozenset().union(*heard)
    async with AsyncExitStack() as stack:
        peers = []
        for number, events in enumerate(heard):
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            peer = Peer(handshake(events=frozenset(events)), path=f"{directory}/peer", behaviour=judging(number))
            peers.append(await stack.enter_async_context(peer.listening()))
        config = agent(*peers, events=all_heard if configured else None, timeout=0.05, circuit_breaker=None)
        manager = await stack.enter_async_context(AgentManager([config]))
        await until(lambda: manager.statistics()["waf"].connections == len(peers))
        client = registry_of(manager).guard("waf").client
        assert client is not None
        for what, first, second in steps:
            if what != "call":
                peer = peers[first % len(peers)]
                await change(peer, what, frozenset(heard[first % len(peers)]))
                if second % 2:
                    await anyio.sleep(0.001)
                continue
            kind = KINDS[first % len(KINDS)]
            if kind not in all_heard:
                continue
            try:
                with anyio.fail_after(0.05):
                    answer: Any = await client.call(event_of(kind, "abc"[second % 3]))
            except (AgentError, TimeoutError):
                continue
            assert isinstance(answer.decision, Block), f"nobody has judged {kind}"
            assert answer.decision.body is not None
            assert configured or kind in heard[int(answer.decision.body)]


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(heard=HEARD, steps=STEPS)
@settings(deadline=None, max_examples=examples(60), derandomize=True, database=None)
def test_every_event_that_any_instance_hears_is_judged_by_one_that_does_or_fails(
    backend: str, configured: bool, heard: list[set[EventType]], steps: list[Step]
) -> None:
    random.seed(0)
    anyio.run(play, heard, configured, steps, backend=backend)
