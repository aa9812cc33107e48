from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from asgi_agents.breaker import BreakerState, CircuitBreaker
from asgi_agents.config import CircuitBreakerConfig

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

Changes = list[tuple[BreakerState, BreakerState]]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A breaker with a clock of its own, and what it told of its changes."""

    def __init__(self, **config: Any) -> None:
        self.clock = Clock()
        self.changes: Changes = []
        self.breaker = CircuitBreaker(
            CircuitBreakerConfig(**{"reset_timeout": 30.0} | config),
            clock=self.clock,
            on_change=lambda old, new: self.changes.append((old, new)),
        )

    def call(self) -> int:
        generation = self.breaker.acquire()
        assert generation is not None
        return generation

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
    rig = Rig(failure_threshold=3)

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
    rig = Rig()
    late = [rig.call() for _ in range(10)]
    for generation in late[:5]:
        rig.breaker.failure(generation)
    rig.clock.now += 10.0

    for generation in late[5:]:
        rig.breaker.failure(generation)

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

    generation = breaker.acquire()
    assert generation is not None
    breaker.failure(generation)

    assert breaker.state is OPEN
    assert 0.0 < breaker.retry_after <= 30.0


class AgainstModel(RuleBasedStateMachine):
    """The breaker beside a model of it that knows each call's whole history."""

    calls = Bundle("calls")

    @initialize(
        failure_threshold=st.integers(1, 3), success_threshold=st.integers(1, 3), half_open_max_calls=st.integers(1, 3)
    )
    def start(self, failure_threshold: int, success_threshold: int, half_open_max_calls: int) -> None:
        self.rig = Rig(
            failure_threshold=failure_threshold,
            success_threshold=success_threshold,
            half_open_max_calls=half_open_max_calls,
            reset_timeout=10.0,
        )
        self.failure_threshold = failure_threshold
        self.success_threshold = success_threshold
        self.limit = half_open_max_calls
        self.epoch = 0
        self.state = CLOSED
        self.opened_at = 0.0
        self.failures_in_a_row = 0
        self.successes = 0
        self.trials: set[int] = set()
        self.changes: Changes = []
        self.serial = 0

    def enter(self, state: BreakerState) -> None:
        self.changes.append((self.state, state))
        self.state = state
        self.epoch += 1
        self.failures_in_a_row = self.successes = 0
        self.trials = set()
        if state is OPEN:
            self.opened_at = self.rig.clock.now

    def tick(self) -> None:
        if self.state is OPEN and self.rig.clock.now >= self.opened_at + 10.0:
            self.enter(HALF_OPEN)

    @rule(seconds=st.sampled_from([0.5, 4.0, 9.5, 10.0]))
    def wait(self, seconds: float) -> None:
        self.rig.clock.now += seconds

    @rule(target=calls)
    def acquire(self) -> Any:
        self.tick()
        refused = self.state is OPEN or (self.state is HALF_OPEN and len(self.trials) >= self.limit)
        generation = self.rig.breaker.acquire()
        assert (generation is None) == refused
        if generation is None:
            return multiple()
        self.serial += 1
        if self.state is HALF_OPEN:
            self.trials.add(self.serial)
        return (self.serial, self.epoch, generation)

    @rule(call=consumes(calls))
    def success(self, call: tuple[int, int, int]) -> None:
        serial, epoch, generation = call
        self.rig.breaker.success(generation)
        if epoch != self.epoch:
            return
        self.trials.discard(serial)
        self.failures_in_a_row = 0
        self.successes += 1
        if self.state is HALF_OPEN and self.successes == self.success_threshold:
            self.enter(CLOSED)

    @rule(call=consumes(calls))
    def failure(self, call: tuple[int, int, int]) -> None:
        _, epoch, generation = call
        self.rig.breaker.failure(generation)
        if epoch != self.epoch:
            return
        self.failures_in_a_row += 1
        if self.state is HALF_OPEN or self.failures_in_a_row == self.failure_threshold:
            self.enter(OPEN)

    @rule(call=consumes(calls))
    def release(self, call: tuple[int, int, int]) -> None:
        serial, epoch, generation = call
        self.rig.breaker.release(generation)
        if epoch == self.epoch:
            self.trials.discard(serial)

    @rule()
    def look(self) -> None:
        self.tick()
        breaker = self.rig.breaker
        assert breaker.would_refuse == (
            self.state is OPEN or (self.state is HALF_OPEN and len(self.trials) >= self.limit)
        )
        assert breaker.retry_after == (self.opened_at + 10.0 - self.rig.clock.now if self.state is OPEN else 0.0)
        assert breaker.state is self.state

    @invariant()
    def the_trials_are_those_of_the_model_and_never_too_many(self) -> None:
        assert self.rig.breaker.trials == len(self.trials) <= self.limit

    @invariant()
    def each_change_was_told_once(self) -> None:
        assert self.rig.changes == self.changes


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(
    deadline=None, max_examples=200, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
