"""Agents as the published kits run them."""

import random
from collections import Counter
from typing import Any

import anyio
import pytest
from anyio import CancelScope
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from asgi_agents import AgentMiddleware, AgentResponse, EventType, FailureKind, GuardrailResponse, InspectionType
from asgi_agents.evaluation.guardrail import inspect_guardrail
from asgi_agents.manager import registry_of
from asgi_agents.observability.correlation import outside_name

from .peer import Peer, Received, handshake
from .pools import (
    allow,
    chunk,
    client_of,
    complete,
    connected,
    get,
    head,
    managing,
    nowhere,
    pool_of,
    question,
    response_head,
    settle,
    until,
)
from .test_pool import impatient as impatient

HEADS = frozenset({EventType.REQUEST_HEADERS})
ALL = frozenset({EventType.REQUEST_HEADERS, EventType.REQUEST_BODY_CHUNK, EventType.RESPONSE_HEADERS})
PAIRS = 14


class AsItFinishes(Peer):
    """The TypeScript kit's loop: reads on while it judges, answers what is judged first, and names no event.

    It remembers a request where it has seen its head: on that connection.
    """

    def __init__(self, tasks: TaskGroup) -> None:
        super().__init__(framing="envelope")
        self._tasks = tasks
        self.seen: set[tuple[int, str]] = set()
        self.lost: list[str] = []
        self.at_a_time: Counter[int] = Counter()
        self.most = 0
        self._random = random.Random(7)  # noqa: S311 - no secret

    async def _event(self, event: Received) -> None:
        self.at_a_time[event.link.number] += 1
        self.most = max(self.most, self.at_a_time[event.link.number])
        self._tasks.start_soon(self._judge, event)

    async def _judge(self, event: Received) -> None:
        for _ in range(self._random.randrange(20)):
            await checkpoint()
        request = (event.link.number, event.correlation_id)
        if event.event_type is EventType.REQUEST_HEADERS:
            self.seen.add(request)
        elif request not in self.seen:
            # The kit lets it through.
            self.lost.append(event.correlation_id)
        uri = event.payload.get("uri", "")
        self.at_a_time[event.link.number] -= 1
        await event.answer(AgentResponse.block(403, uri) if "bad" in uri else AgentResponse.allow())


async def app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


@pytest.mark.parametrize("events", [HEADS, ALL], ids=["heads", "all"])
@pytest.mark.parametrize("connections", [None, 1, 3])
@pytest.mark.parametrize("calls", [5, 100])
async def test_every_request_gets_its_own_verdict_from_an_agent_that_answers_as_it_finishes(
    events: frozenset[EventType], connections: int | None, calls: int
) -> None:
    stream = {"framing": "envelope", "connections": connections}
    async with anyio.create_task_group() as tasks:
        peer = AsItFinishes(tasks)
        async with managing(peer, stream=stream, events=events, max_concurrent_calls=calls) as manager:
            guarded = AgentMiddleware(app, manager=manager)
            statuses: dict[str, int] = {}

            async def ask(path: str) -> None:
                statuses[path] = (await get(guarded, path, body=b"body"))[0]

            for turn in range(5):
                async with anyio.create_task_group() as requests:
                    for number in range(PAIRS):
                        requests.start_soon(ask, f"/good/{turn}/{number}")
                        requests.start_soon(ask, f"/bad/{turn}/{number}")

    assert len(statuses) == 5 * 2 * PAIRS
    assert {path: status for path, status in statuses.items() if status != (403 if "bad" in path else 200)} == {}
    assert peer.most == 1
    # All events of a request on one connection, or the kit has forgotten what they are about.
    assert peer.lost == []
    assert peer.accepted <= (connections or min(calls, 32))


async def test_connections_are_made_when_there_are_more_requests_than_connections_and_kept() -> None:
    peer = Peer(framing="envelope")
    async with client_of(peer, framing="envelope", connections=3) as client, anyio.create_task_group() as tasks:
        pool = await connected(client, 1)
        await settle()
        assert peer.accepted == 1
        for name in "abcd":
            tasks.start_soon(client.call, head(name))
        held = [await peer.next() for _ in range(3)]
        await settle()
        assert (peer.accepted, peer.unread, pool.waiting) == (3, 0, 1)
        assert len({event.link.number for event in held}) == 3
        for event in held:
            await event.answer()
        await (await peer.next()).answer()
        for name in "abcd":
            client.forget(name)
        await settle()

        assert (peer.accepted, len(pool.connections)) == (3, 3)


async def test_a_lost_connection_is_made_again_where_it_was_and_no_other_is_while_no_call_waits() -> None:
    first, second = Peer(framing="envelope"), Peer(framing="envelope")
    async with (
        client_of(first, second, framing="envelope", connections=3) as client,
        anyio.create_task_group() as tasks,
    ):
        pool = await connected(client, 2)
        for name in "ab":
            tasks.start_soon(client.call, head(name))
        events = [await first.next(), await second.next()]
        for event in events:
            await event.answer()
        await settle()
        await events[1].link.aclose()
        await until(lambda: second.accepted > 1)
        await settle()
        assert len(pool.queue) == 0
        assert first.accepted == 1


async def test_requests_have_connections_to_themselves_as_far_as_there_are_any() -> None:
    peer = Peer(framing="envelope", behaviour=allow)
    async with client_of(peer, framing="envelope", connections=4) as client:
        pool = await connected(client, 1)
        for name in "abcdefgh":
            await client.call(head(name))
            await until(lambda: len(pool.connections) == min(4, len(pool.rotation.affinities.connections)))
        assert max(len(connection.requests) for connection in pool.connections) <= 3
        for name in "abcdefgh":
            client.forget(name)

        await client.call(head("i"))
        assert sorted(len(connection.requests) for connection in pool.connections) == [0, 0, 0, 1]


async def test_a_call_that_was_given_up_keeps_its_connection_from_others_and_nobody_waits_for_it() -> None:
    peer = Peer(framing="envelope")
    async with client_of(peer, framing="envelope", connections=3) as client, anyio.create_task_group() as tasks:
        await connected(client, 1)
        scope = CancelScope()

        async def give_up() -> None:
            with scope:
                await client.call(head("a"))

        tasks.start_soon(give_up)
        late = await peer.next()
        scope.cancel()
        client.forget("a")
        tasks.start_soon(client.call, head("b"))
        event = await peer.next()
        assert event.link is not late.link
        await event.answer()
        # What comes now is to the one that was given up.
        await late.answer(AgentResponse.block(403))
        await until(
            lambda: sum(connection.pending_calls.late_answers for connection in pool_of(client).connections) == 1
        )


async def test_whoever_gives_up_while_a_connection_is_made_for_it_leaves_nothing_behind() -> None:
    peer = Peer(framing="envelope")
    async with client_of(peer, framing="envelope", connections=2) as client, anyio.create_task_group() as tasks:
        pool = await connected(client, 1)
        tasks.start_soon(client.call, head("a"))
        held = await peer.next()
        for delay in range(12):
            with CancelScope() as scope:
                async with anyio.create_task_group() as short:
                    short.start_soon(client.call, head("b"))
                    for _ in range(delay):
                        await checkpoint()
                    scope.cancel()
            client.forget("b")
            while peer.unread:
                await (await peer.next()).answer()
        await held.answer()
        await until(lambda: all(connection.calls == 0 for connection in pool.connections))
        assert pool.waiting == 0
        assert len(pool.connections) <= 2


async def test_where_no_more_connections_can_be_made_those_that_there_are_go_round(impatient: None) -> None:
    class OnlyOne(Peer):
        async def _serve(self, stream: Any) -> None:
            if self.links:
                await stream.aclose()
            else:
                await super()._serve(stream)

    peer = OnlyOne(framing="envelope", behaviour=allow)
    async with client_of(peer, framing="envelope", connections=8) as client, anyio.create_task_group() as tasks:
        await connected(client, 1)
        answers: list[Any] = []

        async def call(name: str) -> None:
            for event in (head(name), chunk(name), response_head(name), complete(name)):
                with anyio.move_on_after(5):
                    try:
                        answers.append(await client.call(event))
                    except Exception as exc:
                        answers.append(exc)
            client.forget(name)

        for name in "abcdefgh":
            tasks.start_soon(call, name)
        await until(lambda: len(answers) == 32)

        # Those connections that were closed at once may have taken a call with them.
        assert any(not isinstance(answer, Exception) for answer in answers)


async def test_of_several_endpoints_those_that_are_there_get_the_connections() -> None:
    peer = Peer(framing="envelope")
    async with client_of(nowhere(), peer, framing="envelope", connections=3) as client:
        await connected(client, 1)
        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(client.call, head(name))
            held = [await peer.next() for _ in range(3)]
            for event in held:
                await event.answer()

        assert peer.accepted == 3


async def test_two_endpoints_share_the_requests() -> None:
    first, second = Peer(framing="envelope"), Peer(framing="envelope")
    async with client_of(first, second, framing="envelope", connections=2) as client:
        await connected(client, 2)
        async with anyio.create_task_group() as tasks:
            for name in "abcd":
                tasks.start_soon(client.call, head(name))
            held = [await peer.next() for peer in (first, first, second, second)]
            for event in held:
                await event.answer()

        assert (first.accepted, second.accepted) == (2, 2)


# Guardrail events, that not every agent knows


class SilentOnGuardrails(Peer):
    """The Rust kit's server: answers by correlation id, and no guardrail event at all."""

    def __init__(self, **features: Any) -> None:
        super().__init__(handshake(events=ALL | {EventType.GUARDRAIL_INSPECT}, features=features))
        self.questions: list[str] = []

    async def _event(self, event: Received) -> None:
        if event.event_type is EventType.GUARDRAIL_INSPECT:
            self.questions.append(event.correlation_id)
        elif event.event_type is EventType.REQUEST_BODY_CHUNK:
            await event.answer(AgentResponse.block(403, "evil"))
        else:
            await event.answer()


@pytest.mark.parametrize("inspections", [1, 5])
async def test_an_inspection_that_is_never_answered_takes_no_answer_of_its_request(inspections: int) -> None:
    peer = SilentOnGuardrails()
    async with managing(peer, connections=1, timeout=0.05, circuit_breaker=None) as manager:
        await manager.process_request_headers(head("c"))
        for _ in range(inspections):
            verdict, _ = await inspect_guardrail(registry_of(manager).guard("waf"), question("c"))
            assert verdict.failure is not None
            assert verdict.failure.kind is FailureKind.TIMEOUT
        decision = await manager.process_request_body(chunk("c"))

        assert not decision.is_allow
        assert decision.failure is None
    assert len(set(peer.questions)) == inspections
    assert all(name.startswith(f"{outside_name('c')}/inspect-") for name in peer.questions)


async def test_an_inspection_is_answered_by_the_id_that_it_has_on_the_wire() -> None:
    peer = Peer(handshake(features={"cancellation": True}))
    async with client_of(peer) as client, anyio.create_task_group() as tasks:
        await connected(client)
        found: list[Any] = []

        async def ask() -> None:
            found.append(await client.call(question("c")))

        tasks.start_soon(ask)
        event = await peer.next()
        await event.answer(GuardrailResponse(detected=True))
        await until(lambda: found)
        assert found[0].detected

        with CancelScope() as scope:
            async with anyio.create_task_group() as short:
                short.start_soon(client.call, question("c"))
                event = await peer.next()
                scope.cancel()
        await until(lambda: peer.cancels)
        assert peer.cancels[0].correlation_id == event.correlation_id
        assert event.payload["inspection_type"] == InspectionType.PII_DETECTION


async def test_where_calls_have_ids_an_inspection_keeps_the_id_of_its_request() -> None:
    peer = Peer(handshake(features={"call_ids": True}))
    async with client_of(peer) as client, anyio.create_task_group() as tasks:
        await connected(client)
        tasks.start_soon(client.call, question("c"))
        event = await peer.next()
        assert event.correlation_id == "c"
        await event.answer()
