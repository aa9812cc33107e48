"""The counters of RateLimit in memory: bounded, whatever clients make up, and never too small."""

import math
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import parse
from limits.aio.strategies import FixedWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter

from asgi_agents import Block, RequestHeadersEvent
from asgi_agents.agents import RateLimit
from asgi_agents.agents.memory_storage import MemoryStorage
from asgi_agents.agents.shared_counts import SharedCounts
from asgi_agents.testing import request_headers_event, request_metadata

from .clock import Clock

_STRATEGIES = {"fixed-window": FixedWindowRateLimiter, "sliding-window-counter": SlidingWindowCounterRateLimiter}


def asked(ip: str = "192.0.2.7", uri: str = "/") -> RequestHeadersEvent:
    return request_headers_event(uri=uri, metadata=request_metadata(client_ip=ip))


async def passes(agent: RateLimit, event: RequestHeadersEvent) -> bool:
    return not isinstance((await agent.on_request_headers(event)).decision, Block)


def storage_of(agent: RateLimit) -> MemoryStorage:
    storage = agent._counters._limiter.storage  # type: ignore[attr-defined]
    assert isinstance(storage, MemoryStorage)
    return storage


@pytest.mark.parametrize("strategy", list(_STRATEGIES))
@pytest.mark.parametrize("limits", ["3/hour", "3/hour; 1000/day", "100/second; 3/hour"])
@pytest.mark.parametrize("flood", ["paths", "addresses", "networks"])
async def test_no_client_gets_a_new_limit_by_making_up_other_keys(
    clock: Clock, strategy: Any, limits: str, flood: str
) -> None:
    agent = RateLimit(limits, by=["ip", "path"], max_keys=50, strategy=strategy)
    login = asked(uri="/login")
    assert [await passes(agent, login) for _ in range(3)] == [True] * 3
    for number in range(1000):
        clock.now += 0.01
        match flood:
            case "paths":
                event = asked(uri=f"/{number}")
            case "addresses":
                event = asked(f"198.18.{number >> 8}.{number & 255}", "/login")
            case _:
                event = asked(f"2001:db8:{number:x}::1", "/login")
        await agent.on_request_headers(event)
        if number % 100 == 0:
            assert not await passes(agent, login)
    assert not await passes(agent, login)
    clock.now += 2 * 3600
    assert await passes(agent, login)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_memory_does_not_grow_with_the_keys_that_clients_make_up(clock: Clock) -> None:
    agent = RateLimit("5/minute; 100/hour", by=["ip", "path"], max_keys=500)
    storage = storage_of(agent)

    async def flood(start: int) -> None:
        for number in range(start, start + 1500):
            clock.now += 0.05
            await agent.on_request_headers(asked(uri=f"/{number}"))
            assert len(storage._counts) <= 500

    await flood(0)
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        await flood(1500)
        await flood(3000)
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    grown = sum(line.size_diff for line in after.compare_to(before, "filename") if "asgi_agents" in str(line.traceback))
    assert grown < 250 * 1024
    assert len(storage._ends) <= 1000
    assert len(storage._shared._windows) <= 2 * 2


async def test_counts_that_are_over_are_removed_without_a_flood(clock: Clock) -> None:
    agent = RateLimit("5/minute", max_keys=10_000)
    for number in range(1000):
        await agent.on_request_headers(asked(f"198.18.{number >> 8}.{number & 255}"))
    storage = storage_of(agent)
    assert len(storage._counts) == 1000
    clock.now += 61
    for _ in range(20):
        clock.now += 61
        for number in range(50):
            await agent.on_request_headers(asked(f"203.0.113.{number}"))
    assert len(storage._counts) <= 60
    assert len(storage._ends) <= 120
    # No live count was put away, so that none is shared.
    assert not storage._shared._windows


class Exact:
    """Counts of all keys, without bounds."""

    def __init__(self, limit: int, window: int) -> None:
        self._limit, self._window = limit, window
        self._counts: dict[str, tuple[int, float]] = {}

    def hit(self, key: str, now: float) -> bool:
        count, until = self._counts.get(key, (0, 0.0))
        if until <= now:
            count, until = 0, now + self._window
        self._counts[key] = count + 1, until
        return count < self._limit


steps = st.lists(st.tuples(st.sampled_from([0.0, 0.0, 1.0, 7.0, 31.0]), st.integers(0, 12)), min_size=1, max_size=150)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, max_keys=st.sampled_from([1, 2, 5, 100]), strategy=st.sampled_from(list(_STRATEGIES)))
async def test_no_key_passes_more_often_than_its_limit_however_little_room_there_is(
    clock: Clock, steps: list[tuple[float, int]], max_keys: int, strategy: str
) -> None:
    limit, window = 2, 60
    item = parse(f"{limit}/{window} seconds")
    bounded: RateLimiter = _STRATEGIES[strategy](MemoryStorage(max_keys))
    roomy: RateLimiter = _STRATEGIES[strategy](MemoryStorage(1000))
    exact = Exact(limit, window)
    began = clock.now
    passed: dict[str, int] = defaultdict(int)
    for seconds, number in steps:
        clock.now += seconds
        key = str(number)
        expected = await roomy.hit(item, key)
        if strategy == "fixed-window":
            assert expected == exact.hit(key, clock.now)
        found = await bounded.hit(item, key)
        passed[key] += found
        if max_keys == 100:
            # There is room for all of them.
            assert found == expected
    # Where counts are shared, a first window may end early; none begins anew before it has ended.
    most = limit * (math.floor((clock.now - began) / window) + 2)
    assert max(passed.values()) <= most


@given(
    puts=st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 9), st.floats(0.1, 60), st.sampled_from([60.0, 3600.0])),
        max_size=60,
    )
)
def test_what_is_put_away_is_never_found_smaller_while_it_holds(puts: list[tuple[int, int, float, float]]) -> None:
    shared = SharedCounts(7)
    now = 1_800_000_000.0
    known: list[tuple[str, int, float, float]] = []
    for number, count, left, expiry in puts:
        now += 5
        shared.put(str(number), count, now + left, expiry, now)
        known.append((str(number), count, now + left, expiry))
        for key, least, until, length in known:
            # The clock may be set back.
            for back in (0, 30, 7200) if until > now else ():
                found, end = shared.find(key, length, now - back)
                assert found >= least
                assert end >= until
        # Two stretches of time for each length.
        assert len(shared._windows) <= 4
    shared.clear()
    assert shared.find("1", 60.0, now) == (0, 0.0)


class Contended:
    """A lock that another thread takes whenever it is free: what it does then happens in this one."""

    def __init__(self, rival: Callable[[], object]) -> None:
        self._rival = rival
        self._held = False
        self._rival_runs = False

    def __enter__(self) -> None:
        assert not self._held, "taken twice by one thread: it would wait for ever"
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        if not self._rival_runs:
            self._rival_runs = True
            self._rival()
            self._rival_runs = False


@pytest.mark.parametrize("strategy", list(_STRATEGIES.values()))
async def test_no_more_pass_where_event_loops_in_several_threads_count(
    clock: Clock, strategy: type[RateLimiter]
) -> None:
    storage = MemoryStorage(10)
    limiter, limit = strategy(storage), parse("5/hour")
    passed: list[bool] = []

    def rival() -> None:
        with pytest.raises(StopIteration) as end:
            limiter.hit(limit, "key").send(None)
        passed.append(end.value.value)

    storage._lock = Contended(rival)  # type: ignore[assignment]
    passed += [await limiter.hit(limit, "key") for _ in range(10)]
    assert passed.count(True) == 5
