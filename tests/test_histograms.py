import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_agents.observability.histograms import BOUNDS, EXPORTED_BOUNDS, SIZE, Distribution, percentile

steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# What a bound is, and what is next to it, is where it goes wrong.
DURATIONS = st.one_of(
    st.floats(0.0, 200.0),
    st.sampled_from([*BOUNDS, *EXPORTED_BOUNDS]),
    st.sampled_from(BOUNDS).map(lambda bound: math.nextafter(bound, math.inf)),
    st.sampled_from(BOUNDS).map(lambda bound: math.nextafter(bound, 0.0)),
)
MANY = st.lists(DURATIONS, max_size=60)


def distributed(durations: Sequence[float]) -> Distribution:
    distribution = Distribution()
    for seconds in durations:
        distribution.add(seconds)
    return distribution


def bucket_of(seconds: float) -> tuple[float, float]:
    index = bisect_left(BOUNDS, seconds)
    return (BOUNDS[index - 1] if index else 0.0, BOUNDS[index] if index < len(BOUNDS) else math.inf)


def test_the_buckets_are_at_most_28_percent_apart() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert max(high / low for low, high in pairwise(BOUNDS)) <= 1.2800001
    assert len(Distribution().buckets) == SIZE == len(BOUNDS) + 1


def test_exported_buckets_go_from_a_millisecond_to_ten_seconds() -> None:
    assert (EXPORTED_BOUNDS[0], EXPORTED_BOUNDS[-1]) == (0.001, 10.0)
    assert list(EXPORTED_BOUNDS) == sorted(set(EXPORTED_BOUNDS))
    assert set(EXPORTED_BOUNDS) <= set(BOUNDS)


def test_nothing_has_no_percentile() -> None:
    assert percentile(Distribution().buckets, 0.5) is None


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_one_duration_is_every_percentile(fraction: float) -> None:
    found = percentile(distributed([0.03]).buckets, fraction)

    assert found is not None
    assert 0.025 <= found <= 0.032


def test_what_takes_longer_than_any_bucket_is_as_long_as_the_longest() -> None:
    assert percentile(distributed([1000.0, 5000.0]).buckets, 0.5) == 100.0


@steady
@given(st.lists(DURATIONS, min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_a_percentile_is_off_by_less_than_its_bucket(durations: list[float], fraction: float) -> None:
    found = percentile(distributed(durations).buckets, fraction)
    rank = max(1, math.ceil(fraction * len(durations)))
    low, high = bucket_of(sorted(durations)[rank - 1])

    assert found is not None
    assert low <= found <= min(high, BOUNDS[-1])


@steady
@given(st.lists(DURATIONS, min_size=1, max_size=60), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_greater_fraction_is_never_a_shorter_time(durations: list[float], one: float, other: float) -> None:
    buckets = distributed(durations).buckets
    less, more = (percentile(buckets, fraction) for fraction in sorted((one, other)))

    assert less is not None
    assert more is not None
    assert less <= more


@steady
@given(MANY)
def test_exported_buckets_count_what_was_at_most_their_bound(durations: list[float]) -> None:
    expected = [sum(seconds <= bound for seconds in durations) for bound in (*EXPORTED_BOUNDS, math.inf)]

    distribution = distributed(durations)

    assert list(distribution.exported()) == expected
    assert distribution.count == len(durations)
    assert distribution.total == pytest.approx(sum(durations))


@steady
@given(MANY, MANY)
def test_merged_distributions_are_as_if_all_had_been_added_to_one(some: list[float], more: list[float]) -> None:
    merged, other, both = distributed(some), distributed(more), distributed([*some, *more])
    merged.merge(other)

    assert (merged.count, merged.buckets) == (both.count, both.buckets)
    assert merged.total == pytest.approx(both.total)
    assert (other.count, other.buckets) == (len(more), distributed(more).buckets)


class Interrupted(list[int]):
    """Buckets of a distribution to which another thread adds in the moment that they are read."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__(distribution.buckets)
        self._distribution = distribution

    def __iter__(self) -> Iterator[int]:
        self._distribution.add(0.0005)
        return super().__iter__()


def test_no_bucket_holds_more_than_all_when_calls_are_counted_while_another_thread_exports() -> None:
    counting = distributed([0.0005])
    counting.buckets = Interrupted(counting)
    read = Distribution()
    read.merge(counting)

    counts = list(read.exported())

    assert counts == sorted(counts)
