from typing import Any

import pytest

from asgi_agents.breaker import BreakerState, CircuitBreaker
from asgi_agents.policy import CircuitBreakerConfig

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

Changes = list[tuple[BreakerState, BreakerState]]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A breaker with a clock of its own, and what it told of its changes."""

    def __init__(self, clock: Clock | None = None, kind: type[CircuitBreaker] = CircuitBreaker, **config: Any) -> None:
        self.clock = clock or Clock()
        self.changes: Changes = []
        self.breaker = kind(
            CircuitBreakerConfig(**{"reset_timeout": 30.0} | config),
            clock=self.clock,
            on_change=lambda old, new: self.changes.append((old, new)),
        )

    def call(self) -> int:
        began = self.breaker.acquire()
        assert began is not None
        return began

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.failure(self.call())

    def succeed(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.success(self.call())

    def open(self) -> None:
        self.fail(5)
        assert self.breaker.state is OPEN

    def half_open(self) -> None:
        self.open()
        self.clock.now += 30.0
        assert self.breaker.state is HALF_OPEN


def test_a_new_breaker_lets_everything_through() -> None:
    rig = Rig()

    for _ in range(1000):
        rig.call()

    assert rig.breaker.state is CLOSED
    assert rig.breaker.retry_after == 0.0
    assert rig.breaker.trials == 0
    assert not rig.breaker.would_refuse
    assert rig.changes == []


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_it_opens_after_exactly_so_many_failures_in_a_row(threshold: int) -> None:
    rig = Rig(failure_threshold=threshold)

    rig.fail(threshold - 1)
    assert rig.breaker.state is CLOSED
    assert not rig.breaker.would_refuse

    rig.fail()
    assert rig.breaker.state is OPEN
    assert rig.breaker.would_refuse
    assert rig.breaker.acquire() is None
    assert rig.changes == [(CLOSED, OPEN)]


def test_a_success_starts_the_count_of_failures_anew() -> None:
    rig = Rig(failure_threshold=3, failure_rate=None)

    for _ in range(10):
        rig.fail(2)
        rig.succeed()
    assert rig.breaker.state is CLOSED

    rig.fail(3)
    assert rig.breaker.state is OPEN


def test_a_call_that_was_given_up_neither_counts_nor_starts_anew() -> None:
    rig = Rig(failure_threshold=2)

    rig.fail()
    rig.breaker.release(rig.call())
    assert rig.breaker.state is CLOSED

    rig.fail()
    assert rig.breaker.state is OPEN


@pytest.mark.parametrize(("waited", "left"), [(0.0, 30.0), (0.5, 29.5), (29.5, 0.5)])
def test_retry_after_is_what_is_left_of_the_reset_timeout(waited: float, left: float) -> None:
    rig = Rig()
    rig.open()

    rig.clock.now += waited

    assert rig.breaker.retry_after == left
    assert rig.breaker.acquire() is None


def test_time_alone_makes_an_open_breaker_half_open() -> None:
    rig = Rig()
    rig.open()

    rig.clock.now += 29.999
    assert rig.breaker.state is OPEN
    rig.clock.now += 0.001
    assert rig.breaker.state is HALF_OPEN

    assert rig.breaker.retry_after == 0.0
    assert rig.breaker.trials == 0
    assert rig.changes == [(CLOSED, OPEN), (OPEN, HALF_OPEN)]


def test_the_first_call_after_the_reset_timeout_is_a_trial_without_anyone_asking_for_the_state() -> None:
    rig = Rig()
    rig.open()
    rig.clock.now += 30.0

    rig.call()

    assert rig.breaker.trials == 1
    assert rig.breaker.acquire() is None


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_half_open_breaker_lets_only_so_many_trials_through_at_a_time(limit: int) -> None:
    rig = Rig(half_open_max_calls=limit, success_threshold=100)
    rig.half_open()

    calls = [rig.call() for _ in range(limit)]

    assert rig.breaker.trials == limit
    assert rig.breaker.would_refuse
    assert rig.breaker.acquire() is None
    assert rig.breaker.retry_after == 0.0

    rig.breaker.success(calls[0])
    assert rig.breaker.trials == limit - 1
    assert rig.breaker.acquire() is not None
    assert rig.breaker.acquire() is None


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_a_half_open_breaker_closes_after_exactly_so_many_successes(threshold: int) -> None:
    rig = Rig(success_threshold=threshold)
    rig.half_open()

    rig.succeed(threshold - 1)
    assert rig.breaker.state is HALF_OPEN

    rig.succeed()
    assert rig.breaker.state is CLOSED
    assert rig.changes == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]


def test_one_failure_opens_a_half_open_breaker_for_another_reset_timeout() -> None:
    rig = Rig(success_threshold=2)
    rig.half_open()
    rig.succeed()
    rig.clock.now += 5.0

    rig.fail()

    assert rig.breaker.state is OPEN
    assert rig.breaker.retry_after == 30.0
    rig.clock.now += 30.0
    rig.succeed()
    assert rig.breaker.state is HALF_OPEN, "successes of an earlier half-open state don't count"


def test_a_closed_breaker_starts_with_no_failures() -> None:
    rig = Rig(failure_threshold=5, success_threshold=1)
    rig.half_open()
    rig.succeed()

    rig.fail(4)

    assert rig.breaker.state is CLOSED


def test_a_trial_that_is_given_up_gives_its_slot_back_and_counts_nothing() -> None:
    rig = Rig(success_threshold=1)
    rig.half_open()

    for _ in range(10):
        rig.breaker.release(rig.call())

    assert rig.breaker.state is HALF_OPEN
    assert rig.breaker.trials == 0
    assert not rig.breaker.would_refuse


@pytest.mark.parametrize("outcome", ["success", "failure", "release"])
def test_a_call_from_before_the_breaker_opened_says_nothing_about_today(outcome: str) -> None:
    rig = Rig(success_threshold=1)
    stale = rig.call()
    rig.half_open()
    trial = rig.call()

    getattr(rig.breaker, outcome)(stale)

    assert rig.breaker.state is HALF_OPEN
    assert rig.breaker.trials == 1
    rig.breaker.success(trial)
    assert rig.breaker.state is CLOSED


@pytest.mark.parametrize("outcome", ["success", "failure", "release"])
def test_a_trial_of_an_earlier_half_open_state_says_nothing_about_today(outcome: str) -> None:
    rig = Rig(half_open_max_calls=2, success_threshold=1)
    rig.half_open()
    stale, failing = rig.call(), rig.call()
    rig.breaker.failure(failing)
    rig.clock.now += 30.0
    trial = rig.call()

    getattr(rig.breaker, outcome)(stale)

    assert rig.breaker.state is HALF_OPEN
    assert rig.breaker.trials == 1
    rig.breaker.success(trial)
    assert rig.breaker.state is CLOSED


@pytest.mark.parametrize("outcome", ["success", "failure", "release"])
def test_a_trial_that_ends_after_the_breaker_has_closed_says_nothing(outcome: str) -> None:
    rig = Rig(half_open_max_calls=2, success_threshold=1, failure_threshold=1)
    rig.fail()
    rig.clock.now += 30.0
    stale, trial = rig.call(), rig.call()
    rig.breaker.success(trial)

    getattr(rig.breaker, outcome)(stale)

    assert rig.breaker.state is CLOSED
    assert rig.breaker.trials == 0


def test_late_failures_of_calls_from_before_it_opened_do_not_put_off_the_next_trial() -> None:
    rig = Rig(failure_rate=0.5, minimum_calls=5)
    late = [rig.call() for _ in range(10)]
    for began in late[:5]:
        rig.breaker.failure(began)
    rig.clock.now += 10.0

    for began in late[5:]:
        rig.breaker.failure(began)

    assert rig.breaker.retry_after == 20.0
    assert rig.changes == [(CLOSED, OPEN)]


def test_asking_takes_nothing() -> None:
    rig = Rig()
    rig.half_open()

    for _ in range(3):
        assert not rig.breaker.would_refuse
        assert rig.breaker.trials == 0


def test_nobody_needs_to_listen() -> None:
    breaker = CircuitBreaker(CircuitBreakerConfig(failure_threshold=1))

    began = breaker.acquire()
    assert began is not None
    breaker.failure(began)

    assert breaker.state is OPEN
    assert 0.0 < breaker.retry_after <= 30.0
