"""One manager that serves several event loops, each in a thread of its own."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from asgi_agents import Agent, AgentConfig, AgentManager, AgentResponse, CircuitBreakerConfig, EventType
from asgi_agents.breaker import BreakerState
from asgi_agents.breaker.shared_breaker import SharedBreaker
from asgi_agents.concurrency.event_loop import EventLoop, SharedEvent
from asgi_agents.concurrency.limiter import Limiter
from asgi_agents.concurrency.one_at_a_time import OneAtATime
from asgi_agents.concurrency.shared_limiter import SharedLimiter
from asgi_agents.decision import AgentDecision
from asgi_agents.manager import registry_of
from asgi_agents.transports.stream import StreamClient

from .test_manager import REQUEST, Fake, config
from .transports.stream.peer import Peer
from .transports.stream.pools import agent

# Reached only by what would never have ended.
PATIENCE = 30.0
PAIRS = [("asyncio", "asyncio"), ("asyncio", "trio"), ("trio", "asyncio"), ("trio", "trio")]
Main = Callable[[], Awaitable[Any]]


def run(backend: str, main: Main) -> Any:
    async def bounded() -> Any:
        with anyio.fail_after(PATIENCE):
            return await main()

    return anyio.run(bounded, backend=backend)


def together(pair: tuple[str, str], *mains: Main) -> list[Any]:
    """Run each in a thread with an event loop of its own, all at the same time."""
    with ThreadPoolExecutor(len(mains)) as threads:
        running = [threads.submit(run, pair[number % 2], main) for number, main in enumerate(mains)]
        return [each.result() for each in running]


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


async def eventually(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - another thread makes it true
        await anyio.sleep(0.001)


async def at_once(count: int, function: Callable[[], Awaitable[Any]]) -> list[Any]:
    results: list[Any] = []

    async def one() -> None:
        results.append(await function())

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(one)
    return results


class Busy(Agent):
    """Suspends, and sees how many do at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = self.calls = 0

    async def on_request_headers(self, event: object) -> None:
        with self._lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)
        await checkpoint()
        with self._lock:
            self.now -= 1


# Permits


@pytest.mark.parametrize("limit", [1, 3])
def test_requests_on_two_event_loops_share_an_agents_permits_and_all_get_one(
    pair: tuple[str, str], limit: int, restless: None
) -> None:
    busy = Busy()
    manager = AgentManager([AgentConfig("a", busy, max_concurrent_calls=limit, timeout=PATIENCE)])

    async def ask() -> AgentDecision:
        return await manager.process_request_headers(REQUEST)

    async def main() -> list[Any]:
        async with manager:
            return await at_once(50, ask)

    decisions = [decision for found in together(pair, *[main] * 4) for decision in found]
    assert [decision.is_allow for decision in decisions] == [True] * 200
    assert busy.most <= limit
    metrics = manager.metrics["a"]
    assert (metrics.calls, metrics.outcomes, metrics.in_flight, metrics.waiting) == (200, {"allow": 200}, 0, 0)


def test_a_waiter_is_woken_by_its_own_event_loop(pair: tuple[str, str]) -> None:
    """With nothing else that could wake it."""
    limiter = SharedLimiter(1)
    assert limiter.try_acquire()
    order: list[str] = []

    async def wait() -> int:
        await limiter.acquire()
        order.append("granted")
        limiter.release()
        return threading.get_ident()

    async def give() -> int:
        await eventually(lambda: limiter.waiting == 1)
        order.append("given")
        limiter.release()
        return threading.get_ident()

    waited, gave = together(pair, wait, give)
    assert waited != gave
    assert order == ["given", "granted"]
    assert (limiter.taken, limiter.waiting) == (0, 0)


def test_waiters_of_several_event_loops_get_permits_in_the_order_they_came(pair: tuple[str, str]) -> None:
    limiter = SharedLimiter(1)
    assert limiter.try_acquire()
    order: list[int] = []

    def waiting(turn: int) -> Main:
        async def wait() -> None:
            await eventually(lambda: limiter.waiting == turn)
            await limiter.acquire()
            order.append(turn)
            limiter.release()

        return wait

    async def give() -> None:
        await eventually(lambda: limiter.waiting == 6)
        limiter.release()

    together(pair, *[waiting(turn) for turn in range(6)], give)
    assert order == list(range(6))


def test_a_permit_that_comes_with_a_cancellation_is_passed_on(pair: tuple[str, str]) -> None:
    limiter = SharedLimiter(1)
    assert limiter.try_acquire()
    cancel = threading.Event()

    async def give_up() -> None:
        with anyio.CancelScope() as scope:

            async def watch() -> None:
                await eventually(cancel.is_set)
                # In one step, so that neither has been acted upon when the other comes.
                limiter.release()
                scope.cancel()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch)
                await limiter.acquire()
                limiter.release()

    async def wait() -> None:
        await eventually(lambda: limiter.waiting == 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limiter.acquire)
            await eventually(lambda: limiter.waiting == 2)
            cancel.set()

    together(pair, give_up, wait)
    assert (limiter.taken, limiter.waiting) == (1, 0)


@pytest.mark.parametrize("end", ["closed", "stopped"])
def test_a_waiter_whose_event_loop_does_not_run_holds_up_nobody(end: str, restless: None) -> None:
    limiter = SharedLimiter(1)
    assert limiter.try_acquire()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(limiter.acquire())
    loop.run_until_complete(asyncio.sleep(0))
    assert limiter.waiting == 1
    if end == "closed":
        loop.close()

    async def wait() -> None:
        await limiter.acquire()

    async def give() -> None:
        await eventually(lambda: limiter.waiting == 2)
        limiter.release()

    together(("asyncio", "trio"), wait, give)
    assert limiter.taken == 1
    if end == "stopped":
        limiter.release()
        waiting.cancel()
        loop.run_until_complete(asyncio.wait([waiting]))
        loop.close()
        assert (limiter.taken, limiter.waiting) == (0, 0)


@pytest.mark.parametrize("giver", ["no event loop", "another event loop"])
def test_a_waiter_whose_event_loop_runs_again_gets_the_permit_that_was_free_meanwhile(giver: str) -> None:
    limiter = SharedLimiter(1)
    event = SharedEvent()
    assert limiter.try_acquire()

    def give() -> None:
        limiter.release()
        event.set()

    async def give_there() -> None:
        give()

    loop = asyncio.new_event_loop()
    try:
        waiting = [loop.create_task(limiter.acquire()) for _ in range(2)] + [loop.create_task(event.wait())]
        loop.run_until_complete(asyncio.sleep(0))
        if giver == "no event loop":
            give()
        else:
            run("asyncio", give_there)
        # It was free for whoever could have taken it.
        assert (limiter.taken, limiter.waiting) == (0, 2)
        loop.run_until_complete(asyncio.wait_for(waiting[0], PATIENCE))
        loop.run_until_complete(asyncio.wait_for(waiting[2], PATIENCE))
        assert (limiter.taken, limiter.waiting) == (1, 1)
        limiter.release()
        loop.run_until_complete(asyncio.wait_for(waiting[1], PATIENCE))
        assert (limiter.taken, limiter.waiting) == (1, 0)
    finally:
        loop.close()


def test_a_waiter_whose_trio_run_has_ended_can_not_be_woken() -> None:
    loops: list[EventLoop] = []

    async def main() -> None:
        loops.append(EventLoop())
        assert loops[0].is_current

    trio.run(main)
    assert not loops[0].is_current
    assert not loops[0].call_soon(lambda: None)


def test_more_permits_reach_waiters_of_every_event_loop(pair: tuple[str, str]) -> None:
    limiter = SharedLimiter(1)
    assert limiter.try_acquire()

    async def wait() -> None:
        await limiter.acquire()

    async def grow() -> None:
        await eventually(lambda: limiter.waiting == 2)
        limiter.resize(3)

    together(pair, wait, wait, grow)
    assert limiter.taken == 3


def test_the_limiter_of_one_event_loop_needs_none_to_be_made() -> None:
    assert Limiter(1).try_acquire()
    assert SharedLimiter(1).try_acquire()


# Events, and what is done once


def test_an_event_is_heard_of_on_every_event_loop(pair: tuple[str, str]) -> None:
    event = SharedEvent()
    waiting = threading.Semaphore(0)

    async def wait() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(event.wait)
            await checkpoint()
            waiting.release()

    async def happen() -> None:
        for _ in range(4):
            await anyio.to_thread.run_sync(waiting.acquire)
        event.set()
        event.set()
        await event.wait()

    together(pair, *[wait] * 4, happen)
    assert not event._waiting


def test_an_agent_is_configured_once_for_all_event_loops(pair: tuple[str, str], restless: None) -> None:
    asked = threading.Event()
    go = threading.Event()

    async def take(event: object) -> None:
        asked.set()
        await anyio.to_thread.run_sync(go.wait)

    transport = Fake(configure=take)
    manager = AgentManager([config("a", transport, config={"rules": 1})])

    async def first() -> bool:
        return (await manager.process_request_headers(REQUEST)).is_allow

    async def others() -> bool:
        await eventually(asked.is_set)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await eventually(lambda: manager.metrics["a"].in_flight >= 2 or go.is_set())
            go.set()
        return True

    assert together(pair, first, others, others) == [True, True, True]
    assert transport.configured == 1


def test_who_waits_for_a_configuration_takes_over_from_another_event_loop(pair: tuple[str, str]) -> None:
    calls: list[int] = []
    asked = threading.Event()
    waiting = threading.Event()

    async def take(event: object) -> None:
        calls.append(threading.get_ident())
        if len(calls) == 1:
            asked.set()
            await anyio.sleep_forever()

    manager = AgentManager([config("a", Fake(configure=take), config={"rules": 1})])

    async def given_up() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.process_request_headers, REQUEST)
            await eventually(waiting.is_set)
            tasks.cancel_scope.cancel()

    async def takes_over() -> AgentDecision:
        await eventually(asked.is_set)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.process_request_headers, REQUEST)
            await eventually(lambda: manager.metrics["a"].in_flight == 2)
            waiting.set()
        return await manager.process_request_headers(REQUEST)

    _, decision = together(pair, given_up, takes_over)
    assert decision.is_allow
    assert len(set(calls)) == 2


def test_one_at_a_time_is_one_of_all_threads(restless: None) -> None:
    turns = OneAtATime()
    doing: list[int] = []
    most: list[int] = []

    async def main() -> None:
        for _ in range(100):
            other = turns.begin()
            if other is not None:
                await other.wait()
                continue
            doing.append(1)
            most.append(len(doing))
            await checkpoint()
            doing.pop()
            turns.end()

    together(("asyncio", "trio"), *[main] * 4)
    assert set(most) == {1}


# Counts and breakers


def test_no_count_is_lost_between_threads(pair: tuple[str, str], restless: None) -> None:
    class Prompt(Agent):
        async def on_request_headers(self, event: Any) -> AgentResponse | None:
            return AgentResponse.block() if event.uri == "/no" else None

    manager = AgentManager([AgentConfig("a", Prompt(), circuit_breaker=None)])
    denied = replace(REQUEST, uri="/no")

    async def main() -> None:
        for _ in range(300):
            await manager.process_request_headers(REQUEST)
            await manager.process_request_headers(denied)

    together(pair, *[main] * 4)
    assert manager.metrics["a"].outcomes == {"allow": 1200, "block": 1200}
    assert manager.metrics["a"].in_flight == 0


def test_a_breaker_lets_no_more_trials_in_than_it_may_whoever_asks(restless: None) -> None:
    now = [0.0]
    breaker = SharedBreaker(
        CircuitBreakerConfig(failure_threshold=1, success_threshold=10_000, half_open_max_calls=2), clock=lambda: now[0]
    )
    generation = breaker.acquire()
    assert generation is not None
    breaker.failure(generation)
    now[0] = 1000.0
    most: list[int] = []

    def trial() -> None:
        for _ in range(500):
            acquired = breaker.acquire()
            if acquired is not None:
                most.append(breaker.trials)
                breaker.success(acquired)

    with ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(trial) for _ in range(4)]:
            each.result()
    assert most
    assert max(most) <= 2
    assert (breaker.state, breaker.trials) == (BreakerState.HALF_OPEN, 0)


# Connections


def serve_peer(peer: Peer, ready: threading.Event, over: threading.Event) -> None:
    async def main() -> None:
        async with peer.listening():
            ready.set()
            await anyio.to_thread.run_sync(over.wait)

    anyio.run(main)


@pytest.fixture
def peer() -> Iterator[Peer]:
    """An agent that runs beside the event loops of the test."""
    made = Peer(behaviour=lambda event: event.answer())
    ready, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=serve_peer, args=(made, ready, over))
    thread.start()
    ready.wait(PATIENCE)
    yield made
    over.set()
    thread.join(PATIENCE)


def test_each_event_loop_has_connections_of_its_own_and_closes_them(pair: tuple[str, str], peer: Peer) -> None:
    manager = AgentManager([agent(peer)])
    step = threading.Barrier(2)
    left = threading.Event()

    async def entered(then: Main) -> bool:
        async with manager:
            decisions = await at_once(10, lambda: manager.process_request_headers(REQUEST))
            await anyio.to_thread.run_sync(step.wait)
            assert manager.statistics()["waf"].connections == 1
            await then()
            return all(decision.is_allow for decision in decisions)

    async def first() -> bool:
        async def leave() -> None:
            pass

        result = await entered(leave)
        # What is left belongs to the other.
        await eventually(lambda: len(peer.links) == 1)
        left.set()
        return result

    async def second() -> bool:
        async def go_on() -> None:
            await eventually(left.is_set)
            assert (await manager.process_request_headers(REQUEST)).is_allow
            assert manager.statistics()["waf"].connections == 1

        return await entered(go_on)

    assert together(pair, first, second) == [True, True]
    assert peer.accepted == 2


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_an_agent_that_is_retired_on_one_event_loop_is_closed_on_all(
    pair: tuple[str, str], peer: Peer, change: str
) -> None:
    manager = AgentManager([agent(peer)])
    client = registry_of(manager).guard("waf").client
    assert isinstance(client, StreamClient)
    step = threading.Barrier(2)
    gone = threading.Event()

    async def stay() -> None:
        await manager.process_request_headers(REQUEST)
        await anyio.to_thread.run_sync(step.wait)
        await eventually(lambda: client._pools.peek() is None)
        gone.set()

    async def alter() -> None:
        await manager.process_request_headers(REQUEST)
        await anyio.to_thread.run_sync(step.wait)
        if change == "replace":
            await manager.replace_agent(config("waf", Fake()))
        else:
            await manager.remove_agent("waf")
        await eventually(gone.is_set)

    together(pair, stay, alter)
    assert not client._pools._loops


@pytest.mark.slow
def test_agents_come_and_go_on_one_event_loop_while_others_serve(pair: tuple[str, str], restless: None) -> None:
    """Nobody meets an agent that is not there any more, or a route that is half resolved."""
    manager = AgentManager([config("a", Fake())])
    over = threading.Event()

    async def ask() -> int:
        count = 0
        while not over.is_set():
            decision = await manager.process_request_headers(REQUEST)
            assert decision.is_allow, decision
            assert decision.verdicts[0].agent_id == "a"
            manager.get_agents_for_event(EventType.REQUEST_HEADERS)
            count += 1
        return count

    async def change() -> int:
        try:
            for number in range(30):
                await manager.add_agent(config(f"x{number}", Fake(), config=1))
                await manager.replace_agent(config("a", Fake()))
                await manager.remove_agent(f"x{number}")
        finally:
            over.set()
        return 1

    assert all(together(pair, ask, change, ask))
    assert manager.agent_ids == ("a",)
    assert not registry_of(manager)._leaving
    assert all(resolved_route.connections == 0 for resolved_route in registry_of(manager)._retired)


def test_an_agent_that_is_added_on_one_event_loop_is_asked_again_on_those_that_run(pair: tuple[str, str]) -> None:
    """The one that has added it may be gone by then."""
    entered, added = threading.Event(), threading.Event()
    transport = Fake()

    async def refuse_once(event: object) -> AgentResponse | None:
        return AgentResponse.block() if transport.configured == 1 else None

    transport.configure = refuse_once
    manager = AgentManager([])

    async def runs() -> None:
        async with manager:
            await eventually(lambda: registry_of(manager).lifecycle._watchers)
            entered.set()
            await eventually(added.is_set)
            await eventually(lambda: registry_of(manager).guard("a").configured)

    async def adds() -> None:
        await eventually(entered.is_set)
        await manager.add_agent(config("a", transport, config=1))
        added.set()

    together(pair, runs, adds)
    assert transport.configured == 2


NOT_ENTERED = "AgentManager: it is left on an event loop on which it was not entered"


def test_what_is_left_on_another_event_loop_is_closed_where_it_was_entered(pair: tuple[str, str]) -> None:
    entered, left = threading.Event(), threading.Event()
    transport = Fake()
    manager = AgentManager([config("a", transport)])

    async def enter() -> None:
        await manager.__aenter__()
        entered.set()
        await eventually(lambda: transport.closed)
        assert not registry_of(manager).lifecycle._users.loops

    async def leave() -> None:
        await eventually(entered.is_set)
        with pytest.raises(RuntimeError, match=NOT_ENTERED):
            await manager.__aexit__(None, None, None)
        left.set()

    together(pair, enter, leave)
    assert left.is_set()
    assert transport.closed == 1


def test_what_is_left_after_its_event_loop_has_ended_counts_no_more(pair: tuple[str, str]) -> None:
    manager = AgentManager([config("a", Fake())])

    async def leave() -> None:
        with pytest.raises(RuntimeError, match=NOT_ENTERED):
            await manager.__aexit__(None, None, None)

    run(pair[0], manager.__aenter__)
    run(pair[1], leave)
    assert not registry_of(manager).lifecycle._users.loops
    assert not registry_of(manager).lifecycle._users._entered


def test_of_several_event_loops_that_have_entered_none_is_left_by_another(pair: tuple[str, str]) -> None:
    transport = Fake()
    manager = AgentManager([config("a", transport)])
    everyone, tried = threading.Barrier(3), threading.Event()

    async def use() -> None:
        async with manager:
            await anyio.to_thread.run_sync(everyone.wait)
            await eventually(tried.is_set)
            assert transport.closed == 0
            await anyio.to_thread.run_sync(everyone.wait)

    async def leave() -> None:
        await anyio.to_thread.run_sync(everyone.wait)
        with pytest.raises(RuntimeError, match=NOT_ENTERED):
            await manager.__aexit__(None, None, None)
        tried.set()
        await anyio.to_thread.run_sync(everyone.wait)

    together(pair, use, leave, use)
    assert transport.closed == 2
