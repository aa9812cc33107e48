import math
from bisect import bisect_left
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_agents.decision import Verdict
from asgi_agents.failures import Failure, FailureKind
from asgi_agents.observability.histograms import BOUNDS, SIZE, percentile
from asgi_agents.observability.history import SLOT_SECONDS, SLOTS, History, Latency, TimeSlot, Totals
from asgi_agents.observability.metrics import Tally
from asgi_agents.protocol import AgentResponse, EventType

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

EMPTY = TimeSlot(calls=0, denials=0, failures=0, p50=None, p99=None)

ANSWERS = {"allow": AgentResponse.allow(), "block": AgentResponse.block(), "drop": AgentResponse.websocket_drop()}
OUTCOMES = (*ANSWERS, "error", "timeout", "breaker_open")

Call = tuple[float, str, float]


def verdict(outcome: str, duration: float) -> Verdict:
    response = ANSWERS.get(outcome)
    failure = None if response is not None else Failure(FailureKind(outcome), "…")
    return Verdict("waf", EventType.REQUEST_HEADERS, response, failure, True, True, duration)


def buckets_of(calls: Sequence[Call]) -> list[int]:
    """The durations of those that were answered."""
    buckets = [0] * SIZE
    for _, outcome, duration in calls:
        if outcome in ANSWERS:
            buckets[bisect_left(BOUNDS, duration)] += 1
    return buckets


def slot_of(calls: Sequence[Call]) -> TimeSlot:
    """What a slot with these calls says."""
    buckets = buckets_of(calls)
    return TimeSlot(
        calls=len(calls),
        denials=sum(outcome in ("block", "drop") for _, outcome, _ in calls),
        failures=sum(outcome not in ANSWERS for _, outcome, _ in calls),
        p50=percentile(buckets, 0.5),
        p99=percentile(buckets, 0.99),
    )


class Model:
    """Remembers every call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def slots(self, now: float) -> list[TimeSlot]:
        current = int(now // SLOT_SECONDS)
        return [
            slot_of([call for call in self.calls if int(call[0] // SLOT_SECONDS) == number])
            for number in range(current - SLOTS + 1, current + 1)
        ]

    def latency(self, now: float) -> Latency:
        first = int(now // SLOT_SECONDS) - SLOTS + 1
        buckets = buckets_of([call for call in self.calls if int(call[0] // SLOT_SECONDS) >= first])
        return Latency(p50=percentile(buckets, 0.5), p90=percentile(buckets, 0.9), p99=percentile(buckets, 0.99))


# From the same moment to hours later, and what is about a slot or about all of them.
STEPS = st.one_of(
    st.just(0.0),
    st.floats(0.0, 25.0),
    st.sampled_from([9.999, 10.0, 10.001, 590.0, 599.999, 600.0, 600.001, 610.0, 7200.0]),
    st.floats(500.0, 1500.0),
)
CALL = st.tuples(st.sampled_from(OUTCOMES), st.floats(0.0, 150.0))


@steady
@given(
    st.one_of(st.floats(0.0, 100.0), st.sampled_from([0.0, 1e6, -5.0])),
    st.lists(st.tuples(STEPS, st.one_of(CALL, st.none())), max_size=40),
    STEPS,
)
def test_it_says_the_same_as_if_every_call_were_remembered(
    start: float, steps: list[tuple[float, tuple[str, float] | None]], last: float
) -> None:
    tally, model, now = Tally("waf"), Model(), start
    for step, call in steps:
        now += step
        if call is None:
            # Looking at it in between changes nothing.
            assert list(tally.history.slots(now)) == model.slots(now)
            assert tally.history.latency(now) == model.latency(now)
        else:
            outcome, duration = call
            tally.count(verdict(outcome, duration), now)
            model.calls.append((now, outcome, duration))
    now += last

    assert tally.history.latency(now) == model.latency(now)
    assert list(tally.history.slots(now)) == model.slots(now)


def test_it_is_ten_minutes_in_slots_of_ten_seconds() -> None:
    assert SLOT_SECONDS * SLOTS == 600
    assert list(Tally("waf").history.slots(0.0)) == [EMPTY] * 60


def test_the_current_slot_is_the_last() -> None:
    tally = Tally("waf")
    tally.count(verdict("block", 0.5), 1005.0)

    *before, current = tally.history.slots(1009.9)

    assert before == [EMPTY] * 59
    assert current == slot_of([(1005.0, "block", 0.5)])


@pytest.mark.parametrize(("later", "index"), [(0.0, 59), (10.0, 58), (590.0, 0)])
def test_a_slot_moves_back_as_time_goes_by(later: float, index: int) -> None:
    tally = Tally("waf")
    tally.count(verdict("timeout", 0.5), 1005.0)

    slots = tally.history.slots(1005.0 + later)

    assert [number for number, slot in enumerate(slots) if slot.calls] == [index]
    assert slots[index].failures == 1


@pytest.mark.parametrize("later", [600.0, 605.0, 86400.0, 1e9])
def test_what_is_older_than_ten_minutes_is_forgotten(later: float) -> None:
    tally = Tally("waf")
    tally.count(verdict("error", 0.5), 1005.0)

    assert list(tally.history.slots(1005.0 + later)) == [EMPTY] * 60
    assert tally.history.latency(1005.0 + later) == Latency(p50=None, p90=None, p99=None)


def test_a_call_after_a_long_silence_is_alone() -> None:
    tally = Tally("waf")
    for number in range(100):
        tally.count(verdict("error", 5.0), 10.0 * number)
    tally.count(verdict("allow", 0.001), 100_000.0)

    slots = tally.history.slots(100_000.0)

    assert sum(slot.calls for slot in slots) == 1
    assert slots[-1].failures == 0
    latency = tally.history.latency(100_000.0)
    assert latency.p99 is not None
    assert latency.p99 <= 0.001


def test_what_it_remembers_is_bounded_however_long_it_runs() -> None:
    history = History(Totals)
    for number in range(10_000):
        history.turn(number * 10.0)

    assert len(history._ended) <= SLOTS


def test_counting_looks_at_the_time_once_in_a_slot_only() -> None:
    asked = 0

    def totals() -> Totals:
        nonlocal asked
        asked += 1
        return Totals()

    history = History(totals)
    assert history.until == -math.inf
    for number in range(1000):
        history.turn(1000.0 + number / 200)
    assert (asked, history.until) == (0, 1010.0)


def test_a_clock_that_stands_still_or_goes_back_a_little_loses_nothing() -> None:
    tally = Tally("waf")
    for now in (1005.0, 1005.0, 1004.0, 999.0):
        tally.count(verdict("block", 0.5), now)

    assert sum(slot.calls for slot in tally.history.slots(1003.0)) == 4
