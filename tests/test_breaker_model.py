"""The breaker beside a model that keeps every call with its beginning, end and outcome, and looks them all through."""

import math
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from asgi_agents.breaker import BreakerState, CircuitBreaker
from asgi_agents.breaker.failure_window import FailureWindow
from asgi_agents.breaker.shared_breaker import SharedBreaker
from tests.support.examples import examples

from .test_breaker import Changes, Clock, Rig

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
RESET = 10.0
WINDOW = 5.0


class Call:
    """A call that was let through; ``began`` and ``ended`` are places in the order of all beginnings and ends."""

    def __init__(self, token: int | None, epoch: int, began: int, trial: bool) -> None:
        self.token = token
        self.epoch = epoch
        self.began = began
        self.trial = trial
        self.ended = math.inf
        self.ended_at = math.inf
        self.outcome = ""
        self.counted_in_row = False


class AgainstModel(RuleBasedStateMachine):
    kind: type[CircuitBreaker] = CircuitBreaker
    calls = Bundle("calls")

    @initialize(
        failure_threshold=st.integers(1, 4),
        success_threshold=st.integers(1, 3),
        half_open_max_calls=st.integers(1, 3),
        failure_rate=st.sampled_from([None, 0.2, 0.5, 1.0]),
        minimum_calls=st.integers(1, 6),
    )
    def start(self, failure_rate: float | None, **config: int) -> None:
        clock = Clock()
        # So that it takes the clock for the one that callers read.
        with patch("asgi_agents.breaker.breaker.time", SimpleNamespace(monotonic=clock)):
            self.rig = Rig(clock, self.kind, failure_rate=failure_rate, reset_timeout=RESET, window=WINDOW, **config)
        self.config = SimpleNamespace(failure_rate=failure_rate, **config)
        self.state = CLOSED
        self.epoch = 0
        self.opened_at = 0.0
        self.events = 0
        self.all: list[Call] = []
        self.changes: Changes = []

    @property
    def now(self) -> float:
        return self.rig.clock.now

    @property
    def trials(self) -> int:
        return sum(call.epoch == self.epoch and call.trial and not call.outcome for call in self.all)

    def of_today(self, outcome: str) -> list[Call]:
        return [call for call in self.all if call.epoch == self.epoch and call.outcome == outcome]

    def enter(self, state: BreakerState) -> None:
        self.changes.append((self.state, state))
        self.state = state
        self.epoch += 1
        if state is OPEN:
            self.opened_at = self.now

    def tick(self) -> None:
        if self.state is OPEN and self.now >= self.opened_at + RESET:
            self.enter(HALF_OPEN)

    def began(self, token: int | None) -> Call:
        self.events += 1
        call = Call(token, self.epoch, self.events, self.state is HALF_OPEN)
        self.all.append(call)
        return call

    def end(self, call: Call, outcome: str) -> bool:
        """Whether it says anything of today."""
        self.events += 1
        call.outcome, call.ended, call.ended_at = outcome, self.events, self.now
        return call.epoch == self.epoch

    def row_after(self, failed: Call) -> int:
        successes = self.of_today("success")
        counted = [call for call in self.of_today("failure") if call.counted_in_row]
        failed.counted_in_row = not any(failed.began < other.ended for other in successes + counted)
        latest = max((call.ended for call in successes), default=0)
        return sum(call.counted_in_row and call.ended > latest for call in [*counted, failed])

    def rate_is_too_high(self) -> bool:
        failures, successes = (
            sum(self.bucket(self.now) - self.bucket(call.ended_at) < 10 for call in self.of_today(outcome))
            for outcome in ("failure", "success")
        )
        number = failures + successes
        rate = self.config.failure_rate
        return rate is not None and number >= self.config.minimum_calls and failures / number >= rate

    def bucket(self, time: float) -> int:
        return math.floor(time / (WINDOW / 10))

    def succeed(self, call: Call) -> None:
        if (
            self.end(call, "success")
            and self.state is HALF_OPEN
            and len(self.of_today("success")) == self.config.success_threshold
        ):
            self.enter(CLOSED)

    @rule(seconds=st.sampled_from([0.25, 0.5, 2.0, 4.5, 4.75, 5.0, 9.75, 10.0]))
    def wait(self, seconds: float) -> None:
        self.rig.clock.now += seconds

    @rule(target=calls, number=st.integers(1, 4))
    def acquire(self, number: int) -> Any:
        return multiple(*(call for _ in range(number) if (call := self.acquire_one()) is not None))

    def acquire_one(self) -> Call | None:
        self.tick()
        refused = self.state is OPEN or (self.state is HALF_OPEN and self.trials >= self.config.half_open_max_calls)
        token = self.rig.breaker.acquire()
        assert (token is None) == refused
        return None if token is None else self.began(token)

    @rule(number=st.integers(1, 4))
    def succeed_at_once(self, number: int) -> None:
        """As the guard has it of hooks that can't suspend."""
        for _ in range(number):
            if self.now < self.rig.breaker.no_recent_failures_until:
                assert self.state is CLOSED
                self.rig.breaker.answered += 1
                self.succeed(self.began(None))
            elif (call := self.acquire_one()) is not None:
                assert call.token is not None
                self.rig.breaker.success(call.token)
                self.succeed(call)
                assert self.state is not CLOSED or self.now < self.rig.breaker.no_recent_failures_until, (
                    "one such call is enough"
                )

    @rule(call=consumes(calls))
    def success(self, call: Call) -> None:
        self.rig.breaker.success(call.token)  # type: ignore[arg-type]
        self.succeed(call)

    @rule(call=consumes(calls))
    def failure(self, call: Call) -> None:
        self.rig.breaker.failure(call.token)  # type: ignore[arg-type]
        if not self.end(call, "failure"):
            return
        row = self.row_after(call)
        if self.state is HALF_OPEN or row >= self.config.failure_threshold or self.rate_is_too_high():
            self.enter(OPEN)

    @rule(call=consumes(calls))
    def release(self, call: Call) -> None:
        self.rig.breaker.release(call.token)  # type: ignore[arg-type]
        self.end(call, "given up")

    @rule()
    def try_again(self) -> None:
        self.tick()
        self.rig.breaker.try_again()
        if self.state is OPEN:
            self.enter(HALF_OPEN)

    @rule()
    def look(self) -> None:
        self.tick()
        breaker = self.rig.breaker
        assert breaker.would_refuse == (
            self.state is OPEN or (self.state is HALF_OPEN and self.trials >= self.config.half_open_max_calls)
        )
        assert breaker.retry_after == (self.opened_at + RESET - self.now if self.state is OPEN else 0.0)
        assert breaker.state is self.state

    @invariant()
    def the_trials_are_those_of_the_model_and_never_too_many(self) -> None:
        assert self.rig.breaker.trials == self.trials <= self.config.half_open_max_calls

    @invariant()
    def each_change_was_told_once(self) -> None:
        assert self.rig.changes == self.changes


class SharedAgainstModel(AgainstModel):
    kind = SharedBreaker


TestAgainstModel = AgainstModel.TestCase
TestSharedAgainstModel = SharedAgainstModel.TestCase
TestAgainstModel.settings = TestSharedAgainstModel.settings = settings(
    deadline=None, max_examples=examples(300), stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow]
)


@settings(deadline=None, max_examples=examples(300))
@given(
    seconds=st.sampled_from([0.001, 0.1, 0.3, 3.7, 10.0, 86_400.0]),
    start=st.floats(0, 1e6),
    steps=st.lists(st.tuples(st.floats(0, 0.4), st.integers(0, 3), st.booleans()), max_size=60),
)
def test_a_window_counts_all_that_is_young_and_nothing_that_is_old(
    seconds: float, start: float, steps: list[tuple[float, int, bool]]
) -> None:
    """Whatever the rounding: ``steps`` are how much of the window goes by, successes, and whether a call fails."""
    now, answered = start, 0
    window = FailureWindow(seconds, now)
    ended: list[tuple[float, bool]] = []
    # What a clock of 64 bits can't tell apart.
    blur = 1e-6 * seconds
    for share, successes, fails in steps:
        now += share * seconds
        window.turn(now, answered)
        answered += successes
        ended += [(now, False)] * successes
        if fails:
            window.fail()
            ended.append((now, True))

        failures, calls = window.totals(answered)
        young = [failed for at, failed in ended if now - at < 0.9 * seconds - blur]
        kept = [failed for at, failed in ended if now - at <= seconds + blur]
        assert len(young) <= calls <= len(kept)
        assert sum(young) <= failures <= sum(kept)
