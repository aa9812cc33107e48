"""An agent that asks to be sent less: who waits, who goes on, and what it counts as."""

from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from asgi_agents import (
    AgentDecision,
    AgentManager,
    AgentMiddleware,
    AgentResponse,
    BreakerState,
    CircuitBreakerConfig,
    FailureKind,
    FailureMode,
)
from asgi_agents.manager import registry_of
from asgi_agents.observability.correlation import outside_name
from asgi_agents.protocol.stream import FlowAction, FlowControl, MessageType, encode_message

from .peer import Peer, Received, handshake
from .pools import (
    allow,
    chunk,
    client_in,
    client_of,
    connected,
    get,
    head,
    is_idle,
    managing,
    pool_of,
    recording,
    settle,
    states,
    until,
)

PAUSE, RESUME, CAPACITY = FlowAction


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


class Calls:
    """Requests that are made beside the test, and how they ended."""

    def __init__(self, manager: AgentManager, tasks: TaskGroup) -> None:
        self.manager = manager
        self.tasks = tasks
        self.decisions: dict[str, AgentDecision] = {}

    def begin(self, name: str, failure_mode: FailureMode = FailureMode.CLOSED) -> None:
        async def call() -> None:
            event = head(name)
            self.decisions[name] = await self.manager.process_request_headers(event, [("waf", failure_mode)])

        self.tasks.start_soon(call)

    async def are_held(self, *names: str) -> None:
        await until(lambda: pool_of(client_in(self.manager)).waiting >= len(names))
        await settle()
        assert not self.decisions.keys() & set(names)

    async def ended(self, *names: str) -> None:
        await until(lambda: self.decisions.keys() >= set(names))


async def paused(manager: AgentManager, peer: Peer, **fields: Any) -> None:
    for link in tuple(peer.links):
        await link.flow(PAUSE, **fields)
    await until(lambda: states(manager) == ["paused"])


# Pause


async def test_calls_are_held_while_the_agent_has_paused_and_go_on_when_it_resumes() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        calls = Calls(manager, tasks)
        await paused(manager, peer)
        for name in "abc":
            calls.begin(name)
        await calls.are_held("a", "b", "c")

        await peer.links[0].flow(RESUME)
        await calls.ended("a", "b", "c")

        assert all(decision.is_allow for decision in calls.decisions.values())
        assert states(manager) == ["up"]
        assert is_idle(pool_of(client_in(manager)))


async def test_a_call_that_was_held_until_its_deadline_is_a_503_and_not_the_agents_fault() -> None:
    peer = Peer(behaviour=allow)
    breaker = CircuitBreakerConfig(failure_threshold=1)
    async with managing(peer, connections=1, timeout=0.02, circuit_breaker=breaker) as manager:
        await paused(manager, peer)
        app = AgentMiddleware(hello, manager=manager)
        for _ in range(3):
            assert await get(app) == (503, b"Service unavailable")

        assert set(manager.metrics["waf"].outcomes) == {"queue_timeout"}
        assert manager.statistics()["waf"].breaker is BreakerState.CLOSED
        assert pool_of(client_in(manager)).waiting == 0
        assert peer.unread == 0


async def test_the_failure_says_that_the_agent_has_asked_for_a_pause() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1, timeout=0.02) as manager:
        await paused(manager, peer)
        failure = (await manager.process_request_headers(head())).failure

        assert failure is not None
        assert failure.kind is FailureKind.QUEUE_TIMEOUT
        assert "pause" in failure.message


@pytest.mark.parametrize(
    ("permit_at", "place_at", "kind"),
    [
        (0.0, None, FailureKind.QUEUE_TIMEOUT),
        (0.04, None, FailureKind.QUEUE_TIMEOUT),
        (0.04, 0.04, FailureKind.TIMEOUT),
        (0.0, 0.04, FailureKind.TIMEOUT),
        (0.03, 0.06, FailureKind.TIMEOUT),
    ],
)
async def test_waiting_for_a_permit_and_for_a_place_and_for_the_answer_have_one_deadline(
    permit_at: float, place_at: float | None, kind: FailureKind
) -> None:
    """``permit_at`` and ``place_at``: after how many seconds there is one."""
    peer = Peer()  # which answers nothing
    async with managing(peer, connections=1, max_concurrent_calls=1, timeout=0.1) as manager:
        await paused(manager, peer)
        began = anyio.current_time()

        async def hold_the_permit() -> None:
            with anyio.move_on_after(permit_at):
                await manager.process_request_headers(head("a"))

        async with anyio.create_task_group() as tasks:
            if permit_at:
                tasks.start_soon(hold_the_permit)
                await settle()
            calls = Calls(manager, tasks)
            calls.begin("b")
            if place_at is not None:
                await anyio.sleep_until(began + place_at)
                await peer.links[0].flow(RESUME)
            await calls.ended("b")

        failure = calls.decisions["b"].failure
        assert failure is not None
        assert failure.kind is kind
        assert anyio.current_time() - began == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("end", ["a place", "the deadline", "a cancellation", "a lost connection"])
async def test_a_call_is_counted_as_waiting_until_its_wait_for_a_place_has_ended(end: str) -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1, timeout=0.1) as manager, anyio.create_task_group() as tasks:
        await paused(manager, peer)
        calls = Calls(manager, tasks)
        calls.begin("a")
        await calls.are_held("a")
        assert (manager.metrics["waf"].in_flight, manager.metrics["waf"].waiting) == (1, 1)
        match end:
            case "a place":
                await peer.links[0].flow(RESUME)
            case "a cancellation":
                tasks.cancel_scope.cancel()
            case "a lost connection":
                await peer.links[0].aclose()
            case _:
                await calls.ended("a")
        with anyio.CancelScope(shield=True):
            await until(lambda: manager.metrics["waf"].in_flight == 0)
        assert manager.metrics["waf"].waiting == 0


async def test_in_fail_open_mode_a_pause_holds_nobody_up() -> None:
    heard: list[Received] = []
    peer = Peer(behaviour=recording(allow, heard))
    breaker = CircuitBreakerConfig(failure_threshold=1)
    async with managing(peer, connections=1, failure_mode=FailureMode.OPEN, circuit_breaker=breaker) as manager:
        await paused(manager, peer)
        app = AgentMiddleware(hello, manager=manager)
        with anyio.fail_after(2):
            for _ in range(5):
                assert await get(app) == (200, b"hello")

        assert heard == []
        assert set(manager.metrics["waf"].outcomes) == {"unavailable"}
        assert manager.metrics["waf"].passed_open == manager.metrics["waf"].calls
        assert manager.statistics()["waf"].breaker is BreakerState.CLOSED


async def test_calls_that_are_held_dont_hold_up_those_that_need_not_wait() -> None:
    """Even where the held ones have all of the agent's permits."""
    peer = Peer(behaviour=allow)
    async with (
        managing(peer, connections=1, max_concurrent_calls=2) as manager,
        anyio.create_task_group() as tasks,
    ):
        calls = Calls(manager, tasks)
        await paused(manager, peer)
        calls.begin("a")
        calls.begin("b")
        await calls.are_held("a", "b")
        calls.begin("open", FailureMode.OPEN)
        with anyio.move_on_after(1):
            await calls.ended("open")
        held = "open" not in calls.decisions
        await peer.links[0].flow(RESUME)

        assert not held


async def test_calls_under_way_are_answered_during_a_pause() -> None:
    peer = Peer()
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        calls = Calls(manager, tasks)
        calls.begin("a")
        event = await peer.next()
        await paused(manager, peer)
        await event.answer(AgentResponse.block(418))
        await calls.ended("a")

        assert not calls.decisions["a"].is_allow


async def test_a_held_call_that_is_given_up_leaves_nothing() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await paused(manager, peer)
        with anyio.move_on_after(0.02):
            await manager.process_request_headers(head())
        pool = pool_of(client_in(manager))
        assert is_idle(pool)
        assert manager.metrics["waf"].in_flight == 0
        await peer.links[0].flow(RESUME)
        assert (await manager.process_request_headers(head("b"))).is_allow


async def test_a_trial_call_that_is_held_leaves_the_breaker_half_open() -> None:
    peer = Peer(behaviour=allow)
    breaker = CircuitBreakerConfig(failure_threshold=1, reset_timeout=3600)
    async with managing(peer, connections=1, timeout=0.02, circuit_breaker=breaker) as manager:
        guard = registry_of(manager).guard("waf")
        assert guard.breaker is not None
        guard.breaker.failure(0)
        guard.breaker.try_again()
        await paused(manager, peer)
        await manager.process_request_headers(head())

        assert guard.breaker.state is BreakerState.HALF_OPEN
        assert guard.breaker.trials == 0


async def test_one_connection_that_has_paused_leaves_its_calls_to_the_others() -> None:
    heard: list[Received] = []
    peer = Peer(behaviour=recording(allow, heard))
    async with managing(peer, connections=2, stream={"connections": 2}) as manager:
        link = peer.links[0]
        await link.flow(PAUSE)
        await until(lambda: any(connection.flow.paused for connection in pool_of(client_in(manager)).connections))
        for number in range(6):
            assert (await manager.process_request_headers(head(str(number)))).is_allow

        assert link.number not in {event.link.number for event in heard}
        assert states(manager) == ["up"]


async def test_a_request_waits_for_its_own_connection_where_that_has_paused() -> None:
    peer = Peer(behaviour=allow)
    async with (
        managing(peer, connections=2, stream={"connections": 2}) as manager,
        anyio.create_task_group() as tasks,
    ):
        pool = pool_of(client_in(manager))
        heard: list[Received] = []
        peer.behaviour = recording(allow, heard)
        await manager.process_request_headers(head("a"))
        link = heard[0].link
        await link.flow(PAUSE)
        await until(lambda: any(connection.flow.paused for connection in pool.connections))
        done = anyio.Event()

        async def go_on() -> None:
            await manager.process_request_body(chunk("a"))
            done.set()

        tasks.start_soon(go_on)
        await until(lambda: pool.waiting == 1)
        await settle()
        assert not done.is_set()
        await link.flow(RESUME)
        with anyio.fail_after(5):
            await done.wait()

        assert heard[-1].link is link


async def test_a_pause_is_forgotten_with_the_connection() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        calls = Calls(manager, tasks)
        await manager.process_request_headers(head("before"))
        await paused(manager, peer)
        calls.begin("a")
        await calls.are_held("a")
        await peer.links[0].aclose()
        await calls.ended("a")

        assert calls.decisions["a"].is_allow


async def test_a_pause_that_comes_with_the_handshake_holds() -> None:
    pause = encode_message(MessageType.FLOW_CONTROL, FlowControl(action=PAUSE))
    peer = Peer(handshake() + pause, behaviour=allow)
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        calls = Calls(manager, tasks)
        assert states(manager) == ["paused"]
        calls.begin("a")
        await calls.are_held("a")
        await peer.links[0].flow(RESUME)
        await calls.ended("a")


# One correlation id


async def test_a_pause_of_one_request_is_no_pause_of_the_others() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        calls = Calls(manager, tasks)
        await manager.process_request_headers(head("a"))
        await peer.links[0].flow(PAUSE, correlation_id=outside_name("a"))
        await until(lambda: pool_of(client_in(manager)).rotation.is_paused(outside_name("a")))
        calls.begin("a")
        await calls.are_held("a")
        for name in "bcd":
            calls.begin(name)
        await calls.ended("b", "c", "d")
        assert "a" not in calls.decisions

        await peer.links[0].flow(RESUME, correlation_id=outside_name("a"))
        await calls.ended("a")
        assert states(manager) == ["up"]


async def test_a_request_that_is_paused_holds_up_nobody_else_on_its_connection() -> None:
    """Both requests are under way, and have their later events on the same connection."""
    peer = Peer(behaviour=allow)
    async with client_of(peer) as client, anyio.create_task_group() as tasks:
        pool = await connected(client)
        await client.call(head("a"))
        await client.call(head("b"))
        await peer.links[0].flow(PAUSE, correlation_id="a")
        await until(lambda: pool.rotation.is_paused("a"))
        tasks.start_soon(client.call, chunk("a"))
        await until(lambda: pool.waiting == 1)
        with anyio.move_on_after(1) as scope:
            await client.call(chunk("b"))
        held = scope.cancelled_caught
        await peer.links[0].flow(RESUME, correlation_id="a")
        await until(lambda: is_idle(pool))

        assert not held


async def test_a_request_that_is_paused_holds_up_nobody_who_came_before() -> None:
    """The other one waits already when the place comes, behind the one that is paused."""
    peer = Peer()
    async with client_of(peer, max_calls_per_connection=1) as client, anyio.create_task_group() as tasks:
        pool = await connected(client)
        for name in "ab":
            tasks.start_soon(client.call, head(name))
            await (await peer.next()).answer()
        await until(lambda: is_idle(pool))
        tasks.start_soon(client.call, head("c"))
        held = await peer.next()
        tasks.start_soon(client.call, chunk("a"))
        await until(lambda: pool.waiting == 1)
        tasks.start_soon(client.call, chunk("b"))
        await until(lambda: pool.waiting == 2)
        await held.link.flow(PAUSE, correlation_id="a")
        await until(lambda: pool.rotation.is_paused("a"))
        await held.answer()
        with anyio.move_on_after(1):
            await until(lambda: peer.unread)
        passed = peer.unread
        await held.link.flow(RESUME, correlation_id="a")
        for _ in range(2):
            await (await peer.next()).answer()

        assert passed


async def test_in_fail_open_mode_a_request_that_is_paused_goes_on() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1, failure_mode=FailureMode.OPEN) as manager:
        await manager.process_request_headers(head("a"))
        await peer.links[0].flow(PAUSE, correlation_id=outside_name("a"))
        await until(lambda: pool_of(client_in(manager)).rotation.is_paused(outside_name("a")))
        with anyio.fail_after(2):
            decision = await manager.process_request_body(chunk("a"))

        assert decision.is_allow
        assert manager.metrics["waf"].outcomes["unavailable"] == 1


async def test_a_paused_request_that_is_over_is_no_memory_for_the_next_of_that_id() -> None:
    peer = Peer(behaviour=allow)
    async with client_of(peer) as client:
        pool = await connected(client)
        await client.call(head("a"))
        await peer.links[0].flow(PAUSE, correlation_id="a")
        await until(lambda: pool.rotation.is_paused("a"))
        client.forget("a")

        with anyio.fail_after(2):
            await client.call(head("a"))


# Capacity


async def test_no_more_bytes_are_sent_than_the_agent_has_room_for() -> None:
    peer = Peer()
    async with client_of(peer) as client, anyio.create_task_group() as tasks:
        pool = await connected(client)
        await peer.links[0].flow(CAPACITY, buffer_available=1)
        await until(lambda: pool.connections[0].flow.window == 1)
        for name in "abc":
            tasks.start_soon(client.call, head(name))
        # One call at a time, however large: else a small window would be the end.
        for left in (2, 1, 0):
            event = await peer.next()
            await settle()
            assert (peer.unread, pool.waiting) == (0, left)
            await event.answer()


async def test_no_capacity_at_all_is_a_pause() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        calls = Calls(manager, tasks)
        await peer.links[0].flow(CAPACITY, buffer_available=0)
        await until(lambda: pool_of(client_in(manager)).rotation.is_paused("a"))
        calls.begin("a")
        calls.begin("open", FailureMode.OPEN)
        await calls.ended("open")
        await calls.are_held("a")
        assert calls.decisions["open"].verdicts[0].outcome == "unavailable"

        await peer.links[0].flow(CAPACITY, buffer_available=100_000)
        await calls.ended("a")


async def test_capacity_without_a_number_is_no_limit() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager, anyio.create_task_group() as tasks:
        calls = Calls(manager, tasks)
        await peer.links[0].flow(CAPACITY, buffer_available=0)
        await until(lambda: pool_of(client_in(manager)).rotation.is_paused("a"))
        calls.begin("a")
        await calls.are_held("a")
        await peer.links[0].flow(CAPACITY)
        await calls.ended("a")


async def test_answers_to_calls_that_were_given_up_make_room_again() -> None:
    peer = Peer()
    async with client_of(peer) as client, anyio.create_task_group() as tasks:
        pool = await connected(client)
        await peer.links[0].flow(CAPACITY, buffer_available=1)
        await until(lambda: pool.connections[0].flow.window == 1)
        with anyio.move_on_after(0.02):
            await client.call(head("a"))
        late = await peer.next()
        tasks.start_soon(client.call, head("b"))
        await until(lambda: pool.waiting == 1)
        await late.answer()
        await (await peer.next()).answer()


@pytest.mark.parametrize("action", [0, 4, 99])
async def test_actions_from_the_future_say_nothing(action: int) -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await paused(manager, peer)
        await peer.links[0].flow(action, buffer_available=0)
        await peer.links[0].flow(action, correlation_id="a")
        await settle()

        assert states(manager) == ["paused"]
        assert peer.accepted == 1


async def test_a_pause_of_a_request_that_is_over_is_not_remembered() -> None:
    peer = Peer(behaviour=allow)
    async with client_of(peer) as client:
        pool = await connected(client)
        for number in range(50):
            await peer.links[0].flow(PAUSE, correlation_id=f"over-{number}")
        await settle()
        with anyio.fail_after(2):
            await client.call(head("over-1"))

        assert not pool.connections[0].flow._paused_ids


async def test_resuming_what_was_not_paused_is_nothing() -> None:
    peer = Peer(behaviour=allow)
    async with managing(peer, connections=1) as manager:
        await peer.links[0].flow(RESUME)
        await peer.links[0].flow(RESUME, correlation_id="never")
        await settle()

        assert (await manager.process_request_headers(head())).is_allow
