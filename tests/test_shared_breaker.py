"""A breaker that calls in several threads share."""

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from asgi_agents import CircuitBreakerConfig
from asgi_agents.breaker import BreakerState
from asgi_agents.breaker.shared_breaker import SharedBreaker

THREADS = 4


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("failure_rate", [None, 0.5])
def test_a_success_counts_only_in_the_state_in_which_its_call_began(failure_rate: float | None) -> None:
    now = [0.0]
    breaker = SharedBreaker(
        CircuitBreakerConfig(failure_threshold=1, success_threshold=1, reset_timeout=1.0, failure_rate=failure_rate),
        clock=lambda: now[0],
    )
    early, failing = breaker.acquire(), breaker.acquire()
    assert early is not None
    assert failing is not None
    breaker.failure(failing)
    assert breaker.acquire() is None

    now[0] = 1.0
    trial = breaker.acquire()
    assert trial is not None
    assert breaker.trials == 1
    assert breaker.acquire() is None
    breaker.success(early)
    assert (breaker.state, breaker.trials, breaker.answered) == (BreakerState.HALF_OPEN, 1, 0)
    breaker.success(trial)
    assert (breaker.state, breaker.trials) == (BreakerState.CLOSED, 0)

    breaker.success(early)
    assert breaker.answered == 0
    late = breaker.acquire()
    assert late is not None
    breaker.success(late)
    assert breaker.answered == 1


@pytest.mark.parametrize("failure_rate", [None, 0.5])
def test_no_success_is_lost_between_threads(failure_rate: float | None) -> None:
    breaker = SharedBreaker(CircuitBreakerConfig(failure_rate=failure_rate))

    def work() -> None:
        for _ in range(1000):
            began = breaker.acquire()
            assert began is not None
            breaker.success(began)

    with ThreadPoolExecutor(THREADS) as threads:
        for each in [threads.submit(work) for _ in range(THREADS)]:
            each.result()
    assert breaker.answered == THREADS * 1000


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_in_other_threads_no_trial_is_lost_and_none_given_back_twice(seed: int) -> None:
    now = [0.0]
    changes: list[BreakerState] = []
    breaker = SharedBreaker(
        CircuitBreakerConfig(failure_threshold=1, success_threshold=2, reset_timeout=1.0, half_open_max_calls=3),
        clock=lambda: now[0],
        on_change=lambda old, new: changes.append(new),
    )
    trials: set[int] = set()

    def work(number: int) -> None:
        chance = random.Random(f"{seed} {number}")  # noqa: S311 - it has to be repeatable
        for _ in range(1000):
            began = breaker.acquire()
            trials.add(breaker.trials)
            now[0] += 0.01
            if began is not None:
                end = chance.choices((breaker.success, breaker.failure, breaker.release), (10, 1, 1))
                end[0](began)
            trials.add(breaker.trials)

    with ThreadPoolExecutor(THREADS) as threads:
        for each in [threads.submit(work, number) for number in range(THREADS)]:
            each.result()
    assert set(BreakerState) == set(changes)
    assert trials <= {0, 1, 2, 3}

    if breaker.state is BreakerState.CLOSED:
        began = breaker.acquire()
        assert began is not None
        breaker.failure(began)
    now[0] += 1.0
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.trials == 0
