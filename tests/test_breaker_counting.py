"""What counts for a breaker while it is closed: failures in a row, and the failure rate."""

from typing import Any

import pytest

from asgi_agents.breaker import BreakerState
from asgi_agents.breaker.failure_window import BUCKETS, FailureWindow

from .test_breaker import Rig

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def in_a_row(threshold: int = 2, **config: Any) -> Rig:
    """A breaker that looks at failures in a row alone."""
    return Rig(failure_threshold=threshold, failure_rate=None, **config)


def by_rate(**config: Any) -> Rig:
    """A breaker that looks at the failure rate alone."""
    return Rig(**{"failure_threshold": 1_000_000, "failure_rate": 0.5, "minimum_calls": 4, "window": 10.0} | config)


# In a row


@pytest.mark.parametrize("number", [2, 5, 1000])
def test_failures_of_calls_that_overlap_count_once_in_a_row(number: int) -> None:
    rig = in_a_row(threshold=2)

    for began in [rig.call() for _ in range(number)]:
        rig.breaker.failure(began)
        rig.clock.now += 0.001
    assert rig.breaker.state is CLOSED

    rig.fail()
    assert rig.breaker.state is OPEN


def test_calls_that_overlap_one_after_another_count_where_the_last_that_counted_had_ended() -> None:
    """Of three calls each overlaps the next: the first and the third follow each other."""
    rig = in_a_row(threshold=2)
    first, second = rig.call(), rig.call()

    rig.breaker.failure(first)
    third = rig.call()
    rig.breaker.failure(second)
    assert rig.breaker.state is CLOSED
    rig.breaker.failure(third)

    assert rig.breaker.state is OPEN


def test_a_failure_of_a_call_that_began_before_the_latest_success_does_not_count_in_a_row() -> None:
    rig = in_a_row(threshold=1)
    slow = rig.call()

    rig.succeed()
    rig.breaker.failure(slow)

    assert rig.breaker.state is CLOSED


def test_a_success_ends_the_row_also_if_its_call_began_before_the_failures() -> None:
    rig = in_a_row(threshold=2)
    slow = rig.call()

    rig.fail()
    rig.breaker.success(slow)
    rig.fail()

    assert rig.breaker.state is CLOSED


def test_failures_at_the_same_time_follow_each_other_if_their_calls_did() -> None:
    """A clock may be coarser than a call."""
    rig = in_a_row(threshold=5)

    rig.fail(5)

    assert rig.breaker.state is OPEN


def test_trials_that_overlap_are_judged_by_the_first_failure() -> None:
    rig = in_a_row(threshold=5, half_open_max_calls=3, success_threshold=3)
    rig.half_open()
    trials = [rig.call() for _ in range(3)]

    rig.breaker.success(trials[0])
    rig.breaker.failure(trials[1])

    assert rig.breaker.state is OPEN


# The failure rate


def test_an_outage_of_calls_that_overlap_opens_it_by_the_rate() -> None:
    rig = Rig()

    calls = [rig.call() for _ in range(20)]
    for began in calls[:19]:
        rig.breaker.failure(began)
    assert rig.breaker.state is CLOSED
    rig.breaker.failure(calls[19])

    assert rig.breaker.state is OPEN


@pytest.mark.parametrize(
    ("successes", "failures", "rate", "opens"),
    [
        (2, 2, 0.5, True),
        (3, 2, 0.5, False),
        (0, 3, 0.5, False),
        (0, 4, 1.0, True),
        (1, 30, 1.0, False),
        (7, 3, 0.3, True),
        (70, 29, 0.3, False),
        (999, 1, 0.001, True),
    ],
)
def test_it_opens_at_so_many_calls_of_which_so_many_fail(
    successes: int, failures: int, rate: float, opens: bool
) -> None:
    rig = by_rate(failure_rate=rate)

    rig.succeed(successes)
    rig.fail(failures)

    assert (rig.breaker.state is OPEN) is opens


def test_a_success_never_opens_it() -> None:
    rig = by_rate(minimum_calls=4)

    rig.fail(3)
    rig.succeed()
    assert rig.breaker.state is CLOSED

    rig.fail()
    assert rig.breaker.state is OPEN


def test_calls_that_were_given_up_or_refused_are_no_part_of_the_rate() -> None:
    rig = by_rate(minimum_calls=4)

    for _ in range(100):
        rig.breaker.release(rig.call())
    rig.fail(3)
    assert rig.breaker.state is CLOSED

    rig.fail()
    assert rig.breaker.acquire() is None


@pytest.mark.parametrize("seconds", [0.001, 0.3, 10.0, 3600.0])
def test_a_call_counts_for_nine_tenths_of_the_window_and_never_for_longer_than_the_window(seconds: float) -> None:
    young, old = by_rate(window=seconds), by_rate(window=seconds)

    for rig, age in ((young, 0.8999), (old, 1.0001)):
        rig.fail(3)
        rig.clock.now += age * seconds
        rig.fail()

    assert young.breaker.state is OPEN
    assert old.breaker.state is CLOSED


def test_the_rate_says_nothing_of_before_it_was_closed() -> None:
    rig = by_rate(reset_timeout=1.0, success_threshold=1)
    rig.fail(4)
    rig.clock.now += 1.0
    rig.succeed()
    assert rig.breaker.state is CLOSED

    rig.fail(3)
    assert rig.breaker.state is CLOSED
    rig.fail()
    assert rig.breaker.state is OPEN


def test_failures_that_do_not_count_in_a_row_count_for_the_rate() -> None:
    rig = by_rate(minimum_calls=6)
    slow = [rig.call() for _ in range(3)]

    rig.succeed(3)
    for began in slow:
        rig.breaker.failure(began)

    assert rig.breaker.state is OPEN


def test_a_rate_of_none_leaves_it_to_failures_in_a_row() -> None:
    rig = in_a_row(threshold=5)

    for began in [rig.call() for _ in range(1000)]:
        rig.breaker.failure(began)

    assert rig.breaker.state is CLOSED


@pytest.mark.parametrize("seconds", [0.001, 0.1, 0.7, 10.0, 31_622_400.0])
@pytest.mark.parametrize("start", [0.0, 1e-3, 12345.678, 1e9])
def test_a_window_forgets_everything_however_long_nothing_was_counted(seconds: float, start: float) -> None:
    for idle in (1.0001, 2.0, 1e3, 1e12):
        window = FailureWindow(seconds, start)
        window.fail()

        window.turn(start + idle * seconds, 5)

        assert window.totals(5) == (0, 0)
        assert window.totals(7) == (0, 2)


def test_a_window_takes_the_same_room_whatever_is_counted() -> None:
    window = FailureWindow(10.0, 0.0)
    for tenth in range(10_000):
        window.turn(tenth / 10, tenth)
        window.fail()

    assert all(len(held) == BUCKETS for held in vars(window).values() if isinstance(held, list))
